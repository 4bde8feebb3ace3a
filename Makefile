# make demo                    the whole way, from a sample corpus to an evaluated model
# make demo CORPUS=<folder>    the same from a folder of Corpus Carolina (DOCUMENTS=<n> limits how much of it is used)
# make test                    style and tests
# Each makes the virtual environment .venv first, if it is not there.

PYTHON ?= python3
VENV ?= .venv
RUN = . $(VENV)/bin/activate &&
CONFIG ?= configs/quickstart.yaml

ifdef CORPUS
OUTPUT ?= runs/quickstart-carolina
DOCUMENTS ?= 60000
LIMIT = --documents $(DOCUMENTS)
else
OUTPUT ?= runs/quickstart
endif
CORPUS ?= sample_corpus

.PHONY: demo test

demo: $(VENV)/installed
ifeq ($(CORPUS),sample_corpus)
	@echo "[1/5] sample corpus"
	@$(RUN) python carolina_originality.py sample $(CORPUS)
else
	@echo "[1/5] corpus: $(CORPUS)"
endif
	@echo "[2/5] originality dataset"
	@$(RUN) python carolina_originality.py build --corpus "$(CORPUS)" $(LIMIT) --overwrite
	@echo "[3/5] tokenizer"
	@$(RUN) python -m flexqwen.tokenizer --vocab_size 4096 --output $(OUTPUT)/tokenizer --overwrite
	@echo "[4/5] training"
	@$(RUN) python train.py $(CONFIG) --output_dir $(OUTPUT) --tokenizer $(OUTPUT)/tokenizer \
		--token_stores $(OUTPUT)/tokens --overwrite
	@echo "[5/5] evaluation"
	@$(RUN) python eval.py --model $(OUTPUT)/hybrid-shift-256/best --overwrite

test: $(VENV)/installed
	@$(RUN) ruff check . && ruff format --check . && python -m pytest

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
