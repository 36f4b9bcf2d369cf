#!/bin/bash
#SBATCH --job-name=seeds --array=0-9 --gpus=1 --signal=B:TERM@60 --requeue
exec jaxloop run ratio_sweep --workdir=s3://bucket/seed-$SLURM_ARRAY_TASK_ID \
    --chain.seeds=$SLURM_ARRAY_TASK_ID --run.notice_seconds=60
