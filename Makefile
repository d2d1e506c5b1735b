# Everything from a fresh machine with Python 3.11 to 3.13: make pipeline, and make test.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
export MPLBACKEND := Agg
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The half hour is short: a fifth of it, six minutes, is kept for the test.
SAMPLE_SPLIT := --split_ratios="[0.6, 0.2, 0.2]"
SAMPLE_WINDOWS := 2400
SAMPLE_DRAW := $(SAMPLE_SPLIT) --windows=$(SAMPLE_WINDOWS)
SAMPLE_RUN := $(SAMPLE_SPLIT) --model_name=sample --model_size=small_cell_transformer --epochs=1 --batch_size=4 \
  --max_lr=3e-3 --outlook=0 --dropout=0.0 --validation_windows=128
# The folder of the run that the pipeline trained, as the trainer's first line names it.
TRAINED = $$(sed -n '/^run  /{s/^run  *//p;q}' runs/pipeline.log)
# The encoder that ships is scored on the windows that the newcomer's own is scored on.
SAMPLE_TEST := --probe_windows=0 --masks="['entry', 'span', 'patch', 'tail']"
SHIPPED_TEST := $(SAMPLE_TEST) $(SAMPLE_SPLIT) --model_path=pretrained/small_cell --pictures=False

# Ctrl-C, SIGTERM or SIGHUP: a shell hears them only between its commands, and of its commands' group. So the stages
# are a group of their own in the background, which gets the signal; no further stage begins.
ON_REQUEST := set -m; for name in INT TERM HUP; do trap "kill -$$name %1; wait %1" $$name; done;

.PHONY: pipeline test fuzz bench bench-gpu prove reproduce pretrained agent tables figures

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
	$(ON_REQUEST) { echo "1/7 order book states"; $(BIN)/python data_parser.py; \
	  echo "2/7 window statistics"; $(BIN)/python exploration_main.py; \
	  echo "3/7 balanced sample"; $(BIN)/python create_balanced_dataset.py $(SAMPLE_DRAW); \
	  echo "4/7 training"; $(BIN)/python fp8_ddp_trainer.py $(SAMPLE_RUN); \
	  run=$(TRAINED); \
	  echo "5/7 accuracy, of this encoder and of the one that ships"; \
	  $(BIN)/python inference_testing.py --model_path="$$run" $(SAMPLE_TEST); \
	  $(BIN)/python inference_testing.py $(SHIPPED_TEST); \
	  echo "6/7 comparison of runs"; $(BIN)/python training_results_analysis.py; \
	  echo "7/7 export"; $(BIN)/python model_exporter.py --model_path="$$run" --parts="['encoder']"; } | \
	  { trap "" INT TERM HUP; exec tee runs/pipeline.log; } & set +m; wait %1
	@echo
	@echo "order book states, window statistics, balanced sample, pictures   training_data/"
	@echo "checkpoints, metrics, accuracy report                             runs/sample*/"
	@echo "comparison of runs                                                runs/analysis/"
	@echo "exported encoder                                                  exports/"
	@echo "TensorBoard                                                       $(BIN)/tensorboard --logdir runs"
	@echo
	@run=$(TRAINED); \
	  $(BIN)/python -m lob.evaluation.summary "$$run/report.json" runs/small_cell/report.json

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term

# Damaged recordings of every feed, against slow readings: 100,000 take some 40 minutes to an hour on a core.
FILES := 100000
fuzz: .venv/installed-dev
	PYTHONPATH=. $(BIN)/python tests/fuzz.py --files=$(FILES)

# One state in, its vector out, beside whole windows.
STREAM := --formats="['eager','stream']" --presets="['small_cell_transformer','tiny_transformer','deep_narrow_transformer']"
STREAM_GPU := --devices="['cuda']" --formats="['graphed','stream']" --presets="['cell_transformer','deep_narrow_transformer']"

# The benchmarks of a CPU. Results go to benchmarks/results/*.json, and from there into the pages.
bench: .venv/installed-dev
	for name in parser windows scale peers export; do $(BIN)/python -m benchmarks.bench_$$name --write=True; done
	$(BIN)/python -m benchmarks.bench_export $(STREAM) --batch_size=16 --write=True
	$(MAKE) tables

# The benchmarks of a machine with NVIDIA GPUs: training speed, and latency in use.
bench-gpu: .venv/installed-dev
	$(BIN)/python -m benchmarks.bench_training --write=True
	$(BIN)/python -m benchmarks.bench_export $(STREAM_GPU) --write=True
	$(BIN)/python -m benchmarks.bench_inputs --write=True
	$(MAKE) tables

# What the encoder is worth over seeds. PROVE holds keys of benchmarks/prove.py, such as the data.
prove: .venv/installed
	$(BIN)/python -m benchmarks.prove --write=True $(PROVE)
	$(MAKE) tables figures

