#!/usr/bin/env bash
# Prints a job as a JobSet for GKE, also for clusters that XPK made.
#
#   launch/gke.sh JOB | kubectl apply --filename=-
#
# Statuses that come again fail the JobSet at once; all others, and lost nodes,
# start it again, max_restarts times (docs/survival.md). Secrets are keys of the
# Kubernetes secret that has the job's name.
# RefA: jobset.sigs.k8s.io, failure policy; kubernetes.io, pod failure policy.
# RefB: cloud.google.com/kubernetes-engine, TPU node selectors.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/lib/status.sh
source "$root/launch/lib/status.sh"
# shellcheck source=launch/lib/job.sh
source "$root/launch/lib/job.sh"

[[ $# == 1 ]] || die 'usage: launch/gke.sh JOB | kubectl apply --filename=-'
read_job "$1"
need_keys "$1" topology image
read_topology "${JOB[topology]}"

job_words=()
job_words job_words
final=$(IFS=, && echo "${FINAL_STATUSES[*]}")

cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${JOB[name]}
  annotations:
    # A slice is one node pool.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${JOB[max_restarts]}
    rules:
      - name: comes-again
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: ${JOB[slices]}
      template:
        spec:
          backoffLimit: 0
          completionMode: Indexed
          completions: ${TPU[hosts]}
          parallelism: ${TPU[hosts]}
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: run
                  operator: In
                  values: [$final]
          template:
            spec:
              restartPolicy: Never
              # A step and a save.
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: ${TPU[gke_accelerator]}
                cloud.google.com/gke-tpu-topology: ${TPU[size]}
END
if [[ ${JOB[provisioning]:-} == *spot ]]; then
  echo '                cloud.google.com/gke-spot: "true"'
fi
cat <<END
              containers:
                - name: run
                  image: $(json_string "${JOB[image]}")
                  command:
                    - python
END
for word in "${job_words[@]}"; do
  echo "                    - $(json_string "$word")"
done
if ((${#JOB_env[@]} + ${#JOB_secret[@]})); then
  echo '                  env:'
fi
for pair in "${JOB_env[@]}"; do
  echo "                    - name: ${pair%%=*}"
  echo "                      value: $(json_string "${pair#*=}")"
done
for name in "${JOB_secret[@]}"; do
  cat <<END
                    - name: $name
                      valueFrom:
                        secretKeyRef:
                          name: ${JOB[name]}
                          key: $name
END
done
cat <<END
                  resources:
                    limits:
                      google.com/tpu: ${TPU[chips_per_host]}
END
