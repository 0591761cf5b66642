# shellcheck shell=bash disable=SC2034,SC2154
# Cloud TPU by gcloud: what stands there, making and removing it, its workers.
# Uses JOB and TPU (lib/job.sh), and DRY_RUN.

# Seconds of a short wait, such as between two looks at a state.
readonly POLL=${POLL:-20}
# How often a creation that finds no capacity, and a worker that does not answer,
# are tried again.
readonly CREATE_TRIES=${CREATE_TRIES:-30}
readonly SSH_TRIES=${SSH_TRIES:-5}
# Looks at a node that is being made, or at a request in the queue: a week.
readonly WAIT_LOOKS=${WAIT_LOOKS:-30240}

# Runs a gcloud command; only prints it with --dry-run.
cloud() {
  if [[ $DRY_RUN == yes ]]; then
    printf '+ gcloud' >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
    return 0
  fi
  gcloud "$@"
}

_place() {
  echo "--zone=${JOB[zone]}" "--project=${JOB[project]}"
}

# Prints a field of the node, or of its request in the queue; MISSING if there is
# none. Anything but "not found" that goes wrong is an error: a node that cannot
# be seen may still cost money.
_field() {
  local kind=$1 field=$2 answer errors
  errors=$(mktemp)
  # shellcheck disable=SC2046  # two words
  if answer=$(cloud compute tpus "$kind" describe "${JOB[name]}" $(_place) \
    --format="value($field)" 2>"$errors"); then
    [[ $DRY_RUN == yes ]] && cat "$errors" >&2 && answer=MISSING
    echo "$answer"
  elif grep -qiE 'not.?found' "$errors"; then
    echo MISSING
  else
    cat "$errors" >&2
    rm -f "$errors"
    die "cannot see ${JOB[name]} in ${JOB[zone]}."
  fi
  rm -f "$errors"
}

node_state() {
  _field tpu-vm state
}

request_state() {
  _field queued-resources state.state
}

# Refuses a node of this name that this job did not make.
check_is_ours() {
  local found
  found=$(_field tpu-vm 'acceleratorType.basename(),labels.pixel_llm_job')
  [[ $found == "${TPU[accelerator_type]}"$'\t'"${JOB[name]}" ]] ||
    die "${JOB[name]} in ${JOB[zone]} is '$found', not a ${TPU[accelerator_type]} that this job made. Give the job another name, or remove it by hand."
}

# Whether this script made the node: nothing runs on it then.
made=no

# Makes the node or its request, or waits for it, until it is READY.
ensure_node() {
  local looks=0 tries=0 lonely=0 state
  while :; do
    state=$(node_state)
    case $state in
      READY)
        check_is_ours
        return
        ;;
      MISSING)
        _make_or_wait
        [[ $DRY_RUN == yes ]] && return
        ;;
      CREATING | STARTING | RESTARTING)
        check_is_ours
        say "${JOB[name]} is $state."
        ;;
      DELETING) say "${JOB[name]} is being deleted." ;;
      PREEMPTED | TERMINATED)
        check_is_ours
        say "${JOB[name]} is $state: it goes, and another comes."
        remove_node
        ;;
      *)
        die "${JOB[name]} is $state, which is for a person to mend: start or delete it, then come again."
        ;;
    esac
    looks=$((looks + 1))
    ((looks < WAIT_LOOKS)) || die "${JOB[name]} is not READY after $looks looks."
    sleep "$POLL"
  done
}

