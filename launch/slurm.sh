#!/usr/bin/env bash
# Prints the batch script of a job for SLURM: one task a GPU.
#
#   launch/slurm.sh JOB | sbatch
#
# It starts the run again as docs/survival.md allows, and asks for the job back
# before its time is over. Secrets come from the environment of sbatch.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/lib/status.sh
source "$root/launch/lib/status.sh"
# shellcheck source=launch/lib/job.sh
source "$root/launch/lib/job.sh"

[[ $# == 1 ]] || die 'usage: launch/slurm.sh JOB | sbatch'
read_job "$1"
need_keys "$1" nodes gpus_per_node root

cat <<END
#!/usr/bin/env bash
#SBATCH --job-name=${JOB[name]}
#SBATCH --nodes=${JOB[nodes]}
#SBATCH --ntasks-per-node=${JOB[gpus_per_node]}
#SBATCH --gres=gpu:${JOB[gpus_per_node]}
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
END
[[ -z ${JOB[partition]:-} ]] || echo "#SBATCH --partition=${JOB[partition]}"
[[ -z ${JOB[time]:-} ]] || echo "#SBATCH --time=${JOB[time]}"

echo
echo 'set -euo pipefail'
printf 'cd %q\n' "${JOB[root]}"
echo '# shellcheck source=launch/lib/status.sh'
echo 'source launch/lib/status.sh'
for pair in "${JOB_env[@]}"; do
  printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"
done
for name in "${JOB_secret[@]}"; do
  # shellcheck disable=SC2016  # for the batch script
  printf 'export %s=${%s:?is a secret of this job, and not set}\n' "$name" "$name"
done
job_words=()
job_words job_words
echo 'command=(.venv/bin/python'
printf '  %q\n' "${job_words[@]}"
echo '  --multiprocess_gpu)'
echo "max_restarts=${JOB[max_restarts]}"

cat <<'END'

# All tasks tell how they ended, in that order: srun itself gives the highest.
export STATUSES=statuses-$SLURM_JOB_ID
asked=''
# SLURM warns this script: the tasks save and end.
trap 'asked=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

for ((restarts = 0; ; restarts++)); do
  rm -f "$STATUSES"
  # shellcheck disable=SC2016  # for the tasks
  srun --kill-on-bad-exit=0 bash -c '
    trap : TERM
    status=0
    "$@" || status=$?
    echo "$status" >>"$STATUSES"
    exit "$status"' run "${command[@]}" &
  step=$!
  # A signal ends the wait, not the step.
  while :; do
    failed=0
    wait "$step" || failed=$?
    kill -0 "$step" 2>/dev/null || break
  done
  status=$failed
  if [[ -s $STATUSES ]]; then
    mapfile -t ended <"$STATUSES"
    # A task that has told nothing was killed.
    while ((${#ended[@]} < SLURM_NTASKS)); do
      ended+=(137)
    done
    status=$(status_of_run "${ended[@]}")
  fi
  rm -f "$STATUSES"
  echo "start $((restarts + 1)) ended with status $status"
  if ! may_start_again "$status"; then
    exit "$status"
  fi
  if [[ -n $asked ]]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit "$status"
  fi
  ((restarts < max_restarts)) || exit "$status"
done
END
