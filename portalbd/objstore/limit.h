/* A layer that bounds what is in flight below it, and says who goes first when there is no room.
 *
 * Urgent: anything but background work and large PUTs; so a FLUSH's segment never stands behind a
 * stream of full ones. Bulk: PUTs above urgent_bytes_max. Background: what says so. Each class
 * waits in its own order. Urgent may fill everything, bulk three quarters, background a half; and a
 * class that has nothing in flight comes first with one request, so that none starves. */
#pragma once

#include "portalbd/objstore/objstore.h"

struct limit_options {       /* 0 means the default */
    unsigned requests_max;   /* in flight: 64 */
    size_t body_bytes_max;   /* in flight, of PUTs' bodies and of ranges asked for: 128 MiB */
    size_t urgent_bytes_max; /* a larger PUT is bulk: 256 KiB */
};

/* `below` is owned. */
struct objstore *objstore_limit_new(struct objstore *below, const struct limit_options *options);

struct limit_state {
    unsigned in_flight;   /* requests below the layer */
    size_t bytes;         /* of their bodies */
    unsigned waiting;     /* requests that wait for room */
    uint64_t waits_total; /* requests that had to wait */
};
/* Borrowed while the layer lives; owner thread. */
const struct limit_state *objstore_limit_state(const struct objstore *layer);
