#!/usr/bin/env bash
# What launch/tpu_pod.sh does on a worker of a pod, from the sources that it has
# put there: DIR/launch/worker.sh.
#
#   worker.sh install PYTHON     makes DIR/.venv, once
#   worker.sh check CHIPS        joins the other workers; do all see CHIPS chips?
#   worker.sh start NAME         starts the run in the background, once
#   worker.sh status NAME        prints `pixel-llm-worker HOST STATUS`: running, the
#                                exit status, lost (no process, no status), none
#   worker.sh follow NAME        prints the log since the start, but at most its last
#                                20,000 bytes, and goes on until the run ends
#   worker.sh stop NAME          SIGTERM, and SIGKILL after GRACE seconds (120)
#
# A run lives in ~/pixel_llm/runs/NAME: `run.sh` says what to run, secrets
# included, and is readable by its owner alone.
set -euo pipefail

sources=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/lib/status.sh
source "$sources/launch/lib/status.sh"

tell() {
  echo "pixel-llm-worker $(hostname) $*"
}

install_sources() {
  local python=$1
  if [[ ! -e $sources/.installed ]]; then
    # The cloud's images have an older Python.
    command -v "$python" >/dev/null ||
      sudo DEBIAN_FRONTEND=noninteractive apt-get install -qy "$python" "$python-venv" >&2
    rm -rf "$sources/.venv"
    "$python" -m venv "$sources/.venv"
    "$sources/.venv/bin/python" -m pip install --quiet \
      --disable-pip-version-check --constraint "$sources/constraints.txt" \
      --editable "${sources}[tpu,gcs]" >&2
    touch "$sources/.installed"
  fi
  tell installed
}

check_chips() {
  cd "$sources"
  "$sources/.venv/bin/python" -m t5x.check_devices --expected="$1"
  tell checked
}

# Tells whether the run's process lives; its number may be another's by now.
is_alive() {
  local pid
  pid=$(cat "$1/pid" 2>/dev/null) || return 1
  grep -qsz "$1" "/proc/$pid/cmdline"
}

status_of() {
  local directory=$1
  if is_alive "$directory"; then
    echo running
  elif [[ -e $directory/status ]]; then
    cat "$directory/status"
  elif [[ -e $directory/pid ]]; then
    echo lost
  else
    echo none
  fi
}

start_run() {
  local directory=$1
  if is_alive "$directory"; then
    [[ $(cat "$directory/sources") == "$sources" ]] ||
      die "$(cat "$directory/sources") runs here, not $sources: stop it first."
    tell running
    return
  fi
  [[ -e $directory/run.sh ]] || die "no $directory/run.sh: install first."
  rm -f "$directory/status" "$directory/pid"
  echo "$sources" >"$directory/sources"
  touch "$directory/log"
  stat --format=%s "$directory/log" >"$directory/log_start"
  setsid nohup "$0" run "$directory" </dev/null >>"$directory/log" 2>&1 &
  echo $! >"$directory/pid.new"
  mv "$directory/pid.new" "$directory/pid"
  tell started
}

# The background process: it outlives the connection, and keeps the status.
run_job() {
  local directory=$1 status=0
  local job_words=()
  # shellcheck source=/dev/null
  source "$directory/run.sh"
  cd "$sources"
  trap 'kill -TERM "$child" 2>/dev/null || true' TERM
  "$sources/.venv/bin/python" "${job_words[@]}" &
  local child=$!
  # A signal ends the wait, not the process.
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  echo "$status" >"$directory/status.new"
  mv "$directory/status.new" "$directory/status"
}

follow_run() {
  local directory=$1 bytes options=()
  bytes=$(($(stat --format=%s "$directory/log") - $(cat "$directory/log_start")))
  is_alive "$directory" && options=(--follow "--pid=$(cat "$directory/pid")")
  exec tail "--bytes=$((bytes < 20000 ? bytes : 20000))" "${options[@]}" \
    "$directory/log"
}

stop_run() {
  local directory=$1 pid end
  if is_alive "$directory"; then
    pid=$(cat "$directory/pid")
    kill -TERM "$pid"
    end=$((SECONDS + ${GRACE:-120}))
    while is_alive "$directory" && ((SECONDS < end)); do
      sleep 1
    done
    # Its session: the script and what it started.
    is_alive "$directory" && kill -KILL -- "-$pid"
  fi
  tell stopped
}

[[ $# -ge 2 ]] || die 'usage: worker.sh install|check|start|status|follow|stop …'
run_directory=$HOME/pixel_llm/runs/$2
case $1 in
  install) install_sources "$2" ;;
  check) check_chips "$2" ;;
  start) start_run "$run_directory" ;;
  status) tell "$(status_of "$run_directory")" ;;
  follow) follow_run "$run_directory" ;;
  stop) stop_run "$run_directory" ;;
  run) run_job "$2" ;;
  *) die "no command $1" ;;
esac
