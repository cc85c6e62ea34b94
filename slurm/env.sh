# shellcheck shell=bash disable=SC2034  # pipeline.sh and the jobs read these variables
# The one file a site edits. pipeline.sh sources it on the login node, every job on its nodes.

# --- account and partition: sbatch reads these variables itself (man sbatch, INPUT ENVIRONMENT VARIABLES)
#export SBATCH_ACCOUNT=my_project
#export SBATCH_PARTITION=main

# --- software: modules, then the environment that holds bitbert (README.md)
#module load python/3.11
# shellcheck source=/dev/null
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

# --- nodes without a way out: download teacher and tokenizer on the login node first (docs/slurm.md says how)
#export HF_HOME=/shared/huggingface HF_HUB_OFFLINE=1

# --- a disk of the node itself; each job has a folder of its own there, and removes it
SCRATCH=${TMPDIR:-/tmp}

# --- the fast network, where the ranks do not find it themselves (ip -brief address)
#export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# --- size of the stages; a variable set in the shell wins: PRETRAIN_NODES=8 slurm/pipeline.sh ...
DATA_PREP_TASKS=${DATA_PREP_TASKS:-16}
PRETRAIN_NODES=${PRETRAIN_NODES:-1}
PRETRAIN_RANKS_PER_NODE=${PRETRAIN_RANKS_PER_NODE:-8} # one a GPU

# --- options of sbatch, by stage; here goes --partition where the stages have different ones
DATA_PREP_OPTIONS=(--cpus-per-task=8 --mem=16G --time=08:00:00)
DATA_PREP_FINISH_OPTIONS=(--cpus-per-task=16 --mem=32G --time=08:00:00)
# --signal is the time for one step and one checkpoint before the limit (or a preemption that announces itself).
PRETRAIN_OPTIONS=(--gpus-per-node="$PRETRAIN_RANKS_PER_NODE" --cpus-per-task=8 --time=24:00:00 --signal=B:USR1@300)
EXPORT_OPTIONS=(--cpus-per-task=4 --mem=16G --time=01:00:00)
FINETUNE_OPTIONS=(--cpus-per-task=8 --mem=16G --time=12:00:00)
FINETUNE_COLLECT_OPTIONS=(--cpus-per-task=4 --mem=16G --time=01:00:00)
REPORT_OPTIONS=(--cpus-per-task=1 --time=00:05:00) # --mail-type=END tells by mail how a pipeline ended

# --- where the official GLUE files are
GLUE_DIR=${GLUE_DIR:-glue}
