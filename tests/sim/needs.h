/* What a root needs in the bucket. Run indexes never change, so what is decoded once is kept. */
#pragma once

#include "portalbd/format/root.h"
#include "tests/sim/sim_store.h"

/* An object, named by its parts: they are compared much more often than a key is wanted. */
struct need {
    struct volume_key volume;
    struct obj_ref ref; /* its volume index says nothing */
};
bool need_equal(const struct need *a, const struct need *b);
void need_key(const struct need *x, char key[KEY_MAX]);
/* False: the key names no segment, moved segment or piece of a map. */
bool need_of_key(struct need *ret, const char *key);

struct run_needs {
    struct need index;
    struct need *parts; /* owned; sorted */
    size_t part_count;
    struct need *used; /* owned; sorted: objects that its entries name */
    size_t used_count;
};

struct needs {
    const struct sim_bucket *bucket; /* borrowed */
    struct run_needs **runs;         /* owned, each too; sorted by index */
    size_t run_count;
};
void needs_release(struct needs *n);

/* Does the root need this object? Why not known: an index that cannot be read needs nothing here.
 */
bool needs_has(struct needs *n, const struct root *root, const struct need *x);

/* The first object that the root needs and that is not in the bucket, into missing. Skips what
 * `known`, which is complete, needs too (may be NULL). True: all is there. */
bool needs_complete(struct needs *n, const struct root *root, const struct root *known,
                    char missing[KEY_MAX]);

/* Calls fn for every object that the root needs; false when an index cannot be read. */
bool needs_for_each(struct needs *n, const struct root *root,
                    void (*fn)(void *arg, const struct need *x), void *arg, struct err *e);
