# A bare machine needs Python 3.11 or newer, pip and make; everything else goes into .venv.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test wheel-test lint format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## create or refresh .venv (DETECTRON2_SOURCE chooses the Detectron2, see INSTALL.md)
	@$(PYTHON) tools/setup_env.py --venv $(VENV)

# A folder's name may hold anything. Neither make nor the shell reads it: it goes through the
# environment as it was given.
export PHOTOS_FOLDER := $(value PHOTOS)
unexport PHOTOS

demo: setup  ## generate scenes, train, code, evaluate, report and draw, into output/demo; or search your PHOTOS=folder
	$(PY) $(if $(value PHOTOS),tools/search_photos.py -- "$${PHOTOS_FOLDER}",tools/demo.py)

test: setup  ## run the tests
	$(PY) -m pytest -n auto --dist loadfile

wheel-test: setup  ## build the wheel, install it elsewhere and use it
	$(PY) .ci/wheel_test.py

lint: setup  ## check style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup  ## fix style and format in place
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove .venv and every cache; output/ and datasets/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
