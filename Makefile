# One non-recursive build. `make help` says what there is.
#
#   BUILD=dir      where everything goes (build)          SAN=address,undefined | thread   sanitizers
#   CC=gcc|clang   the compiler                           WERROR=1   warnings are errors    MUTANTS=1  deliberate bugs

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
SHELL := /bin/bash

BUILD   ?= build
CC      := $(if $(filter default,$(origin CC)),gcc,$(CC))
SAN     ?=
WERROR  ?=
MUTANTS ?=
VERSION := $(shell cat VERSION 2>/dev/null || echo 0.1.0)

# --- flags --------------------------------------------------------------------------------------------------------

PKGS     := libuv libcurl libcrypto expat liblz4 libisal jansson inih libmicrohttpd mount blkid libprotobuf-c
PKGS_GRPC := grpc_unsecure
OPT      ?= -O2
CFLAGS_ALL := -std=gnu11 $(OPT) -g -fno-omit-frame-pointer -D_GNU_SOURCE -DPORTALBD_VERSION='"$(VERSION)"' \
	-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes -Wvla \
	$(if $(WERROR),-Werror) $(if $(MUTANTS),-DMUTANTS) $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all) \
	-I. -isystem $(BUILD)/gen $(CFLAGS)
LDFLAGS_ALL := $(if $(SAN),-fsanitize=$(SAN)) -pthread -Wl,--as-needed $(LDFLAGS)
LIBS      = $(shell pkg-config --libs $(PKGS)) -lm
LIBS_GRPC = $(shell pkg-config --libs $(PKGS_GRPC)) -lgpr

# --- rooms: a folder of sources is an archive ------------------------------------------------------------------------

ROOMS := common portalbd/objstore portalbd/format portalbd/cache portalbd/volume portalbd/catalog portalbd/blockdev \
	portalbd/nbd portalbd/fuse portalbd/control portalbd/daemon node-agent node-agent/attach csi/rpc csi csi/mount
MAINS := portalbd/daemon/portalbd.c portalbd/daemon/portalctl.c node-agent/node_agent.c csi/csi_driver.c
PROTOS := csi agent
WKTS := google/protobuf/timestamp google/protobuf/wrappers google/protobuf/descriptor

