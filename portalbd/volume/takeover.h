/* Steps 2 to 5 of Open: becoming the one writer of a volume, by conditional PUTs alone. Used by
 * volume_open, and by whoever fences, restores or deletes a volume without serving it. Fibers. */
#pragma once

#include "portalbd/volume/manifest_store.h"

enum {
    SEGMENTS_WALKED_MAX =
        8192, /* segments behind a manifest; writers stop taking writes at half of that */
    LOG_LIST_MAX = 2 * SEGMENTS_WALKED_MAX,
};

/* The log as Open's walk visits it: data segments in the order of their numbers. */
struct walked_segment {
    uint64_t seq;
    uint64_t size; /* bytes of the object, as far as the walk knows it: for people */
};
struct log_walk {
    struct walked_segment *segments; /* owned */
    size_t count;
    uint64_t end; /* the first number that is missing */
};
void log_walk_release(struct log_walk *w);
/* Visits `entries` (a LIST of the log from `from` on) from number `from`: a fence at q sends it to
 * q + FENCE_JUMP. Pure. */
int log_walk_listing(struct log_walk *ret, const struct obj_list *list, uint64_t from,
                     struct err *e);
/* The same walk for a snapshot's cut of a log that somebody else writes. Pure. */
int log_walk_snapshot(struct log_walk *ret, const struct obj_list *list, uint64_t from,
                      struct err *e);
/* fiber. Up to LOG_LIST_MAX keys of the log from number `from` on. */
int log_list(struct obj_list *ret, struct objstore *s, const struct volume_key *v, uint64_t from,
             struct err *e);
/* Appends the walked segments to a root's tail as ranges of its own volume, and sets next_seq.
 * -ERR_OVERLOAD. */
int log_walk_to_root(const struct log_walk *w, struct root *root, uint64_t next_seq, struct err *e);

struct takeover {
    struct manifest manifest; /* ours, stored, the newest when takeover returned */
    struct log_walk walk;     /* from manifest.root.next_seq to the cut */
    uint64_t first_seq;       /* cut + FENCE_JUMP: the number of our first segment */
};
void takeover_release(struct takeover *t);

/* Which journal its opener will write to. Asked at step 2 in each round, in the fiber, with the
 * journal that the newest manifest names (zero: none); may wait. An error ends the takeover. */
struct journal_claim {
    int (*claim)(struct journal_claim *c, const struct random_id *named, struct random_id *ret,
                 struct err *e);
};

/* fiber. publish_epoch must not be below the newest manifest's (-ERR_FENCED). journal: NULL for
 * those that serve nothing. -ERR_NOT_FOUND: no manifest, or (unless allow_deleted) the volume
 * is deleted. */
int volume_takeover(struct env *env, struct objstore *s, const struct volume_key *v,
                    uint32_t publish_epoch, struct journal_claim *journal, bool allow_deleted,
                    struct takeover *ret, struct err *e);

/* fiber. The complete open of somebody who serves nothing: takeover, then a closed manifest whose
 * root has the walked tail and next_seq behind the fence. *ret (may be NULL) is that manifest. */
int volume_fence(struct env *env, struct objstore *s, const struct volume_key *v,
                 uint32_t publish_epoch, struct manifest *ret, struct err *e);
