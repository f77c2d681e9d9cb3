# make demo         trains a table of methods on digits, and draws its report
# make test         runs the whole test suite
# make test-oldest  runs it with the oldest versions that setup.py allows
# make docs         builds the documentation into build/docs; broken links fail
# make notebooks    executes the notebooks in full, into build/notebooks
# Each makes an environment first: Python 3.11 to 3.13, git and make are all
# that is needed. The versions in .venv are those of constraints.txt.

RIGHT = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
# The first of these that runs and is of the right version.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c '$(RIGHT)' 2>/dev/null && echo $$python && break; done)

.PHONY: demo test test-oldest lint docs notebooks clean

demo: .venv/installed
	.venv/bin/python experiments/table.py --config=configs/digits.py --seeds=3 \
	  --config.data.label_noise=0.2 --config.model.width=8 \
	  --config.num_epochs=42 --config.optimizer.drop_epochs='(24,36)' \
	  --config.analysis.neural_collapse_every=21 --workdir=runs/digits_table
	@echo 'Next, train a run of your own, as by:'
	@echo '  .venv/bin/tsla-train --config=digits.py:tsla,drop=20'

PYTEST = -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/installed
	.venv/bin/python $(PYTEST)

# Old packages warn of what newer ones, on which they depend, have deprecated.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python $(PYTEST) -W default

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright --pythonpath .venv/bin/python

docs: .venv/installed
	.venv/bin/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

notebooks: .venv/installed
	.venv/bin/python -m pip install --quiet --editable '.[notebooks]'
	rm -rf build/notebooks
	mkdir -p build/notebooks
	cp notebooks/*.ipynb build/notebooks
	.venv/bin/jupyter execute --inplace build/notebooks/*.ipynb

define check_python
	@"$(PYTHON)" -c '$(RIGHT)' 2>/dev/null || { echo "error: '$(PYTHON)' is no" \
	  "Python 3.11, 3.12 or 3.13; install one, or give its path:" \
	  "make PYTHON=/path/to/python"; exit 1; }
endef

# The mark is written last, so an installation that was cut short is repeated.
.venv/installed: setup.py constraints.txt
	$(check_python)
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[test]'
	touch $@

.venv-oldest/installed: setup.py
	$(check_python)
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python \
	  --resolution lowest-direct --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-oldest .jax_cache build runs
