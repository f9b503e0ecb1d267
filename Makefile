# The two commands of the README are `make demo` and `make test`; each makes its own
# virtual environment from the lock file. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
DEV_VENV ?= .venv-dev
PIP_FLAGS := --quiet --disable-pip-version-check
TESTS ?=
BENCHMARKS ?= boot supervision downloads download_impact sync organizer diagnosis monitor

.PHONY: demo test lint docs lock bench clean

demo: $(VENV)/.installed
	$(VENV)/bin/supervisor demo

test: $(DEV_VENV)/.installed
	$(DEV_VENV)/bin/python -m pytest $(TESTS)

lint: $(DEV_VENV)/.installed
	$(DEV_VENV)/bin/ruff format --check .
	$(DEV_VENV)/bin/ruff check .
	$(DEV_VENV)/bin/mypy supervisor tests
	$(DEV_VENV)/bin/lint-imports
	$(DEV_VENV)/bin/python -m supervisor.cli.docs --check

docs: $(DEV_VENV)/.installed
	$(DEV_VENV)/bin/python -m supervisor.cli.docs --write

bench: $(DEV_VENV)/.installed
	for name in $(BENCHMARKS); do $(DEV_VENV)/bin/python -m benchmarks.$$name || exit 1; done

# Locks hold hashes and no addresses, so that they work with any package index.
lock:
	$(PYTHON) -m pip install $(PIP_FLAGS) uv
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --extra uvloop --output-file requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --extra uvloop --group dev --output-file requirements-dev.lock pyproject.toml

$(VENV)/.installed: requirements.lock pyproject.toml
	$(call make_venv,$(VENV),requirements.lock)

$(DEV_VENV)/.installed: requirements-dev.lock pyproject.toml
	$(call make_venv,$(DEV_VENV),requirements-dev.lock)

define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "Cannot use $(PYTHON): Python 3.11 or newer is needed; hint: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
@echo "setting up $(1) (once)"
@$(PYTHON) -m venv $(1)
@$(1)/bin/python -m pip install $(PIP_FLAGS) --require-hashes --requirement $(2)
@$(1)/bin/python -m pip install $(PIP_FLAGS) --no-deps --editable .
@touch $@
endef

clean:
	rm -rf $(VENV) $(DEV_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
