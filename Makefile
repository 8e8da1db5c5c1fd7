# Everything sets up what it needs: `make` with Python 3.11 is all that a fresh machine must have.
PYTHON ?= python3
PROFILE ?= quick
DATA ?= phantom
NAME ?= $(PROFILE)
BIN := .venv/bin
STAMP := .venv/installed
TESTED := .venv/test-extra
BENCHED := .venv/bench-extra
BROWSED := .venv/browser-extra
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .venv/pins.txt
CHROMIUM ?= chromium
SUDO = $(if $(filter 0,$(shell id -u)),,sudo)
JOBS ?= 1
FLAGS := $(if $(RESUME),--resume) $(if $(FORCE),--force)
SHOWN := 01_planes 01_truth 01_triptych 02_losses 02_invented 03_steps 04_samples_pet2ct 04_pet2ct 04_ct2pet \
	04_ranks 04_mae 04_agreement_pet2ct 04_worst_misses
EXPLORED := 05_synthetic_planes 05_ct

.DEFAULT_GOAL := help
.PHONY: help install run test fast check slow nbval test-browser lint lab bench ablation figures demo notebooks clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo "  DATA=<folder, zip, or folder of zips>  NAME=<run's name>  PROFILE=smoke|quick|gpu|full  RESUME=1  FORCE=1"
	@echo "  BOOKS=\"01 02\": the notebooks of these beginnings in the browser  CHROMIUM=<another>  SHOTS=<folder of its pictures>"
	@echo "  ONLY=<regular expression>: the variants of the ablation of these names  JOBS=2: runs at a time"

install: $(STAMP)  ## .venv with the pinned dependencies and the library (about 2 minutes)

$(STAMP): pyproject.toml environment.yml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	sed -n 's/^ *- \([^ ]*==.*\)/\1/p' environment.yml > .venv/pins.txt
	$(PIP) --editable '.[all]'
	touch $@

$(TESTED): $(STAMP)
	$(PIP) --editable '.[test]'
	touch $@

$(BENCHED): $(STAMP)
	$(PIP) --editable '.[bench]'
	touch $@

$(BROWSED): $(STAMP)
	$(PIP) --editable '.[test,browser]'
	touch $@

run: $(STAMP)  ## the four notebooks in order, headless: phantom or DATA=, into runs/NAME
	$(BIN)/python -m petct_lib run --profile $(PROFILE) --data "$(DATA)" --out "runs/$(NAME)" $(FLAGS)

PYTEST := MAKEFLAGS= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --durations=20

test: $(TESTED) lint  ## ruff, and side by side the fast tests and nbval over every notebook
	$(MAKE) --jobs 2 fast nbval

fast: $(TESTED)  ## the tests that need no run of the notebooks
	rm -f .coverage
	$(PYTEST) -m "not slow" --cov-report=

check: test slow  ## everything: make test, then the slow tests, coverage, and the notebooks in a browser

slow: $(BROWSED)  ## what make check adds to make test
	$(PYTEST) -m slow --cov-append --cov-report=term
	$(BIN)/python -m coverage report --fail-under=96 --format=total
	$(MAKE) test-browser

nbval: $(TESTED)  ## every notebook at its committed defaults, its outputs compared with the committed ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=600 -p no:cacheprovider notebooks

test-browser: $(BROWSED)  ## every notebook in JupyterLab in Chromium, pictures in runs/browser (10 minutes)
	@command -v $(CHROMIUM) >/dev/null \
		|| { $(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends chromium fonts-dejavu-core; } \
		|| { echo "no Chromium, and apt-get cannot install it: install it, or name another with CHROMIUM=google-chrome"; exit 1; }
	CHROMIUM="$(CHROMIUM)" BOOKS="$(BOOKS)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

lint: $(STAMP)  ## ruff over code and notebooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check petct_lib tests

lab: $(STAMP)  ## JupyterLab at the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

bench: $(BENCHED)  ## speed and memory of ingest, phantom, training, translation and scoring against peers, into benchmarks/ (1 hour)
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/phantom.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/translate.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/projection.py --measure

ablation: NAME = ablation
ablation: $(STAMP)  ## three seeds of the run, every variant and control, into runs/ablation or runs/NAME (hours)
	$(BIN)/python -m petct_lib ablation --profile $(PROFILE) --data "$(DATA)" --out "runs/$(NAME)" --only "$(ONLY)" --jobs $(JOBS)

figures: run  ## the README's pictures, from the run (made first if it is missing), and from the ablations where there are some
	mkdir -p figures
	cp $(SHOWN:%=runs/$(NAME)/figures/%.png) figures/
	$(BIN)/papermill --log-level ERROR --no-progress-bar -p run_dir runs/explore -p trained "runs/$(NAME)" \
		notebooks/05_explore.ipynb "runs/$(NAME)/notebooks/05_explore.ipynb"
	cp $(EXPLORED:%=runs/explore/figures/%.png) figures/
	if test -e runs/ablation/scores.csv; then cp runs/ablation/figures/*.png figures/; fi

demo: $(STAMP)  ## train the small run of notebooks 00 and 05 anew, into notebooks/demo (as long as make run)
	$(BIN)/python -m petct_lib run --profile demo --out runs/demo $(FLAGS)
	rm -rf notebooks/demo
	$(BIN)/python -m petct_lib slim runs/demo --out notebooks/demo

notebooks: $(STAMP)  ## run the notebooks at their defaults and keep their outputs for the repository
	PETCT_PLAIN_PROGRESS=1 $(BIN)/jupyter execute --inplace --timeout=900 notebooks/0*.ipynb
	$(BIN)/nbstripout --keep-output --keep-count notebooks/0*.ipynb

clean:  ## remove the notebooks' own run and caches (not .venv, not other runs)
	rm -rf runs/notebooks .pytest_cache .ruff_cache .coverage
