# shellcheck shell=bash
# What the jobs of this folder share. They run in the folder they were submitted from: the root of the repository.

set +u # module systems and activate scripts read variables that may be unset
# shellcheck source=slurm/env.sh
source slurm/env.sh
set -u
export SCRATCH

# A job that was submitted with --export=NONE hands that on to srun, which would then start ranks without PATH.
unset SLURM_EXPORT_ENV
# Since Slurm 22.05 srun no longer takes the job's --cpus-per-task: without this, all threads of a rank share one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

say() { printf '%(%F %T)T  %s\n' -1 "$*"; }

fail() {
  say "error: $1"
  exit "${2:-1}"
}

# key_of KEY DOOR CONFIG...: a key (a.b) of the resolved config; the door refuses a bad one with one line and exit code 2.
key_of() {
  local key=$1 resolved
  shift
  resolved=$(python -m "$@" --check) || return
  python -c '
import functools, sys, yaml
print(functools.reduce(dict.__getitem__, sys.argv[1].split("."), yaml.safe_load(sys.stdin)))' "$key" <<<"$resolved"
}

# shards_built CONFIG...: the output exists whole (it appears in one rename) and is of this very config.
shards_built() {
  local output
  output=$(key_of output bitbert.data_prep build "$@") || exit
  [ -e "$output" ] || return 1
  python -m bitbert.data_prep build "$@" --check | cmp -s - "$output/config.yaml" ||
    fail "$output exists and was built from another config than this one; choose another output, or remove it" 2
}

# run_finished RUN: final/ appears in one rename when the last step is done. It is the proof, not an exit code:
# srun reports 143 where --kill-on-bad-exit ended a rank that had nothing left to do.
run_finished() { [ -d "$1/final" ]; }

# The last line of each log says how its job ended; report.sbatch reads it. The traps of the signals are part of that:
# a shell that dies of one without them runs its EXIT trap with exit code 0.
report_the_end() {
  trap say_how_it_ended EXIT
  trap 'exit 143' TERM
}

say_how_it_ended() {
  local code=$?
  case $code in
    0) say "$SLURM_JOB_NAME: finished" ;;
    143) say "$SLURM_JOB_NAME: stopped by Slurm (cancelled, out of time, or to be requeued)" ;;
    *) say "$SLURM_JOB_NAME: failed with exit code $code; jobs that wait for it are cancelled." \
      "Mend what is named above and submit the same again: what is done is not done twice" ;;
  esac
}
