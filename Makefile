# Everything from a fresh machine with Python 3.11 to 3.13:   make pipeline   and   make test
PYTHON ?= python3
BIN := .venv/bin
SAMPLE_RUN := --model_name=sample --model_size=tiny_transformer --epochs=4 --batch_size=16 --accumulation_steps=1

.PHONY: pipeline test bench prove clean

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $@

pipeline: .venv/installed
	$(BIN)/python data_parser.py
	$(BIN)/python exploration_main.py
	$(BIN)/python create_balanced_dataset.py
	$(BIN)/python fp8_ddp_trainer.py $(SAMPLE_RUN)
	$(BIN)/python inference_testing.py
	$(BIN)/python training_results_analysis.py
	$(BIN)/python model_exporter.py

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2
