#!/bin/bash
# Trains on several nodes through torchrun; submitted again, it resumes. Run on CPUs only, with stand-ins for Slurm's
# commands: no cluster was at hand. At Slurm's TERM, torchrun gives its processes 30 seconds for a checkpoint.
#   sbatch --nodes 2 --gpus-per-node 4 jobs/slurm.sh configs/base.yaml --output_dir /shared/runs/base [options of train.py]
# The rows of a step are those of one GPU's per_device_train_batch_size times all GPUs: divide it by their number.
#SBATCH --job-name flexqwen
#SBATCH --ntasks-per-node 1
#SBATCH --signal TERM@120
#SBATCH --requeue
set -euo pipefail
. .venv/bin/activate
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$SLURM_GPUS_ON_NODE" \
    --rdzv_backend c10d --rdzv_endpoint "$address:29500" --rdzv_id "$SLURM_JOB_ID" train.py "$@"
