# The commands of this house. `make demo` and `make test` set up everything they need; nothing has to be done before.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench docs clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

setup: $(STAMP) ## Make .venv from requirements.lock, with .venv/bin/ctl in it

$(STAMP): requirements.lock pyproject.toml
	@[ "$$(uname -s)" = Linux ] || { echo "error: this engine runs on Linux, not on $$(uname -s)"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) found: install Python 3.11, 3.12 or 3.13"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "error: $$($(PYTHON) --version) will not do: it takes Python 3.11 to 3.13 (make PYTHON=python3.12 ...)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "error: Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@rm -rf .venv
	@echo "making .venv from requirements.lock"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q broker actors shm ctl .venv/lib || true
	@touch $(STAMP)

demo: $(STAMP) ## Send 10,000 personal messages through the engine to its own SMTP sink
	@$(BIN)/python -m ctl.demo

test: $(STAMP) ## Run the tests
	@$(BIN)/python -m pytest

lint: $(STAMP) ## Check style, types and the floors of the house
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m actors.smtp.pages --check docs/smtp.md
	@$(BIN)/python -m actors.sink.pages --check docs/rehearsal.md
	@$(BIN)/python -m broker.contract.protocol_page --check
	@$(BIN)/python -m ctl.reference --check docs/cli.md

docs: $(STAMP) ## Write the generated parts of docs/ anew
	@$(BIN)/python -m actors.smtp.pages docs/smtp.md
	@$(BIN)/python -m actors.sink.pages docs/rehearsal.md
	@$(BIN)/python -m broker.contract.protocol_page --write
	@$(BIN)/python -m ctl.reference --write docs/cli.md

bench: $(STAMP) ## Measure: each benchmark beside its yardstick, aims beside figures; under 15 minutes
	@$(BIN)/python -m bench.all

clean: ## Remove what was built
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +
