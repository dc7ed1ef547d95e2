# make try    shows a notice become a push          make test   runs the test suite
# make check  ruff, mypy and the suite on both sets of dependencies (Debian 12's and PyPI's newest)
# make bench  measures                              make clean  removes what these made

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
DEBIAN_PYTHON ?= /usr/bin/python3
TRIAL = -m twisted.trial
TESTS ?= tests

.PHONY: try test lint types test-debian check bench clean

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

try: $(VENV)/ready
	$(BIN)/python -m tests.try_it

test: $(VENV)/ready
	$(BIN)/python $(TRIAL) $(TESTS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

test-debian:
	$(DEBIAN_PYTHON) $(TRIAL) --temp-directory=_trial_temp_debian $(TESTS)

check: lint types test test-debian

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache
