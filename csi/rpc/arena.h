/* Memory for the messages of one call: many small pieces, freed together, never more than a cap.
 *
 * The cap is what keeps a small hostile message from becoming a large one in memory (4 MiB of empty
 * sub-messages decode to 250 MiB). One thread at a time. */
#pragma once

#include <protobuf-c/protobuf-c.h>

#include "common/base.h"

struct arena_block;

struct arena {
    size_t used_bytes;
    size_t max_bytes;
    bool exhausted; /* an allocation was refused; stays set */
    struct arena_block *blocks;
};

static inline void arena_init(struct arena *a, size_t max_bytes) {
    *a = (struct arena){.max_bytes = max_bytes};
}
void arena_release(struct arena *a); /* everything that came from it is gone; may be used again */

/* Aligned to 16 bytes, not initialised; NULL when the cap is reached. */
void *arena_alloc(struct arena *a, size_t size);

/* For protobuf_c_message_unpack: frees are ignored. */
ProtobufCAllocator arena_allocator(struct arena *a);

#define CLEANUP_ARENA CLEANUP(arena_release)
