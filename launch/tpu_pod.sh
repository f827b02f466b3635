#!/usr/bin/env bash
# A run on a Cloud TPU pod, by queued resources and ssh:
#   NAME=mine ZONE=us-east5-a TYPE=v5p-128 RUNTIME=v2-alpha-tpuv5 bash launch/tpu_pod.sh \
#     veojax train --config configs/t2va_14b.py --workdir gs://BUCKET/run --config.data=DATA
# Needs gcloud, logged in, with a project that has the TPU API and quota. Asks for the pod and waits until it is there,
# installs the committed state of this checkout on every host, and runs the command on all of them; when the pod is
# taken away (SPOT=1 asks for one that may be), asks for another and goes on from the last checkpoint. The command is one
# of several processes: train, generate, evaluate or sweep. The pod stays when the run has ended:
#   gcloud compute tpus queued-resources delete "$NAME" --zone "$ZONE" --force
#
# The work directory must be where all hosts see it: gs://, or a mounted file system. So must DATA: a mounted bucket, or
# a copy on every host; SETUP is a command that each host runs first: SETUP='mkdir -p data && gcsfuse BUCKET data'.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${NAME:?a name for the pod}" "${ZONE:?such as us-east5-a}" "${TYPE:?such as v5p-128}"
: "${RUNTIME:?such as v2-alpha-tpuv5, v2-alpha-tpuv5-lite or v2-alpha-tpuv6e}"
[ $# -gt 0 ] || { echo 'give the command to run, such as: veojax train --config ... --workdir gs://...' >&2; exit 2; }
command=$(printf '%q ' "$@")
left=${RETRIES:-3} # while the pod stays
prepared=

pod() { gcloud compute tpus queued-resources "$@" --zone "$ZONE"; }
hosts() { gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"; }
state() { pod describe "$NAME" --format='value(state.state)' 2>/dev/null || true; }

prepare() {
  local archive
  archive=$(mktemp -d)/veojax.tgz
  git archive --format=tar.gz --prefix=veojax/ -o "$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME": --zone "$ZONE" --worker=all
  hosts "tar xzf veojax.tgz && cd veojax && source launch/environment.sh && environment .venv tpu && ${SETUP:-true}"
}

# What an earlier start has left holds the TPU. --coordinator auto: JAX asks the machine who its neighbours are.
run() {
  hosts "cd veojax && { pkill -f '[.]venv/bin/veojax' || true; } && \
    PATH=\$PWD/.venv/bin:\$PATH bash launch/again.sh $command --coordinator auto"
}

while true; do
  case $(state) in
    '')
      pod create "$NAME" --node-id "$NAME" --accelerator-type "$TYPE" --runtime-version "$RUNTIME" ${SPOT:+--spot}
      ;;
    ACTIVE)
      [ -n "$prepared" ] || prepare
      prepared=1
      run && exit
      [ "$(state)" = ACTIVE ] || continue
      left=$((left - 1))
      [ "$left" -ge 0 ] || { echo 'the command fails on a pod that stays; see above' >&2; exit 1; }
      ;;
    FAILED | SUSPENDED | SUSPENDING)
      prepared=
      pod delete "$NAME" --force --quiet
      ;;
  esac
  sleep 30
done
