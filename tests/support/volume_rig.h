/* A volume of its own on a memory store behind a fault layer, on a virtual clock: for tests of the
 * engine that look at times and requests. All functions but rig_run are for its fiber. */
#pragma once

#include "common/fiber.h"
#include "portalbd/objstore/fault.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/stats.h"
#include "portalbd/volume/volume.h"
#include "tests/support/virtual_env.h"

struct volume_rig {
    struct virtual_env venv;
    struct env *env;
    struct memory_store *bucket;
    struct objstore *fault; /* below the retry layer */
    struct objstore *stats; /* ... above the faults */
    struct objstore *store; /* the whole stack */
    struct volume_config config;
    struct volume *v; /* NULL: closed */
    uint64_t size;
    uint64_t seed;
    void *arg; /* the test's own */
};

/* Creates the volume, opens it with the config (env, store and key are filled in), runs the test,
 * frees what it left open. */
void rig_run(uint64_t size, const struct volume_config *config, void (*test)(struct volume_rig *r));

void rig_open(struct volume_rig *r);
void rig_close(struct volume_rig *r); /* clean */
void rig_reopen(struct volume_rig *r);
void rig_drop(struct volume_rig *r); /* as a crash */
struct volume_status rig_status(struct volume_rig *r);
uint64_t rig_gets(struct volume_rig *r); /* that the store saw */
uint64_t rig_puts(struct volume_rig *r);

/* Requests: several may be under way. */
struct rig_request {
    struct bd_request req;
    struct fiber_done done;
    struct env *env;
    uint64_t start_us, end_us;
};
void rig_submit(struct volume_rig *r, struct rig_request *q, enum bd_op op, unsigned flags,
                uint64_t off, uint64_t len, void *buf);
int rig_wait(struct volume_rig *r, struct rig_request *q);
int rig_do(struct volume_rig *r, enum bd_op op, unsigned flags, uint64_t off, uint64_t len,
           void *buf);

/* Bytes that do not compress, the same ones for the same place and version. */
void rig_fill(uint8_t *buf, uint64_t off, uint64_t len, unsigned version);
/* Writes [off, off + len) in MiBs of them; reads and compares (fails the test). */
void rig_write(struct volume_rig *r, uint64_t off, uint64_t len, unsigned version);
void rig_check(struct volume_rig *r, uint64_t off, uint64_t len, unsigned version);
