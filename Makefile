# Working in a checkout. PYTHON is the interpreter that has PyTorch and the packages of pyproject's `dev` group.
PYTHON ?= python
CSRC := src/vmamba/ops/csrc
JOBS ?= 2

.PHONY: native sanitize

# The CPU kernels, put beside their Python sources: for PYTHONPATH=src. `pip install` builds its own.
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
