#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# One run as N processes on this machine:
#
#   launch/local.sh N elasticface train --config FILE --workdir W [...]
#
# Each process gets --coordinator, --processes and --process behind the command.
# Process 0 writes here, the others to $LOGS. When one fails, the rest are ended
# and its code is the script's. SIGTERM and Ctrl-C stop the run in order: every
# process gets SIGTERM, saves its step and ends with code 143. Ctrl-C twice kills.
#
# Every process sees all accelerators of the machine, and on GPUs and TPUs one
# process drives them all: there, N is 1 and this script is not needed. Several
# processes on one machine are for trials on a CPU.
set -euo pipefail

# Edit, or set in the environment.
DEVICES_PER_PROCESS=${DEVICES_PER_PROCESS:-} # Fake CPU devices; unset: real ones.
LOGS=${LOGS:-}                               # Folder; unset: a new one.
GRACE=${GRACE:-60}                           # Seconds from the first end to a kill.

say() { echo "launch/local.sh: $*" >&2; }

if ! [[ ${1:-} =~ ^[1-9][0-9]*$ && $# -gt 1 ]]; then
  say 'usage: launch/local.sh N COMMAND [ARGUMENT ...]'
  exit 2
fi
processes=$1
shift

pids=()
signal_all() {
  local i
  for ((i = 0; i < ${#pids[@]}; i++)); do
    kill "-$1" -- "-${pids[i]}" 2>/dev/null || true
  done
}
trap 'signal_all KILL' EXIT
trap 'signal_all TERM' TERM HUP
trap 'signal_all TERM; trap "exit 130" INT' INT

if [ -n "$DEVICES_PER_PROCESS" ]; then
  fake=--xla_force_host_platform_device_count=$DEVICES_PER_PROCESS
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} $fake"
fi
LOGS=${LOGS:-$(mktemp -d)}
mkdir -p "$LOGS"
port=$(python3 -c '
import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')

# With job control a process leads a group of its own: one signal reaches all
# that it started, and the terminal's Ctrl-C comes to this script alone.
set -m
for ((i = 0; i < processes; i++)); do
  flags=(--coordinator "127.0.0.1:$port" --processes "$processes" --process "$i")
  if ((i == 0)); then
    "$@" "${flags[@]}" </dev/null &
  else
    "$@" "${flags[@]}" </dev/null >"$LOGS/process_$i.log" 2>&1 &
  fi
  pids+=("$!")
done
set +m

code=0
running=$processes
deadline=
ended=()
while ((running > 0)); do
  (trap '' INT && exec sleep 0.1) # Or bash would take one Ctrl-C for two.
  for ((i = 0; i < processes; i++)); do
    if [ -n "${ended[i]:-}" ] || kill -0 "${pids[i]}" 2>/dev/null; then
      continue
    fi
    ended[i]=1
    running=$((running - 1))
    status=0
    wait "${pids[i]}" 2>/dev/null || status=$?
    if ((status == 0 || code != 0)); then
      continue
    fi
    code=$status
    deadline=$((SECONDS + GRACE))
    say "process $i ended with code $code"
    # After 143 all have been told to stop, and another signal could cut off a
    # save.
    if ((code != 143)); then
      if ((i > 0)); then
        say "the end of $LOGS/process_$i.log:"
        tail -n 20 "$LOGS/process_$i.log" >&2
      fi
      signal_all TERM
    fi
  done
  if [ -n "$deadline" ] && ((SECONDS >= deadline)); then
    signal_all KILL
  fi
done
exit "$code"
