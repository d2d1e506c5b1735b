# Everything from a fresh machine with Python 3.11 to 3.13:   make pipeline   and   make test
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SAMPLE_RUN := --model_name=sample --model_size=tiny_transformer --epochs=10 --batch_size=16 --accumulation_steps=1 \
  --max_lr=4e-3 --fill=linear --mask_mode=entry --mirror=False --slow=0 --size_noise=0 --outlook=0 \
  --dropout=0.0 --weight_decay=0.01

.PHONY: pipeline test bench bench-gpu prove tables

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
	@echo "masked error of the encoder, and of linear interpolation (normalised values, test windows):"
	@grep '^test loss' runs/pipeline.log | tail -1

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

# every CPU benchmark, its JSON under benchmarks/results/, and the README's tables made from them
bench: .venv/installed-dev
	for name in parser windows peers export; do $(BIN)/python -m benchmarks.bench_$$name --write=True; done
	$(MAKE) tables

# the same on a machine with NVIDIA GPUs: training speed, FP8 beside bf16, the fast path beside the eager one
bench-gpu: .venv/installed-dev
	for name in training runs eager; do $(BIN)/python -m benchmarks.bench_$$name --write=True; done
	$(MAKE) tables

# the encoder's worth over seeds (PROVE: keys of benchmarks/prove.py, such as the data), and the README's tables
prove: .venv/installed
	$(BIN)/python -m benchmarks.prove --write=True $(PROVE)
	$(MAKE) tables

tables: .venv/installed
	$(BIN)/python -m benchmarks.readme_tables
