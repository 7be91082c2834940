# One non-recursive build. `make help` says what there is.
#
#   BUILD=dir      where everything goes (build)          SAN=address,undefined | thread   sanitizers
#   CC=gcc|clang   the compiler                           WERROR=1   warnings are errors    MUTANTS=1  deliberate bugs
#   ONLY=regex     of the tests, those whose name matches  SEEDS=n SEED=n   of the simulator  V=1  show commands
#
# Sources are discovered: a room (a folder of *.c) becomes an archive, tests/unit/<room>/test_x.c a program that is
# linked against its room and those before it in ROOMS.

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash

BUILD   ?= build
CC      := $(if $(filter default,$(origin CC)),gcc,$(CC))
SAN     ?=
WERROR  ?=
MUTANTS ?=
SEEDS   ?= 200
SEED    ?=
ONLY    ?=
Q       := $(if $(V),,@)
VERSION := $(shell cat VERSION 2>/dev/null || echo 0.1.0)

# --- packages: make installs what is missing first, then reads this file again; make -n does not -------------------

.PHONY: deps
deps: ## install missing Debian packages and Go tools (root), or print the command
	tools/deps
	tests/tools/get-tools.sh $(BUILD)/tools

$(BUILD)/deps.mk: tools/packages.txt tools/deps
	@tools/deps
	@mkdir -p $(@D)
	@touch $@
ifneq ($(if $(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS)))),,$(filter-out clean help deps image e2e e2e-%,$(or $(MAKECMDGOALS),all))),)
include $(BUILD)/deps.mk
endif

# --- flags ------------------------------------------------------------------------------------------------------------

PKGS     := libuv libcurl libcrypto expat liblz4 libisal jansson inih libmicrohttpd libnl-genl-3.0 mount blkid libprotobuf-c
PKGS_GRPC := grpc_unsecure
OPT      ?= -O2
CFLAGS_ALL := -std=gnu11 $(OPT) -g -fno-omit-frame-pointer -D_GNU_SOURCE -DPORTALBD_VERSION='"$(VERSION)"' \
	-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes -Wvla \
	$(if $(WERROR),-Werror) $(if $(MUTANTS),-DMUTANTS) $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all) \
	-I. -isystem $(BUILD)/gen -isystem /usr/include/libnl3 $(CFLAGS)
LDFLAGS_ALL := $(if $(SAN),-fsanitize=$(SAN)) -pthread -Wl,--as-needed $(LDFLAGS)
# Asked for once, and only when something is linked.
LIBS      = $(eval LIBS := $(shell pkg-config --libs $(PKGS)) -lm)$(LIBS)
LIBS_GRPC = $(eval LIBS_GRPC := $(shell pkg-config --libs $(PKGS_GRPC)) -lgpr)$(LIBS_GRPC)

# --- rooms ------------------------------------------------------------------------------------------------------------

ROOMS := common portalbd/objstore portalbd/blockdev portalbd/format portalbd/cache portalbd/volume portalbd/catalog \
	portalbd/nbd portalbd/fuse portalbd/control portalbd/daemon node-agent/attach csi/mount csi/rpc node-agent csi
MAINS := portalbd/daemon/portalbd.c portalbd/daemon/portalctl.c node-agent/node_agent.c csi/csi_driver.c
RPC_FOLDERS := csi csi/rpc node-agent
PROTOS := csi agent pluginregistration
WKTS := google/protobuf/timestamp google/protobuf/wrappers google/protobuf/descriptor

