# Each target sets up what it needs: nothing has to be prepared by hand.
PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready
READY_BENCH = .venv/ready-bench

.PHONY: help train test test-slow lint format plot notebook bench clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[corpus,dev,notebook,plot,sweep,tune,browser,hf,onnx]"
	@touch $(READY)

$(READY_BENCH): $(READY)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[bench]"
	@touch $(READY_BENCH)

train: $(READY) ## train on Tiny Shakespeare; make train ARGS="model=tiny trainer.max_steps=200"
	$(BIN)/python scripts/train.py $(ARGS)

test: export OMP_NUM_THREADS = 1
test: $(READY) lint ## ruff, then pytest, on up to four cores
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(READY) ## a run killed thirty times, random settings, more launchers
	$(BIN)/pytest -m slow $(ARGS)

lint: $(READY) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## put style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

plot: $(READY) ## draw a run's losses: make plot ARGS="outputs/RUN curve.png"
	$(BIN)/python dev/plot_run.py $(ARGS)

notebook: $(READY) ## run the derivation in place, outputs and all, in a few minutes
	$(BIN)/python dev/run_notebook.py

bench: $(READY_BENCH) ## measure speed, beside Hugging Face's: make bench ARGS="throughput sampling"
	$(BIN)/python scripts/benchmark.py --compare hf $(ARGS)

clean: ## remove the environment, not the runs
	rm -rf .venv build *.egg-info
