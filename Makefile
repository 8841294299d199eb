# `make` lists the targets. Each one sets up .venv first, if that is not done yet.
# PYTHON=python3.12 make ...   chooses the interpreter that .venv is made from
# make test ARGS='-k pgd'      hands ARGS to the program behind the target

PYTHON ?= python3
ARGS ?=
EXTRAS := events,interop,dev
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv/.peers

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format bench clean

help:  ## list the targets
	@echo 'usage: make TARGET'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

demo: $(STAMP)  ## train, attack, deploy and judge on digits; writes runs/demo/report.html
	@echo '==> the demo: trains two small networks, attacks them, deploys them on chips, writes runs/demo/report.html'
	@$(BIN)/snnrobust demo $(ARGS)

test: $(STAMP)  ## run the tests
	@echo '==> pytest: runs the tests'
	@$(BIN)/pytest $(ARGS)

lint: $(STAMP)  ## check style, format, types and floors
	@echo '==> ruff check: style and common mistakes'
	@$(BIN)/ruff check .
	@echo '==> ruff format --check: formatting'
	@$(BIN)/ruff format --check .
	@echo '==> mypy: types'
	@$(BIN)/mypy
	@echo '==> lint-imports: the floors'
	@$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the code in the project's format
	@echo '==> ruff: sorts imports and formats'
	@$(BIN)/ruff check --fix-only --select I .
	@$(BIN)/ruff format .

bench: $(PEERS)  ## measure speed beside other libraries, and what of the targets is reached
	@echo '==> the benchmarks: about ten minutes; ARGS=--quick for fewer repeats, ARGS=lif for a part'
	@$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove caches and build products; keep .venv and runs
	@echo '==> removes caches and build products (.venv and runs stay)'
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp goes first and comes back last, so that an interrupted set-up is never taken for a finished one.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard snnrobust/kernels/csrc/*)
	@rm -f $(STAMP)
	@echo '==> set-up 1/3: looks for Python 3.11 or newer'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) is missing or older than Python 3.11: name a newer one, as in 'make PYTHON=python3.12 ...'" >&2; \
		exit 1; }
	@echo '==> set-up 2/3: makes the virtual environment .venv, or keeps the one that works'
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| $(PYTHON) -m venv --clear .venv \
		|| { echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)" >&2; exit 1; }
	@echo '==> set-up 3/3: installs snnrobust and all that it needs; the first time takes minutes and downloads PyTorch'
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(STAMP)

# Without what torchattacks asks for: it works without, and asks for versions that do not fit the others.
$(PEERS): $(STAMP)
	@echo '==> torchattacks, which PGD is measured beside'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -c constraints.txt torchattacks \
		|| echo 'it cannot be installed: its loop, written out, takes its place'
	@touch $(PEERS)
