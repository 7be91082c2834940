/* The pool's housekeeping: what died half way is finished or swept, deleted volumes give their
 * objects back, old records go. One pass looks at the whole pool; a controller runs one at its
 * start and then every BACKGROUND_INTERVAL_US, portalctl gc runs one when asked. Any number of
 * them, here and elsewhere, may run at the same time. */
#pragma once

#include "portalbd/catalog/catalog.h"
#include "portalbd/volume/sweep.h"

#define BACKGROUND_INTERVAL_US (UINT64_C(15) * 60 * 1000 * 1000)

/* What a job remembers from pass to pass: only what makes it sweep (a pin must be seen unnamed
 * twice, SWEEP_INTERVAL_US apart). Losing it costs time, never data. */
struct background {
    struct catalog catalog;
    struct pin_sweeper sweeper;
    struct volume_key *done; /* owned: deleted volumes with nothing left, for the time being */
    size_t done_count;
};
struct background_result {
    size_t volumes;          /* looked at, deleted ones included */
    size_t volumes_finished; /* deletions that had died half way */
    size_t volumes_waiting;  /* deleted, but snapshots or clones still need objects of them */
    size_t objects_deleted;
    size_t pins_swept;
    size_t pins_suspected; /* unnamed, but not long enough yet */
    size_t records_pruned;
    size_t failures; /* volumes that were left for the next pass; the first one's error ... */
    struct err first_failure; /* ... is here */
};
void background_init(struct background *b, const struct catalog *c);
void background_release(struct background *b);
/* fiber. One pass. A failure with one volume does not stop it. Costs about 4 a volume. */
int background_pass(struct background *b, struct background_result *ret, struct err *e);
