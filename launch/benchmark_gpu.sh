#!/usr/bin/env bash
# Everything that only a GPU can show, in one command on a machine with one H100: bash launch/benchmark_gpu.sh [FOLDER]
# Needs pip install -e '.[gpu]', and for the peers a CUDA build of PyTorch with diffusers and a C++ compiler.
# Leaves a .txt (the table) of each measurement in FOLDER; goes on where one fails, and ends with 1 then.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
OUT=${1:-benchmark_gpu}
mkdir -p "$OUT"
# JAX takes memory as it needs it, so that the peer finds some.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
failed=0

# measure NAME ARGUMENTS...: one table.
measure() {
  local name=$1
  shift
  echo "== $name: veojax benchmark $*"
  python -m veojax.cli benchmark "$@" 2>"$OUT/$name.err" | tee "$OUT/$name.txt" || { failed=1; tail -n 3 "$OUT/$name.err"; }
}

ROW=(--config configs/t2va_2b.py --config.mesh.fsdp=1 --config.mesh.context=1 --config.loop.batch_size=1
  --config.pack.row_tokens=32768)
# With the kernels' largest error against float32 dense attention, on the GPU itself.
measure attention "${ROW[@]}" --what attention
measure train_2b "${ROW[@]}" --what train --profile 5
measure generate_2b "${ROW[@]}" --what generate --steps 2 --config.sampling.num_inference_steps=4 --profile 5
measure video_decode --config configs/t2va_video_vae.py --what decode
measure audio_decode --config configs/t2va_audio_vae.py --what decode

# Wan 2.1 1.3B's width, depth, heads and length; SwiGLU of as many FLOPs as its MLP with the cross-attention.
WAN=("${ROW[@]}" --config.dit.width=1536 --config.dit.depth=30 --config.dit.num_heads=12 --config.dit.mlp_width=7040)
measure wan_forward "${WAN[@]}" --what forward --peer diffusers
measure wan_train "${WAN[@]}" --what train --peer diffusers

# What each choice costs.
for REMAT in attention dots full; do
  measure "train_2b_remat_$REMAT" "${ROW[@]}" --config.dit.remat="$REMAT"
done
for FLAGS in --xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_command_buffer= --xla_gpu_autotune_level=5 \
    --xla_gpu_enable_triton_gemm=false --xla_gpu_enable_cublaslt=true; do
  XLA_FLAGS=$FLAGS measure "train_2b_${FLAGS//[^a-z_]/}" "${ROW[@]}"
done
exit $failed
