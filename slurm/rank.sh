#!/usr/bin/env bash
# One rank of pretrain.sbatch: srun slurm/rank.sh RECORDS CONFIG [KEY=VALUE]...
set -euo pipefail
records=$1
shift

# One folder a job and node, so that no job waits for another one's compiler lock. BitBERT itself compiles nothing at
# run time; whatever a library does compile is compiled once a node and shared by its ranks.
node=$SCRATCH/bitbert-$SLURM_JOB_ID
export TMPDIR=$node/rank-$SLURM_PROCID TORCH_EXTENSIONS_DIR=$node/extensions TRITON_CACHE_DIR=$node/triton
mkdir -p "$TMPDIR" "$TORCH_EXTENSIONS_DIR" "$TRITON_CACHE_DIR"

# The last rank of the node to leave takes the shared folders with it.
trap 'rm -rf "$TMPDIR"; compgen -G "$node/rank-*" >/dev/null || rm -rf "$node"' EXIT
# Slurm signals this shell too. It must outlive its rank, which is writing a checkpoint: a step whose tasks have all
# ended is killed at once with what they left running.
trap : TERM

code=0
python -m bitbert.pretrain "$@" || code=$?
echo "$code" >"$records/rank-$SLURM_PROCID.exit"
# 75: asked to stop, checkpoint written. Any other code than 0 makes srun end the ranks that are a moment slower.
if [ "$code" = 75 ]; then code=0; fi
exit "$code"
