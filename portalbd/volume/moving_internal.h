/* One batch of moving, shared by its files: moving.c chooses, reads and installs, moving_write.c
 * writes. */
#pragma once

#include "portalbd/volume/moving.h"
#include "portalbd/volume/run_writer.h"

enum { MOVED_BYTES = 8 << 20 }; /* of a moved object: its frames as the victims have them */

struct victim {
    struct object_name name;
    uint32_t size, used;
    bool wanted;         /* the next reading gets its body */
    bool table_borrowed; /* from gc.small, which only GC changes */
    struct buf body;
    struct segment_table table;
};

struct move {
    struct gc *gc;
    struct volume *v;
    struct gc_snapshot root;
    uint64_t age;
    struct victim *victims; /* owned; sorted by name once they are chosen */
    size_t victim_count;
    struct object_name *names; /* owned; of the victims */
    struct live_pieces pieces;
    size_t unbuilt;            /* of the pieces */
    struct buf raw;            /* plain bytes of pieces that were in the cache */
    struct run_writer *writer; /* owned */
};

/* What was read of the victims is needed no more. */
void moving_drop_bodies(struct move *m);

/* --- moving_write.c --- */

/* fiber. What is live of the victims, into new objects; m->writer has their places. Stops early
 * when GC must stop. */
int moving_write(struct move *m, struct err *e);
