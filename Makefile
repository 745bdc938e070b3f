# `make demo` and `make test` work from a fresh clone: they need python3 (3.11 or newer) and git, and make .venv first.
# PYTHON picks the interpreter: make test PYTHON=python3.13
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test style bench

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
EXTRAS := train,viz,dev

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/'

demo: $(READY) ## train a small detector on the embedded digits and show what it finds
	$(RUN) examples/demo.py

test: $(READY) ## run the tests, then the style checks
	$(RUN) -m pytest -q
	@$(MAKE) --no-print-directory style

style: $(READY) ## check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(READY) ## run all benchmarks of speed and memory, print the table, and put it into the README
	$(RUN) benchmarks/bench.py

# Made again only when pyproject.toml changes: the install is editable, so sources need none.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, '$(PYTHON)' is not: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "installing into $(VENV), which takes some minutes the first time"
	@if command -v uv >/dev/null; then \
		{ [ -x $(RUN) ] || uv venv --python "$(PYTHON)" $(VENV); } \
		&& uv pip install --python $(RUN) -e ".[$(EXTRAS)]"; \
	else \
		{ $(RUN) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV); } \
		&& $(RUN) -m pip install -q -e ".[$(EXTRAS)]"; \
	fi
	@touch $@
