/* A pool in memory on a virtual env: a catalog over retry, faults and a memory store. For tests of
 * catalog, pins and whatever else runs as a fiber over a store. */
#pragma once

#include "portalbd/catalog/catalog.h"
#include "portalbd/objstore/fault.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/volume/takeover.h"
#include "tests/support/virtual_env.h"

struct pool_fixture {
    struct virtual_env venv;
    struct env *env;
    struct memory_store *memory;
    struct objstore *faults;  /* the layer that crashes: hang rules go here */
    struct objstore *answers; /* delays answers */
    struct objstore *delays;  /* delays and loses requests */
    struct objstore *store;   /* the stack; what the catalog uses */
    struct catalog catalog; /* of pool "pool", with the node "node-a" and "node-b" once asked for */
};
void pool_fixture_init(struct pool_fixture *f, uint64_t seed);
void pool_fixture_release(struct pool_fixture *f);

/* Runs fn in a fiber until it has ended. */
void pool_fixture_run(struct pool_fixture *f, void (*fn)(void *arg), void *arg);

/* Every request takes effect after a random time, is answered after another, and a PUT's answer is
 * lost now and then: whatever order concurrent fibers may have, some seed shows it. */
void pool_fixture_jitter(struct pool_fixture *f);

/* Requests to the store since the start, all layers above the retry layer's own repetitions. */
uint64_t pool_fixture_requests(const struct pool_fixture *f);

/* Objects whose key contains part. */
size_t pool_fixture_count(const struct pool_fixture *f, const char *part);
void pool_fixture_print(const struct pool_fixture *f); /* keys and sizes, for people */

/* fiber. Puts an object into the log that has a data segment's header and nothing in it. */
int pool_fixture_put_segment(struct pool_fixture *f, const struct volume_key *v,
                             const struct manifest *m, uint64_t seq, struct err *e);

/* fiber. A writer without an engine: opens with the publish epoch, puts `segments` objects into the
 * log, and closes (when `close`) with a manifest that has them in its tail. */
void pool_fixture_write(struct pool_fixture *f, const struct volume_key *v, uint32_t publish_epoch,
                        size_t segments, bool close);
