/* A layer that answers later than the device below: each request after a random time of its own, so
 * answers come in any order. For tests and for trying what a slow store feels like. */
#pragma once

#include "common/env.h"
#include "portalbd/blockdev/blockdev.h"

/* Every request is submitted below at once and answered min_us..max_us after that ended, never
 * inline. Owns `below`; env is borrowed for the layer's life. */
struct blockdev *bd_delay_open(struct blockdev *below, struct env *env, uint64_t min_us,
                               uint64_t max_us);
