#!/usr/bin/env bash
# Train on 4 nodes with 8 GPUs each: sbatch examples/cluster/slurm.sh
# The data set and the run folder lie where all nodes see them. Submitted again, it resumes where the last job stopped.
#SBATCH --job-name=resnetlab
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
# SIGTERM to the processes five minutes before the end: they finish the step and write a checkpoint.
#SBATCH --signal=TERM@300
set -euo pipefail

DATA=${DATA:?the folder of images}
RUN=${RUN:-runs/$(basename "$DATA")}
OPTIONS=(--backend jax --device gpu --devices all --coordinator auto)

if [[ -d $RUN/checkpoints ]]; then
  srun resnetlab train "$DATA" --resume "$RUN" "${OPTIONS[@]}"
else
  srun resnetlab train "$DATA" --recipe imagenet --run "$RUN" "${OPTIONS[@]}"
fi
