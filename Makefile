# `make run` and `make test` are all the set-up there is. `make help` lists the rest.

PORT ?= 8000
HOST ?= 127.0.0.1
PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

.PHONY: help run install test test-all lint format bench lock clean
.DELETE_ON_ERROR:

help: ## This list
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: install ## Pages and a worker on this machine, with examples (PORT=8000, HOST=127.0.0.1)
	@exec $(BIN)/python -m kytecron.standalone --host $(HOST) --port $(PORT)

install: .venv/run.stamp .venv/bin/kytecron ## What kytecron needs, and the command .venv/bin/kytecron; for servers, see README.md

# Tests that need chromium, mariadbd or PostgreSQL are skipped, with one line each, where it is missing.
test: .venv/test.stamp .venv/bin/kytecron ## The whole test suite, or a part: ONLY=tests/core, ONLY="tests/web -k diff", ONLY="-m 'not browser'"
	@$(BIN)/python -m pytest $(if $(ONLY),$(ONLY),-n auto --dist worksteal -m "not thorough")

test-all: .venv/test.stamp .venv/bin/kytecron ## The same and what `make test` leaves out to stay short; nothing is skipped
	@KYTECRON_TEST_REQUIRE_ALL=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/test.stamp ## Style, templates and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/djlint --lint --quiet kytecron/templates
	$(BIN)/mypy

format: .venv/test.stamp ## Put style in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/test.stamp ## Figures beside their yardsticks: see docs/performance.md
	@$(BIN)/python -m benchmarks

lock: .venv/test.stamp ## Pin what pyproject.toml asks for, with hashes; UPGRADE=1 takes the newest that fit
	$(LOCK) $(if $(UPGRADE),--upgrade) --output-file requirements.txt
	$(LOCK) $(if $(UPGRADE),--upgrade) --group dev --constraint requirements.txt --output-file requirements-dev.txt

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kytecron needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/bin/kytecron: deploy/kytecron | .venv/bin/python
	@install -m 755 $< $@

.venv/run.stamp: requirements.txt | .venv/bin/python
	$(PIP) --require-hashes -r requirements.txt
	@touch $@

.venv/test.stamp: requirements-dev.txt | .venv/bin/python
	$(PIP) --require-hashes -r requirements-dev.txt
	@# The tests install the wheel of kytecron from these, without an index.
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt -d .venv/wheels
	@touch $@ .venv/run.stamp

clean: ## Remove the virtual environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
