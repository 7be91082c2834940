/* Bounds requests and bytes in flight, in three classes (limit.h).
 *
 *   submit -> WAITING (on its class's queue) -> BELOW -> done
 *                |  cancel -> ENDING --turn--> done
 *
 * I1 state.in_flight and state.bytes are the sums over the calls in state BELOW.
 * I2 in_flight <= requests_max; bytes <= body_bytes_max unless one single body is larger. */
#include "portalbd/objstore/limit.h"

#include <stdlib.h>

#include "portalbd/objstore/layer_internal.h"

enum prio { URGENT, BULK, BACKGROUND, CLASSES };
enum state { WAITING, BELOW, ENDING };

enum {
    REQUESTS_MAX = 64,
    BODY_BYTES_MAX = 128 * 1024 * 1024,
    URGENT_BYTES_MAX = 256 * 1024,
};

struct class_state {
    struct list_node queue; /* limit_call.node */
    unsigned in_flight;
};

struct limit_store {
    struct objstore store;
    struct objstore *below; /* owned */
    struct limit_options options;
    struct class_state classes[CLASSES];
    struct limit_state state;
    size_t under_way; /* calls, in whatever state */
};

struct limit_call {
    struct obj_request child;
    struct obj_request *above;
    struct limit_store *layer;
    struct list_node node; /* WAITING */
    struct env_event ending;
    enum prio prio;
    enum state state;
    size_t bytes;
};

static struct limit_store *layer_of(struct objstore *store) {
    return container_of(store, struct limit_store, store);
}

/* The part of `max` that all classes together may fill when this class asks for more: 4/4, 3/4,
 * 2/4. */
static size_t ceiling(enum prio prio, size_t max) {
    return MAX(max * (size_t)(4 - prio) / 4, (size_t)1);
}

static bool has_room(const struct limit_store *l, enum prio prio, size_t bytes) {
    const struct limit_options *o = &l->options;
    const struct limit_state *s = &l->state;
    if (s->in_flight == 0)
        return true;
    bool first = l->classes[prio].in_flight == 0; /* what every class may always have */
    if (s->in_flight >= (first ? o->requests_max : ceiling(prio, o->requests_max)))
        return false;
    return bytes == 0 ||
           s->bytes + bytes <= (first ? o->body_bytes_max : ceiling(prio, o->body_bytes_max));
}

static void on_child_done(struct obj_request *child);

static void send_below(struct limit_call *c) {
    struct limit_store *l = c->layer;
    c->state = BELOW;
    l->state.in_flight++;
    l->state.bytes += c->bytes;
    l->classes[c->prio].in_flight++;
    CHECK(l->state.in_flight <= l->options.requests_max);
    layer_child_init(&c->child, c->above);
    c->child.done = on_child_done;
    objstore_submit(l->below, &c->child);
}

/* Sends the class's first waiting request below, if there is one and room. */
static bool send_first(struct limit_store *l, enum prio prio) {
    struct class_state *cs = &l->classes[prio];
    if (list_empty(&cs->queue))
        return false;
    struct limit_call *c = list_entry(cs->queue.next, struct limit_call, node);
    if (!has_room(l, prio, c->bytes))
        return false;
    list_remove(&c->node);
    l->state.waiting--;
    send_below(c);
    return true;
}

static void pump(struct limit_store *l) {
    for (int i = CLASSES - 1; i >= 0; i--)
        if (l->classes[i].in_flight == 0)
            send_first(l, (enum prio)i);
    for (int i = 0; i < CLASSES; i++)
        while (send_first(l, (enum prio)i)) {
        }
}

static void end(struct limit_call *c) {
    struct obj_request *above = c->above;
    c->layer->under_way--;
    free(c);
    above->done(above);
}

static void on_child_done(struct obj_request *child) {
    struct limit_call *c = container_of(child, struct limit_call, child);
    struct limit_store *l = c->layer;
    l->state.in_flight--;
    l->state.bytes -= c->bytes;
    l->classes[c->prio].in_flight--;
    layer_answer_move(c->above, child);
    pump(l);
    end(c);
}

static void on_ending(struct env_event *event) {
    struct limit_call *c = container_of(event, struct limit_call, ending);
    CHECK(c->state == ENDING);
    obj_request_fail(c->above, -ERR_CANCELLED, "cancelled");
    end(c);
}

static enum prio class_of(const struct limit_store *l, const struct obj_request *req,
                          size_t bytes) {
    if (req->background)
        return BACKGROUND;
    return req->verb == OBJ_PUT && bytes > l->options.urgent_bytes_max ? BULK : URGENT;
}

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct limit_store *l = layer_of(store);
    obj_request_check(req);
    struct limit_call *c = NEW(struct limit_call);
    c->above = req;
    c->layer = l;
    c->ending.fn = on_ending;
    c->bytes = req->verb == OBJ_PUT   ? obj_request_body_len(req)
               : req->verb == OBJ_GET ? req->len
                                      : 0;
    c->prio = class_of(l, req, c->bytes);
    req->priv = c;
    req->rc = 0;
    l->under_way++;
    if (list_empty(&l->classes[c->prio].queue) && has_room(l, c->prio, c->bytes)) {
        send_below(c);
        return;
    }
    c->state = WAITING;
    l->state.waiting++;
    l->state.waits_total++;
    list_push_back(&l->classes[c->prio].queue, &c->node);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    struct limit_call *c = req->priv;
    if (c->state == BELOW) {
        objstore_cancel(c->layer->below, &c->child);
    } else if (c->state == WAITING) {
        list_remove(&c->node);
        c->layer->state.waiting--;
        c->state = ENDING;
        env_post(store->env, &c->ending);
        pump(c->layer); /* it may have been in the way of a smaller one */
    }
}

static void op_close(struct objstore *store) {
    struct limit_store *l = layer_of(store);
    CHECK(l->under_way == 0 && l->state.in_flight == 0);
    objstore_close(l->below);
    free(l);
}

static const struct objstore_ops limit_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

struct objstore *objstore_limit_new(struct objstore *below, const struct limit_options *options) {
    struct limit_store *l = NEW(struct limit_store);
    l->store = (struct objstore){.ops = &limit_ops, .env = below->env};
    l->below = below;
    if (options)
        l->options = *options;
    struct limit_options *o = &l->options;
    o->requests_max = o->requests_max ? o->requests_max : REQUESTS_MAX;
    o->body_bytes_max = o->body_bytes_max ? o->body_bytes_max : BODY_BYTES_MAX;
    o->urgent_bytes_max = o->urgent_bytes_max ? o->urgent_bytes_max : URGENT_BYTES_MAX;
    for (int i = 0; i < CLASSES; i++)
        list_init(&l->classes[i].queue);
    return &l->store;
}

const struct limit_state *objstore_limit_state(const struct objstore *layer) {
    CHECK(layer->ops == &limit_ops);
    return &container_of(layer, const struct limit_store, store)->state;
}
