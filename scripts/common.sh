# shellcheck shell=bash
# What slurm.sh and tpu_vm.sh share; they source it in the root of the checkout.

# install EXTRA: into .venv, unless PYTHON names a Python that has everything.
install() {
  [ -z "${PYTHON:-}" ] || return 0
  PYTHON=.venv/bin/python
  mkdir -p runs
  # Jobs that start together wait for one installation. The mark is written
  # last, so an installation that was cut short is repeated.
  (
    flock 9 && { [ ".venv/$1" -nt setup.py ] || {
      python3 -m venv .venv &&
        "$PYTHON" -m pip install --quiet --editable ".[$1]" &&
        touch ".venv/$1"
    }; }
  ) 9> runs/.install.lock
}

# train CONFIG WORKDIR [FLAGS]: trains or resumes a table; returns its status.
child=
train() {
  "$PYTHON" experiments/table.py --config="$1" --workdir="$2" "${@:3}" &
  child=$!
  # A trapped signal ends `wait` while the training is still saving.
  while kill -0 "$child" 2> /dev/null; do wait "$child"; done
  wait "$child"
  set -- $?
  child=
  return "$1"
}

# Asks the training to save and end; its status is then 143.
save() { [ -z "${child:-}" ] || kill -TERM "$child" 2> /dev/null; }
