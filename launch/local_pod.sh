#!/usr/bin/env bash
# Runs a script of t5x as N processes on this machine, with gloo between them.
#
#   launch/local_pod.sh 4 t5x.train --gin_file=gin/pixel_llm_tiny_refseg.gin \
#     --gin.MODEL_DIR='"runs/pod"'
#
# Process 0 writes to the terminal, process I to LOG_DIR/process-I.log. If one
# dies, the others have GRACE seconds to end as well, and are killed then. The
# exit status is that of the run, as docs/survival.md has them.
#
# From the environment:
#   DEVICES   CPU devices of a process, 1. The mesh is (processes, DEVICES), data
#             by model: docs/hosts.md tells how to put them all along the data.
#   GRACE     30
#   LOG_DIR   a new temporary directory
#   PYTHON    .venv/bin/python if there is one, else python3
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib/status.sh
source "$here/lib/status.sh"

usage() {
  echo 'usage: launch/local_pod.sh N MODULE [FLAG…], such as 4 t5x.train' >&2
  exit 1
}

[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] || usage
count=$1
shift
for flag in "$@"; do
  case $flag in
    --coordinator_address* | --process_count* | --process_index*)
      die "$flag is told by this script: leave it out."
      ;;
  esac
done

devices=${DEVICES:-1}
grace=${GRACE:-30}
log_dir=${LOG_DIR:-$(mktemp -d "${TMPDIR:-/tmp}/local_pod.XXXXXX")}
python=${PYTHON:-}
if [[ -z $python ]]; then
  python=python3
  [[ -x $here/../.venv/bin/python ]] && python=$here/../.venv/bin/python
fi
mkdir -p "$log_dir"

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

port=$("$python" -c '
import socket
with socket.socket() as probe:
  probe.bind(("127.0.0.1", 0))
  print(probe.getsockname()[1])')

pids=()
# Whether a signal asked this script to stop, and by hand.
asked=''

# Passes a request to stop on. In the background processes of a script SIGINT is
# ignored, so they get SIGTERM in either case, and save.
# shellcheck disable=SC2329  # traps call it
stop() {
  asked=$1
  for pid in "${pids[@]}"; do
    kill -TERM "$pid" 2>/dev/null || true
  done
}
trap 'stop TERM' TERM
trap 'stop INT' INT

kill_rest() {
  for pid in "${pids[@]}"; do
    kill -KILL "$pid" 2>/dev/null || true
  done
}
trap kill_rest EXIT

for ((index = 0; index < count; index++)); do
  command=("$python" -m "$@" "--coordinator_address=127.0.0.1:$port"
    "--process_count=$count" "--process_index=$index")
  if ((index == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" >"$log_dir/process-$index.log" 2>&1 &
  fi
  pids+=($!)
done
say "$count processes, logs in $log_dir"

statuses=()
running=("${pids[@]}")
killed_at=''
while ((${#running[@]})); do
  # A signal ends the sleep's wait, not the processes.
  sleep 0.2 &
  wait $! || true
  still=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      still+=("$pid")
      continue
    fi
    status=0
    wait "$pid" || status=$?
    for index in "${!pids[@]}"; do
      [[ ${pids[index]} == "$pid" ]] && break
    done
    if ((status)); then
      say "process $index ended with status $status"
    fi
    # What this script killed says nothing of the run.
    [[ $killed_at == yes ]] || statuses+=("$status")
    if ((status)) && [[ -z $killed_at ]]; then
      killed_at=$((SECONDS + grace))
    fi
  done
  running=("${still[@]}")
  if [[ -n $killed_at && $killed_at != yes ]] &&
    ((${#running[@]} && SECONDS >= killed_at)); then
    say "killing the ${#running[@]} that are left, after $grace s"
    killed_at=yes
    kill_rest
  fi
done
trap - EXIT

status=$(status_of_run "${statuses[@]}")
if [[ $asked == INT && $status == 75 ]]; then
  status=130
fi
if ((status)); then
  say "status $status; other logs: $log_dir"
fi
exit "$status"
