/* What the layers share; see layer_internal.h. */
#include <stdlib.h>

#include "portalbd/blockdev/layer_internal.h"

void bd_layer_init(struct bd_layer *l, const struct blockdev_ops *ops, struct blockdev *below) {
    l->dev = *below;
    l->dev.ops = ops;
    l->below = below;
    l->calls_open = 0;
    list_init(&l->spares);
}

uint64_t bd_layer_size_bytes(struct blockdev *dev) {
    return bd_size_bytes(bd_layer_of(dev)->below);
}

void bd_layer_close(struct blockdev *dev) {
    struct bd_layer *l = bd_layer_of(dev);
    CHECK(l->calls_open == 0);
    l->below->ops->close(l->below);
    struct list_node *n;
    while ((n = list_pop_front(&l->spares)))
        free(list_entry(n, struct bd_call, node));
    free(l);
}

struct bd_call *bd_call_begin(struct bd_layer *l, struct bd_request *outer,
                              void (*done)(struct bd_request *inner)) {
    struct list_node *n = list_pop_front(&l->spares);
    struct bd_call *call = n ? list_entry(n, struct bd_call, node) : NEW(struct bd_call);
    call->inner = *outer;
    call->inner.done = done;
    call->inner.node = (struct list_node){0};
    call->outer = outer;
    call->layer = l;
    l->calls_open++;
    return call;
}

struct bd_request *bd_call_end(struct bd_call *call) {
    struct bd_request *outer = call->outer;
    outer->rc = call->inner.rc;
    if (outer->op == BD_BLOCK_STATUS)
        outer->extents.count = call->inner.extents.count;
    CHECK(call->layer->calls_open > 0);
    call->layer->calls_open--;
    list_push_front(&call->layer->spares, &call->node);
    return outer;
}