room_srcs = $(filter-out $(MAINS),$(wildcard $(1)/*.c))
room_objs = $(patsubst %.c,$(BUILD)/obj/%.o,$(call room_srcs,$(1)))
room_lib  = $(BUILD)/lib/$(subst /,_,$(1)).a
LIB_ROOMS := $(foreach r,$(ROOMS),$(if $(call room_srcs,$(r)),$(r)))
RPC_ROOMS := $(filter csi csi/% node-agent node-agent/%,$(LIB_ROOMS))
CORE_ROOMS := $(filter-out $(RPC_ROOMS),$(LIB_ROOMS))
CORE_LIBS := $(foreach r,$(CORE_ROOMS),$(call room_lib,$(r)))
RPC_LIBS  := $(foreach r,$(RPC_ROOMS),$(call room_lib,$(r)))

define room_rule
$(call room_lib,$(1)): $(call room_objs,$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	@ar rcs $$@ $$^
endef
$(foreach r,$(LIB_ROOMS),$(eval $(call room_rule,$(r))))

GEN_SRCS := $(foreach p,$(PROTOS),$(if $(wildcard proto/$(p).proto),$(BUILD)/gen/$(p).pb-c.c)) \
	$(patsubst %,$(BUILD)/gen/%.pb-c.c,$(WKTS))
GEN_OBJS := $(patsubst %.c,%.o,$(GEN_SRCS))
GEN_LIB  := $(BUILD)/lib/gen.a

# --- programs --------------------------------------------------------------------------------------------------------

PROGRAMS := $(if $(wildcard portalbd/daemon/portalbd.c),portalbd) $(if $(wildcard portalbd/daemon/portalctl.c),portalctl) \
	$(if $(wildcard node-agent/node_agent.c),node-agent) $(if $(wildcard csi/csi_driver.c),portalbd-csi)
BINS := $(patsubst %,$(BUILD)/bin/%,$(PROGRAMS))

.PHONY: all
all: $(BINS) ## build every program into $(BUILD)/bin

define link_core
	@mkdir -p $(@D)
	@echo "  LD    $@"
	@$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LIBS)
endef
define link_rpc
	@mkdir -p $(@D)
	@echo "  LD    $@"
	@$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LIBS_GRPC) $(LIBS)
endef

$(BUILD)/bin/portalbd: $(BUILD)/obj/portalbd/daemon/portalbd.o $(CORE_LIBS)
	$(link_core)
$(BUILD)/bin/portalctl: $(BUILD)/obj/portalbd/daemon/portalctl.o $(CORE_LIBS)
	$(link_core)
$(BUILD)/bin/node-agent: $(BUILD)/obj/node-agent/node_agent.o $(CORE_LIBS) $(RPC_LIBS) $(GEN_LIB)
	$(link_rpc)
$(BUILD)/bin/portalbd-csi: $(BUILD)/obj/csi/csi_driver.o $(CORE_LIBS) $(RPC_LIBS) $(GEN_LIB)
	$(link_rpc)

# --- objects ---------------------------------------------------------------------------------------------------------

$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(CFLAGS_ALL)' | cmp -s - $@ || echo '$(CC) $(CFLAGS_ALL)' > $@
.PHONY: FORCE
FORCE:

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  CC    $<"
	@$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

# Only these rooms see generated code; it must be there before they compile.
RPC_OBJS := $(foreach r,csi/rpc csi csi/mount node-agent node-agent/attach,$(call room_objs,$(r))) \
	$(BUILD)/obj/csi/csi_driver.o $(BUILD)/obj/node-agent/node_agent.o
$(RPC_OBJS): | $(GEN_SRCS)

$(BUILD)/gen/google/%.pb-c.c: /usr/include/google/%.proto
	@mkdir -p $(@D)
	@cd /usr/include && protoc-c --c_out=$(abspath $(BUILD)/gen) google/$*.proto
$(BUILD)/gen/%.pb-c.c: proto/%.proto
	@mkdir -p $(@D)
	@echo "  PROTO $<"
	@protoc-c -Iproto -I/usr/include --c_out=$(BUILD)/gen $<
$(BUILD)/gen/%.pb-c.o: $(BUILD)/gen/%.pb-c.c | $(GEN_SRCS)
	@$(CC) -std=gnu11 $(OPT) -g $(if $(SAN),-fsanitize=$(SAN)) -w -I$(BUILD)/gen -c -o $@ $<
$(GEN_LIB): $(GEN_OBJS)
	@mkdir -p $(@D)
	@rm -f $@
	@ar rcs $@ $^

# --- tests: tests/unit/<path>/test_<file>.c is a cmocka program each ---------------------------------------------------

TEST_SRCS := $(shell find tests/unit tests/conformance tests/golden -name 'test_*.c' 2>/dev/null)
TEST_RPC_SRCS := $(filter tests/unit/csi/% tests/unit/node-agent/%,$(TEST_SRCS))
TEST_BINS := $(patsubst %.c,$(BUILD)/%,$(TEST_SRCS))
TEST_RPC_BINS := $(patsubst %.c,$(BUILD)/%,$(TEST_RPC_SRCS))
TEST_HELPERS := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard tests/support/*.c))

$(filter-out $(TEST_RPC_BINS),$(TEST_BINS)): $(BUILD)/%: $(BUILD)/obj/%.o $(TEST_HELPERS) $(CORE_LIBS)
	@mkdir -p $(@D)
	@echo "  LD    $@"
	@$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -lcmocka $(LIBS)
$(TEST_RPC_BINS): $(BUILD)/%: $(BUILD)/obj/%.o $(TEST_HELPERS) $(CORE_LIBS) $(RPC_LIBS) $(GEN_LIB)
	@mkdir -p $(@D)
	@echo "  LD    $@"
	@$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -lcmocka $(LIBS_GRPC) $(LIBS)
$(patsubst %.c,$(BUILD)/obj/%.o,$(TEST_RPC_SRCS)): | $(GEN_SRCS)

# Programs that tests run: tests/tools/x.c is $(BUILD)/tools/x.
TEST_TOOLS := $(patsubst tests/tools/%.c,$(BUILD)/tools/%,$(wildcard tests/tools/*.c))
$(TEST_TOOLS): $(BUILD)/tools/%: $(BUILD)/obj/tests/tools/%.o $(TEST_HELPERS) $(CORE_LIBS) \
		$(foreach r,$(filter node-agent/attach,$(LIB_ROOMS)),$(call room_lib,$(r)))
	@mkdir -p $(@D)
	@echo "  LD    $@"
	@$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -lcmocka $(LIBS)

.PHONY: tests-build
tests-build: $(TEST_BINS) $(TEST_TOOLS)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

.PHONY: clean
clean: ## remove everything that was built
	rm -rf $(BUILD)
