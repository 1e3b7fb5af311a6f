# make demo    install, then edit a bundled clip and print what came out
# make test    install, then run every test
# make check   the same, with lint and types
# make soak    the fault suite alone, in its long version
# make bench   print the benchmark tables
# make bench-speed     count and time the edits of one clip, against the upstream script
# make bench-quality   measure edits of the embedded model's world against their right answers
# make bench-long      the same for clips longer than the model's own, in windows (hours)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Clips of each kind of edit in bench-quality: a minute and a quarter each on one core.
CLIPS ?= 12
# Beside upstream's and the default's: the presets, each for the edits that it is meant for.
QUALITY_ROWS := recolor@caption=color faithful@caption=color,same balanced@caption \
    bold@caption=shape,background fast
# A file runs on one worker. Not sorted by their number of tests: the slowest files have few.
# One more worker than two cores have, since some tests wait for processes that they start.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-fast soak check lint bench bench-speed bench-quality bench-long clean
.DEFAULT_GOAL := test

$(INSTALLED): pyproject.toml configs/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint configs/constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m cogedit.lab.demo --output demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu" $(PARALLEL)

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL)

soak: $(INSTALLED)
	SOAK=1 $(BIN)/python -m pytest -m faults tests/faults

check: lint test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-quality bench-speed

bench-speed: $(INSTALLED)
	$(BIN)/python -m cogedit.lab.speed --output bench \
	    $(if $(shell test -f bench/quality.json && echo yes),--quality bench/quality.json)

bench-quality: $(INSTALLED)
	$(BIN)/python -m cogedit.lab.quality --output bench --seed-offset 13000 --clips $(CLIPS) \
	    --batch-size 4 $(QUALITY_ROWS:%=--configuration %)
	$(BIN)/python -m cogedit.lab.quality --output bench/first-frame --seed-offset 11000 \
	    --clips $(CLIPS) --batch-size 4 --model shapes-i2v --configuration first-frame@prompt \
	    --configuration first-frame-recolor=color

bench-long: $(INSTALLED)
	$(BIN)/python -m cogedit.lab.long_clips --output bench

clean:
	rm -rf $(VENV) build dist demo bench *.egg-info
