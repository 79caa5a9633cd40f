# Two commands to know: `make demo` and `make test`. They need make, git and Python 3.11 or newer; a C++ compiler is
# needed only by --train.compile, and by the tests that run DeepSpeed on a CPU.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=

# For scripts that look programs up by name: launch/local.sh starts accelerate.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help setup demo test check tables bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## install everything into .venv
	@echo "$(VENV) is ready; to use it by name: source $(BIN)/activate"

# The stamp is written last, so an interrupted installation is repeated. It holds the checkout's path: the programs of an
# environment name their Python by its full path, so after a move the environment is created again.
STAMP := $(shell cat $(READY) 2>/dev/null)
AGAIN :=
ifneq ($(STAMP),)
ifneq ($(STAMP),$(CURDIR))
AGAIN := the checkout was moved
endif
endif
# So it is for another Python, but only if the command names one: else the environment keeps the one that it has.
ifeq ($(origin PYTHON),command line)
AGAIN := $(or $(AGAIN),$(shell [ ! -e $(BIN)/python ] || [ "$$($(PYTHON) -VV 2>&1)" = "$$($(BIN)/python -VV 2>&1)" ] \
  || echo "$(VENV) has another Python than '$(PYTHON)'"))
endif
ifneq ($(STAMP)$(AGAIN),$(CURDIR))
.PHONY: $(READY)
endif

$(READY): pyproject.toml constraints.txt
	@[ -z "$(AGAIN)" ] && $(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	    "make: cifar-dist needs Python 3.11 or newer and '$(PYTHON)' is not; name one: make setup PYTHON=python3.12" >&2; exit 2; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo \
	    "make: '$(PYTHON)' cannot make environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }; \
	  [ -z "$(AGAIN)" ] || { echo "$(AGAIN): creating $(VENV) again"; rm -rf $(VENV); }; \
	  $(PYTHON) -m venv --clear $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@# Compiled once here, or every process that is started compiles torch for itself wherever bytecode is not written.
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable '.[dev]'
	@echo "$(CURDIR)" > $@

demo: $(READY) shards/digits/manifest.json ## train the digits on 2 processes and evaluate them: runs/demo
	@$(IN_VENV) launch/local.sh cpu demo
	@echo "Now open runs/demo/report.html"

shards/digits/manifest.json: | $(READY)
	@$(BIN)/cifar-dist pack digits shards/digits

test: $(READY) ## run the tests; PYTEST_ARGS='-k resume' runs some
	@# Three workers keep two cores busy, as tests wait for processes. A file's tests share its fixtures: one worker runs them.
	@# (loadgroup of xdist 3.8 groups nothing with pytest 9.)
	@# Bytecode is written even where it should not be, or hundreds of processes would compile the package, each for itself.
	@$(IN_VENV) PYTHONDONTWRITEBYTECODE= python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(READY) ## lint, format, types, arrows between the modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

tables: $(READY) ## write the tables of docs/ that are computed from the code, the recipes and the benchmarks
	@# The other two are of trainings: make_pictures.py trains, and make_results.py is given runs.
	@set -e; for script in $(filter-out docs/make_pictures.py docs/make_results.py, $(wildcard docs/make_*.py)); do \
	    echo "== $$script"; $(IN_VENV) python "$$script"; done

bench: $(READY) ## run the benchmarks, each a ratio against a named peer
	@# peers.py requires scripts that are not ours to distribute.
	@set -e; for script in $(filter-out benchmarks/comparison.py benchmarks/peers.py, $(wildcard benchmarks/*.py)); do \
	    echo "== $$script"; $(IN_VENV) python "$$script"; done

clean: ## remove what these targets made; runs/ and your own datasets stay
	rm -rf $(VENV) shards/digits .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
