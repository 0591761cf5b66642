# shellcheck shell=bash
# What the exit status of a script of t5x says to a launcher: docs/survival.md.

# Statuses that come again, or that a person asked for.
readonly FINAL_STATUSES=(1 74 130)
# Statuses after which the same command goes on from the last checkpoint: asked
# to stop, stuck, aborted, killed, terminated.
readonly AGAIN_STATUSES=(75 76 134 137 143)

# Tells whether the first argument is among the others.
is_among() {
  local wanted=$1 one
  shift
  for one in "$@"; do
    [[ $one == "$wanted" ]] && return 0
  done
  return 1
}

# Prints the status of a run from those of its processes, in the order in which
# they ended: 0 if all are done; else the first that a restart does not mend,
# for the others only miss that process; else the first failure.
status_of_run() {
  local status first=0
  for status in "$@"; do
    if is_among "$status" "${FINAL_STATUSES[@]}"; then
      echo "$status"
      return
    fi
    [[ $first == 0 ]] && first=$status
  done
  echo "$first"
}

# Tells whether a run may be started again after a status. What is not known
# does not come from t5x, and is left to a person.
may_start_again() {
  is_among "$1" "${AGAIN_STATUSES[@]}"
}

say() {
  echo "$(basename -- "$0"): $*" >&2
}

die() {
  say "error: $*"
  exit 1
}
