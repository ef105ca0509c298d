# make demo   the main job on a fresh machine: makes images, trains, measures, predicts, reports
# make test   format, lint, types, import floors, tests (what CI runs)
# make bench  the benchmarks against their peers
# make lock   resolve the dependencies again (after a change of pyproject.toml)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
UV := $(BIN)/uv pip
UV_VERSION := 0.13.8

.PHONY: demo test check bench lock clean

demo: $(VENV)/ready
	$(BIN)/pixelwise demo --out demo

# A test uses one thread, as several run at a time: threads that wait for one another's cores cost more than they give.
test: export OMP_NUM_THREADS = 1
test: check
	$(BIN)/python -m pytest --durations=10 --numprocesses=2 --dist=loadfile

check: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/ready-bench
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/prediction.py speed memory files start
	$(BIN)/python benchmarks/convolutionalize.py
	$(BIN)/python benchmarks/doctor.py speed
	$(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/few_minutes.py camvid nuclei em step samples
	$(BIN)/python benchmarks/few_minutes.py few-steps --seeds 0 1 2
	$(BIN)/python benchmarks/starts.py

lock: $(BIN)/uv
	$(UV) compile --universal --python-version 3.11 --all-extras --generate-hashes --upgrade --quiet \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) build demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)

# One rule for the three sets: the marker file is newer than the lock, or the set is installed again.
# The hashes of constraints.txt are verified for every package that it names, which is every one.
define install
	$(UV) install --quiet --python $(VENV) --constraint constraints.txt --editable '.$(1)'
	@echo installed > $@
endef

$(VENV)/ready: constraints.txt pyproject.toml | $(BIN)/uv
	$(call install,)
$(VENV)/ready-dev: constraints.txt pyproject.toml | $(BIN)/uv
	$(call install,[dev])
$(VENV)/ready-bench: constraints.txt pyproject.toml | $(BIN)/uv
	$(call install,[bench])