# One step towards a node where there is none. Counts in `tries` and `lonely` of
# the caller.
_make_or_wait() {
  local request=MISSING errors
  if [[ ${JOB[provisioning]} == queued* ]]; then
    request=$(request_state)
  fi
  case $request in
    MISSING) ;;
    SUSPENDED | FAILED)
      say "the request ${JOB[name]} is $request: it goes, and another comes."
      remove_node
      ;;
    ACTIVE)
      # The node shows up a moment before or after.
      lonely=$((lonely + 1))
      ((lonely < 10)) ||
        die "the request ${JOB[name]} is ACTIVE, but has no node: launch/tpu_pod.sh delete removes it."
      ;;
    *)
      say "the request ${JOB[name]} is $request."
      return
      ;;
  esac
  errors=$(mktemp)
  if _create 2> >(tee "$errors" >&2); then
    rm -f "$errors"
    made=yes
    return
  fi
  # tee may still write.
  sleep 0.1
  if grep -qi 'no more capacity\|currently unavailable\|stockout' "$errors"; then
    tries=$((tries + 1))
    rm -f "$errors"
    ((tries < CREATE_TRIES)) ||
      die "no capacity for ${TPU[accelerator_type]} in ${JOB[zone]} after $tries tries. A queued request waits its turn: provisioning = queued-spot."
    say "no capacity, try $tries of $CREATE_TRIES."
    return
  fi
  local quota=''
  grep -qi quota "$errors" && quota=" Ask for more quota, or take another zone."
  rm -f "$errors"
  die "${TPU[accelerator_type]} was not created.$quota"
}

_create() {
  local flags=("--zone=${JOB[zone]}" "--project=${JOB[project]}"
    "--accelerator-type=${TPU[accelerator_type]}"
    "--labels=pixel_llm_job=${JOB[name]}")
  [[ -n ${JOB[network]:-} ]] && flags+=("--network=${JOB[network]}")
  [[ -n ${JOB[service_account]:-} ]] &&
    flags+=("--service-account=${JOB[service_account]}")
  local version=${JOB[runtime_version]:-${TPU[runtime_version]}}
  [[ ${JOB[provisioning]} == *spot ]] && flags+=(--spot)
  if [[ ${JOB[provisioning]} == queued* ]]; then
    cloud compute tpus queued-resources create "${JOB[name]}" \
      "--node-id=${JOB[name]}" "--runtime-version=$version" "${flags[@]}"
  else
    cloud compute tpus tpu-vm create "${JOB[name]}" "--version=$version" \
      "${flags[@]}"
  fi
}

# Removes the node, and its request if there is one. Fine if there is none.
remove_node() {
  local state
  if [[ ${JOB[provisioning]} == queued* ]]; then
    state=$(request_state)
    if [[ $DRY_RUN == yes || $state != MISSING ]]; then
      # --force takes the node along.
      cloud compute tpus queued-resources delete "${JOB[name]}" --force \
        "--zone=${JOB[zone]}" "--project=${JOB[project]}" --quiet
      return
    fi
  fi
  state=$(node_state)
  if [[ $DRY_RUN == yes || $state != MISSING ]]; then
    cloud compute tpus tpu-vm delete "${JOB[name]}" \
      "--zone=${JOB[zone]}" "--project=${JOB[project]}" --quiet
  fi
}

# Runs a command on a worker, or on all of them.
on_worker() {
  local worker=$1 command=$2
  cloud compute tpus tpu-vm ssh "${JOB[name]}" "--worker=$worker" \
    "--zone=${JOB[zone]}" "--project=${JOB[project]}" --quiet \
    "--command=$command"
}

# Copies files to the home directory of every worker.
to_workers() {
  cloud compute tpus tpu-vm scp "$@" "${JOB[name]}:" --worker=all \
    "--zone=${JOB[zone]}" "--project=${JOB[project]}" --quiet
}

# Runs a command on all workers until each has told a word; status 1 if one does
# not in SSH_TRIES tries, after saying which.
on_all() {
  local word=$1 command=$2 try count answers=''
  for ((try = 1; try <= SSH_TRIES; try++)); do
    answers=$(on_worker all "$command") || true
    [[ $DRY_RUN == yes ]] && return
    count=$(grep -c "^pixel-llm-worker .* $word\$" <<<"$answers") || true
    ((count >= TPU[hosts])) && return
    say "not every worker has $word, try $try of $SSH_TRIES."
    sleep "$POLL"
  done
  name_silent
  return 1
}

# Says which workers do not answer.
name_silent() {
  local worker silent=()
  for ((worker = 0; worker < TPU[hosts]; worker++)); do
    on_worker "$worker" true >/dev/null 2>&1 || silent+=("$worker")
  done
  if ((${#silent[@]})); then
    say "of ${TPU[hosts]} workers these do not answer: ${silent[*]}."
  else
    say "all ${TPU[hosts]} workers answer, but not as they should: see above."
  fi
}
