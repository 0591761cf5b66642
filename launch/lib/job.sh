# shellcheck shell=bash
# A job: what runs, with which flags, on what. Read by every launcher.

# Keys that may be repeated are arrays.
readonly JOB_LISTS=(gin_file flag env secret)
readonly JOB_KEYS=(name script model_dir max_restarts topology slices project
  zone provisioning runtime_version python service_account network image
  nodes gpus_per_node partition time root)

declare -A JOB=()
JOB_gin_file=() JOB_flag=() JOB_env=() JOB_secret=()

# Reads a job's file into JOB and the arrays JOB_<list>.
read_job() {
  local file=$1 line key value number=0
  [[ -f $file ]] || die "no job file $file. Start from launch/jobs/t5_trace.job."
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    [[ $line =~ ^[[:space:]]*([a-z_]+)[[:space:]]*=[[:space:]]*(.*[^[:space:]])[[:space:]]*$ ]] ||
      die "$file:$number: '$line' is not 'key = value'."
    key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    if is_among "$key" "${JOB_LISTS[@]}"; then
      local -n list=JOB_$key
      list+=("$value")
    elif is_among "$key" "${JOB_KEYS[@]}"; then
      [[ -z ${JOB[$key]:-} ]] || die "$file:$number: $key is given twice."
      JOB[$key]=$value
    else
      die "$file:$number: no key '$key'. Known: ${JOB_LISTS[*]} ${JOB_KEYS[*]}."
    fi
  done <"$file"
  : "${JOB[script]:=t5x.train}" "${JOB[max_restarts]:=20}" "${JOB[slices]:=1}"
  : "${JOB[python]:=python3.11}"
  _check_job "$file"
}

# Refuses a job that lacks what every launcher needs, or holds what none can use.
_check_job() {
  local file=$1 key pair
  need_keys "$file" name model_dir
  ((${#JOB_gin_file[@]})) || die "$file: gin_file is missing."
  # A name of Cloud TPU, Kubernetes and SLURM alike.
  [[ ${JOB[name]} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "$file: name = ${JOB[name]}: give at most 40 of a-z, 0-9 and -, from a letter on."
  for key in max_restarts slices nodes gpus_per_node; do
    [[ -z ${JOB[$key]:-} || ${JOB[$key]} =~ ^[0-9]+$ ]] ||
      die "$file: $key = ${JOB[$key]} is not a number."
  done
  for pair in "${JOB_env[@]}"; do
    [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
      die "$file: env = $pair is not NAME=VALUE."
  done
  for key in "${JOB_secret[@]}"; do
    [[ $key =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] ||
      die "$file: secret = … takes the name of a variable, not its value."
  done
}

# Refuses a job without some keys.
need_keys() {
  local file=$1 key
  shift
  for key in "$@"; do
    [[ -n ${JOB[$key]:-} ]] || die "$file: $key is missing."
  done
}

# Sets `words` to the words of the command that every process runs, after
# `python`.
job_words() {
  local -n words_of_job=$1
  words_of_job=(-m "${JOB[script]}")
  local file
  for file in "${JOB_gin_file[@]}"; do
    words_of_job+=("--gin_file=$file")
  done
  words_of_job+=("--gin.MODEL_DIR=\"${JOB[model_dir]}\"" "${JOB_flag[@]}")
}

# Prints a text as a JSON string, which is one of YAML too.
json_string() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//$'\t'/\\t}"
}

# Sets what a TPU topology is called: TPU[kind chips hosts chips_per_host
# accelerator_type runtime_version gke_accelerator size].
declare -A TPU=()
read_topology() {
  local text=$1 size part chips=1 cores=1
  [[ $text =~ ^(v4|v5e|v5p|v6e):([0-9]+(x[0-9]+){1,2})$ ]] ||
    die "topology = $text: give v4, v5e, v5p or v6e and the chips along each dimension, as v5e:8x8."
  TPU=([kind]=${BASH_REMATCH[1]} [size]=${BASH_REMATCH[2]})
  size=${TPU[size]}
  for part in ${size//x/ }; do
    chips=$((chips * part))
  done
  case ${TPU[kind]} in
    v4)
      TPU[gke_accelerator]=tpu-v4-podslice
      TPU[runtime_version]=tpu-ubuntu2204-base
      cores=2
      ;;
    v5e)
      TPU[gke_accelerator]=tpu-v5-lite-podslice
      TPU[runtime_version]=v2-alpha-tpuv5-lite
      ;;
    v5p)
      TPU[gke_accelerator]=tpu-v5p-slice
      TPU[runtime_version]=v2-alpha-tpuv5
      cores=2
      ;;
    v6e)
      TPU[gke_accelerator]=tpu-v6e-slice
      TPU[runtime_version]=v2-alpha-tpuv6e
      ;;
  esac
  # Hosts of v5e and v6e hold up to eight chips, but four in larger slices.
  TPU[chips_per_host]=4
  if [[ ${TPU[kind]} == v[56]e ]] && ((chips <= 8)); then
    TPU[chips_per_host]=$chips
  fi
  TPU[chips]=$chips
  TPU[hosts]=$((chips / TPU[chips_per_host]))
  local type=${TPU[kind]}
  [[ $type == v5e ]] && type=v5litepod
  TPU[accelerator_type]=$type-$((chips * cores))
  [[ $size == "$(_shape_of "${TPU[kind]}" "$chips")" ]] ||
    die "topology = $text: ${TPU[accelerator_type]} has the shape $(_shape_of "${TPU[kind]}" "$chips")."
}

# Prints the shape that the cloud gives so many chips: as near to a cube as
# doublings make it.
_shape_of() {
  local kind=$1 chips=$2 product place smallest
  local sizes=(2 2 1)
  [[ $kind == v[56]e ]] && sizes=(1 1)
  while :; do
    product=1
    for place in "${!sizes[@]}"; do
      product=$((product * sizes[place]))
      # The last of the smallest.
      ((place == 0 || sizes[place] <= sizes[smallest])) && smallest=$place
    done
    ((product >= chips)) && break
    sizes[smallest]=$((sizes[smallest] * 2))
  done
  local IFS=x
  echo "${sizes[*]}"
}
