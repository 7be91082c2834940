/* Moving: objects of which little is live are rewritten, so that the rest of them can go (design
 * §2.3; model move.cc). Part of GC. */
#pragma once

#include "portalbd/volume/gc_internal.h"

/* fiber; after gc_find_garbage. One batch, when there is something to gain: thorough: anything at
 * all. *ret_moved: the root has changed. */
int gc_move(struct gc *g, bool thorough, bool *ret_moved, struct err *e);
/* Dead bytes of an object that gc_move would take for them; else 0. After gc_find_garbage. */
uint32_t gc_move_gain(const struct gc *g, const struct own_object *o);

/* --- moving_lookup.c --- */

/* Live sectors of a victim: [sector, sector + count), in frames from `off` on. */
struct live_piece {
    uint64_t sector;
    uint32_t count;
    uint32_t victim; /* index */
    uint32_t off;
    uint32_t stored_len;
    uint16_t frames;
    uint8_t skip;
    uint32_t raw; /* 0, or 1 + where its plain bytes are: they came from the cache */
};
struct live_pieces {
    struct live_piece *items; /* owned; in the order of sectors */
    size_t count;
};
struct sector_range {
    uint64_t first, end;
};

/* fiber. What of these ranges (in order, apart) the runs of the root place in one of the victims,
 * whose names are sorted. */
int moving_find_live(struct live_pieces *ret, struct gc *g, const struct gc_snapshot *root,
                     const struct sector_range *ranges, size_t range_count,
                     const struct object_name *victims, size_t victim_count, struct err *e);

/* fiber. Adds to a run where the data of a moved object of volume `own` is; the entries of its
 * table follow what the run has in the order of sectors. */
int moving_add_places(struct run_writer *w, const struct volume_key *own,
                      const struct random_id *id, const struct segment_table *t, struct err *e);