room_srcs = $(filter-out $(MAINS),$(wildcard $(1)/*.c))
room_objs = $(patsubst %.c,$(BUILD)/obj/%.o,$(call room_srcs,$(1)))
room_lib  = $(BUILD)/lib/$(subst /,_,$(1)).a
LIB_ROOMS := $(foreach r,$(ROOMS),$(if $(call room_srcs,$(r)),$(r)))
RPC_ROOMS := $(filter $(RPC_FOLDERS),$(LIB_ROOMS))
CORE_ROOMS := $(filter-out $(RPC_ROOMS),$(LIB_ROOMS))
CORE_LIBS := $(foreach r,$(CORE_ROOMS),$(call room_lib,$(r)))
RPC_LIBS  := $(foreach r,$(RPC_ROOMS),$(call room_lib,$(r)))
SUPPORT_LIB := $(BUILD)/lib/tests_support.a

define archive
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)ar rcs $@ $^
endef
define room_rule
$(call room_lib,$(1)): $(call room_objs,$(1))
	$$(archive)
endef
$(foreach r,$(LIB_ROOMS),$(eval $(call room_rule,$(r))))
$(SUPPORT_LIB): $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard tests/support/*.c))
	$(archive)

# --- generated code: csi.proto, agent.proto and the well-known types that they use ------------------------------------

GEN_SRCS := $(foreach p,$(PROTOS),$(if $(wildcard proto/$(p).proto),$(BUILD)/gen/$(p).pb-c.c)) \
	$(patsubst %,$(BUILD)/gen/%.pb-c.c,$(WKTS))
GEN_LIB  := $(BUILD)/lib/gen.a

$(BUILD)/gen/google/%.pb-c.c: /usr/include/google/%.proto
	@mkdir -p $(@D)
	$(Q)cd /usr/include && protoc-c --c_out=$(abspath $(BUILD)/gen) google/$*.proto
$(BUILD)/gen/%.pb-c.c: proto/%.proto
	@mkdir -p $(@D)
	@echo "  PROTO $<"
	$(Q)protoc-c -Iproto -I/usr/include --c_out=$(BUILD)/gen $<
$(BUILD)/gen/%.pb-c.o: $(BUILD)/gen/%.pb-c.c | $(GEN_SRCS)
	$(Q)$(CC) -std=gnu11 $(OPT) -g $(if $(SAN),-fsanitize=$(SAN)) -w -I$(BUILD)/gen -c -o $@ $<
$(GEN_LIB): $(GEN_SRCS:.c=.o)
	$(archive)

# --- objects ----------------------------------------------------------------------------------------------------------

$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(CFLAGS_ALL)' | cmp -s - $@ || echo '$(CC) $(CFLAGS_ALL)' > $@
.PHONY: FORCE
FORCE:

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

# These see generated code, which must be there before they compile.
$(foreach r,$(RPC_ROOMS),$(call room_objs,$(r))): | $(GEN_SRCS)
$(BUILD)/obj/csi/csi_driver.o $(BUILD)/obj/node-agent/node_agent.o: | $(GEN_SRCS)

define link
	@mkdir -p $(@D)
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group \
		$(if $(filter $(RPC_LIBS),$^),$(LIBS_GRPC)) $(LIBS)
endef

# --- programs ---------------------------------------------------------------------------------------------------------

PROGRAMS := $(if $(wildcard portalbd/daemon/portalbd.c),portalbd) $(if $(wildcard portalbd/daemon/portalctl.c),portalctl) \
	$(if $(wildcard node-agent/node_agent.c),node-agent) $(if $(wildcard csi/csi_driver.c),portalbd-csi)

.PHONY: all run
all: $(patsubst %,$(BUILD)/bin/%,$(PROGRAMS)) ## build every program into build/bin
run: all ## a volume's whole life through CSI; STORE=s3://bucket/prefix for a real store, KEEP=1 keeps it mounted
	@PORTALBD_BUILD=$(abspath $(BUILD)) tools/run

$(BUILD)/bin/portalbd: $(BUILD)/obj/portalbd/daemon/portalbd.o $(CORE_LIBS)
	$(link)
$(BUILD)/bin/portalctl: $(BUILD)/obj/portalbd/daemon/portalctl.o $(CORE_LIBS)
	$(link)
$(BUILD)/bin/node-agent: $(BUILD)/obj/node-agent/node_agent.o $(CORE_LIBS) $(RPC_LIBS) $(GEN_LIB)
	$(link)
$(BUILD)/bin/portalbd-csi: $(BUILD)/obj/csi/csi_driver.o $(CORE_LIBS) $(RPC_LIBS) $(GEN_LIB)
	$(link)

# --- tests ------------------------------------------------------------------------------------------------------------

TEST_SRCS := $(shell find tests/unit tests/conformance tests/golden tests/sim -name 'test_*.c' 2>/dev/null)
TEST_BINS := $(TEST_SRCS:%.c=$(BUILD)/%)
# Programs that tests run: tests/tools/x.c and the Go module tests/tools/x/ are $(BUILD)/tools/x.
TEST_TOOLS := $(patsubst tests/tools/%.c,$(BUILD)/tools/%,$(wildcard tests/tools/*.c))
GO_TOOLS  := $(patsubst tests/tools/%/go.mod,$(BUILD)/tools/%,$(wildcard tests/tools/*/go.mod))
SIM_LIB   := $(BUILD)/lib/tests_sim.a
SIM       := $(if $(wildcard tests/sim/sim.c),$(BUILD)/tests/sim/sim)

