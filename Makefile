# make demo · make test: everything that they need is set up in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TIMM := $(shell sed -n 's/^timm==//p' constraints.txt)

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/vmamba demo

test: $(VENV)/installed .cache/timm-$(TIMM) lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]" --group dev
	touch $@

# timm's own tests of a model, for tests/timm_suite; only in its source distribution.
.cache/timm-$(TIMM): constraints.txt $(VENV)/installed
	$(BIN)/python -m pip download --quiet --no-deps --no-binary timm --dest .cache timm==$(TIMM)
	tar --extract --gzip --directory .cache --file .cache/timm-$(TIMM).tar.gz
	touch $@

clean:
	rm -rf $(VENV) .cache build dist demo
