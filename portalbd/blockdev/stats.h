/* A layer that counts: requests by operation and outcome, bytes, latency from submit to answer, and
 * how many are under way. */
#pragma once

#include "common/env.h"
#include "common/metrics.h"
#include "portalbd/blockdev/blockdev.h"

struct bd_op_stats {
    struct metrics_results results;   /* answers by error code */
    struct metrics_counter bytes;     /* of READ and WRITE moved, of the others covered */
    struct metrics_histogram latency; /* us */
};

struct bd_stats {
    struct bd_op_stats ops[BD_OPS];
    struct metrics_gauge in_flight;
};

/* Owns `below`. env is borrowed for the layer's life; registry may be NULL; the series carry these
 * labels (copied, NULL: none). */
struct blockdev *bd_stats_open(struct blockdev *below, struct env *env, struct metrics *registry,
                               const struct metrics_label *labels);

/* The counters of a stats layer; borrowed until it is closed. */
const struct bd_stats *bd_stats_of(struct blockdev *stats);
