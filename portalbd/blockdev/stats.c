/* Counts: see stats.h. A request that ends inline costs two clock reads and no allocation. */
#include "portalbd/blockdev/stats.h"

#include "portalbd/blockdev/layer_internal.h"
#include "portalbd/blockdev/validate.h"

struct stats_layer {
    struct bd_layer layer;
    struct env *env;
    struct metrics_group *metrics;
    struct bd_stats stats;
};

static void register_op(struct stats_layer *s, enum bd_op op) {
    struct bd_op_stats *o = &s->stats.ops[op];
    const struct metrics_label *labels = METRICS_LABELS({"op", bd_op_name(op)});
    metrics_results_register(s->metrics, &o->results, "portalbd_device_requests_total",
                             "Requests answered, by operation and outcome.", labels);
    metrics_counter_register(s->metrics, &o->bytes, "portalbd_device_bytes_total",
                             "Bytes read, written, or covered by other operations.", labels);
    metrics_histogram_register(s->metrics, &o->latency, METRICS_MICROSECONDS,
                               "portalbd_device_request_seconds",
                               "Time from a request's arrival to its answer.", labels);
}

static void record(struct bd_call *call) {
    struct stats_layer *s = container_of(call->layer, struct stats_layer, layer);
    struct bd_op_stats *o = &s->stats.ops[call->inner.op];
    metrics_results_add(&o->results, call->inner.rc);
    if (call->inner.rc == 0)
        metrics_counter_add(&o->bytes, call->inner.len);
    metrics_histogram_add(&o->latency, env_now_us(s->env) - call->start_us);
    metrics_gauge_add(&s->stats.in_flight, -1);
}

static void on_done(struct bd_request *inner) {
    struct bd_call *call = bd_call_of(inner);
    record(call);
    struct bd_request *outer = bd_call_end(call);
    outer->done(outer);
}

static bool stats_submit(struct blockdev *dev, struct bd_request *req) {
    struct bd_layer *l = bd_layer_of(dev);
    struct stats_layer *s = container_of(l, struct stats_layer, layer);
    CHECK((unsigned)req->op < BD_OPS);
    struct bd_call *call = bd_call_begin(l, req, on_done);
    call->start_us = env_now_us(s->env);
    metrics_gauge_add(&s->stats.in_flight, 1);
    if (!bd_submit(l->below, &call->inner))
        return false;
    record(call);
    bd_call_end(call);
    return true;
}

static void stats_close(struct blockdev *dev) {
    struct stats_layer *s = container_of(bd_layer_of(dev), struct stats_layer, layer);
    metrics_group_free(s->metrics);
    bd_layer_close(dev);
}

static const struct blockdev_ops stats_ops = {
    .submit = stats_submit,
    .size_bytes = bd_layer_size_bytes,
    .close = stats_close,
};

struct blockdev *bd_stats_open(struct blockdev *below, struct env *env, struct metrics *registry,
                               const struct metrics_label *labels) {
    struct stats_layer *s = NEW(struct stats_layer);
    bd_layer_init(&s->layer, &stats_ops, below);
    s->env = env;
    s->metrics = metrics_group_new(registry, labels);
    for (unsigned op = 0; op < BD_OPS; op++)
        register_op(s, (enum bd_op)op);
    metrics_gauge_register(s->metrics, &s->stats.in_flight, "portalbd_device_requests_in_flight",
                           "Requests submitted and not yet answered.", NULL);
    return &s->layer.dev;
}

const struct bd_stats *bd_stats_of(struct blockdev *dev) {
    CHECK(dev->ops == &stats_ops);
    return &container_of(bd_layer_of(dev), struct stats_layer, layer)->stats;
}
