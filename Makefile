# make demo · make test: everything that they need is set up in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CSRC := src/vmamba/ops/backends/native/csrc
SOURCES := $(wildcard $(CSRC)/*.cpp $(CSRC)/*.hpp $(CSRC)/*/*.cpp $(CSRC)/*/*.hpp)
JOBS ?= 2
TIMM := $(shell sed -n 's/^timm==//p' constraints.txt)
UV := $(BIN)/uv pip install --quiet --constraint constraints.txt
export UV_HTTP_TIMEOUT ?= 180

# What waits for the network leaves the processor to what compiles, types and tests.
MAKEFLAGS += --jobs=4

.PHONY: demo docs test test-package test-exhaustive test-fast test-oldest test-openmmlab lint types lock release native sanitize clean

demo: $(VENV)/installed
	$(BIN)/vmamba demo

# At once: the plug-in's tests and the linters fill the pauses of the others.
test: test-package test-openmmlab lint

test-package: $(VENV)/browser .cache/timm-$(TIMM) $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not exhaustive"

# What it leaves out, because something smaller shows the same: before a release.
test-exhaustive: .cache/timm-$(TIMM) $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m exhaustive

# Without what takes long: whole training runs, timm's suite, interpreted kernels. Under 3 minutes on two cores.
test-fast: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow and not exhaustive"

# The plug-in inside OpenMMLab's packages, whose warnings are their own.
test-openmmlab: $(VENV)/openmmlab/installed $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/openmmlab/bin/python -m pytest -q -o filterwarnings=default tests/openmmlab

# The same with the oldest versions that pyproject.toml promises, whose warnings are their own.
OLDEST := $(VENV)/oldest
OLDEST_PYTHON ?= 3.10
test-oldest: $(OLDEST)/installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n $(JOBS) --dist worksteal -o filterwarnings=default -m "not slow and not exhaustive"

$(OLDEST)/installed: pyproject.toml $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --no-python-downloads --python $(OLDEST_PYTHON) $(OLDEST)
	VIRTUAL_ENV=$(OLDEST) $(BIN)/uv pip install --quiet --resolution lowest-direct --editable ".[all]" --group dev
	VIRTUAL_ENV=$(OLDEST) $(BIN)/uv pip install --quiet --no-deps lightly==1.6.0
	touch $@

lint: types $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	$(BIN)/lint-imports

types: $(VENV)/dependencies
	$(BIN)/mypy

# The site in build/docs; warnings are errors.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

$(VENV)/installed: $(VENV)/dependencies $(VENV)/package
	touch $@

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv

$(VENV)/dependencies: pyproject.toml constraints.txt $(BIN)/uv
	$(UV) --python $(VENV) --requirements pyproject.toml --extra all --group dev
	$(UV) --python $(VENV) --no-deps lightly==1.6.0  # its loss needs nothing else
	touch $@

# The package in place, its CPU kernels built from $(CSRC); without a compiler it installs without them. Not by uv, of which
# a second would wait for the first.
$(VENV)/package: pyproject.toml $(CSRC)/CMakeLists.txt $(SOURCES) $(BIN)/uv
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/release: pyproject.toml constraints.txt $(VENV)/installed
	$(UV) --python $(VENV) --group release
	touch $@

# dist/: the sources, and wheels for Linux, one for each of these Pythons; the last serves all later ones. Each is installed and
# used where there is no compiler. The tag, manylinux_2_34 from Debian 12, is that of the C library here.
PYTHONS ?= 3.10 3.11 3.12
release: $(VENV)/release
	rm -rf dist build/wheels
	$(BIN)/python -m build --sdist --outdir dist
	for python in $(PYTHONS); do \
		$(BIN)/uv build --no-python-downloads --python $$python --wheel --out-dir build/wheels dist/*.tar.gz || exit; done
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/wheels/*.whl
	$(BIN)/twine check --strict dist/*
	for python in $(PYTHONS); do \
		$(BIN)/python benchmarks/strangers_walk.py --keep --commands 4 --python "$$($(BIN)/uv python find $$python)" \
		dist/vmamba-*-cp$$(echo $$python | tr -d .)-*.whl || exit; done

# constraints.txt anew, with the newest versions; then run `make test`.
lock: $(VENV)/release
	{ echo "# Versions that the tests were run with (Python 3.11). torch brings its CUDA libraries at versions of its own."; \
		$(BIN)/uv pip compile --quiet --python-version 3.11 --extra all --group dev --group release --no-annotate --no-header \
		pyproject.toml | grep -Ev '^(nvidia-|cuda-|triton=)'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

# OpenMMLab's packages, older than most others, and what they need, in an environment that sees the other.
OPENMMLAB := mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 mmsegmentation==1.2.2 ftfy==6.3.1 regex
$(VENV)/openmmlab/installed: Makefile constraints.txt $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/openmmlab
	$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' > \
		"$$($(VENV)/openmmlab/bin/python -c 'import site; print(site.getsitepackages()[0])')/parent.pth"
	$(UV) --python $(VENV)/openmmlab $(OPENMMLAB)
	touch $@

# A browser, for the tests of the page that `vmamba explore` writes. Without one, and without the right to install Debian's,
# they are skipped.
$(VENV)/browser: $(BIN)/uv
	command -v chromium || command -v chromium-browser || command -v google-chrome || { test "$$(id -u)" = 0 && \
		apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; } || \
		echo "no Chromium: the page is not tested"
	touch $@

# timm's own tests of a model, for tests/timm_suite; only in its source distribution.
.cache/timm-$(TIMM): constraints.txt $(BIN)/uv
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
	$(PYTHON) -m pytest -q -p no:cacheprovider tests/ops/backends/test_native.py; \
	status=$$?; $(MAKE) native PYTHON=$(PYTHON) && exit $$status

clean:
	rm -rf $(VENV) .cache build dist demo
