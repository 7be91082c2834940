/* Where sectors are: what memtables and runs of one moment say. This room only. */
#pragma once

#include "portalbd/volume/volume_internal.h"

/* Where [sector, sector + count) is. Stored pieces carry their own lens. */
struct piece {
    uint64_t sector;
    uint64_t count;
    uint8_t kind;
    bool found;       /* false: nobody has it: a hole */
    bool in_journal;  /* DATA in the journal at pos */
    bool fetched;     /* by this read */
    bool not_on_disk; /* the disk cache failed to give it */
    uint64_t pos;
    struct obj_ref ref;
    struct volume_key owner; /* whose prefix ref is under */
    uint32_t off;
    uint32_t stored_len;
    uint8_t skip;
    uint16_t len_count;
    uint16_t lens[EXTENT_FRAMES_MAX];
};

struct pieces {
    struct piece *items; /* owned */
    size_t count;
    size_t cap;
};

/* What the memtables know of [sector, sector + count), in order; the rest is not found. `p` is
 * empty before. */
void lookup_memory(struct volume *v, uint64_t sector, uint64_t count, struct pieces *p);
/* fiber. What they did not know, by the runs of this moment. The caller has a read_op. */
int lookup_runs(struct volume *v, struct pieces *p, struct err *e);
/* The end of a request that a fiber carried out; only volume_free cancels those. */
void read_complete(struct volume *v, struct bd_request *req, int rc);
