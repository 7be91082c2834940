/* The tables of small segments that this process has stored, so that repacking them needs no GET
 * for those whose data is in the cache. Owner thread. */
#pragma once

#include "portalbd/format/segment.h"

enum {
    SMALL_SEGMENT_MAX = 128 * 1024, /* bytes of an object that is worth repacking */
    SMALL_EXTENTS_MAX = 64,         /* of a table that is remembered */
    SMALL_SEGMENTS_MAX = 8192,      /* remembered; more are read when their turn comes */
};

struct small_segment {
    uint64_t seq;
    struct segment_table table; /* owned; lens and offsets as stored */
};
struct small_segments {
    struct small_segment *items; /* owned; ascending by seq */
    size_t count;
};

void small_segments_release(struct small_segments *l);
/* Remembers a copy of the table, unless there is no room. */
void small_segments_note(struct small_segments *l, uint64_t seq, const struct segment_table *t);
/* Borrowed until the next change; NULL: not known. */
const struct segment_table *small_segments_find(const struct small_segments *l, uint64_t seq);
/* Forgets all that `keep` says no to. */
void small_segments_prune(struct small_segments *l, bool (*keep)(void *arg, uint64_t seq),
                          void *arg);
