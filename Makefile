# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo

.PHONY: setup demo test check bench fuzz clean-demo

setup: $(STAMP)

# Does nothing while neither the dependencies nor the C sources change.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard native/src/* native/include/* native/training/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# A process a processor, a file in one of them: its fixtures are made once. Not reordered: files of few tests would come last, and
# those are the long ones.
test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/shellcheck slurm/*.sh slurm/*.sbatch .ci/run
	$(BIN)/ruff format --check .
	$(BIN)/mypy bitbert data_prep pretrain finetune

# The whole path on data that two installed packages carry. Each step continues or is skipped where it was done before.
demo: setup
	@$(PYTHON) -c 'import time; print(time.time())' > $(VENV)/.demo-started
	@echo '--- 1/5  text -> shards'
	test -d $(DEMO)/shards || $(BIN)/bitbert-data configs/data_prep/demo.yaml
	@echo '--- 2/5  1-bit pretraining on 2 CPU ranks, distilled from a full-precision teacher'
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m bitbert.pretrain configs/pretrain/demo.yaml
	@echo '--- 3/5  export -> packed 1-bit checkpoint'
	test -d $(DEMO)/packed || $(BIN)/bitbert-export $(DEMO)/pretrain $(DEMO)/packed
	@echo '--- 4/5  finetuning without a teacher: are two sentences of the same article?'
	$(BIN)/bitbert-finetune $(DEMO)/pretrain --train $(DEMO)/shards/pair_task/train.csv --eval $(DEMO)/shards/pair_task/eval.csv \
	  --config configs/finetune/demo.yaml --output $(DEMO)/finetune
	@echo '--- 5/5  an answer from the packed bits, without torch'
	@$(BIN)/python -m benchmarks.demo_table $(DEMO) --started $$(cat $(VENV)/.demo-started)

# Needs a quiet machine and some minutes.
bench: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/bench_runtime.py --json runs/bench_runtime.json
	$(BIN)/python benchmarks/bench_data_prep.py --json runs/bench_data_prep.json

fuzz: setup
	$(BIN)/python benchmarks/fuzz_packed.py --minutes 10

clean-demo:
	rm -rf $(DEMO)
