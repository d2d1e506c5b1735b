# Everything from a fresh machine with Python 3.11 to 3.13: make pipeline, and make test.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SAMPLE_RUN := --model_name=sample --model_size=tiny_transformer --epochs=10 --batch_size=16 --accumulation_steps=1 \
  --max_lr=4e-3 --fill=linear --mask_mode=entry --mirror=False --slow=0 --size_noise=0 --outlook=0 \
  --dropout=0.0 --weight_decay=0.01

.PHONY: pipeline test bench bench-gpu prove tables figures

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("needs Python 3.11 to 3.13, " \
	  f"$(PYTHON) is {sys.version.split()[0]}: set another one, such as  make PYTHON=python3.12 pipeline")'
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt examples/requirements.txt
	$(PIP) -r requirements-dev.txt
	touch $@

pipeline: export PYTHONUNBUFFERED := 1
pipeline: .venv/installed
	mkdir -p runs
	{ $(BIN)/python data_parser.py; \
	  $(BIN)/python exploration_main.py; \
	  $(BIN)/python create_balanced_dataset.py; \
	  $(BIN)/python fp8_ddp_trainer.py $(SAMPLE_RUN); \
	  $(BIN)/python inference_testing.py; \
	  $(BIN)/python training_results_analysis.py; \
	  $(BIN)/python model_exporter.py; } | tee runs/pipeline.log
	@echo
	@echo "order book states, window statistics, balanced sample, pictures   training_data/"
	@echo "checkpoints, metrics, accuracy report                             runs/sample*/"
	@echo "comparison of runs                                                runs/analysis/"
	@echo "exported encoder                                                  exports/"
	@echo "TensorBoard                                                       $(BIN)/tensorboard --logdir runs"
	@echo "error over hidden values of the test windows (normalised values), of the encoder and without training:"
	@grep '^test loss' runs/pipeline.log | tail -1

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

# The benchmarks of a CPU. Results go to benchmarks/results/*.json, and from there into the pages.
bench: .venv/installed-dev
	for name in parser windows peers export; do $(BIN)/python -m benchmarks.bench_$$name --write=True; done
	$(MAKE) tables

# The benchmark of a machine with NVIDIA GPUs: training speed.
bench-gpu: .venv/installed-dev
	$(BIN)/python -m benchmarks.bench_training --write=True
	$(MAKE) tables

# What the encoder is worth over seeds. PROVE holds keys of benchmarks/prove.py, such as the data.
prove: .venv/installed
	$(BIN)/python -m benchmarks.prove --write=True $(PROVE)
	$(MAKE) tables figures

# The marked blocks of README.md and docs/*.md, from the config dicts and benchmarks/results/*.json.
tables: .venv/installed
	$(BIN)/python -m benchmarks.pages

# docs/figures/*.png, from the shipped recording and benchmarks/results/*.json.
figures: .venv/installed
	$(BIN)/python -m benchmarks.figures
