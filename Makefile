# Every target sets up what it needs by itself, in .venv; all a machine must have is Python and make.
# What is installed: CPU builds, at the versions in requirements/constraints.txt, from wherever pip is configured to look.

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
# Another interpreter: make test PYTHON=/path/to/python3.12
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
# More to test with: make test EXTRAS=torch
EXTRAS ?=
# Arguments for pytest: make test ARGS="-x tests/models"
ARGS ?=
# A process for each core, up to four: each may hold three frameworks.
SIDE_BY_SIDE ?= --numprocesses=logical --maxprocesses=4 --dist=worksteal
# Where the quickstart's run goes: a new folder each time, so that none is overwritten.
ifndef RUN
RUN := runs/quickstart-$(shell date +%Y%m%d-%H%M%S)
endif

empty :=
comma := ,
space := $(empty) $(empty)
# A list of extras as pip wants it, in one order, so that the same set always has the same name.
extras = $(subst $(space),$(comma),$(sort $(1)))
# To test with torch takes the reference library too: the extra test-torch.
more := $(patsubst torch,test-torch,$(subst $(comma),$(space),$(EXTRAS)))

FOR_TRAINING := $(VENV)/.installed-$(call extras,cpu)
FOR_TESTS := $(VENV)/.installed-$(call extras,cpu jax test $(more))
FOR_LINT := $(VENV)/.installed-$(call extras,dev)
FOR_NOTEBOOK := $(VENV)/.installed-$(call extras,cpu notebook)
FOR_DOCS := $(VENV)/.installed-$(call extras,docs)
FOR_CHECK := $(VENV)/.installed-$(call extras,cpu dev jax test $(more))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help quickstart notebook docs test test-long reliability audit check lint format constraints clean run-lint run-docs run-tests

help: ## List the targets (this)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(FOR_TRAINING) ## Train a ResNet on digits (a few minutes), then predict ten held-out images
	$(BIN)/resnetlab train digits --recipe quick --run $(RUN)
	$(BIN)/resnetlab predict $(RUN) --held-out 10

notebook: $(FOR_NOTEBOOK) ## Run the notebook from top to bottom (ten minutes), into build/ as .ipynb and .html
	$(BIN)/jupyter nbconvert --execute --to notebook --output-dir build notebooks/resnet_from_scratch.ipynb
	$(BIN)/jupyter nbconvert --to html --output-dir build build/resnet_from_scratch.ipynb

docs: $(FOR_DOCS) run-docs ## Build the documentation as a site, into build/site

test: MARKS := not long
test: $(FOR_TESTS) run-tests ## Run the tests on TensorFlow and JAX (EXTRAS=torch: on PyTorch too; ARGS=…: for pytest)

test-long: MARKS := long
test-long: $(FOR_TESTS) run-tests ## Run the long ones: notebook, benchmarks, comparison (EXTRAS, ARGS as above)

reliability: $(FOR_TESTS) ## Kill, fill the disk, ... for hours, and write what was found into results/ (root, for a small disk)
	KERAS_BACKEND=tensorflow $(BIN)/python -m tests.reliability.kills --kills 200
	KERAS_BACKEND=jax $(BIN)/python -m tests.reliability.kills --kills 200
	KERAS_BACKEND=tensorflow $(BIN)/python -m tests.reliability.disk_full --times 20
	$(BIN)/python -m tests.reliability.hostile
	$(BIN)/python -m tests.reliability.fuzz_images --count 10000
	$(BIN)/python -m tests.reliability.catalog
	$(BIN)/python -m tests.reliability.checkpoint_cost
	$(BIN)/python -m tests.reliability.memory --hours 2.2

audit: ## Look the dependencies up in the databases of known vulnerabilities (needs the network)
	python3 -m venv build/audit && build/audit/bin/pip install --quiet pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $(CONSTRAINTS)

check: MARKS := not benchmark
check: $(FOR_CHECK) run-lint run-docs run-tests ## All that must hold on every change: lint, types, contracts, docs, tests

lint: $(FOR_LINT) run-lint ## The quick part of check: format, lint, types, import contracts

format: $(FOR_LINT) ## Format the code, and fix what the linter can
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

run-lint:
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

run-docs:
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

run-tests:
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "$(MARKS)" $(ARGS)

constraints: ## Renew requirements/constraints.txt: the newest of everything, resolved in a fresh environment
	rm -rf build/constraints
	$(MAKE) build/constraints/bin/pip VENV=build/constraints
	build/constraints/bin/python -m pip install ".[cpu,jax,dev,test-torch]"
	@# Names and versions only. The plain tensorflow goes with tensorflow-cpu; a local build (+cpu) is this machine's affair.
	{ sed -n '/^#/p' $(CONSTRAINTS); build/constraints/bin/python -m pip freeze --all | awk -F '==' ' \
	  /^pip==/ || /resnetlab/ { next } { sub(/\+.*/, "") } /^tensorflow_cpu==/ { print "tensorflow==" $$2 } { print }'; \
	} > build/constraints.txt
	mv build/constraints.txt $(CONSTRAINTS)

clean: ## Remove what these targets made: .venv, builds, caches (runs/ stays)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests studies benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	@echo "Installing resnetlab[$*] into $(VENV): several hundred MB the first time ..."
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e ".[$*]"
	@touch "$@"

# TensorFlow has no wheels for Python 3.14 yet: hence the upper end.
$(BIN)/pip:
	@found=; \
	for python in $(PYTHONS); do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "resnetlab needs Python 3.11, 3.12 or 3.13; found:" >&2; \
	  for python in $(PYTHONS); do echo "  $$python: $$($$python --version 2>&1 | tail -n 1)" >&2; done; \
	  echo "Install one of them, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
	  package=python$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv; \
	  echo "$$found cannot create a virtual environment: its venv or ensurepip module is missing." >&2; \
	  echo "On Debian and Ubuntu: sudo apt install $$package    (elsewhere: install the whole of Python)" >&2; \
	  exit 1; \
	fi; \
	echo "Creating $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV)
