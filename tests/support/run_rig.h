/* Runs on a store in memory, against a plain array that says of each sector where its bytes are. */
#pragma once

#include "common/loop.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/volume/run_merge.h"
#include "tests/support/test.h"

enum {
    RUN_RIG_SECTORS = 400000,
    RUN_RIG_VOLUMES = 3,
    RUN_RIG_OBJECTS = 50,
    RUN_RIG_PART_SIZE = 4 * RUN_PAGE_SIZE,
};

/* The store as the runs see it: fails its request number fail_at, when that is set. */
struct run_gate {
    struct objstore base;
    struct objstore *inner;
    unsigned requests;
    unsigned fail_at;
};

struct run_rig {
    struct run_gate gate;
    struct loop *loop;
    struct env *env;
    struct memory_store *memory;
    struct objstore *store;
    struct page_cache *pages;
    struct volume_key keys[RUN_RIG_VOLUMES];
    uint64_t rng;
};

/* Where the bytes of one sector are. */
struct run_place {
    uint8_t kind;
    bool mapped;
    uint8_t owner;
    uint8_t in_frame; /* sector inside its frame */
    uint16_t len;     /* of the frame */
    uint32_t off;     /* of the frame */
    uint64_t seq;
};

/* Of cmocka: *state is a struct run_rig, whose loop runs in a thread of its own. */
int run_rig_setup(void **state);
int run_rig_teardown(void **state);

/* The rest: in a fiber of that thread. */

/* A number below this one. */
uint64_t run_rig_below(struct run_rig *f, uint64_t below);
/* Which of the rig's volumes it is. */
uint8_t run_rig_owner(const struct run_rig *f, const struct volume_key *key);
/* Of a run that the rig's first volume has stored. */
struct run_reader *run_rig_open(struct run_rig *f, const struct root_run *run);
/* A run of random entries in [from, to), which also go into `model`; owned by volumes below
 * `owners`. */
struct run_reader *run_rig_random_part(struct run_rig *f, struct run_place *model, uint64_t from,
                                       uint64_t to, uint8_t owners);
/* The same, all over. */
struct run_reader *run_rig_random(struct run_rig *f, struct run_place *model);
/* The last source without holes, as merges into the bottom leave it. */
struct run_reader *run_rig_random_bottom(struct run_rig *f, struct run_place *model);
/* Everything that the run says is what the model says, and nothing is missing. */
void run_rig_check_whole(struct run_rig *f, struct run_reader *r, const struct run_place *model,
                         uint32_t read_ahead);
/* And is found by its sector. */
void run_rig_check_lookups(struct run_rig *f, struct run_reader *r, const struct run_place *model);
/* What a run charges objects with is what its entries take, object by object and part by part. */
void run_rig_check_usage(struct run_rig *f, struct run_reader *r);
/* Small parts, so that a run has many. */
struct run_merge_options run_rig_options(struct run_rig *f, bool bottom);
