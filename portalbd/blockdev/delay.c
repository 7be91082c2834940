/* Answers later: see delay.h. One timer per request, kept with its call. */
#include "portalbd/blockdev/delay.h"

#include "portalbd/blockdev/layer_internal.h"

struct delay {
    struct bd_layer layer;
    struct env *env;
    uint64_t min_us;
    uint64_t max_us;
};

struct delay_wait {
    struct env_timer timer;
    struct bd_call *call;
};

static void on_timer(struct env_timer *timer) {
    struct delay_wait *w = container_of(timer, struct delay_wait, timer);
    struct bd_request *outer = bd_call_end(w->call);
    freep_(&w);
    outer->done(outer);
}

static void answer_later(struct bd_request *inner) {
    struct bd_call *call = bd_call_of(inner);
    struct delay *d = container_of(call->layer, struct delay, layer);
    struct delay_wait *w = NEW(struct delay_wait);
    w->timer.fn = on_timer;
    w->call = call;
    uint64_t span = d->max_us - d->min_us + 1;
    env_timer_start(d->env, &w->timer, d->min_us + env_random_u64(d->env) % span);
}

static bool delay_submit(struct blockdev *dev, struct bd_request *req) {
    struct bd_layer *l = bd_layer_of(dev);
    struct bd_call *call = bd_call_begin(l, req, answer_later);
    if (bd_submit(l->below, &call->inner))
        answer_later(&call->inner);
    return false;
}

static const struct blockdev_ops delay_ops = {
    .submit = delay_submit,
    .size_bytes = bd_layer_size_bytes,
    .close = bd_layer_close,
};

struct blockdev *bd_delay_open(struct blockdev *below, struct env *env, uint64_t min_us,
                               uint64_t max_us) {
    CHECK(min_us <= max_us && max_us < UINT64_MAX);
    struct delay *d = NEW(struct delay);
    bd_layer_init(&d->layer, &delay_ops, below);
    d->env = env;
    d->min_us = min_us;
    d->max_us = max_us;
    return &d->layer.dev;
}
