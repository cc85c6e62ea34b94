#!/usr/bin/env bash
set -euo pipefail
usage='usage: slurm/pipeline.sh [--dry-run] [--tasks A,B] [--seeds 0,1] [--glue-dir DIR] [--model DIR] CONFIG...

Submits the stages that the CONFIGs are for, each to start when the one before it has succeeded, and prints the jobs:
  a data preparation (it has a key "sources")   data_prep (array), data_prep_finish
  a pretraining (it has a key "teacher")        pretrain, export to RUN/packed
  a finetuning recipe (any other)               finetune (array over tasks and seeds), finetune_collect
and last a report that runs however the others end. Everything is checked before anything is queued.
Stages that are done are left out, so the same command goes on after a failure.

  --dry-run       check everything, print what would be submitted, and stop
  --tasks A,B     GLUE tasks to finetune on, by name (default: cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte)
  --seeds 0,1     seeds to finetune each task with (default: 0,1,2)
  --glue-dir DIR  folder with the official GLUE files (default: GLUE_DIR of slurm/env.sh)
  --model DIR     what to finetune where no pretraining is given
  --help          print this and stop

Sizes and sbatch options of the stages: slurm/env.sh. Run it in the root of the repository.'

[ -f slurm/common.sh ] || {
  echo "error: no slurm/common.sh in $PWD; run slurm/pipeline.sh in the root of the repository" >&2
  exit 2
}
source slurm/common.sh

wrong() { # on stderr, with the exit code of a user's mistake
  echo "error: $1" >&2
  exit 2
}

dry_run='' built='' data_prep='' pretrain='' finetune='' model=''
tasks=cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte seeds=0,1,2

take_config() {
  local -n slot=$1
  [ -z "$slot" ] || wrong "$slot and $2 are both configs for $1; give one for each stage"
  slot=$2
}

while [ $# -gt 0 ]; do
  case $1 in
    --help) echo "$usage" && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --tasks | --seeds | --glue-dir | --model)
      [ $# -gt 1 ] || wrong "$1 needs a value; see --help"
      case $1 in
        --tasks) tasks=$2 ;;
        --seeds) seeds=$2 ;;
        --glue-dir) GLUE_DIR=$2 ;;
        --model) model=$2 ;;
      esac
      shift
      ;;
    -*) wrong "unknown option '$1'; see --help" ;;
    *)
      [ -f "$1" ] || wrong "config file '$1' does not exist; give YAML files, e.g. of configs/"
      if grep -q '^sources:' "$1"; then
        take_config data_prep "$1"
      elif grep -q '^teacher:' "$1"; then
        take_config pretrain "$1"
      else
        take_config finetune "$1"
      fi
      ;;
  esac
  shift
done
[ -n "$data_prep$pretrain$finetune" ] || wrong "no CONFIG; see --help"
command -v sbatch >/dev/null || wrong "no sbatch here; run this on a login node of a Slurm cluster"

# --- the configs, by the doors that will read them

if [ -n "$data_prep" ]; then
  python -m bitbert.data_prep build "$data_prep" --dry-run
  shards=$(key_of output bitbert.data_prep build "$data_prep")
  if shards_built "$data_prep"; then built=1; fi
fi
if [ -n "$pretrain" ]; then
  ranks=$((PRETRAIN_NODES * PRETRAIN_RANKS_PER_NODE))
  run=$(key_of output bitbert.pretrain "$pretrain" --ranks "$ranks")
  reads=$(key_of data.train bitbert.pretrain "$pretrain")
  if [ -n "$data_prep" ]; then
    [ "$(realpath -m "$reads")" = "$(realpath -m "$shards/train")" ] ||
      wrong "$pretrain reads data.train=$reads, but $data_prep writes $shards/train; make them one folder"
  else
    [ -f "$reads/manifest.json" ] || wrong "$pretrain reads data.train=$reads, where no shards are; build them first"
  fi
  model=$run/packed
