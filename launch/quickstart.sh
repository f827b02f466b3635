#!/usr/bin/env bash
# From nothing to a model of text, picture and sound: installs, generates a clip by the model that comes with the package,
# makes the world, trains a model, generates by that one.
#   bash launch/quickstart.sh ["a small blue metal ball falls and bounces"]
# Leaves quickstart/first.mp4, quickstart/clip.mp4 and quickstart/report.html. Running it again goes on where it stopped.
# EXTRAS=gpu or EXTRAS=tpu installs JAX for the accelerator; without it all runs on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
folder=quickstart
prompt=${1:-a large red ball falls and bounces}
mkdir -p "$folder"

# timed NAME COMMAND...: runs a step and notes its seconds for the report.
timed() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@"
  printf '%s\t%s\n' "$name" $((SECONDS - start)) >> "$folder/times.tsv"
}

timed install environment .venv "${EXTRAS:-}"
veojax=.venv/bin/veojax
timed 'first clip' $veojax generate --model world --prompt "$prompt" --output $folder/first.mp4
timed 'prepare the world' $veojax prepare --source world --output $folder/data --num_clips=4000 \
  --validation_fraction=0.03 --height=48 --width=48 --world.num_frames=17 --world.levels="('L2',)"
timed 'train the transformer' $veojax train --config configs/quickstart.py --workdir $folder/run \
  --config.data=$folder/data
timed 'generate and measure' .venv/bin/python -m veojax.evaluation.quickstart $folder/run $folder/data $folder "$prompt"
