/* From a range of the journal to the bytes of a segment. Pure; runs on a worker. */
#pragma once

#include "portalbd/volume/journal.h"

struct segment_build {
    /* In. The journal's range [from, to) is complete and not freed before the build has ended. */
    const struct journal *journal;
    uint64_t from;
    uint64_t to;
    struct segment_meta meta;
    bool compress;

    /* Out: the object is header, frames, tail. Owned. */
    uint8_t header[SEGMENT_HEADER_SIZE];
    struct buf frames;
    struct buf tail;
    struct segment_table table;
};

void segment_build_run(struct segment_build *b);
void segment_build_release(struct segment_build *b);
