#!/usr/bin/env bash
# The model of the world for the package, veojax.load('world'): data, training on smaller clips, then on its own size
# and then on the picture most, files, scores.
#   bash launch/world_model.sh [FOLDER]
# Running it again goes on where it stopped. EXTRAS=gpu or EXTRAS=tpu installs JAX for the accelerator; without it all runs on
# the CPU. SMALL_STEPS, STEPS and PICTURE_STEPS: of the three trainings. SMALL_CLIPS and CLIPS: rendered for the first and
# for the others. START=MODEL: the first begins with that model's weights ('world': the one that comes with the package),
# not random ones. SCORED: clips that are made to be scored.
# Leaves FOLDER/model, which is what veojax/weights/world holds, and FOLDER/scores of each split.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
folder=${1:-runs/world}
environment .venv "${EXTRAS:-}"
veojax=.venv/bin/veojax

# world NAME CLIPS OPTIONS...: clips of levels L1 to L4.
world() {
  $veojax prepare --source world --output "$folder/$1" --num_clips="$2" --validation_fraction=0.0165 \
    --world.levels="('L1','L2','L3','L4')" "${@:3}"
}

world small "${SMALL_CLIPS:-12200}" --height=48 --width=48 --world.num_frames=17
$veojax train --config configs/world/model.py --workdir "$folder/small_run" --config.data="$folder/small" \
  --config.start="${START:-}" --config.pack.row_tokens=176 --config.pack.groups_per_clip=14 --config.clip.height=48 \
  --config.clip.width=48 --config.clip.num_frames=17 --config.optimizer.learning_rate=2e-3 \
  --config.optimizer.warmup_steps=50 --config.loop.num_steps="${SMALL_STEPS:-2200}"
world data "${CLIPS:-20000}"
$veojax train --config configs/world/model.py --workdir "$folder/run" --config.data="$folder/data" \
  --config.start="$folder/small_run" --config.loop.num_steps="${STEPS:-7300}"
# On from there with most of the time on the picture and on much noise. That makes things as the caption says and keeps
# them less well, and the mean of before and after does both. The latents are those of the same clips by the same codecs.
mkdir -p "$folder/picture_run"
ln -sfn ../run/latents "$folder/picture_run/latents"
$veojax train --config configs/world/model.py --workdir "$folder/picture_run" --config.data="$folder/data" \
  --config.start="$folder/run" --config.loop.num_steps="${PICTURE_STEPS:-1380}" --config.loss.timesteps=logit_normal \
  --config.loss.logit_mean=1.1 --config.loss.audio_weight=0.4 --config.tasks.generate=24 \
  --config.optimizer.learning_rate=1.4e-3 --config.optimizer.schedule=linear
.venv/bin/python -m veojax.generation.shipped "$folder/run" "$folder/picture_run" "$folder/model"

# What the tests hold the model to, then the table of its card.
$veojax evaluate --model "$folder/model" --benchmark world --num_clips=16 --seed=1 --output "$folder/fixed"
.venv/bin/python -c 'import json, sys; report = json.load(sys.stdin); del report["clips"]; print(json.dumps(report, indent=1))' \
  < "$folder/fixed/report.json" > "$folder/model/scores.json"
$veojax evaluate --model "$folder/model" --benchmark world --num_clips="${SCORED:-512}" --output "$folder/scores/seen"
for split in pairs range count length; do
  $veojax evaluate --model "$folder/model" --benchmark world --split="$split" --num_clips=$((${SCORED:-512} / 4)) \
    --output "$folder/scores/$split"
done
