/* A medium of a disk cache, in memory, that can fail. */
#pragma once

#include "portalbd/cache/disk_cache.h"

struct memory_medium {
    struct disk_medium medium;
    uint8_t *bytes; /* owned */
    uint64_t reads, writes;
    bool fail_reads, fail_writes;
    bool flip; /* what is read has a wrong bit */
};

void memory_medium_init(struct memory_medium *m, uint64_t size);
void memory_medium_release(struct memory_medium *m);
