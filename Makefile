PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: quickstart test test-slow gpu-test bench lint clean

quickstart: .venv/train.stamp  ## adapt MiniLM four ways and compare what each gain cost
	$(BIN)/cprbench run tasks/suites/quickstart.toml

test: .venv/dev.stamp lint  ## lint, types and tests
	$(BIN)/python -m pytest tests --ignore=tests/slow --ignore=tests/gpu -n 2 --dist loadfile

test-slow: .venv/dev.stamp .venv/slow.stamp  ## every test over 20 seconds
	$(BIN)/python -m pytest tests/slow -n 2 --dist loadfile

gpu-test: .venv/dev.stamp  ## what needs a GPU; says what it could not do
	$(BIN)/python -m pytest tests/gpu -rs

bench: .venv/dev.stamp  ## measurements of cprbench itself
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.metering
	$(BIN)/python -m benchmarks.gradients
	$(BIN)/python -m benchmarks.watching
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.partial
	$(BIN)/python -m benchmarks.profile
	$(BIN)/python -m benchmarks.statistics
	$(BIN)/python -m benchmarks.reports
	$(BIN)/python -m benchmarks.site

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

# train.stamp: what a run needs; dev.stamp: what tests need on top.
.venv/train.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	touch $@

.venv/dev.stamp: .venv/train.stamp scripts/system-packages
	scripts/system-packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	touch $@

.venv/slow.stamp: .venv/dev.stamp scripts/system-packages
	scripts/system-packages slow
	npm install --prefix .venv/npm --no-save --no-package-lock --no-audit --no-fund --loglevel=error axe-core@4.14.1
	touch $@

clean:
	rm -rf .venv build *.egg-info
