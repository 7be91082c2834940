/* Merging runs into one: newest wins. A fiber that reads and writes, and jobs that merge. */
#pragma once

#include "portalbd/volume/run_reader.h"
#include "portalbd/volume/run_writer.h"

struct run_merge_options {
    struct env *env;
    struct objstore *store;
    struct page_cache *pages; /* for ret_reader; may be NULL without it */
    struct volume_key own;    /* under whose prefix the result goes */
    struct run_shape shape;
    /* Nothing older is left: HOLE entries are dropped (ZERO entries stay: an allocated zero differs
     * from a hole in BLOCK_STATUS), and the last source's parts that no other source touches become
     * parts of the result unread. */
    bool bottom;
    bool own_parts_only;          /* parts of others are read, too: the result names none of them */
    const struct root *evacuates; /* NULL: none. Entries of objects that this root, stored in our
                                     newest manifest, evacuates are dropped. Used before the first
                                     wait only */
    const bool *stop;             /* NULL: none. Once set, the merge ends with -ERR_CANCELLED */
};

struct run_merge_stats {
    uint64_t entries_read;
    uint64_t parts_reused;
};

/* fiber. sources: newest first. *ret_run and *ret_reader (may be NULL) as run_writer_finish and
 * run_writer_reader. stats: may be NULL. */
int run_merge(const struct run_merge_options *o, struct run_reader *const *sources,
              size_t source_count, struct root_run *ret_run, struct run_reader **ret_reader,
              struct run_merge_stats *stats, struct err *e);
