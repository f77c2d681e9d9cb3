#!/bin/bash
# Trains a table on a TPU VM, from the root of the checkout:
#
#   nohup scripts/tpu_vm.sh CONFIG WORKDIR [FLAGS of experiments/table.py] \
#     >> table.log 2>&1 &
#
# nohup keeps it running when the connection ends. A training that was killed, as
# by a fault of the TPU's runtime, is started again after PAUSE whole seconds (30),
# and continues. Bad input (exit status 2) and other errors end the script.
#
# A VM that is about to be pre-empted sends TERM: the training saves, and the
# script ends. Start it again on the next VM, by hand or from the startup script
# of the VM. WORKDIR must be on a disk that outlives the VM.
#
# The first start installs into .venv; PYTHON=FILE names a Python that has
# everything.
set -u
# shellcheck source=/dev/null
cd "$(dirname "$0")/.." && . scripts/common.sh || exit 2
if [ $# -lt 2 ]; then
  echo 'error: give CONFIG and WORKDIR: scripts/tpu_vm.sh configs/digits.py' \
    'runs/digits_table' >&2
  exit 2
fi
ending=
trap 'ending=1; save' TERM INT
install tpu || exit 1

while [ -z "$ending" ]; do
  train "$@"
  status=$?
  # From 128 on: ended by a signal.
  if [ -n "$ending" ] || [ "$status" -lt 128 ]; then exit "$status"; fi
  echo "The training ended with status $status; starting again." >&2
  # A signal that comes just before a `wait` does not end it, so each is short.
  for ((second = 0; second < ${PAUSE:-30}; second++)); do
    if [ -n "$ending" ]; then exit 143; fi
    sleep 1 &
    wait $!
  done
done
exit 143
