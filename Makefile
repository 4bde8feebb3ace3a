# make demo                    the whole way, from a sample corpus to an evaluated model; replaces what is in runs/quickstart
# make demo CORPUS=<folder>    the same from Corpus Carolina, or files of .parquet, .jsonl or .txt in any language (DOCUMENTS=<n> at most)
# make demo DATASET_CONFIG=all  trains on all but the held-out documents, not on the most original ones
# make test                    style and tests (CAROLINA_CORPUS=<folder>: also on a real copy of the corpus)
# make test-slow               tests that it leaves out: all shards of the real copy, more of what torch compiles
# make test-compat             the model's and the trainer's tests with the oldest transformers that is supported
# make space                   serves the page of space/ for the model of make demo
# make test-space              the tests of that page, in headless Chromium, and of notebooks/
# make test-clients            the tests with programs of others that load the models (tests/clients)
# make test-vllm               the same with vLLM on a CPU, which has a transformers of its own
# make test-cluster            jobs/originality.py with datatrove, on processes and on a Ray cluster (tests/cluster)
# make test-transformers4      a plain Qwen3 export in transformers 4
# Each makes its virtual environment first, if it is not there: .venv, .venv-space, …

PYTHON ?= python3
VENV ?= .venv
export CAROLINA_CORPUS FLEXQWEN_EVAL_DATA
RUN = . $(VENV)/bin/activate &&
CONFIG ?= configs/quickstart.yaml
SPACE_VENV ?= .venv-space
CLIENTS_VENV ?= .venv-clients
CLUSTER_VENV ?= .venv-cluster
VLLM_VENV ?= .venv-vllm
FORMER_VENV ?= .venv-transformers4
COMPAT_TRANSFORMERS ?= 5.16.0
COMPAT_VENV ?= .venv-transformers-$(COMPAT_TRANSFORMERS)
# Not test_distributed: transformers 5.16 itself cannot load an optimizer onto the device "cpu:0" of several CPU processes.
COMPAT_TESTS = tests/model $(addprefix tests/training/test_,known_answer.py objectives.py training.py resume.py failing.py)

ifdef CORPUS
OUTPUT ?= runs/quickstart-corpus
DOCUMENTS ?= 60000
LIMIT = --documents $(DOCUMENTS)
else
OUTPUT ?= runs/quickstart
endif
CORPUS ?= sample_corpus

.PHONY: demo test test-slow test-compat test-clients test-cluster test-vllm test-transformers4 space test-space

demo: $(VENV)/installed
	@echo "Where other programs run too, OMP_WAIT_POLICY=PASSIVE before the command makes it faster."
ifeq ($(CORPUS),sample_corpus)
	@echo "[1/5] sample corpus"
	@$(RUN) python carolina_originality.py sample $(CORPUS)
else
	@echo "[1/5] corpus: $(CORPUS)"
endif
	@echo "[2/5] originality dataset"
	@# A dataset that an earlier demo made is replaced; one that you built is not.
	@$(RUN) python carolina_originality.py build --corpus "$(CORPUS)" $(LIMIT) $(if $(filter all,$(DATASET_CONFIG)),--with_all) \
		$$(cmp -s carolina_originality/manifest.json runs/demo-manifest.json && echo --overwrite)
	@mkdir -p runs && cp carolina_originality/manifest.json runs/demo-manifest.json
	@echo "[3/5] tokenizer"
	@$(RUN) python -m flexqwen tokenizer --vocab_size 4096 --output $(OUTPUT)/tokenizer --overwrite
	@echo "[4/5] training"
	@$(RUN) python train.py $(CONFIG) --output_dir $(OUTPUT) --tokenizer $(OUTPUT)/tokenizer \
		$(if $(DATASET_CONFIG),--dataset_config $(DATASET_CONFIG)) --token_stores $(OUTPUT)/tokens --overwrite
	@echo "[5/5] evaluation"
	@$(RUN) python eval.py --model $(OUTPUT)/hybrid-shift-256/best --overwrite
	@echo "Next: make space, a page to try this model"

test: $(VENV)/installed
	@# Files of tests over processes of one thread each: the models are too small for several.
	@$(RUN) ruff check . && ruff format --check . && OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/installed
	@$(RUN) OMP_NUM_THREADS=1 python -m pytest -m slow

test-compat: $(COMPAT_VENV)/installed
	@. $(COMPAT_VENV)/bin/activate && python -m pytest $(COMPAT_TESTS)

# Asked first: installing takes minutes.
space:
	@test -e $(OUTPUT)/hybrid-shift-256/best/model.safetensors || { echo "error: no model yet; run make demo" >&2; exit 2; }
	@$(MAKE) --no-print-directory $(SPACE_VENV)/installed
	@. $(SPACE_VENV)/bin/activate && python space/app.py --model $(OUTPUT)/hybrid-shift-256/best

test-space: $(SPACE_VENV)/installed
	@command -v chromium > /dev/null || { echo "error: chromium is missing; on Debian: apt-get install chromium" >&2; exit 2; }
	@. $(SPACE_VENV)/bin/activate && python -m pytest tests/space

test-clients: $(CLIENTS_VENV)/installed
	@. $(CLIENTS_VENV)/bin/activate && python -m pytest tests/clients

test-cluster: $(CLUSTER_VENV)/installed
	@. $(CLUSTER_VENV)/bin/activate && python -m pytest tests/cluster

$(SPACE_VENV)/installed: space/requirements.txt tests/space/requirements.txt
$(CLIENTS_VENV)/installed: tests/clients/requirements.txt
$(CLUSTER_VENV)/installed: tests/cluster/requirements.txt
$(SPACE_VENV)/installed $(CLIENTS_VENV)/installed $(CLUSTER_VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(@D)
	. $(@D)/bin/activate && python -m pip install --quiet --disable-pip-version-check $(^:%=-r %)
	@touch $@

test-vllm: $(VLLM_VENV)/installed
	@. $(VLLM_VENV)/bin/activate && python -m pytest tests/clients/test_vllm.py

# vLLM takes torchvision and its like for images and sound only, and loads none that was built for another torch.
$(VLLM_VENV)/installed: requirements.txt tests/clients/requirements-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	sed -E 's/^(transformers|numpy)==.*/\1/' requirements.txt > $(VLLM_VENV)/requirements.txt
	. $(VLLM_VENV)/bin/activate && python -m pip install --quiet --disable-pip-version-check \
		-r $(VLLM_VENV)/requirements.txt -r tests/clients/requirements-vllm.txt
	. $(VLLM_VENV)/bin/activate && python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-transformers4: $(VENV)/installed $(FORMER_VENV)/installed
	@$(RUN) TRANSFORMERS4_PYTHON=$(abspath $(FORMER_VENV))/bin/python python -m pytest tests/clients/test_transformers4.py

$(FORMER_VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(FORMER_VENV)
	. $(FORMER_VENV)/bin/activate && python -m pip install --quiet --disable-pip-version-check \
		$$(grep '^torch==' requirements.txt) "transformers<5"
	@touch $@

$(COMPAT_VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(COMPAT_VENV)
	sed -E 's/^transformers==.*/transformers==$(COMPAT_TRANSFORMERS)/; s/^(huggingface_hub|tokenizers|datasets)==.*/\1/' \
		requirements.txt > $(COMPAT_VENV)/requirements.txt
	. $(COMPAT_VENV)/bin/activate && python -m pip install --quiet --disable-pip-version-check -r $(COMPAT_VENV)/requirements.txt
	@touch $@

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
