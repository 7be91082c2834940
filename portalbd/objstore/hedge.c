/* Sends slow requests twice.
 *
 *   submit: first copy --timer at the threshold--> both copies --+
 *                  \____________________ an answer ______________+--> the other one is cancelled
 *                                                                     --both ended--> done
 *
 * What counts as an answer is what trying again would not change; a copy that fails while the other
 * is under way only ends. The request is done when both copies have ended, since a PUT's body is
 * borrowed by both.
 *
 * The threshold of a class (verb, size) is the 99th percentile of its last RING answers, sorted
 * anew after every REFRESH of them. The time of a request that the second copy won counts as long
 * as it took.
 *
 * I1 state.in_flight is the number of second copies under way, <= HEDGES_MAX. I2 Second copies in
 * all <= requests / share + CREDIT_MAX. I3 A PUT ends with 0 only if the store said so. */
#include "portalbd/objstore/hedge.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/objstore/layer_internal.h"

enum {
    FLOOR_US = 10 * 1000,
    SHARE = 20,
    SAMPLES = 64,
    RING = 256,     /* latencies that a class remembers */
    REFRESH = 32,   /* answers between two looks at them */
    CREDIT_MAX = 8, /* second copies that a quiet time allows for later */
    SIZES = 4,      /* up to 16 KiB, 256 KiB, 2 MiB, more */
};

struct hedge_class {
    uint32_t latency_us[RING];
    uint64_t count;        /* answers so far */
    uint64_t threshold_us; /* 0: not known */
};

struct hedge_store {
    struct objstore store;
    struct objstore *below; /* owned */
    struct hedge_options options;
    struct hedge_class classes[OBJ_PUT + 1][SIZES];
    uint64_t credit; /* in parts of `share` */
    struct hedge_state state;
    struct metrics_group *group; /* owned; NULL without a registry */
    size_t under_way;
};

struct copy {
    struct obj_request req;
    struct hedge_call *call;
    bool running;
};

struct hedge_call {
    struct copy copies[2];
    bool answered; /* `above` has its answer */
    struct obj_request *above;
    struct hedge_store *layer;
    struct hedge_class *class; /* NULL: never sent twice */
    struct env_timer slow;
    uint64_t start_us;
};

static struct hedge_store *layer_of(struct objstore *store) {
    return container_of(store, struct hedge_store, store);
}

/* --- what is slow --- */

static struct hedge_class *class_of(struct hedge_store *l, const struct obj_request *req) {
    if (req->verb != OBJ_GET && req->verb != OBJ_PUT)
        return NULL;
    size_t bytes = req->verb == OBJ_PUT ? obj_request_body_len(req) : req->len;
    unsigned size = bytes <= 16 << 10 ? 0 : bytes <= 256 << 10 ? 1 : bytes <= 2 << 20 ? 2 : 3;
    return &l->classes[req->verb][size];
}

