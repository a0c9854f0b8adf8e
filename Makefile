# `make demo` and `make test` start from nothing but Python 3.11+; everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGES ?=
MODEL ?=

.PHONY: demo up chaos fuzz mutants test test-fast check unit coverage hooks fix clean lock

demo: $(if $(filter %.pt,$(MODEL)),$(VENV)/export,$(VENV)/local)  ## upload pictures to a local stack
	$(BIN)/yolo-batch-dev demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(MODEL),--model "$(MODEL)")

up: $(VENV)/local  ## run the local stack until Ctrl-C
	$(BIN)/yolo-batch-dev up $(if $(MODEL),--model "$(MODEL)")

CHAOS_UPLOADS ?= 2000
CHAOS_SEEDS ?= 1 2 3 4 5
chaos: $(VENV)/local  ## uploads under faults, all audited; docs/evidence/chaos.md
	@trap 'exit 130' INT; for seed in $(CHAOS_SEEDS); do \
	  $(BIN)/yolo-batch-dev chaos --uploads $(CHAOS_UPLOADS) --seed $$seed || failed="$$failed $$seed"; \
	done; [ -z "$$failed" ] || { echo "Seeds with problems:$$failed"; exit 1; }

FUZZ_RUNS ?= 100000
TARGET ?= envelope image settings
fuzz: $(VENV)/fuzz  ## the parsers on random bytes, guided by coverage; docs/evidence/malformed-files.md
	$(BIN)/python -m devtools.fuzz $(TARGET) --runs $(FUZZ_RUNS)

SEED ?= 11
COUNT ?= 300
mutants: $(VENV)/mutants  ## small faults in the core, and whether tests see them; docs/evidence/mutants.md
	$(BIN)/python -m devtools.mutants --seed $(SEED) --count $(COUNT)

# Two processes share the files of tests; each starts emulators of its own.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile
test: $(VENV)/dev $(VENV)/export check  ## everything; ultralytics brings torch, several GB
	$(PYTEST)

test-fast: $(VENV)/dev check  ## everything but the tests that need ultralytics
	$(PYTEST) -m "not ultralytics"
	@echo "Left out: the tests marked ultralytics (parity and export). make test runs them."

check: $(VENV)/dev  ## lint, format, types and the layout's import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/dev  ## the tests that need neither emulator nor ultralytics
	$(PYTEST) -m "not ultralytics" tests/unit

# Covers the tests and every process that they start. The tests of the benchmarks do not run: they
# measure memory and time, which coverage changes.
coverage: $(VENV)/dev $(VENV)/export  ## measure line and branch coverage of service/; see docs/evidence/coverage.md
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile -p tests.coverage_plugin \
	  --ignore-glob '*test_bench*'; status=$$?; \
	$(BIN)/coverage combine --quiet; $(BIN)/coverage report && exit $$status

hooks: $(VENV)/dev  ## run ruff and mypy before each git commit
	$(BIN)/pre-commit install

fix: $(VENV)/dev  ## what can be corrected by machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# By the container's Python. Left out: what tells others of a conversion, and what has a headless
# twin. The runtime's versions are those that export: nncf holds some back.
LOCK_PYTHON ?= python3.13
LOCK := CUSTOM_COMPILE_COMMAND="make lock" $(VENV)-lock/bin/pip-compile --quiet $(if $(UPGRADE),--upgrade) \
  --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras
lock: $(VENV)-lock/pip-tools  ## the container's packages, with hashes; UPGRADE=1 for newer ones
	$(LOCK) --allow-unsafe --only-build-deps --build-deps-for wheel -o requirements/build.txt pyproject.toml
	$(LOCK) --unsafe-package opencv-python --extra export -o requirements/export.txt pyproject.toml
	$(LOCK) --unsafe-package openvino-telemetry -c requirements/export.txt \
	  -o requirements/cpu.txt pyproject.toml
	$(LOCK) --unsafe-package opencv-python --unsafe-package openvino --unsafe-package openvino-telemetry \
	  -c requirements/export.txt -o requirements/gpu.txt pyproject.toml requirements/gpu.in
	sed -i '/^# WARNING: The following/,$$d' requirements/*.txt  # about what is left out

$(VENV)-lock/pip-tools:
	$(LOCK_PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet 'pip-tools>=7.5,<8'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo-output

# A file in .venv for each set of extras that is installed.
$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/local: $(VENV)/pip pyproject.toml devtools/pyproject.toml
	$(BIN)/pip install --quiet --editable . --editable ./devtools
	@touch $@

$(VENV)/dev: $(VENV)/local
	$(BIN)/pip install --quiet --editable . --editable './devtools[dev]'
	@touch $@

$(VENV)/export: $(VENV)/local
	@echo "Installing ultralytics and torch: several GB, some minutes ..."
	$(BIN)/pip install --quiet --editable '.[export]' --editable ./devtools
	@touch $@

$(VENV)/fuzz: $(VENV)/local
	$(BIN)/pip install --quiet --editable . --editable './devtools[fuzz]'
	@touch $@

$(VENV)/mutants: $(VENV)/dev
	$(BIN)/pip install --quiet --editable . --editable './devtools[mutants]'
	@touch $@
