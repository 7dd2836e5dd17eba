# The project's verbs. `make demo` and `make test` set up what they need: each is the only command a fresh clone needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test test-large lint bench wheel-check sanitize emulate clean

setup: $(STAMP)

# Redone only when what it installs or compiles changes; a second run touches no network.
$(STAMP): pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "torch>=2.10" torchvision "setuptools>=77" wheel
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python -m torchdcn demo --out runs/demo

# A process a core (four at most: each takes up to 3 GB), a thread each; a file's tests stay together for their fixtures.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Index arithmetic beyond 2^31 elements: half an hour to an hour and a quarter, 10 GB of free memory; docs/large.md.
test-large: setup
	$(BIN)/python -m pytest -s tests/large/beyond_32_bits.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/ops.py

# The wheel under the oldest supported torch and under this one; downloads 3 GB the first time.
wheel-check: setup
	$(BIN)/python tools/wheel_check.py

# The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer (g++), and a few calls under valgrind.
sanitize: setup
	$(BIN)/python tools/sanitize.py

# The AVX-512 and AVX512-BF16 kernels in an emulator, Bochs; on Debian; downloads 100 MB the first time.
emulate: setup
	$(BIN)/python tools/emulate.py

clean:
	rm -rf build runs src/torchdcn/_C*.so $(STAMP)