static int compare_u32(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void learn(struct hedge_store *l, struct hedge_class *c, uint64_t latency_us) {
    c->latency_us[c->count++ % RING] = (uint32_t)MIN(latency_us, (uint64_t)UINT32_MAX);
    if (c->count < l->options.samples || (c->threshold_us > 0 && c->count % REFRESH != 0))
        return;
    uint32_t sorted[RING];
    size_t n = MIN(c->count, (uint64_t)RING);
    memcpy(sorted, c->latency_us, n * sizeof sorted[0]);
    qsort(sorted, n, sizeof sorted[0], compare_u32);
    c->threshold_us = MAX((uint64_t)sorted[n - 1 - n / 100], l->options.floor_us);
}

/* --- a request --- */

static void on_copy_done(struct obj_request *copy);

static void send_copy(struct hedge_call *c, struct copy *copy) {
    copy->running = true;
    layer_child_init(&copy->req, c->above);
    copy->req.done = on_copy_done;
    objstore_submit(c->layer->below, &copy->req);
}

static void on_slow(struct env_timer *timer) {
    struct hedge_call *c = container_of(timer, struct hedge_call, slow);
    struct hedge_store *l = c->layer;
    CHECK(c->copies[0].running && !c->copies[1].running);
    if (l->credit < l->options.share || l->state.in_flight >= HEDGES_MAX) {
        metrics_counter_add(&l->state.denied, 1);
        return;
    }
    l->credit -= l->options.share;
    l->state.in_flight++;
    metrics_counter_add(&l->state.verbs[c->above->verb].sent, 1);
    send_copy(c, &c->copies[1]);
}

static void end(struct hedge_call *c) {
    struct obj_request *above = c->above;
    CHECK(c->answered);
    c->layer->under_way--;
    obj_request_release(&c->copies[0].req);
    obj_request_release(&c->copies[1].req);
    free(c);
    above->done(above);
}

/* Trying again may give another answer. */
static bool may_heal(int rc) {
    switch (rc) {
    case 0:
    case -ERR_EXISTS:
    case -ERR_NOT_FOUND:
    case -ERR_CORRUPT:
    case -ERR_INVALID:
    case -ERR_UNSUPPORTED:
        return false;
    default:
        return true;
    }
}

static void take_answer(struct hedge_call *c, struct copy *copy, struct copy *other) {
    struct hedge_store *l = c->layer;
    c->answered = true;
    env_timer_stop(l->store.env, &c->slow);
    layer_answer_move(c->above, &copy->req);
    if (c->above->rc == 0 && c->class)
        learn(l, c->class, env_now_us(l->store.env) - c->start_us);
    if (copy == &c->copies[1])
        metrics_counter_add(&l->state.verbs[c->above->verb].won, 1);
    if (other->running)
        objstore_cancel(l->below, &other->req);
}

static void on_copy_done(struct obj_request *req) {
    struct copy *copy = container_of(req, struct copy, req);
    struct hedge_call *c = copy->call;
    bool second = copy == &c->copies[1];
    struct copy *other = &c->copies[second ? 0 : 1];
    CHECK(copy->running);
    copy->running = false;
    c->layer->state.in_flight -= second;
    if (!c->answered && (!may_heal(req->rc) || !other->running))
        take_answer(c, copy, other);
    if (!other->running)
        end(c);
}

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct hedge_store *l = layer_of(store);
    obj_request_check(req);
    struct hedge_call *c = NEW(struct hedge_call);
    c->above = req;
    c->layer = l;
    c->class = class_of(l, req);
    c->slow.fn = on_slow;
    c->start_us = env_now_us(store->env);
    c->copies[0].call = c->copies[1].call = c;
    req->priv = c;
    req->rc = 0;
    l->under_way++;
    if (c->class) {
        l->credit = MIN(l->credit + 1, (uint64_t)CREDIT_MAX * l->options.share);
        if (c->class->threshold_us > 0)
            env_timer_start(store->env, &c->slow, c->class->threshold_us);
    }
    send_copy(c, &c->copies[0]);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    struct hedge_call *c = req->priv;
    env_timer_stop(store->env, &c->slow);
    for (size_t i = 0; i < ARRAY_LEN(c->copies); i++)
        if (c->copies[i].running)
            objstore_cancel(c->layer->below, &c->copies[i].req);
}

static void op_close(struct objstore *store) {
    struct hedge_store *l = layer_of(store);
    CHECK(l->under_way == 0 && l->state.in_flight == 0);
    metrics_group_free(l->group);
    objstore_close(l->below);
    free(l);
}

static const struct objstore_ops hedge_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

/* --- the layer --- */

static void register_all(struct hedge_store *l) {
    static const enum obj_verb verbs[] = {OBJ_GET, OBJ_PUT};
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        const struct metrics_label *verb = METRICS_LABELS({"verb", obj_verb_name(verbs[i])});
        metrics_counter_register(l->group, &l->state.verbs[verbs[i]].sent,
                                 "portalbd_objstore_hedges_total",
                                 "Slow requests that were sent a second time.", verb);
        metrics_counter_register(l->group, &l->state.verbs[verbs[i]].won,
                                 "portalbd_objstore_hedges_won_total",
                                 "Second requests that were answered first.", verb);
    }
    metrics_counter_register(l->group, &l->state.denied, "portalbd_objstore_hedges_denied_total",
                             "Slow requests that were not sent again, since too many had been.",
                             NULL);
}

struct objstore *objstore_hedge_new(struct objstore *below, const struct hedge_options *options,
                                    struct metrics *registry, const struct metrics_label *labels) {
    struct hedge_store *l = NEW(struct hedge_store);
    l->store = (struct objstore){.ops = &hedge_ops, .env = below->env};
    l->below = below;
    if (options)
        l->options = *options;
    struct hedge_options *o = &l->options;
    o->floor_us = o->floor_us ? o->floor_us : FLOOR_US;
    o->share = o->share ? o->share : SHARE;
    o->samples = o->samples ? o->samples : SAMPLES;
    if (registry) {
        l->group = metrics_group_new(registry, labels);
        register_all(l);
    }
    return &l->store;
}

const struct hedge_state *objstore_hedge_state(const struct objstore *layer) {
    CHECK(layer->ops == &hedge_ops);
    return &container_of(layer, const struct hedge_store, store)->state;
}
