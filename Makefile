# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
BENCH_STAMP := $(VENV)/.installed-bench
FLOOR := .venv-floor
FLOOR_STAMP := $(FLOOR)/.installed
FLOOR_TESTS := tests/backends tests/test_session.py tests/test_preview.py tests/test_check.py tests/test_open_pipeline.py
# Two OpenMP threads that spin while another process runs slow each other down forty-fold; waiting passively they do not.
test faults soak fuzz: export OMP_WAIT_POLICY ?= passive

.PHONY: help demo test test-floor faults soak fuzz check model bench bench-engines bench-gpu docs dist clean

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

demo: $(STAMP)  ## make a hundred stories with the bundled model, read every line again, and show three of them
	$(BIN)/python -m asyncgen run configs/quickstart.yaml
	$(BIN)/python -m asyncgen verify configs/quickstart.yaml
	@$(BIN)/python tools/show_stories.py configs/quickstart-stories.jsonl 3

# Where Python may write no bytecode, each of the hundreds of programs that tests start would compile the package again.
test: check  ## lint, types and all tests, two files at a time
	$(BIN)/python -m compileall -q asyncgen
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-floor: $(FLOOR_STAMP)  ## the tests that touch transformers, with the oldest one allowed
	$(FLOOR)/bin/python -m pytest -q $(FLOOR_TESTS) --ignore tests/backends/openai

faults: $(TEST_STAMP)  ## every fault of the matrix with all its trials, as a table: about twenty minutes
	$(BIN)/python -m benchmarks.faults

soak: $(TEST_STAMP)  ## a run under every fault at once for an hour, then compared with one that is left alone
	$(BIN)/python -m benchmarks.soak

fuzz: $(TEST_STAMP)  ## inputs that hypothesis makes, ten minutes for each of the targets in tests/fuzz: over an hour
	$(BIN)/python -m benchmarks.fuzz

check: $(TEST_STAMP)  ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

# The malloc settings keep training from giving memory back and faulting it in again with every step.
model: $(TEST_STAMP)  ## train the bundled model again, from its corpus to its weights (over an hour on two cores)
	MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864 MALLOC_ARENA_MAX=1 \
	GOMP_SPINCOUNT=0 $(BIN)/python -m tools.bedtime_tiny.train

# The engines take about a quarter of an hour on two cores, the rest some minutes.
bench: $(BENCH_STAMP)  ## what the README's numbers come from
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.overlap
	$(BIN)/python -m benchmarks.dashboard_cost
	$(BIN)/python -m benchmarks.demo
	$(BIN)/python -m benchmarks.engines --model 6m --workload A

bench-engines: $(BENCH_STAMP)  ## every workload and model, written into benchmarks/results: over an hour
	for workload in A B C; do $(BIN)/python -m benchmarks.engines --workload $$workload --write || exit; done
	for model in 30m bundled; do $(BIN)/python -m benchmarks.engines --model $$model --write || exit; done
	$(BIN)/python -m benchmarks.engines --busy --write

bench-gpu: $(STAMP)  ## the in-flight engine on a GPU, written into benchmarks/results: under ten minutes
	$(BIN)/python -m benchmarks.gpu --part all

docs: $(STAMP)  ## write what documentation is written from the code
	$(BIN)/python -m tools.write_docs

dist: $(TEST_STAMP)  ## build the wheel and the source distribution
	$(BIN)/python -m hatchling build -d dist

clean:
	rm -rf $(VENV) $(FLOOR) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): 1.2 GB (several GB more if torch brings CUDA), a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt $(STAMP)
	@echo "installing what the tests need into $(VENV): half a GB more"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

# constraints.txt, but for the packages that constraints-floor.txt has other versions of.
$(FLOOR_STAMP): pyproject.toml constraints.txt constraints-floor.txt
	@echo "installing an environment with the oldest transformers into $(FLOOR): 1.2 GB, a minute or two"
	$(PYTHON) -m venv $(FLOOR)
	grep -o '^[A-Za-z_-]*==' constraints-floor.txt | sed 's/^/^/' > $(FLOOR)/replaced.txt
	grep -v -f $(FLOOR)/replaced.txt constraints.txt | cat - constraints-floor.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet --constraint $(FLOOR)/constraints.txt --editable . \
	  blockbuster hypothesis pytest pytest-timeout
	@touch $@

$(BENCH_STAMP): pyproject.toml constraints.txt $(TEST_STAMP)
	@echo "installing what the benchmarks compare with into $(VENV): 150 MB more"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@
