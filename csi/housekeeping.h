/* The controller's background work: a pass over every pool at the start and then every
 * BACKGROUND_INTERVAL_US (portalbd/catalog/background.h), in a fiber on the loop. */
#pragma once

#include "common/loop.h"
#include "common/metrics.h"
#include "csi/pools.h"

struct housekeeping;
/* All borrowed until stop. Any thread but the loop's, while it runs. */
struct housekeeping *housekeeping_start(struct loop *loop, struct pools *pools,
                                        struct metrics *metrics);
/* Cuts a pass off and waits for its end. Any thread but the loop's. */
void housekeeping_stop(struct housekeeping *h);
