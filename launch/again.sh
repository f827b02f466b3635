#!/usr/bin/env bash
# Runs one process of a run, and again whenever it ends with 75 (start me again) or was killed:
#   bash launch/again.sh veojax train ...
# It ends with the codes that say there is no use in it: 0 (done), 2 (a mistake of a person), 130 (Ctrl-C); and after
# RESTARTS more starts (100). SIGTERM is passed on, and is the last thing it does. Every host of a pod runs one of
# these: when one process is gone, the others end with 75, and all meet again.
set -uo pipefail
left=${RESTARTS:-100}
stopping=
trap 'stopping=1; kill -TERM "$process" 2>/dev/null' TERM
while true; do
  "$@" &
  process=$!
  wait "$process"
  code=$?
  while kill -0 "$process" 2>/dev/null; do # a signal has ended the wait, not the process
    wait "$process"
    code=$?
  done
  case $code in 0 | 2 | 130) exit "$code" ;; esac
  if [ -n "$stopping" ] || [ "$left" -le 0 ]; then exit "$code"; fi
  left=$((left - 1))
  echo "ended with $code: starting again" >&2
  sleep "${PAUSE:-5}"
done
