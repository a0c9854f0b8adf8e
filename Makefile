# Every target installs what it needs into .venv. You need Linux, Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGES ?=
MODEL ?=
TASK ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
.DEFAULT_GOAL := help

.PHONY: help demo follow up emulators chaos fuzz mutants test test-fast check unit coverage roundtrips hooks fix docs clean lock

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

PACKAGES := $(if $(filter %.pt,$(MODEL)),$(VENV)/export,$(VENV)/local)
demo: $(PACKAGES)  ## upload images to a local stack and print their documents
	$(BIN)/yolo-batch-dev demo $(if $(IMAGES),--images "$(IMAGES)") \
	  $(if $(TASK),--task "$(TASK)") $(if $(MODEL),--model "$(MODEL)")

follow: $(VENV)/local  ## follow one upload to a row of BigQuery, an alert and derived images
	$(BIN)/yolo-batch-dev demo --follow --output followed

up: $(PACKAGES)  ## run the local stack until Ctrl-C
	$(BIN)/yolo-batch-dev up $(if $(MODEL),--model "$(MODEL)")

emulators: $(VENV)/local  ## download the emulators, to work without a network later
	$(BIN)/python -m devtools.local_stack.programs

CHAOS_UPLOADS ?= 2000
CHAOS_SEEDS ?= 1 2 3 4 5
chaos: $(VENV)/local  ## upload under faults and audit every result; see docs/evidence/chaos.md
	@trap 'exit 130' INT; for seed in $(CHAOS_SEEDS); do \
	  $(BIN)/yolo-batch-dev chaos --uploads $(CHAOS_UPLOADS) --seed $$seed || failed="$$failed $$seed"; \
	done; [ -z "$$failed" ] || { echo "Seeds with problems:$$failed"; exit 1; }

FUZZ_RUNS ?= 100000
TARGET ?= envelope image settings
fuzz: $(VENV)/fuzz  ## fuzz the parsers; see docs/evidence/malformed-files.md
	$(BIN)/python -m devtools.fuzz $(TARGET) --runs $(FUZZ_RUNS)

SEED ?= 11
COUNT ?= 300
mutants: $(VENV)/mutants  ## inject small bugs and count those that the tests miss; see docs/evidence/mutants.md
	$(BIN)/python -m devtools.mutants --seed $(SEED) --count $(COUNT)

# Two pytest processes. Each runs whole files, with emulators of its own.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile
test: $(VENV)/dev $(VENV)/export check emulators  ## run all checks and tests; installs torch (several GB)
	$(PYTEST)

test-fast: $(VENV)/dev check emulators  ## run all checks, and the tests that do not need torch
	$(PYTEST) -m "not ultralytics"
	@echo "The tests marked ultralytics (parity and export) did not run. make test runs them."

check: $(VENV)/dev  ## lint, check the format, the types and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/dev  ## run the tests that need neither emulators nor torch
	$(PYTEST) -m "not ultralytics" tests/unit

# Covers the tests and every process that they start. The tests of the benchmarks do not run: they
# measure memory and time, which coverage changes.
coverage: $(VENV)/dev $(VENV)/export  ## measure line and branch coverage of service/; see docs/evidence/coverage.md
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile -p tests.coverage_plugin \
	  --ignore-glob '*test_bench*'; status=$$?; \
	$(BIN)/coverage combine --quiet; $(BIN)/coverage report && exit $$status

roundtrips: $(VENV)/dev  ## build the environments in which other tools read the exports (1.8 GB), and run these tests
	$(BIN)/python -m devtools.roundtrip
	$(BIN)/pytest -m roundtrip tests/roundtrip

hooks: $(VENV)/dev  ## run ruff and mypy before each git commit
	$(BIN)/pre-commit install

fix: $(VENV)/dev  ## fix the format, and the lint errors that ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev  ## write the generated reference, and build the site in build/site
	$(BIN)/python -m devtools.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The locks are for the container's Python. They omit packages that report usage, and packages that
# have a headless variant in the lock. The runtime's locks take their versions from the export's lock,
# because nncf allows only older versions of some packages.
LOCK_PYTHON ?= python3.13
LOCK := CUSTOM_COMPILE_COMMAND="make lock" $(VENV)-lock/bin/pip-compile --quiet $(if $(UPGRADE),--upgrade) \
  --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras
lock: $(VENV)-lock/pip-tools  ## pin the container's packages by hash; UPGRADE=1 takes newer versions
	$(LOCK) --allow-unsafe --only-build-deps --build-deps-for wheel -o requirements/build.txt pyproject.toml
	$(LOCK) --unsafe-package opencv-python --extra export -o requirements/export.txt pyproject.toml
	$(LOCK) --unsafe-package openvino-telemetry -c requirements/export.txt \
	  -o requirements/cpu.txt pyproject.toml
	$(LOCK) --unsafe-package opencv-python --unsafe-package openvino --unsafe-package openvino-telemetry \
	  -c requirements/export.txt -o requirements/gpu.txt pyproject.toml requirements/gpu.in
	sed -i '/^# WARNING: The following/,$$d' requirements/*.txt  # about packages that are not locked

$(VENV)-lock/pip-tools:
	$(LOCK_PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet 'pip-tools>=7.5,<8'
	@touch $@

clean:  ## delete .venv and everything built
	rm -rf $(VENV) build *.egg-info demo-output followed

# Each file below records in .venv that a set of packages is installed.
$(VENV)/pip:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) is not installed. Name your Python: make PYTHON=python3.13 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) is too old: 3.11 or newer is needed."; \
	    echo "Name a newer Python: make PYTHON=python3.13 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot create a virtual environment. On Debian and Ubuntu, run:"; \
	    $(PYTHON) -c 'import sys; print("sudo apt-get install python%d.%d-venv" % sys.version_info[:2])'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/local: $(VENV)/pip pyproject.toml devtools/pyproject.toml
	@echo "Installing Python packages into $(VENV) (0.8 GB), a minute or two ..."
	$(BIN)/pip install --quiet --editable . --editable ./devtools
	@touch $@

$(VENV)/dev: $(VENV)/local
	@echo "Installing the tests' packages, a minute or two ..."
	$(BIN)/pip install --quiet --editable . --editable './devtools[dev]'
	@touch $@

$(VENV)/export: $(VENV)/local
	@echo "Installing ultralytics and torch (several GB), some minutes ..."
	$(BIN)/pip install --quiet --editable '.[export]' --editable ./devtools
	@touch $@

$(VENV)/fuzz: $(VENV)/local
	$(BIN)/pip install --quiet --editable . --editable './devtools[fuzz]'
	@touch $@

$(VENV)/mutants: $(VENV)/dev
	$(BIN)/pip install --quiet --editable . --editable './devtools[mutants]'
	@touch $@
