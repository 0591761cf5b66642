#!/usr/bin/env bash
# Runs a job on a Cloud TPU pod until its own status says that it is done.
#
#   launch/tpu_pod.sh [--dry-run] [--keep] COMMAND JOB
#
#   up       all of it: create, install, check, run, profile, delete
#   create   the pod: on demand, spot, or by the queue; waits until it is ready
#   install  this commit on every worker
#   check    do all hosts see all chips?
#   run      starts the job, shows worker 0's log, restarts it, also on a new pod
#            where the old one was preempted
#   status   the run's status on every worker
#   logs     copies the logs of all workers to logs/NAME
#   profile  copies MODEL_DIR/profile to profiles/NAME
#   stop     asks the run to save and end
#   delete   removes the pod; refused while the run is alive, unless --force
#
# Each may be called again, and finds what is there. --dry-run prints every cloud
# command instead of running it. --keep leaves the pod at the end of `up`.
# JOB is a file such as launch/jobs/t5_trace.job; see docs/launch.md.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/lib/status.sh
source "$root/launch/lib/status.sh"
# shellcheck source=launch/lib/job.sh
source "$root/launch/lib/job.sh"

DRY_RUN=no
keep=no
force=no
words=()
for word in "$@"; do
  case $word in
    --dry-run) DRY_RUN=yes ;;
    --keep) keep=yes ;;
    --force) force=yes ;;
    -*) die "no flag $word" ;;
    *) words+=("$word") ;;
  esac
