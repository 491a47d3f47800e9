# make demo · make test: everything that they need is set up in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CSRC := src/vmamba/ops/csrc
JOBS ?= 2
TIMM := $(shell sed -n 's/^timm==//p' constraints.txt)

.PHONY: demo test lint native sanitize clean

demo: $(VENV)/installed
	$(BIN)/vmamba demo

test: $(VENV)/installed .cache/timm-$(TIMM) lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The package in place, its CPU kernels built from $(CSRC); without a compiler it installs without them.
$(VENV)/installed: pyproject.toml constraints.txt $(wildcard $(CSRC)/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $@

# timm's own tests of a model, for tests/timm_suite; only in its source distribution.
.cache/timm-$(TIMM): constraints.txt $(VENV)/installed
	$(BIN)/python -m pip download --quiet --no-deps --no-binary timm --dest .cache timm==$(TIMM)
	tar --extract --gzip --directory .cache --file .cache/timm-$(TIMM).tar.gz
	touch $@

# The CPU kernels beside their Python sources, for work on them: PYTHONPATH=src, with cmake and nanobind installed.
native:
	cmake -S $(CSRC) -B build/native -DPython_EXECUTABLE="$$(command -v $(PYTHON))"
	cmake --build build/native -j $(JOBS)
	cmake --install build/native --prefix src

# Their tests under the address and undefined-behaviour sanitizers (GCC). Ends with the ordinary kernels in place.
sanitize:
	cmake -S $(CSRC) -B build/sanitize -DPython_EXECUTABLE="$$(command -v $(PYTHON))" -DVMAMBA_SANITIZE=ON
	cmake --build build/sanitize -j $(JOBS)
	cmake --install build/sanitize --prefix src
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 PYTHONPATH=src \
	$(PYTHON) -m pytest -q -p no:cacheprovider tests/ops/test_native.py; \
	status=$$?; $(MAKE) native PYTHON=$(PYTHON) && exit $$status

clean:
	rm -rf $(VENV) .cache build dist demo