# The rooms up to the last one whose folder the test stands in; all of them for other tests. (tests/support makes the
# pools for tests of volumes through the catalog.)
rooms_upto = $(if $(2),$(firstword $(2)) $(if $(filter $(1),$(firstword $(2))),,$(call rooms_upto,$(1),$(wordlist 2,99,$(2)))))
test_room  = $(lastword $(foreach r,$(LIB_ROOMS),$(if $(filter tests/unit/$(r)/%,$(1)),$(r))))
test_rooms = $(if $(call test_room,$(1)),$(call rooms_upto,$(patsubst %/volume,%/catalog,$(call test_room,$(1))),$(LIB_ROOMS)),$(CORE_ROOMS))
define test_rule
$(BUILD)/$(1): $(BUILD)/obj/$(1).o $(if $(filter tests/sim/%,$(1)),$(SIM_LIB)) $(SUPPORT_LIB) $(foreach r,$(2),$(call room_lib,$(r))) $(if $(filter $(RPC_FOLDERS),$(2)),$(GEN_LIB))
	$$(link) -lcmocka
$(if $(filter $(RPC_FOLDERS),$(2)),$(BUILD)/obj/$(1).o: | $(GEN_SRCS))
endef
$(foreach t,$(TEST_SRCS:.c=),$(eval $(call test_rule,$(t),$(call test_rooms,$(t).c))))
$(BUILD)/tests/conformance/attach/test_attach_together: LDFLAGS_ALL += -Wl,--wrap=nbd_netlink_reconfigure

# A finding names the commit that was built.
$(BUILD)/gen/sim_commit.h: FORCE
	@mkdir -p $(@D)
	@echo '#define SIM_COMMIT "$(shell git describe --always --dirty 2>/dev/null)"' | cmp -s - $@ || \
		echo '#define SIM_COMMIT "$(shell git describe --always --dirty 2>/dev/null)"' > $@
