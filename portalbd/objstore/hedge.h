/* A layer that sends a slow GET or PUT a second time and takes the answer that comes first.
 *
 * Slow: slower than 99 of 100 requests of its verb and size lately. Stores have such requests all
 * the time, and a FLUSH that waits for one waits for nothing. At most one request in twenty is sent
 * twice, at most HEDGES_MAX at a time.
 *
 * A PUT that is refused because its own first copy is there already is settled by the retry layer
 * above, like one whose answer was lost. */
#pragma once

#include "common/metrics.h"
#include "portalbd/objstore/objstore.h"

struct hedge_options { /* 0 means the default */
    uint64_t floor_us; /* nothing is sent again before: 10 ms */
    unsigned share;    /* one of so many requests may be sent twice: 20 */
    unsigned samples;  /* a verb and size is known after so many answers: 64 */
};

enum { HEDGES_MAX = 4 }; /* second copies under way */

/* `below` is owned. options may be NULL; registry too; labels (copied) go on every series. */
struct objstore *objstore_hedge_new(struct objstore *below, const struct hedge_options *options,
                                    struct metrics *registry, const struct metrics_label *labels);

struct hedge_state {
    struct {
        struct metrics_counter sent; /* second copies */
        struct metrics_counter won;  /* ... that were answered first */
    } verbs[OBJ_PUT + 1];            /* by enum obj_verb */
    struct metrics_counter denied;   /* slow requests that were not sent again: too many were */
    unsigned in_flight;              /* second copies */
};
/* Borrowed while the layer lives; counters from any thread. */
const struct hedge_state *objstore_hedge_state(const struct objstore *layer);