done
((${#words[@]} == 2)) || die 'usage: launch/tpu_pod.sh [--dry-run] [--keep] COMMAND JOB'
command=${words[0]}
read_job "${words[1]}"
need_keys "${words[1]}" topology project zone
read_topology "${JOB[topology]}"
: "${JOB[provisioning]:=on-demand}"
case ${JOB[provisioning]} in
  on-demand | spot | queued | queued-spot) ;;
  *) die "provisioning = ${JOB[provisioning]}: give on-demand, spot, queued or queued-spot." ;;
esac
[[ ${JOB[slices]} == 1 ]] || die "slices = ${JOB[slices]}: several take launch/gke.sh."
# What a preempted pod has written to its own disks is gone.
[[ ${JOB[model_dir]} == gs://* ]] ||
  die "model_dir = ${JOB[model_dir]}: all workers write to it, and it has to outlive them: gs://…"

# shellcheck source=launch/lib/cloud.sh
source "$root/launch/lib/cloud.sh"

# Looks for which some workers may run on after others have ended
# (docs/survival.md), or not answer.
readonly HALF_LOOKS=${HALF_LOOKS:-30}
# Seconds that the log of a run that has ended may take to arrive.
readonly LINGER=${LINGER:-3}
commit=$(git -C "$root" rev-parse HEAD)
readonly sources=pixel_llm/$commit
readonly on_it="\$HOME/$sources/launch/worker.sh"

# A run lives on with the sources that it was started from, also when this script
# comes again from another commit.
readonly run_directory=pixel_llm/runs/${JOB[name]}
readonly on_run="\$(cat $run_directory/sources)/launch/worker.sh"

check_clean() {
  [[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] ||
    die "the working tree differs from $commit: commit it, for all workers run a commit."
}

install() {
  check_clean
  local directory word pair
  directory=$(mktemp -d)
  # shellcheck disable=SC2064  # expanded now
  trap "rm -rf '$directory'" RETURN
  git -C "$root" archive --format=tar.gz --output="$directory/sources.tar.gz" HEAD ||
    die "git cannot archive $commit."
  # Shell text with all quoting done, so that no secret is on a command line.
  local job_words=()
  job_words job_words
  (
    umask 077
    {
      for pair in "${JOB_env[@]}"; do
        printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"
      done
      for word in "${JOB_secret[@]}"; do
        [[ -n ${!word:-} || $DRY_RUN == yes ]] ||
          die "secret = $word, but this variable is not set here."
        printf 'export %s=%q\n' "$word" "${!word:-}"
      done
      echo 'job_words=('
      printf '  %q\n' "${job_words[@]}"
      echo ')'
    } >"$directory/run.sh"
  ) || exit 1
  local try
  for ((try = 1; ; try++)); do
    to_workers "$directory/sources.tar.gz" "$directory/run.sh" && break
    ((try < SSH_TRIES)) || {
      name_silent
      return 1
    }
    say "not every worker took the files, try $try of $SSH_TRIES."
    sleep "$POLL"
  done
  # Tried again, it finds the files in their places.
  on_all installed "set -e; umask 077; mkdir -p $sources $run_directory
    if [ -e run.sh ]; then mv run.sh $run_directory; fi
    if [ -e sources.tar.gz ]; then
      tar -xzf sources.tar.gz -C $sources
      rm sources.tar.gz
    fi
    chmod 600 $run_directory/run.sh
    $on_it install ${JOB[python]}"
}

check() {
  on_all checked "$on_it check ${TPU[chips]}"
}

# Prints the status of each worker that answers, one a line.
statuses() {
  on_worker all "if [ -e $run_directory/sources ]
    then $on_run status ${JOB[name]}
    else echo pixel-llm-worker - none
    fi" | sed -n 's/^pixel-llm-worker [^ ]* //p'
}

# Tells whether the run lives on all workers. Refuses one that lives on some only,
# which a start would join to nothing, and one of another commit. On a pod that
# was there before, all have to answer: it may hold a run that goes well.
lives() {
  local found running others try
  [[ $made == no ]] || return 1
  for ((try = 1; ; try++)); do
    found=$(statuses) || true
    [[ $DRY_RUN == yes ]] && return 1
    (($(wc -w <<<"$found") == TPU[hosts])) && break
    ((try < SSH_TRIES)) || {
      name_silent
      die "not every worker answers: come again, or launch/tpu_pod.sh delete --force."
    }
    sleep "$POLL"
  done
  running=$(grep -c '^running$' <<<"$found") || true
  ((running == 0 || running == TPU[hosts])) ||
    die "the run lives on $running of ${TPU[hosts]} workers: launch/tpu_pod.sh stop it first."
  ((running)) || return 1
  others=$(on_worker all "cat $run_directory/sources") ||
    die 'cannot tell which commit the run is of.'
  ! grep -qv "/$commit\$" <<<"$others" ||
    die "a run of another commit lives: launch/tpu_pod.sh stop it first, or check out ${others##*/}."
}

start() {
  on_all '\(started\|running\)' "$on_it start ${JOB[name]}"
}

stop() {
  on_all stopped "if [ -e $run_directory/sources ]
    then $on_run stop ${JOB[name]}
    else echo pixel-llm-worker - stopped
    fi"
}

# Waits until the run has ended on all workers, and sets `outcome`: its status, or
# `gone` if the pod is.
watch() {
  local state found ended misses=0 half=0
  while :; do
    sleep "$POLL"
    state=$(node_state)
    [[ $state == READY || $DRY_RUN == yes ]] || {
      say "${JOB[name]} is $state."
      outcome=gone
      return
    }
    found=$(statuses) || true
    [[ $DRY_RUN == yes ]] && outcome=0 && return
    if (($(wc -w <<<"$found") != TPU[hosts])); then
      misses=$((misses + 1))
      say "not every worker answers, look $misses of $HALF_LOOKS."
      if ((misses >= HALF_LOOKS)); then
        name_silent
        outcome=gone
        return
      fi
      continue
    fi
    misses=0
    # A process that is gone without a word was killed.
    mapfile -t ended < <(sed -n 's/^lost$/137/; /^[0-9]\+$/p' <<<"$found")
    if ((${#ended[@]} == TPU[hosts])); then
      outcome=$(status_of_run "${ended[@]}")
      return
    fi
    ((${#ended[@]})) || continue
    half=$((half + 1))
    if ((half >= HALF_LOOKS)); then
      say "${#ended[@]} of ${TPU[hosts]} workers have ended, the others stand still."
      stop || true
      half=0
    fi
  done
}

# Shows worker 0's log in the background, while the run lives.
follow() {
  on_worker 0 "$on_run follow ${JOB[name]}" &
  follower=$!
}

end_follow() {
  [[ -n $follower ]] || return 0
  # For what is still on its way.
  sleep "$LINGER"
  kill "$follower" 2>/dev/null || true
  wait "$follower" 2>/dev/null || true
  follower=''
}

run() {
  local restarts=0 outcome
  follower=''
  trap end_follow EXIT
  # A run that lives is joined.
  lives || true
  while :; do
    outcome=''
    if start; then
      follow
      watch
      end_follow
    else
      outcome=gone
    fi
    if [[ $outcome == 0 ]]; then
      say 'done'
      return 0
    fi
    if [[ $outcome != gone ]] && ! may_start_again "$outcome"; then
      say "status $outcome, which comes again: see docs/survival.md."
      return "$outcome"
    fi
    restarts=$((restarts + 1))
    if ((restarts > JOB[max_restarts])); then
      say "$restarts restarts are one too many."
      [[ $outcome == gone ]] && return 1
      return "$outcome"
    fi
    say "status $outcome: restart $restarts of ${JOB[max_restarts]}."
    if [[ $outcome == gone ]]; then
      renew
    fi
  done
}

# Makes the pod anew, where the old one is preempted or does not answer.
renew() {
  local try
  for ((try = 1; ; try++)); do
    remove_node
    ensure_node
    install && check && return
    ((try < SSH_TRIES)) || die "$try pods in a row were not good."
    say 'this pod is not good: it goes, and another comes.'
  done
}

logs() {
  local worker_id
  [[ $DRY_RUN == yes ]] || mkdir -p "logs/${JOB[name]}"
  for ((worker_id = 0; worker_id < TPU[hosts]; worker_id++)); do
    cloud compute tpus tpu-vm scp \
      "${JOB[name]}:$run_directory/log" \
      "logs/${JOB[name]}/worker-$worker_id.log" "--worker=$worker_id" \
      "--zone=${JOB[zone]}" "--project=${JOB[project]}" --quiet ||
      say "no log of worker $worker_id"
  done
}

profile() {
  cloud storage ls "${JOB[model_dir]}/profile" >/dev/null 2>&1 ||
    { say 'no profile: --profile_steps makes one.' && return; }
  [[ $DRY_RUN == yes ]] || mkdir -p "profiles/${JOB[name]}"
  cloud storage cp --recursive "${JOB[model_dir]}/profile" "profiles/${JOB[name]}"
}

delete() {
  local state found
  state=$(node_state)
  if [[ $state == READY && $force == no ]]; then
    found=$(statuses) || die "cannot tell whether the run lives: --force deletes the pod anyway."
    ! grep -q '^running$' <<<"$found" ||
      die "the run is alive: launch/tpu_pod.sh stop first, or --force."
  fi
  remove_node
}

up() {
  local status=0
  check_clean
  ensure_node
  # The chips of a run that lives are not free to be checked.
  lives || { install && check; } || renew
  run || status=$?
  ((status == 0)) || logs
  profile
  if [[ $keep == no ]]; then
    remove_node
  fi
  return "$status"
}

case $command in
  up) up ;;
  create) ensure_node ;;
  install) install ;;
  check) check ;;
  run) run ;;
  status) statuses ;;
  logs) logs ;;
  profile) profile ;;
  stop) stop ;;
  delete) delete ;;
  *) die "no command $command: up create install check run status logs profile stop delete" ;;
esac
