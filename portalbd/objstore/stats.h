/* A layer that counts requests by verb and outcome, bytes, and latency. */
#pragma once

#include "common/metrics.h"
#include "portalbd/objstore/objstore.h"

enum { OBJ_STATS_VERBS = OBJ_DELETE + 1 };

struct objstore_stats {
    struct {
        struct metrics_results results;   /* by error code */
        struct metrics_counter sent;      /* bytes of bodies: PUT */
        struct metrics_counter received;  /* bytes of bodies: GET */
        struct metrics_histogram latency; /* us, from submit to done; cancelled ones too */
    } verbs[OBJ_STATS_VERBS];             /* by enum obj_verb */
    struct metrics_gauge in_flight;       /* requests */
};

/* `below` is owned. registry may be NULL; labels (copied) go on every series, NULL for none. */
struct objstore *objstore_stats_new(struct objstore *below, struct metrics *registry,
                                    const struct metrics_label *labels);

/* Borrowed while the layer lives. Any thread, by the accessors of common/metrics.h. */
const struct objstore_stats *objstore_stats(const struct objstore *layer);

/* All requests of a verb, whatever came of them. */
uint64_t objstore_stats_requests(const struct objstore_stats *stats, enum obj_verb verb);