# The README's table of the encoder that ships, from public recordings, on a machine with a GPU: five seeds of the
# recipe, trained and scored. `make pretrained` makes the weights under pretrained/ of the first seed.
# RECORDINGS: a folder that holds the recordings, so that none is fetched. SEEDS may be fewer, RUNS_A_GPU is how many
# run at a time. What is done is not done again: remove bench/ to parse anew, runs/shipped/ to train anew.
RECORDINGS :=
SEEDS := 5
RUNS_A_GPU := 2
WINDOWS := 48000
TRAINED_ON := BTCUSDT_USDM ETHUSDT_USDM BTCUSD_COINBASE_20180424
UNSEEN := BTCUSDT_USDM_202408 BTCUSD_PERP_CM BTCUSDT_SPOT BTCUSD_COINBASE_20180415 BTCUSD_COINBASE_L3 \
  BTCUSD_BITSTAMP_2019 SSE_600519_20230207 SSE_600961
as_list = "[$(foreach name,$(1),'$(name)',)]"
LAID := --data_dir=bench/depth_96
CUTS := --split_ratios="['2024-07-19T00:03:30', '2024-08-01']"
RECIPE := {'model_size': 'small_cell_transformer', 'precision': 'bf16', 'epochs': 6, 'max_lr': 3e-3, 'dropout': 0.0}
# Ridge regression is fitted on what the encoder was trained on, in bench/fit.
SCORING := {'split': 'all', 'allow_earlier': True, 'fit_data_dir': 'bench/fit', 'windows': 96, 'probe_windows': 0, \
  'pictures': False, 'masks': ['entry', 'span', 'patch', 'tail']}
PROVE_SHIPPED = $(BIN)/python -m benchmarks.prove $(LAID) $(CUTS) --pairs=$(call as_list,$(TRAINED_ON)) --scored=[] \
  --unseen=$(call as_list,$(UNSEEN)) --recipe="$(RECIPE)" --scoring="$(SCORING)" --bf16_seeds=0 --checksums=False \
  --name=shipped --runs_dir=runs/shipped --runs_a_gpu=$(RUNS_A_GPU)

bench/shipped: .venv/installed
	mkdir -p bench/fit/book_states
	date +%s > bench/began
ifeq ($(RECORDINGS),)
	$(PIP) rdata
	$(BIN)/python training_data/download_recordings.py --markets=$(call as_list,$(TRAINED_ON) $(UNSEEN))
endif
	$(BIN)/python -m benchmarks.lay_recordings --recordings="$(or $(RECORDINGS),recorded)" --depths=[96] \
	  --markets=$(call as_list,$(TRAINED_ON) $(UNSEEN))
	$(BIN)/python exploration_main.py $(LAID) --pairs=$(call as_list,$(TRAINED_ON)) --plots=False
	$(BIN)/python create_balanced_dataset.py $(LAID) $(CUTS) --pairs=$(call as_list,$(TRAINED_ON)) --windows=$(WINDOWS) \
	  --min_stride=1 --plots=False
	for pair in $(TRAINED_ON); do ln -sfn ../../depth_96/book_states/$$pair bench/fit/book_states/$$pair; done
	echo $$((($$(date +%s) - $$(cat bench/began)) / 60)) > $@

reproduce: bench/shipped
	@SECONDS=0; \
	$(PROVE_SHIPPED) --seeds=$(SEEDS) --write=True; \
	$(BIN)/python -m benchmarks.pages; \
	echo "$$(cat bench/shipped) min for the data, $$((SECONDS / 60)) min for training and scoring in this call"; \
	echo "the table is in README.md, all numbers are in benchmarks/results/shipped.json"

pretrained: bench/shipped
	$(PROVE_SHIPPED) --seeds=1
	$(BIN)/python model_exporter.py --formats=[] --model_path=runs/shipped/bf16_0 --pretrained=pretrained/small_cell \
	  --card="$$(cat benchmarks/small_cell_card.txt)"

# Trading agents on recordings days apart (docs/agent.md), some 40 minutes of one free core.
AGENT := --data_dir=bench/depth_96 --decisions=3000 --steps=32768 --seeds=5 --device=cpu \
  --agents="['vector','features','both','random_weights']" \
  --train_pairs="['BTCUSDT_USDM','BTCUSD_COINBASE_20180424','BTCUSD_BITSTAMP_2015','SSE_600519_20230201']" \
  --test_pairs="['BTCUSDT_USDM_202408','BTCUSD_COINBASE_L3','BTCUSD_BITSTAMP_2019','SSE_600519_20230207']"
agent: .venv/installed-dev
	$(BIN)/python examples/ppo_agent.py $(AGENT) --write=True
	$(MAKE) tables figures

# The marked blocks of README.md and docs/*.md, from the config dicts and benchmarks/results/*.json.
tables: .venv/installed
	$(BIN)/python -m benchmarks.pages

# docs/figures/*.png, from the shipped recording and benchmarks/results/*.json.
figures: .venv/installed
	$(BIN)/python -m benchmarks.figures
