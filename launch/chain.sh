#!/usr/bin/env bash
# From public weights to the paper's tables, stage by stage.
#
#   launch/chain.sh --model t5 --root gs://bucket/t5 --weights flan-t5-xl/ \
#     --weights sam_vit_h.pth --weights eva02_l.safetensors \
#     -- --gin_file=gin/mesh/v5e.gin
#
#   weights ── trace ─┬─ ref ── masks ── refseg
#                     └─ densecap                    report (of all of them)
#
# Each stage starts from the one before it, and goes on where it was cut off:
# give the same command again. On several hosts `weights`, `masks` and `report`
# are for one of them, the others for all: name the stages; what they read must be
# there. What stands behind `--` are gin flags for every stage. docs/reproduce.md
# has the whole story.

set -euo pipefail

readonly STAGES=(weights trace ref masks refseg densecap report)

usage() {
  cat <<EOF
usage: launch/chain.sh --model t5|bert|tiny --root DIR [option…] [stage…] [-- --gin…]

stages: ${STAGES[*]} (all of them, in this order)

  --root DIR      where runs and weights go: a directory or gs://bucket/path
  --weights PATH  weights of another project, as import_weights takes them in
                  --source; repeated
  --images DIR    pictures for the report; repeated; none: no report
  --dry_run       print the commands; check and describe the runs of stages
  PYTHON          (environment) the interpreter, .venv/bin/python or python3
EOF
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints a command as a shell would read it.
show() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}

run() {
  show "$@"
  "$@"
}

# For commands whose input a dry run does not make.
run_unless_dry() {
  show "$@"
  [[ $dry_run ]] || "$@"
}

# Whether a directory holds a complete checkpoint, as a run finds it; `test -d`
# knows neither buckets nor saves that were cut off.
has_checkpoint() {
  local status=0
  "$python" -c '
import sys
from t5x import checkpoint_dirs
found = checkpoint_dirs.latest_step(sys.argv[1]) is not None
sys.exit(0 if found else 3)' "$1" || status=$?
  ((status == 0 || status == 3)) || fail "cannot look for checkpoints in $1"
  return "$status"
}

# The runs and imports that a stage reads.
inputs_of() {
  case $1 in
    trace) echo start ;;
    ref | densecap) echo trace ;;
    masks) echo ref ;;
    refseg) echo refseg_start ;;
    report) ((!${#images[@]})) || echo trace ref refseg densecap ;;
  esac
}

# The stage that makes a run or an import.
maker_of() {
  case $1 in
    start) echo weights ;;
    refseg_start) echo masks ;;
    *) echo "$1" ;;
  esac
}

# Refuses named stages whose input no earlier one made, or makes now.
check_inputs() {
  local stage input maker
  for stage in "${STAGES[@]}"; do
    is_wanted "$stage" || continue
    for input in $(inputs_of "$stage"); do
      maker=$(maker_of "$input")
      is_wanted "$maker" || has_checkpoint "$root/$input" ||
        fail "stage $stage reads $root/$input, where no checkpoint_<step> is complete." \
          "Make it with: $(command_of "$maker")"
    done
  done
}

is_wanted() { [[ " ${stages[*]} " == *" $1 "* ]]; }

# The command of one stage, with the options of this one.
command_of() {
  local words=(launch/chain.sh --model "$model" --root "$root") source
  for source in ${sources[@]+"${sources[@]}"}; do
    words+=(--weights "$source")
  done
  if ((!${#sources[@]})) && [[ $1 == weights || $1 == masks ]]; then
    words+=(--weights PATH)
  fi
  words+=("$1")
  ((!${#gin_flags[@]})) || words+=(-- "${gin_flags[@]}")
  printf '%q ' "${words[@]}"
}

recipe() { printf 'gin/pixel_llm_%s_%s.gin' "$model" "$1"; }

# import_sources RECIPE OUTPUT FLAG…: a checkpoint that the recipe starts from.
import_sources() {
  local name=$1 output=$2
  shift 2
  local command=("$python" -m pixel_llm.pretrained.import_weights
    "--gin_file=$(recipe "$name")" "$@")
  if has_checkpoint "$root/$output"; then
    echo "$root/$output is there already"
  elif [[ $dry_run && $output == start ]]; then
    run "${command[@]}"
  else
    run_unless_dry "${command[@]}" --output "$root/$output"
  fi
}

# train RECIPE START: the recipe from that start.
train() {
  run "$python" -m t5x.train --gin_file="$(recipe "$1")" \
    ${gin_flags[@]+"${gin_flags[@]}"} \
    --gin.MODEL_DIR="'$root/$1'" \
    --gin.INITIAL_CHECKPOINT_PATH="'$root/$2'" \
    ${dry_run:+--dry_run}
}

weights() {
  ((${#sources[@]})) || fail 'stage weights needs --weights, once a source'
  # The mask decoder comes in before the stage that has one.
  import_sources trace start "${sources[@]/#/--source=}" \
    ${gin_flags[@]+"${gin_flags[@]}"} '--allow_unknown=mask_decoder/.*'
}

masks() {
  ((${#sources[@]})) || fail 'stage masks needs --weights, as stage weights does'
  # What the run has is the run's; what it lacks is SAM's mask decoder.
  import_sources refseg refseg_start "--source=$root/ref" \
    "${sources[@]/#/--source=}" ${gin_flags[@]+"${gin_flags[@]}"} --first_wins
}

report() {
  if ! ((${#images[@]})); then
    echo 'no report: --images is not given'
    return
  fi
  run_unless_dry "$python" -m pixel_llm.evaluation.report \
    --model_dir "$root/trace" --model_dir "$root/ref" \
    --model_dir "$root/refseg" --model_dir "$root/densecap" \
    "${images[@]/#/--image_dir=}" --max_samples 200 \
    --output "$root/report.html"
}

model='' root='' dry_run=''
sources=() images=() stages=() gin_flags=()
while (($#)); do
  case $1 in
    --model | --root | --weights | --images)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --model) model=$2 ;;
        --root) root=${2%/} ;;
        --weights) sources+=("$2") ;;
        --images) images+=("$2") ;;
      esac
      shift
      ;;
    --dry_run) dry_run=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      gin_flags=("$@")
      break
      ;;
    -*) fail "unknown option $1; see --help" ;;
    *)
      [[ " ${STAGES[*]} " == *" $1 "* ]] ||
        fail "unknown stage '$1'; known: ${STAGES[*]}"
      stages+=("$1")
      ;;
  esac
  shift
done
[[ $root ]] || fail '--root is not given; see --help'
[[ $model =~ ^(t5|bert|tiny)$ ]] || fail "--model '$model' is none of t5, bert, tiny"
for flag in ${gin_flags[@]+"${gin_flags[@]}"}; do
  [[ $flag == --gin* ]] || fail "'$flag' behind -- is no gin flag"
done
((${#stages[@]})) || stages=("${STAGES[@]}")

[[ -f gin/runs/train.gin ]] || fail 'start it in the root of the repository'
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}

# A dry run has made nothing.
[[ $dry_run ]] || check_inputs
for stage in "${STAGES[@]}"; do
  is_wanted "$stage" || continue
  echo "==== $stage ===="
  case $stage in
    trace) train trace start ;;
    ref) train ref trace ;;
    refseg) train refseg refseg_start ;;
    densecap) train densecap trace ;;
    *) "$stage" ;;
  esac
done
