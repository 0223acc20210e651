# int8d's own commands. Every target sets up what it needs in .venv; nothing outside this folder changes, but for Debian
# packages that a target names and installs where it runs as root.

# The first of these that runs and is 3.11 or later.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMPS := .venv/.stamps
SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc')
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
NETWORKS := $(patsubst %,models/zoo/%.int8.safetensors,resnet18 resnet50 mobilenet_v2 mobilenet_v3_large efficientnet_b0)
TESTS_AT_ONCE ?= 3
SANITIZERS := address,undefined thread
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DINT8D_PYTHON=OFF

.PHONY: setup demo test test-native sanitize fuzz chaos fire bench bench-native coverage lint format clean
.DELETE_ON_ERROR:

setup: $(STAMPS)/build

$(STAMPS)/venv: constraints.txt
	@test -n "$(PYTHON)" || { echo 'int8d needs Python 3.11 or later: set PYTHON=' >&2; exit 1; }
	@command -v g++ > /dev/null || { echo 'int8d needs a C++ compiler: apt-get install g++ make python3-dev python3-venv' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) scikit-build-core pybind11 cmake ninja
	mkdir -p $(STAMPS) && touch $@

# Build isolation would ignore the pinned build requirements, and fetch others.
$(STAMPS)/build: $(STAMPS)/venv $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[demo]'
	touch $@

# With the native tests in the same build: compiling the kernels takes minutes.
$(STAMPS)/make: $(STAMPS)/venv $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --config-settings=cmake.define.INT8D_TESTS=ON \
		--editable '.[demo,make,test]'
	touch $(STAMPS)/build
	touch $@

$(STAMPS)/bench: $(STAMPS)/make
	$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])')
	touch $@

$(STAMPS)/lint: $(STAMPS)/make
	$(PIP) ruff mypy clang-format
	touch $@

# What the tests run beside the agent. Without systemd-nspawn the tests that boot the unit are skipped, with the reason.
$(STAMPS)/servers: $(STAMPS)/venv
	@missing=; for pair in mosquitto:mosquitto nginx:nginx-light systemd-nspawn:systemd-container debootstrap:debootstrap; do \
		PATH="$$PATH:/usr/sbin" command -v $${pair%:*} > /dev/null || missing="$$missing $${pair#*:}"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing; \
	else echo "the tests need more packages: sudo apt-get install$$missing" >&2; \
		case "$$missing" in *mosquitto*|*nginx*) exit 1;; esac; fi
	touch $@

$(STAMPS)/benchmark: $(STAMPS)/venv
	@test -e /usr/include/benchmark/benchmark.h || \
	if [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libbenchmark-dev; \
	else echo 'the kernel benches need Google Benchmark: sudo apt-get install libbenchmark-dev' >&2; exit 1; fi
	touch $@

# The main job, end to end, on real input.
demo: $(STAMPS)/build
	$(BIN)/int8d demo

# Most tests wait for a process, a broker or a deadline: three files at a time keep two cores busy.
test: $(STAMPS)/make $(STAMPS)/servers test-native
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder

test-native: $(STAMPS)/make
	$$(ls -t build/cp*/int8d_tests | head -n 1)

# The native tests again, each time under other sanitizers.
sanitize: $(SANITIZERS:%=sanitize-%)

sanitize-%: $(STAMPS)/venv
	$(CMAKE) -S . -B build/sanitize-$* -DINT8D_TESTS=ON -DINT8D_SANITIZE=$* > /dev/null
	$(BIN)/cmake --build build/sanitize-$*
	build/sanitize-$*/int8d_tests

# Hostile files: model files under ASan and UBSan, then what the importers take. A failed case's file is kept in build/fuzz.
fuzz: $(STAMPS)/make
	PATH="$(CURDIR)/$(BIN):$$PATH" $(CMAKE) -S . -B build/fuzz -DINT8D_PYTHON=ON -DINT8D_SANITIZE=address,undefined \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null
	$(BIN)/cmake --build build/fuzz
	$(BIN)/python -m tests.fuzz model --extension $$(ls build/fuzz/_kernels*.so)
	$(BIN)/python -m tests.fuzz tflite
	$(BIN)/python -m tests.fuzz onnx

# Agent and broker under faults by a fixed seed, 20 minutes of them; docs/chaos.md.
chaos: $(STAMPS)/make $(STAMPS)/servers
	$(BIN)/python -m tests.chaos

# Deadlines, poison, overload, a million hostile messages and a day's soak, 40 minutes of them; docs/under-fire.md.
fire: $(STAMPS)/make $(STAMPS)/servers
	$(BIN)/python -m tests.fire deadline
	$(BIN)/python -m tests.fire crash
	$(BIN)/python -m tests.fire hang
	$(BIN)/python -m tests.fire overload
	$(BIN)/python -m tests.fire hostile
	$(BIN)/python -m tests.fire soak

bench: $(STAMPS)/bench $(STAMPS)/servers $(NETWORKS) bench-native
	$(BIN)/python -m bench.report

# What of torchvision's networks is native, into docs/coverage.md.
coverage: $(STAMPS)/make
	$(BIN)/python -m bench.coverage

bench-native: $(STAMPS)/venv $(STAMPS)/benchmark
	$(CMAKE) -S . -B build/bench -DINT8D_BENCH=ON > /dev/null
	$(BIN)/cmake --build build/bench

$(NETWORKS): models/zoo/%.int8.safetensors: | $(STAMPS)/make
	$(BIN)/int8d-make build $* --weights none -o $@

lint: $(STAMPS)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(STAMPS)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache .cache
