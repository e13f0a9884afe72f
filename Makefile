PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
RESULTS ?= benchmarks/results

.PHONY: setup demo test test-all parity lint format clean
.PHONY: bench-speed bench-precision bench-quality bench-autoencoders bench-gans bench-diffusion

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || python3 -m venv .venv
	@echo "Installing into .venv (torch is the large one) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: setup
	@$(BIN)/python -m poiesis.cli.demo

test: setup
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: setup
	@$(BIN)/python -m pytest -m "not gpu and not network and not browser" --timeout 1800

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

# The numbers in benchmarks/results; see benchmarks/README.md for what they take.
.peers/.installed: benchmarks/requirements.txt
	@test -x .peers/bin/python || $(PYTHON) -m venv .peers || python3 -m venv .peers
	@echo "Installing the packages to compare with into .peers …"
	@.peers/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	@.peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< --editable .
	@.peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "pythae==0.1.2"
	@touch $@

# Tests against a package that can't be installed beside the toolkit's own.
parity: .peers/.installed
	@.peers/bin/python -m pytest tests/parity

bench-speed: setup .peers/.installed
	OMP_NUM_THREADS=2 .peers/bin/python benchmarks/speed.py --out $(RESULTS)/speed.jsonl
	$(BIN)/python benchmarks/scaling.py --out $(RESULTS)/scaling.jsonl

bench-precision: setup
	$(BIN)/python benchmarks/precision.py --steps 120 --out $(RESULTS)/precision.jsonl

bench-quality: setup
	$(BIN)/python benchmarks/quality.py --out $(RESULTS)

bench-autoencoders: setup parity
	$(BIN)/python benchmarks/autoencoders.py --out $(RESULTS)
	$(BIN)/python benchmarks/oneclass.py --data mnist --out $(RESULTS)
	$(BIN)/python benchmarks/oneclass.py --data fashion-mnist --out $(RESULTS)
	$(BIN)/python benchmarks/compression.py --out $(RESULTS)
	$(BIN)/python benchmarks/denoising.py --out $(RESULTS)
	OMP_NUM_THREADS=2 .peers/bin/python benchmarks/speed.py --only vae --rounds 3 --out $(RESULTS)/speed-autoencoders.jsonl

bench-gans: setup
	$(BIN)/python benchmarks/gans.py --out $(RESULTS)
	$(BIN)/python benchmarks/toys.py --out $(RESULTS)

bench-diffusion: setup
	$(BIN)/python benchmarks/diffusion.py --out $(RESULTS)
	$(BIN)/python benchmarks/text_to_image.py --out $(RESULTS)

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .peers build dist .pytest_cache .ruff_cache .hypothesis
