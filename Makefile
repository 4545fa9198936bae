# A bare machine needs Python 3.11 or newer, pip and make; everything else goes into .venv.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# A process for each core; one that is done takes tests over from the others.
PYTEST := $(PY) -m pytest -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-page coverage wheel-test test-milvus test-shards lint format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## create or refresh .venv (DETECTRON2_SOURCE chooses the Detectron2, see INSTALL.md)
	@$(PYTHON) tools/setup_env.py --venv $(VENV)

# A folder's name may hold anything. Neither make nor the shell reads it: it goes through the
# environment as it was given.
export PHOTOS_FOLDER := $(value PHOTOS)
unexport PHOTOS

demo: setup  ## generate scenes, train, encode, evaluate, report and draw, into output/demo; or search your PHOTOS=folder
	$(PY) $(if $(value PHOTOS),tools/search_photos.py -- "$${PHOTOS_FOLDER}",tools/demo.py)

test: setup  ## run the tests
	$(PYTEST)

test-page: setup  ## use the page in a headless Chromium; pictures go to output/page
	REGIONDH_TEST_PAGE=1 $(PY) -m pytest tests/test_page.py

wheel-test: setup  ## build the wheel, install it elsewhere and use it
	$(PY) .ci/wheel_test.py

test-milvus: setup  ## run the tests that need Milvus, Ray, PostgreSQL or network namespaces
	$(PY) .ci/server_tests.py

test-shards: setup  ## encode 4,000 scenes in shards, kill two of them, and compare; takes minutes
	REGIONDH_TEST_SHARDS=4000 $(PY) -m pytest -s tests/test_killed_shards.py

coverage: setup  ## run the tests and list the files by the share of lines that they run
	$(PYTEST) --cov --cov-report=term

lint: setup  ## check style, format, floors and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m mypy

format: setup  ## fix style and format in place
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove .venv and every cache; output/ and datasets/ stay
	rm -rf $(VENV) .venv-milvus-* .venv-postgres .venv-ray build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
