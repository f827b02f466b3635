#!/usr/bin/env bash
# Runs one process of a run, and again whenever it ends with 75 (start me again) or was killed:
#   bash launch/again.sh veojax train ...
# It ends with the codes that say there is no use in it: 0 (done), 2 (a mistake of a person), 130 (Ctrl-C); and after
# RESTARTS more starts (100). SIGTERM is passed on, and is the last thing it does; so is Ctrl-C, after which it ends with
# 130 whatever the process says. Every host of a pod runs one of these: when one process is gone, the others end with 75,
# and all meet again.
set -uo pipefail
left=${RESTARTS:-100}
stopping=
process=

# stop [CODE]: the process is told to save and end; CODE is then what this ends with.
stop() {
  stopping=${1:-last}
  kill -TERM "$process" 2>/dev/null
}
trap stop TERM
trap 'stop 130' INT
while true; do
  # Bash lets what it starts in the background ignore Ctrl-C; this one may be stopped by it before it has begun to listen.
  (trap - INT && exec "$@") &
  process=$!
  wait "$process"
  code=$?
  while kill -0 "$process" 2>/dev/null; do # a signal has ended the wait, not the process
    wait "$process"
    code=$?
  done
  [ "$stopping" != 130 ] || exit 130
  case $code in 0 | 2 | 130) exit "$code" ;; esac
  if [ -n "$stopping" ] || [ "$left" -le 0 ]; then exit "$code"; fi
  left=$((left - 1))
  echo "ended with $code: starting again" >&2
  sleep "${PAUSE:-5}"
  case $stopping in 130) exit 130 ;; last) exit "$code" ;; esac
done
