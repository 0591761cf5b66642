# PixelLLM-at-scale: everything a newcomer types. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONVERT_STAMP := $(VENV)/.installed-convert
RUNS ?= runs
DATA ?= data
SAMPLE := $(DATA)/sample
REPORT := $(RUNS)/report.html
# Of `make chain`: t5, bert or tiny; where runs go; space-separated lists.
MODEL ?= tiny
ROOT ?= $(RUNS)/$(MODEL)
WEIGHTS ?=
IMAGES ?=
STAGES ?=
GIN_FLAGS ?=
DRY_RUN ?=
PICTURES := $(addprefix tasks/sample/,train2017 val2017 train2014)
NARRATIVES := tasks/sample/localized_narratives/coco
SOURCES := pixel_llm tasks t5x tests benchmarks
SCRIPTS := .ci/run $(wildcard launch/*.sh launch/lib/*.sh tests/launch/*.sh)
comma := ,
space := $(subst ,, )

export PIXEL_LLM_DATA_DIR := $(abspath $(DATA))

.DEFAULT_GOAL := help
.PHONY: help setup data train chain test lint format clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with the tested set of packages (once).

# The stamp is written last: an interrupted installation starts over.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: $(PYTHON) is older than Python 3.11; run make PYTHON=/path/to/python3.11 setup' >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# torch comes with what it needs: the public index has a CUDA build for Linux,
# which does not import without its libraries.
$(CONVERT_STAMP): $(STAMP) constraints-convert.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-convert.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-convert.txt
	@touch $@

data: $(STAMP) ## Convert the bundled sample to ArrayRecord (resumable).
	$(BIN)/python -m tasks.build refcoco --images $(PICTURES) \
	  --output $(SAMPLE)/refcoco \
	  --split train=tasks/sample/refcoco/merge_coco_img_safe_train.json \
	  --split real_val=tasks/sample/refcoco/refcocog_umd_val.json
	$(BIN)/python -m tasks.build ln --images $(PICTURES) \
	  --output $(SAMPLE)/ln \
	  --split train=$(subst $(space),$(comma),$(sort $(wildcard $(NARRATIVES)_train_*.jsonl))) \
	  --split val=$(NARRATIVES)_val_localized_narratives.jsonl
	$(BIN)/python -m tasks.build vg --images $(PICTURES) \
	  --output $(SAMPLE)/vg \
	  --split train=tasks/sample/vg/train.json \
	  --split test=tasks/sample/vg/test.json

train: data ## Train tiny_trace, then tiny_refseg; evaluate; write the report.
	$(BIN)/python -m t5x.train --gin_file=gin/pixel_llm_tiny_trace.gin \
	  --gin.MODEL_DIR='"$(RUNS)/tiny_trace"'
	$(BIN)/python -m t5x.train --gin_file=gin/pixel_llm_tiny_refseg.gin \
	  --gin.MODEL_DIR='"$(RUNS)/tiny_refseg"' \
	  --gin.INITIAL_CHECKPOINT_PATH='"$(RUNS)/tiny_trace"'
	$(BIN)/python -m pixel_llm.evaluation.report \
	  --model_dir $(RUNS)/tiny_trace --model_dir $(RUNS)/tiny_refseg \
	  $(addprefix --image_dir ,$(PICTURES)) --max_samples 200 \
	  --output $(REPORT)

# The weights of other projects may be PyTorch's.
chain: $(CONVERT_STAMP) ## From WEIGHTS of MODEL (t5, bert, tiny), stage by stage.
	PYTHON=$(BIN)/python launch/chain.sh --model $(MODEL) --root $(ROOT) \
	  $(addprefix --weights ,$(WEIGHTS)) $(addprefix --images ,$(IMAGES)) \
	  $(if $(DRY_RUN),--dry_run) $(STAGES) $(if $(GIN_FLAGS),-- $(GIN_FLAGS))

# One file, one process: what the tests of a file share is made once.
test: $(CONVERT_STAMP) ## Run the tests (about fourteen minutes on two cores).
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 \
	  --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 10

lint: $(CONVERT_STAMP) ## Check format, style, types and layers.
	$(BIN)/pyink --check --quiet $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/shellcheck --external-sources $(SCRIPTS)

format: $(STAMP) ## Rewrite the sources in the project's format.
	$(BIN)/pyink --quiet $(SOURCES)
	$(BIN)/ruff check --fix --quiet $(SOURCES)

clean: ## Remove runs and converted data; keep .venv.
	rm -rf $(RUNS) $(DATA)
