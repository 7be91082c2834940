/* What the layers share: a device over a device, and the copies of requests that those layers need
 * which want to see the end of a request.
 *
 * A request belongs to one device at a time (node, priv, dev_state), so a layer that waits for the
 * end hands a copy of its own down and takes it back from a list of spare ones: no allocation in
 * the steady state. */
#pragma once

#include "common/mem.h"
#include "portalbd/blockdev/blockdev.h"

struct bd_layer {
    struct blockdev dev;
    struct blockdev *below;  /* owned */
    struct list_node spares; /* struct bd_call */
    size_t calls_open;
};

struct bd_call {
    struct bd_request inner; /* what the device below sees */
    struct bd_request *outer;
    struct bd_layer *layer;
    uint64_t start_us; /* the layer's own */
    struct list_node node;
};

void bd_layer_init(struct bd_layer *l, const struct blockdev_ops *ops, struct blockdev *below);
uint64_t bd_layer_size_bytes(struct blockdev *dev);
void bd_layer_close(struct blockdev *dev); /* closes below, frees the layer's memory */

static inline struct bd_layer *bd_layer_of(struct blockdev *dev) {
    return container_of(dev, struct bd_layer, dev);
}

/* A copy of `outer` to submit below; `done` is called with &call->inner when it ended later. */
struct bd_call *bd_call_begin(struct bd_layer *l, struct bd_request *outer,
                              void (*done)(struct bd_request *inner));
/* Copies the answer to the outer request, gives the call back and returns the outer request. */
struct bd_request *bd_call_end(struct bd_call *call);

static inline struct bd_call *bd_call_of(struct bd_request *inner) {
    return container_of(inner, struct bd_call, inner);
}
