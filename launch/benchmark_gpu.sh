#!/usr/bin/env bash
# Everything that only a GPU can show, in one command on a machine with one H100 or H200:
#   bash launch/benchmark_gpu.sh [NAME...]   such as: attention train_2b
# The most important first: attention against float32 and its speed, training, generation, a peer, codecs, ablations.
# Leaves OUT/results.jsonl (everything measured, a line each), OUT/tables.txt and OUT/errors.txt; OUT is benchmark_gpu
# by default. What OUT/results.jsonl has whole is skipped: running it again goes on, AGAIN=1 measures again. Each may take
# LIMIT seconds (240); what it has measured until then is kept. Ends with 1 where one fails, 2 where there is no GPU.
# Installs into .venv with EXTRAS=gpu13,parity (gpu: for older drivers, and without the peer, which also wants a C++
# compiler); not so where PYTHON names a Python that has all.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
source launch/environment.sh
if [ -z "${PYTHON:-}" ]; then
  environment .venv "${EXTRAS:-gpu13,parity}" || exit
  PYTHON=.venv/bin/python
fi
OUT=${OUT:-benchmark_gpu}
mkdir -p "$OUT"
export XLA_PYTHON_CLIENT_MEM_FRACTION=.95
names=" $* "
failed=0

memory=$("$PYTHON" -c 'import jax; print(jax.devices("gpu")[0].memory_stats()["bytes_limit"] >> 30)' \
  2> >(tee -a "$OUT/errors.txt" | tail -n 1 >&2)) || {
  echo "JAX sees no GPU through $PYTHON: nvidia-smi tells whether the machine has one; pip install -e '.[gpu]' brings" \
    "what JAX needs for it" >&2
  exit 2
}

# measure NAME ARGUMENTS...: one line of results and its tables, unless it is there or not asked for.
measure() {
  local name=$1
  shift
  case $names in '  ' | *" $name "*) ;; *) return ;; esac
  if [ -z "${AGAIN:-}" ] && grep -qs "^{\"name\": \"$name\", \"done\": true" "$OUT/results.jsonl"; then
    echo "== $name is in $OUT/results.jsonl"
    return
  fi
  echo "== $name: veojax benchmark $*" | tee -a "$OUT/tables.txt" "$OUT/errors.txt"
  timeout -k 10 "${LIMIT:-240}" "$PYTHON" -m veojax.cli benchmark "$@" --output "$OUT/results.jsonl" --name "$name" \
    2>>"$OUT/errors.txt" | tee -a "$OUT/tables.txt" || { failed=1; tail -n 3 "$OUT/errors.txt"; }
}

ROW=(--config configs/t2va_2b.py --config.mesh.fsdp=1 --config.mesh.context=1 --config.loop.batch_size=1
  --config.pack.row_tokens=32768)
measure attention "${ROW[@]}" --what attention
measure train_2b "${ROW[@]}" --what train --profile 5
measure generate_2b "${ROW[@]}" --what generate --steps 2 --config.sampling.num_inference_steps=4 --profile 5

# Wan 2.1 1.3B's width, depth, heads and length; SwiGLU of as many FLOPs as its MLP with the cross-attention. JAX takes
# memory as it needs it, so that the peer finds some.
WAN=("${ROW[@]}" --config.dit.width=1536 --config.dit.depth=30 --config.dit.num_heads=12 --config.dit.mlp_width=7040)
XLA_PYTHON_CLIENT_PREALLOCATE=false measure wan_train "${WAN[@]}" --what train --peer diffusers
XLA_PYTHON_CLIENT_PREALLOCATE=false measure wan_forward "${WAN[@]}" --what forward --peer diffusers

measure clip_decode "${ROW[@]}" --what decode --no_products
measure audio_decode --config configs/t2va_audio_vae.py --what decode --no_products

# What each choice costs, beside train_2b. What `dots` keeps is more than an H100 has.
ABLATION=("${ROW[@]}" --what train --steps 2 --no_products)
measure remat_full "${ABLATION[@]}" --config.dit.remat=full
if [ "$memory" -ge 100 ]; then measure remat_dots "${ABLATION[@]}" --config.dit.remat=dots; fi
for FLAG in --xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_command_buffer= \
    --xla_gpu_enable_triton_gemm=false --xla_gpu_enable_cublaslt=true; do
  name=${FLAG#--xla_gpu_enable_}
  XLA_FLAGS="${XLA_FLAGS:-} $FLAG" measure "${name%%=*}" "${ABLATION[@]}"
done
exit $failed
