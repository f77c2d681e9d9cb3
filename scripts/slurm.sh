#!/bin/bash
#SBATCH --job-name=tsla
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Trains a table as a Slurm job, from the root of the checkout:
#
#   sbatch scripts/slurm.sh CONFIG WORKDIR [FLAGS of experiments/table.py]
#   sbatch --time=2:00:00 scripts/slurm.sh configs/dogs.py runs/dogs --seeds=5
#
# Two minutes before the time is over Slurm sends USR1. The training then saves,
# and the job goes back into the queue. Started again it continues. A job that is
# pre-empted saves, too, and Slurm requeues it. After scancel it saves and ends.
#
# The first job installs into .venv: EXTRA=cuda13 chooses another extra of
# setup.py, PYTHON=FILE a Python that has everything. The directory must be on a
# disk that all nodes share.
set -u
# shellcheck source=/dev/null
cd "${SLURM_SUBMIT_DIR:-.}" && . scripts/common.sh || {
  echo 'error: submit from the root of the checkout' >&2
  exit 2
}
if [ $# -lt 2 ]; then
  echo 'error: give CONFIG and WORKDIR: sbatch scripts/slurm.sh' \
    'configs/digits.py runs/digits_table' >&2
  exit 2
fi
time_is_over=
trap 'time_is_over=1; save' USR1
trap save TERM
install "${EXTRA:-cuda12}" || exit 1
if [ -n "$time_is_over" ]; then  # before the training began
  scontrol requeue "$SLURM_JOB_ID"
  exit 143
fi
train "$@"
status=$?
if [ "$status" = 143 ] && [ -n "$time_is_over" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
