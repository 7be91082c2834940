/* Counts what passes. */
#include "portalbd/objstore/stats.h"

#include <stdlib.h>

#include "portalbd/objstore/layer_internal.h"

struct stats_store {
    struct objstore store;
    struct objstore *below; /* owned */
    struct objstore_stats stats;
    struct metrics_group *group; /* owned; NULL without a registry */
};

struct stats_call {
    struct obj_request child;
    struct obj_request *above;
    struct stats_store *layer;
    uint64_t start_us;
};

static struct stats_store *layer_of(struct objstore *store) {
    return container_of(store, struct stats_store, store);
}

static void on_child_done(struct obj_request *child) {
    struct stats_call *c = container_of(child, struct stats_call, child);
    struct objstore_stats *s = &c->layer->stats;
    struct obj_request *above = c->above;
    metrics_results_add(&s->verbs[child->verb].results, child->rc);
    metrics_histogram_add(&s->verbs[child->verb].latency,
                          env_now_us(c->layer->store.env) - c->start_us);
    metrics_counter_add(&s->verbs[child->verb].received, child->body.len);
    metrics_gauge_add(&s->in_flight, -1);
    layer_answer_move(above, child);
    free(c);
    above->done(above);
}

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct stats_store *l = layer_of(store);
    struct stats_call *c = NEW(struct stats_call);
    c->above = req;
    c->layer = l;
    c->start_us = env_now_us(store->env);
    req->priv = c;
    metrics_gauge_add(&l->stats.in_flight, 1);
    if (req->verb == OBJ_PUT)
        metrics_counter_add(&l->stats.verbs[OBJ_PUT].sent, obj_request_body_len(req));
    layer_child_init(&c->child, req);
    c->child.done = on_child_done;
    objstore_submit(l->below, &c->child);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    struct stats_call *c = req->priv;
    objstore_cancel(layer_of(store)->below, &c->child);
}

static void op_close(struct objstore *store) {
    struct stats_store *l = layer_of(store);
    CHECK(metrics_gauge_get(&l->stats.in_flight) == 0);
    metrics_group_free(l->group);
    objstore_close(l->below);
    free(l);
}

static const struct objstore_ops stats_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

static void register_all(struct stats_store *l) {
    for (int v = 0; v < OBJ_VERBS; v++) {
        const struct metrics_label *verb =
            METRICS_LABELS({"verb", obj_verb_name((enum obj_verb)v)});
        metrics_results_register(l->group, &l->stats.verbs[v].results,
                                 "portalbd_objstore_requests_total",
                                 "Requests sent to the object store, by outcome.", verb);
        metrics_histogram_register(l->group, &l->stats.verbs[v].latency, METRICS_MICROSECONDS,
                                   "portalbd_objstore_request_seconds",
                                   "Time from a request's submission to its answer.", verb);
    }
    metrics_counter_register(l->group, &l->stats.verbs[OBJ_PUT].sent,
                             "portalbd_objstore_sent_bytes_total", "Bytes of bodies sent.", NULL);
    metrics_counter_register(l->group, &l->stats.verbs[OBJ_GET].received,
                             "portalbd_objstore_received_bytes_total", "Bytes of bodies received.",
                             NULL);
    metrics_gauge_register(l->group, &l->stats.in_flight, "portalbd_objstore_in_flight_requests",
                           "Requests that wait for their answer.", NULL);
}

struct objstore *objstore_stats_new(struct objstore *below, struct metrics *registry,
                                    const struct metrics_label *labels) {
    struct stats_store *l = NEW(struct stats_store);
    l->store = (struct objstore){.ops = &stats_ops, .env = below->env};
    l->below = below;
    if (registry) {
        l->group = metrics_group_new(registry, labels);
        register_all(l);
    }
    return &l->store;
}

const struct objstore_stats *objstore_stats(const struct objstore *layer) {
    CHECK(layer->ops == &stats_ops);
    return &container_of(layer, const struct stats_store, store)->stats;
}

uint64_t objstore_stats_requests(const struct objstore_stats *stats, enum obj_verb verb) {
    return metrics_histogram_count(&stats->verbs[verb].latency);
}
