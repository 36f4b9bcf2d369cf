#!/bin/bash
#SBATCH --job-name=sweep --nodes=4 --ntasks-per-node=1 --gpus-per-node=8
#SBATCH --signal=TERM@60 --requeue
srun jaxloop run ratio_sweep --workdir=s3://bucket/sweep --run.notice_seconds=60
