/* What a root needs in the bucket. Run indexes never change, so what is decoded once is kept. */
#pragma once

#include "portalbd/format/root.h"
#include "tests/sim/sim_store.h"

struct run_needs {
    char *index;  /* owned; key */
    char **parts; /* owned, each too; sorted */
    size_t part_count;
    char **used; /* owned, each too; sorted: objects that its entries name */
    size_t used_count;
};

struct needs {
    const struct sim_bucket *bucket; /* borrowed */
    struct run_needs **runs;         /* owned; sorted by index */
    size_t run_count;
};
void needs_release(struct needs *n);

/* What the run needs, or NULL and why: its index is not there or does not decode. Borrowed. */
const struct run_needs *needs_of_run(struct needs *n, const struct root *root, size_t run,
                                     struct err *e);

/* Does the root need this object? Why not known: an index that cannot be read needs nothing here.
 */
bool needs_has(struct needs *n, const struct root *root, const char *key);

/* The first object that the root needs and that is not in the bucket, into missing. Skips what
 * `known`, which is complete, needs too (may be NULL). True: all is there. */
bool needs_complete(struct needs *n, const struct root *root, const struct root *known,
                    char missing[KEY_MAX]);

/* Calls fn for every key that the root needs; false when an index cannot be read. */
bool needs_for_each(struct needs *n, const struct root *root,
                    void (*fn)(void *arg, const char *key), void *arg, struct err *e);