fi
if [ -n "$finetune" ]; then
  [ -n "$model" ] || wrong "$finetune needs a model: give a pretraining config too, or --model DIR"
  [ -n "$pretrain" ] || [ -d "$model" ] || wrong "--model '$model' is not a folder; give a run or a packed checkpoint"
  IFS=, read -ra task_list <<<"$tasks"
  IFS=, read -ra seed_list <<<"$seeds"
  python -m bitbert.finetune "$model" --check --task "$tasks" --glue-dir "$GLUE_DIR" --config "$finetune" \
    --seeds "$seeds" >/dev/null
fi

# --- the stages in order: calls "$1" with the name of each, its number of array tasks (0: none) and its arguments

each_stage() {
  if [ -n "$data_prep" ]; then
    if [ -n "$built" ]; then
      [ "$1" != submit ] || echo "data_prep: $shards is built"
    else
      "$1" data_prep "$DATA_PREP_TASKS" "$data_prep"
      "$1" data_prep_finish 0 "$data_prep"
    fi
  fi
  if [ -n "$pretrain" ]; then
    if run_finished "$run"; then
      [ "$1" != submit ] || echo "pretrain: $run is finished"
    else
      "$1" pretrain 0 "$pretrain"
    fi
    "$1" export 0 "$run" "$model"
  fi
  if [ -n "$finetune" ]; then
    local arguments=("$model" "$(dirname "$model")/finetune" "$GLUE_DIR" "$tasks" "$seeds" "$finetune")
    "$1" finetune $((${#task_list[@]} * ${#seed_list[@]})) "${arguments[@]}"
    "$1" finetune_collect 0 "${arguments[@]}"
  fi
}

set_options() { # STAGE TASKS: fills the array `options`
  local -n of_stage=${1^^}_OPTIONS
  options=("${of_stage[@]}")
  if [ "$1" = pretrain ]; then
    options+=(--nodes="$PRETRAIN_NODES" --ntasks-per-node="$PRETRAIN_RANKS_PER_NODE")
  fi
  if [ "$2" -gt 0 ]; then options+=(--array="0-$(($2 - 1))"); fi
}

# Slurm's own check: an account, partition or size that does not exist is refused here and not after hours in the queue.
check() {
  set_options "$1" "$2"
  local answer
  answer=$(sbatch --test-only "${options[@]}" "slurm/$1.sbatch" "${@:3}" 2>&1) ||
    wrong "Slurm refuses the options of $1 (${options[*]}): $answer; change slurm/env.sh"
}
each_stage check
check report 0

submitted=() before=''

submit() {
  set_options "$1" "$2"
  local command=(sbatch --parsable "${options[@]}") job
  # Without --kill-on-invalid-dep the stages after a failed one would stay in the queue for ever.
  if [ -n "$before" ]; then command+=(--dependency="afterok:$before" --kill-on-invalid-dep=yes); fi
  command+=("slurm/$1.sbatch" "${@:3}")
  if [ -n "$dry_run" ]; then
    echo "${command[*]}"
    job="<$1>"
  else
    job=$("${command[@]}") || withdraw "$1"
    job=${job%%;*} # a federation adds the cluster's name
    echo "$1: job $job"
  fi
  before=$job
  submitted+=("$1:$job:$2")
}

withdraw() {
  local entry
  for entry in "${submitted[@]}"; do
    entry=${entry#*:}
    scancel "${entry%:*}"
  done
  wrong "sbatch did not take $1 (its message is above); the ${#submitted[@]} jobs submitted before it are cancelled. \
Where the queue is full, run the same command again later"
}

each_stage submit
if [ ${#submitted[@]} -eq 0 ]; then
  echo "nothing is left to do"
  exit 0
fi
before=$(printf ':%s' "${submitted[@]}" | sed -E 's/:[a-z_]+:([^:]+):[0-9]+/:\1/g')
report=(sbatch --parsable "${REPORT_OPTIONS[@]}" --dependency="afterany$before" slurm/report.sbatch "${submitted[@]}")
if [ -n "$dry_run" ]; then
  echo "${report[*]}"
else
  job=$("${report[@]}") || withdraw report
  echo "report: job ${job%%;*}, slurm/logs/report-${job%%;*}.log says how the pipeline ended"
fi
