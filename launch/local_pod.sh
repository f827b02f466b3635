#!/usr/bin/env bash
# Several processes of one run on this machine, over loopback (gloo on CPUs):
#   bash launch/local_pod.sh N COMMAND...   such as: 2 veojax train --config configs/quickstart.py --workdir RUN
# DEVICES=2 gives each process two CPU devices. When a process is killed, hangs, or was told to stop (exit code 75), all
# are started again, RESTARTS times at most (100); 0 ends with the first such code. LOGS=FOLDER keeps
# what each process says in a file, and its id in another, instead of printing all. Ctrl-C and SIGTERM save and end.
set -uo pipefail
number=$1
shift
left=${RESTARTS:-100}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} JAX_NUM_CPU_DEVICES=${DEVICES:-1} JAX_NUM_PROCESSES=$number
stopping=
pids=()

stop() {
  stopping=1
  kill -TERM "${pids[@]}" 2>/dev/null
}
trap stop INT TERM

free_port() {
  "${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start COMMAND...: all processes; their ids in pids.
start() {
  pids=()
  JAX_COORDINATOR_ADDRESS=127.0.0.1:$(free_port)
  export JAX_COORDINATOR_ADDRESS
  local index
  for ((index = 0; index < number; index++)); do
    if [ -n "${LOGS:-}" ]; then
      JAX_PROCESS_ID=$index "$@" >> "$LOGS/$index.log" 2>&1 &
    else
      JAX_PROCESS_ID=$index "$@" &
    fi
    pids+=($!)
    if [ -n "${LOGS:-}" ]; then echo $! > "$LOGS/$index.pid"; fi
  done
}

# finish: waits for all; the run's exit code in code. 2 and 130 speak for all, then 75; a process that was killed, or
# that found another one gone in whatever way, counts as 75. The rest are killed GRACE seconds (20) after the first has
# ended.
finish() {
  local pid status failed='' ended=''
  local -A waiting=()
  code=0
  for pid in "${pids[@]}"; do waiting[$pid]=1; done
  while [ ${#waiting[@]} -gt 0 ]; do
    for pid in "${!waiting[@]}"; do
      kill -0 "$pid" 2>/dev/null && continue
      wait "$pid"
      status=$?
      unset "waiting[$pid]"
      ended=${ended:-$SECONDS}
      case $status in
        0) ;;
        2 | 130) failed=$status ;;
        *) code=75 ;;
      esac
    done
    if [ -n "$ended" ] && [ $((SECONDS - ended)) -ge "${GRACE:-20}" ] && [ ${#waiting[@]} -gt 0 ]; then
      kill -KILL "${!waiting[@]}" 2>/dev/null
    fi
    sleep 0.1
  done
  code=${failed:-$code}
}

while true; do
  start "$@"
  finish
  if [ "$code" != 75 ] || [ -n "$stopping" ] || [ "$left" -le 0 ]; then
    exit "$code"
  fi
  left=$((left - 1))
  echo "starting all $number processes again" >&2
done
