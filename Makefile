# `make help` lists the targets. Python 3.11 or newer with venv is all that has to be there.

PYTHON ?= python3
VENV ?= .venv
LOWEST_VENV ?= .venv-lowest
LOWEST_PYTHON ?= $(PYTHON)
PIP_ARGS ?=
DEMO_ARGS ?= --out demo_output
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export MPLBACKEND ?= Agg

PIP_INSTALL = -m pip install --quiet --quiet $(PIP_ARGS)

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint types docs notebooks bench soak lowest clean

help:
	@echo "make demo     install the core in $(VENV) and run the demonstration"
	@echo "make test     install everything the tests need in $(VENV), then lint, types and the whole suite"
	@echo "make lint     ruff and the import layers"
	@echo "make types    mypy"
	@echo "make docs     build the site of the documents in docs/_build"
	@echo "make notebooks  run notebooks/ and keep what they print and draw"
	@echo "make bench    measure what takes a minute or two, and write docs/benchmarks.md"
	@echo "make soak     the long versions of the tests of served models: crowds, nonsense, stopped clients, kills"
	@echo "make lowest   run the fast tests with the lowest versions of pyproject.toml, in $(LOWEST_VENV)"
	@echo "make clean    remove the environments, caches and outputs"
	@echo
	@echo "PYTHON=$(PYTHON)   the interpreter that makes the environments, 3.11 or newer (LOWEST_PYTHON for the other: 3.11 or 3.12)"
	@echo "PIP_ARGS=$(PIP_ARGS)   further options of pip install, such as the index of a CPU build of torch"
	@echo "PYTEST_ARGS=$(PYTEST_ARGS)   further options of pytest, WORKERS=$(WORKERS) its processes, DEMO_ARGS=$(DEMO_ARGS)"
	@echo "BENCH_ARGS=$(BENCH_ARGS)   names of benchmarks, or --all for the long ones too"

# ---- environments: a stamp in each says what was installed, and when

$(VENV)/.made:
	@sh tools/venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

$(LOWEST_VENV)/.made:
	@sh tools/venv.sh "$(LOWEST_PYTHON)" "$(LOWEST_VENV)"
	@touch $@

$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing lume_diff and its core dependencies in $(VENV) (torch is large: this takes minutes the first time)"
	@$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing lume_diff and what its tests need in $(VENV) (torch is large: this takes minutes the first time)"
	@sh tools/browser.sh
	@$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e ".[test,docs,view,at,madx,impactx,lume,ocelot,pals,dask,nuts,flow,xopt,epics,badger]"
	@touch $@ $(VENV)/.core

# What is not a dependency of the project itself keeps the version of constraints.txt, so that a run can be repeated.
$(LOWEST_VENV)/.lowest: $(LOWEST_VENV)/.made pyproject.toml constraints.txt tools/lowest.py
	@$(LOWEST_VENV)/bin/python tools/lowest.py > $(LOWEST_VENV)/constraints.txt || { rm -rf $(LOWEST_VENV); exit 1; }
	@echo "Installing the lowest versions in $(LOWEST_VENV)"
	@$(LOWEST_VENV)/bin/python $(PIP_INSTALL) -c $(LOWEST_VENV)/constraints.txt . pytest pytest-xdist hypothesis mpmath
	@touch $@

# ---- what they are for

# the test processes share the cores
test lowest: export OMP_NUM_THREADS = 1

demo: $(VENV)/.core
	@$(VENV)/bin/lume-diff demo $(DEMO_ARGS)

test: lint types
	@echo "== pytest"
	@$(VENV)/bin/pytest -n $(WORKERS) --dist worksteal --durations=10 $(PYTEST_ARGS)

lint: $(VENV)/.test
	@echo "== ruff"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@echo "== import layers"
	@$(VENV)/bin/lint-imports --no-logo

types: $(VENV)/.test
	@echo "== mypy"
	@$(VENV)/bin/mypy

docs: $(VENV)/.test
	@$(VENV)/bin/python -m sphinx -q -W --keep-going -b html docs docs/_build/html -d docs/_build/doctrees
	@echo "the site is in docs/_build/html/index.html"

bench: $(VENV)/.test
	@$(VENV)/bin/python benchmarks/report.py $(BENCH_ARGS)

notebooks: $(VENV)/.test
	@$(VENV)/bin/python tools/run_notebooks.py notebooks/*.ipynb

soak: $(VENV)/.test
	@LUME_DIFF_SOAK=1 $(VENV)/bin/pytest -s $(PYTEST_ARGS) tests/system/ioc/test_soak.py

# Not editable: so the wheel's contents are tested as well.
lowest: $(LOWEST_VENV)/.lowest
	@echo "== pytest with the lowest versions"
	@$(LOWEST_VENV)/bin/python $(PIP_INSTALL) --no-deps --force-reinstall .
	@$(LOWEST_VENV)/bin/pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGS) tests/unit

clean:
	rm -rf $(VENV) $(LOWEST_VENV) build dist demo_output bench_output
	rm -rf docs/_build docs/api/generated docs/tutorials/*.ipynb
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find lume_diff tests benchmarks tools -name __pycache__ -type d -exec rm -rf {} +