$(BUILD)/obj/tests/sim/sim.o: $(BUILD)/gen/sim_commit.h
$(SIM_LIB): $(patsubst %.c,$(BUILD)/obj/%.o,$(filter-out tests/sim/sim.c tests/sim/test_%,$(wildcard tests/sim/*.c)))
	$(archive)
SIM_ROOMS := $(filter-out portalbd/nbd portalbd/fuse portalbd/control portalbd/daemon,$(CORE_ROOMS))
$(BUILD)/tests/sim/sim: LDFLAGS_ALL += -Wl,--wrap=json_parse
$(BUILD)/tests/sim/sim: $(BUILD)/obj/tests/sim/sim.o $(SIM_LIB) $(SUPPORT_LIB) $(foreach r,$(SIM_ROOMS),$(call room_lib,$(r)))
	$(link) -lcmocka
$(TEST_TOOLS): $(BUILD)/tools/%: $(BUILD)/obj/tests/tools/%.o $(SUPPORT_LIB) $(CORE_LIBS)
	$(link) -lcmocka -lnbd

$(BUILD)/tools/ready: tests/tools/get-tools.sh
	@tests/tools/get-tools.sh $(BUILD)/tools
	@touch $@
define go_tool_rule
$(BUILD)/tools/$(1): $(wildcard tests/tools/$(1)/*) | $(BUILD)/tools/ready
	@echo "  GO    $$@"
	$(Q)cd tests/tools/$(1) && CGO_ENABLED=0 GOFLAGS=-buildvcs=false $(abspath $(BUILD))/tools/go build -o $$(abspath $$@) .
endef
$(foreach t,$(notdir $(GO_TOOLS)),$(eval $(call go_tool_rule,$(t))))

SIM_RUN     := $(if $(SIM),"$(SIM) --seeds $(SEEDS)$(if $(SEED), --seed $(SEED))" "$(SIM) --list tests/sim/seeds.txt")
# In every test run other seeds, as many as there is time for.
SIM_NEW     := $(if $(SIM),"$(SIM) --seed now --seeds 1000000 --seconds 180" "$(SIM) --list tests/sim/seeds.txt")
MUTANT_TESTS := $(if $(wildcard tests/sim/mutants.sh),$(shell sed -n 's|^[a-z-]* \(unit/[a-z_/]*\).*|\1|p' tests/sim/mutants.sh | sort -u))
SIM_MUTANTS := $(wildcard tests/sim/mutants.sh)
INTEGRATION := $(sort $(wildcard tests/integration/test_*.sh tests/integration/test_*.py))
CHART_TESTS := $(wildcard tests/chart/test_chart.py)
SANITY      := $(sort $(wildcard tests/conformance/test_sanity*.sh))
KERNEL_TEST := $(wildcard tests/kernel/test_kernel.sh)
KERNEL_RUNS  = $(foreach k,$(1),$(foreach t,suite devices survival,"$(KERNEL_TEST) $k $t"))
RUN_TESTS   := tests/run --build $(abspath $(BUILD)) $(if $(ONLY),--only '$(ONLY)')

# The same programs with deliberate bugs in them, which tests must find (common/mutant.h).
.PHONY: mutants
mutants:
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/mutants MUTANTS=1 $(patsubst $(BUILD)/%,$(BUILD)/mutants/%,$(SIM)) \
		$(addprefix $(BUILD)/mutants/tests/,$(MUTANT_TESTS)) \
		$(if $(filter portalbd,$(PROGRAMS)),$(BUILD)/mutants/bin/portalbd)

.PHONY: tests-build test test-unit test-sim test-integration test-kernel model sanity asan tsan coverage coverage-run bench
tests-build: $(TEST_BINS) $(TEST_TOOLS) $(SIM) replays
test: all tests-build mutants $(BUILD)/tools/ready $(GO_TOOLS) ## every test
	@$(RUN_TESTS) $(if $(SEED),$(SIM_RUN),$(SIM_NEW)) $(SIM_MUTANTS) $(SANITY) $(CHART_TESTS) $(INTEGRATION) \
		$(call KERNEL_RUNS,uml) $(REPLAY_RUNS) $(TEST_BINS)
test-unit: $(TEST_BINS) replays ## unit, conformance and golden tests, corpora of the fuzzers
	@$(RUN_TESTS) $(REPLAY_RUNS) $(TEST_BINS)
test-sim: $(SIM) ## the simulator: SEEDS=n runs, or SEED=n alone
	@$(if $(SEED),$(SIM) --seed $(SEED) --seeds $(if $(filter command,$(origin SEEDS)),$(SEEDS),1),$(RUN_TESTS) $(SIM_RUN))
test-integration: all tests-build mutants $(BUILD)/tools/ready $(GO_TOOLS) ## whole programs, on a real S3 server
	@$(RUN_TESTS) $(INTEGRATION)
test-kernel: all $(addprefix $(BUILD)/tests/conformance/attach/,test_attach test_attach_together) ## nbd devices on kernels of Debian's; KILLS=n UPGRADES=n AGENT_KILLS=n ALL_KILLS=n STOP_S=n
	@$(RUN_TESTS) --jobs 1 $(call KERNEL_RUNS,uml qemu)
model: ## the models of the protocol, with Spin: rules and mutants
	@tests/model/run
sanity: all $(BUILD)/tools/ready ## csi-sanity
	@$(RUN_TESTS) $(SANITY)
asan: ## every test under the address and undefined behaviour sanitizers, in build-asan
	@$(MAKE) --no-print-directory BUILD=build-asan SAN=address,undefined test
tsan: ## unit tests under the thread sanitizer, in build-tsan
	@$(MAKE) --no-print-directory BUILD=build-tsan SAN=thread test-unit
bench: all tests-build $(BUILD)/tools/ready $(GO_TOOLS) ## measure, into build/bench.json
	@PORTALBD_BUILD=$(abspath $(BUILD)) bench/run
.PHONY: bench-space bench-snapshots bench-map
SIZE    ?= 4G
MINUTES ?= 10
IDLE_S  ?= 600
BENCH_SPACE = PORTALBD_BUILD=$(abspath $(BUILD)) bench/space
bench-space: all $(BUILD)/tools/ready ## random overwrites of SIZE=4G, RATE=n MiB/s at most: bytes put, space, requests, memory; IDLE_S=600 at rest
	@$(BENCH_SPACE) overwrites --size $(SIZE) --idle-s $(IDLE_S) $(if $(RATE),--rate $(RATE))
bench-snapshots: all $(BUILD)/tools/ready ## the same with a snapshot every 10 s, for MINUTES=10
	@$(BENCH_SPACE) snapshots --size $(SIZE) --minutes $(MINUTES) $(if $(RATE),--rate $(RATE))
EXTENTS ?= 268435456
bench-map: $(BUILD)/tools/map_bench ## the map of 1 TiB of scattered 4 KiB extents (EXTENTS=n): 7 GB of disk for a while
	@$(BUILD)/tools/map_bench --extents $(EXTENTS) --scattered

# --- fuzzers: tests/fuzz/fuzz_x.c and its seeds in tests/fuzz/corpus/x; clang only ----------------------------------------

FUZZ_TIME ?= $(if $(filter command,$(origin SECONDS)),$(SECONDS),20)
FUZZ_NAMES := $(filter-out canary,$(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c)))
FUZZERS   := $(FUZZ_NAMES:%=$(BUILD)/fuzz/%)
$(FUZZERS) $(BUILD)/fuzz/canary: $(BUILD)/fuzz/%: $(BUILD)/obj/tests/fuzz/fuzz_%.o $(SUPPORT_LIB) $(CORE_LIBS)
	$(link) -fsanitize=fuzzer
# In ordinary builds the corpus is replayed, as a test.
REPLAYS   := $(FUZZ_NAMES:%=$(BUILD)/tests/fuzz/%)
$(REPLAYS): $(BUILD)/tests/fuzz/%: $(BUILD)/obj/tests/fuzz/fuzz_%.o $(BUILD)/obj/tests/fuzz/replay.o $(SUPPORT_LIB) $(CORE_LIBS)
	$(link)
RPC_FUZZERS := $(filter $(BUILD)/fuzz/rpc_% $(BUILD)/tests/fuzz/rpc_%,$(FUZZERS) $(REPLAYS))
$(RPC_FUZZERS): $(BUILD)/lib/csi_rpc.a $(GEN_LIB)
$(filter $(BUILD)/fuzz/agent_% $(BUILD)/tests/fuzz/agent_%,$(FUZZERS) $(REPLAYS)): $(call room_lib,node-agent) \
	$(call room_lib,node-agent/attach)
$(patsubst %,$(BUILD)/obj/tests/fuzz/fuzz_%.o,$(filter rpc_%,$(FUZZ_NAMES))): | $(GEN_SRCS)
REPLAY_RUNS := $(foreach r,$(REPLAYS),"$(r) tests/fuzz/corpus/$(notdir $(r))")
.PHONY: fuzz fuzz-run replays
replays: $(REPLAYS)
fuzz: ## every fuzzer for SECONDS=20 (FUZZ_TIME), in build-fuzz (clang)
	@$(MAKE) --no-print-directory BUILD=build-fuzz CC=clang SAN=fuzzer-no-link,address,undefined fuzz-run
fuzz-run: $(FUZZERS) $(BUILD)/fuzz/canary
	@tests/fuzz/run $(BUILD) $(FUZZ_TIME) $(FUZZ_NAMES)

# --- coverage ---------------------------------------------------------------------------------------------------------

COVERAGE_TESTS := $(filter $(addprefix $(BUILD)/tests/,$(foreach r,volume format objstore catalog cache,unit/portalbd/$(r)/%) \
	golden/% sim/% conformance/objstore/% conformance/blockdev/%),$(TEST_BINS))
coverage: ## lines of the engine that its tests run, in build-coverage; fails below tests/coverage.txt
	@$(MAKE) --no-print-directory BUILD=build-coverage OPT=-O0 CFLAGS='--coverage -fprofile-update=atomic' \
		LDFLAGS=--coverage coverage-run
coverage-run: $(COVERAGE_TESTS) $(SIM) $(REPLAYS)
	@find $(BUILD)/obj -name '*.gcda' -delete
	@$(RUN_TESTS) "$(SIM) --seeds $(SEEDS) --seconds 60" $(REPLAY_RUNS) $(COVERAGE_TESTS)
	@tools/coverage $(BUILD) tests/coverage.txt

# --- lint -------------------------------------------------------------------------------------------------------------

.PHONY: lint lint-quick lint-format lint-layers lint-tidy lint-scripts lint-docs lint-analyzer
lint: lint-quick lint-docs lint-analyzer ## everything that a tool can check
lint-quick: lint-format lint-layers lint-tidy lint-scripts
ENGINE_LIBS := $(foreach r,format cache volume catalog,$(if $(filter portalbd/$(r),$(LIB_ROOMS)),$(call room_lib,portalbd/$(r))))
lint-format:
	@tools/check-format
lint-layers: $(ENGINE_LIBS)
	@tools/check-layers $^
lint-tidy:
	@tools/check-tidy
lint-scripts:
	@shellcheck $$(tools/list-scripts sh)
	@python3 -c 'import ast, sys; [ast.parse(open(f).read(), f) for f in sys.argv[1:]]' $$(tools/list-scripts python)
lint-docs: all
	@tools/print-options --check $(BUILD) docs/options $(PROGRAMS)
lint-analyzer: $(BUILD)/flags
	@tools/check-analyzer "$$(sed 's/^[^ ]* //' $(BUILD)/flags)"

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

.PHONY: docs
docs: all ## write docs/options/ and the manual pages in build/man from the programs' tables of options
	@tools/print-options $(BUILD) docs/options $(PROGRAMS)

.PHONY: image
image: ## the container image, as an OCI archive in build/portalbd-image.tar (docker, podman or buildah)
	@tools/build-image $(BUILD)/portalbd-image.tar

.PHONY: chart-test manifests
chart-test: $(BUILD)/tools/ready ## the Helm chart: lint, what it refuses, what it renders
	@$(RUN_TESTS) $(CHART_TESTS)
manifests: $(BUILD)/tools/ready ## write deploy/manifests/ from the chart
	@HELM=$(abspath $(BUILD))/tools/helm deploy/manifests/render

.PHONY: e2e e2e-up e2e-down e2e-smoke
e2e: ## everything on a Kubernetes cluster of our own; the first time takes an hour (tests/e2e/README.md)
	@PORTALBD_BUILD=$(abspath $(BUILD)) tests/e2e/run all
e2e-smoke: ## the life of volumes on that cluster, in ten minutes
	@PORTALBD_BUILD=$(abspath $(BUILD)) tests/e2e/run smoke
e2e-up: ## the cluster with portalbd on it, to play with: tests/e2e/kubectl
	@PORTALBD_BUILD=$(abspath $(BUILD)) tests/e2e/run up
e2e-down: ## ... and nothing of it is left
	@PORTALBD_BUILD=$(abspath $(BUILD)) tests/e2e/run down

# Programs, manual pages, units of systemd; the rule of udev and the options of modules, which have one place for all.
PREFIX     ?= /usr/local
DESTDIR    ?=
SYSCONFDIR ?= /etc
UNITS      := $(wildcard deploy/systemd/*.service deploy/systemd/*.socket)
.PHONY: install install-files
install: all install-files ## programs, manual pages, systemd units, udev rule: PREFIX=/usr/local, DESTDIR=
install-files: $(if $(filter install,$(MAKECMDGOALS)),all)
	@tools/print-options $(BUILD) $(BUILD)/options $(PROGRAMS)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/lib/systemd/system \
		$(DESTDIR)$(PREFIX)/share/doc/portalbd $(DESTDIR)$(SYSCONFDIR)/udev/rules.d $(DESTDIR)$(SYSCONFDIR)/modprobe.d
	install -d -m 0700 $(DESTDIR)$(SYSCONFDIR)/portalbd
	install -m 0755 $(PROGRAMS:%=$(BUILD)/bin/%) $(DESTDIR)$(PREFIX)/bin
	install -m 0644 $(PROGRAMS:%=$(BUILD)/man/%.8) $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 0644 $(wildcard deploy/systemd/*.example) docs/devices.md $(DESTDIR)$(PREFIX)/share/doc/portalbd
	install -m 0644 $(wildcard deploy/udev/*.rules) $(DESTDIR)$(SYSCONFDIR)/udev/rules.d
	install -m 0644 $(wildcard deploy/modprobe.d/*.conf) $(DESTDIR)$(SYSCONFDIR)/modprobe.d
	for unit in $(UNITS); do sed 's|/usr/local/bin/|$(PREFIX)/bin/|' $$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/}; done

.PHONY: clean help
clean: ## remove everything that was built
	rm -rf $(BUILD) $(filter build-%,$(wildcard build-*))
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 26
	@sed -n '3,5s/^#//p' $(firstword $(MAKEFILE_LIST))
