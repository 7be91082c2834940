/* Retries, and settles refused PUTs.
 *
 *             submit
 *               v        rc that time may heal
 *   +------> ATTEMPT ----------------------------> PAUSING --timer--> ATTEMPT or SETTLING again
 *   |           | PUT: -ERR_EXISTS                   ^  | cancel, deadline
 *   |           v                                    |  v
 *   |       SETTLING --------------------------------+ ENDING --turn--> done
 *   |           | equal: 0 · different: EXISTS · gone: STALE
 *   |           v
 *   |         done      (any other rc of ATTEMPT: done)
 *
 * Every refused PUT is settled, the first try's too: a transport below may have repeated it without
 * telling. Bodies carry a random nonce near their start, so comparing OBJ_READ_BACK_MAX bytes and
 * the size decides between "mine" and "another's".
 *
 * I1 `child` is under way in ATTEMPT and SETTLING, and only there.
 * I2 `pause` runs in PAUSING, and only there; `deadline` runs from submit to done if there is one.
 * I3 A PUT of ours ends with 0 only if a store said so or its bytes were read back. */
#include "portalbd/objstore/retry.h"

#include <inttypes.h>
#include <stdlib.h>

#include "portalbd/objstore/layer_internal.h"

enum state { ATTEMPT, SETTLING, PAUSING, ENDING };

enum {
    PAUSE_US_MIN = 100 * 1000,
    PAUSE_US_MAX = 10 * 1000 * 1000,
    REFUSED_PAUSE_US_MAX = 60 * 1000 * 1000,
    DOUBLINGS_MAX = 30,
    REFUSALS_MAX = 3, /* with give_up_us: the first may be a key that has just been exchanged */
};

struct retry_store {
    struct objstore store;
    struct objstore *below; /* owned */
    struct retry_options options;
    struct retry_state state;
    size_t under_way;
};

struct retry_call {
    struct obj_request child;
    struct obj_request *above; /* borrowed until its done */
    struct retry_store *layer;
    enum state state;
    enum state resume; /* PAUSING: what comes next */
    struct env_timer pause;
    struct env_timer deadline;
    struct env_event ending;
    unsigned failures; /* in a row, of this request */
    bool cancelled;
    bool late; /* the deadline has passed */
};

static struct retry_store *layer_of(struct objstore *store) {
    return container_of(store, struct retry_store, store);
}

/* Others may be reading the numbers (metrics). */
static void count(uint64_t *total) {
    __atomic_fetch_add(total, 1, __ATOMIC_RELAXED);
}

static bool is_final(int rc) {
    switch (rc) {
    case 0:
    case -ERR_EXISTS:
    case -ERR_NOT_FOUND:
    case -ERR_CORRUPT:
    case -ERR_INVALID:
    case -ERR_UNSUPPORTED:
    case -ERR_SHUTDOWN:
        return true;
    default:
        return false;
    }
}

/* Somebody has to change a setting before it gets better. */
static bool is_refusal(int rc) {
    return rc == -ERR_DENIED || rc == -ERR_NO_BUCKET || rc == -ERR_CONFIG;
}

static void end(struct retry_call *c) {
    struct retry_store *l = c->layer;
    struct obj_request *above = c->above;
    env_timer_stop(l->store.env, &c->deadline);
    obj_request_release(&c->child);
    free(c);
    l->under_way--;
    above->done(above);
}

static void note_answer(struct retry_store *l) {
    if (l->state.trouble_since_us == 0)
        return;
    __atomic_store_n(&l->state.trouble_since_us, 0, __ATOMIC_RELAXED);
    if (l->options.on_trouble)
        l->options.on_trouble(l->options.arg, NULL);
}

static void note_failure(struct retry_store *l, const struct err *why) {
    err_copy(&l->state.last, why);
    if (l->state.trouble_since_us != 0)
        return;
    __atomic_store_n(&l->state.trouble_since_us, MAX(env_now_us(l->store.env), UINT64_C(1)),
                     __ATOMIC_RELAXED);
    if (l->options.on_trouble)
        l->options.on_trouble(l->options.arg, why);
}

/* Half of it fixed, half of it random, so that a crowd of requests spreads. */
static uint64_t pause_us(struct retry_call *c) {
    const struct retry_options *o = &c->layer->options;
    uint64_t cap = is_refusal(c->child.rc) ? o->refused_pause_us_max : o->pause_us_max;
    uint64_t full = MIN(o->pause_us_min << MIN(c->failures, (unsigned)DOUBLINGS_MAX), cap);
    uint64_t pause = full / 2 + env_random_u64(c->layer->store.env) % (full / 2 + 1);
    return MAX(pause, MIN(c->child.retry_after_us, (uint64_t)RETRY_AFTER_US_MAX));
}

static void on_child_done(struct obj_request *child);

static void start(struct retry_call *c, enum state state) {
    obj_request_release(&c->child);
    layer_child_init(&c->child, c->above);
    if (state == SETTLING) {
        c->child.verb = OBJ_GET;
        c->child.off = 0;
        c->child.len = OBJ_READ_BACK_MAX;
        c->child.suffix = false;
        c->child.size_max = OBJ_READ_BACK_MAX;
    }
    c->child.done = on_child_done;
    c->state = state;
    objstore_submit(c->layer->below, &c->child);
}

static void on_pause_over(struct env_timer *timer) {
    struct retry_call *c = container_of(timer, struct retry_call, pause);
    CHECK(c->state == PAUSING);
    c->layer->state.waiting--;
    count(&c->layer->state.retries_total);
    start(c, c->resume);
}

static void take_failure(struct retry_call *c) {
    c->above->rc = c->child.rc;
    err_copy(&c->above->err, &c->child.err);
}

static void pause_then(struct retry_call *c, enum state resume) {
    take_failure(c); /* what a deadline would report */
    c->resume = resume;
    c->state = PAUSING;
    c->layer->state.waiting++;
    env_timer_start(c->layer->store.env, &c->pause, pause_us(c));
    c->failures++;
}

/* Does the object that was read back begin with this PUT's body, and is it as long? */
static bool is_our_body(const struct retry_call *c) {
    const struct obj_request *put = c->above;
    const struct buf *found = &c->child.body;
    size_t body_len = obj_request_body_len(put);
    if (c->child.object_size != body_len || found->len != MIN(body_len, (size_t)OBJ_READ_BACK_MAX))
        return false;
    size_t at = 0;
    for (size_t i = 0; i < put->part_count && at < found->len; i++) {
        size_t n = MIN(put->parts[i].len, found->len - at);
        if (n > 0 && memcmp(put->parts[i].data, found->data + at, n) != 0)
            return false;
        at += n;
    }
    return at == found->len;
}

static void settle(struct retry_call *c) {
    struct retry_state *s = &c->layer->state;
    struct obj_request *put = c->above;
    if (c->child.rc == -ERR_NOT_FOUND) {
        count(&s->settled_gone_total);
        obj_request_fail(put, -ERR_STALE, "refused, but there is no such key now");
    } else if (c->child.rc < 0) {
        take_failure(c);
    } else if (is_our_body(c)) {
        count(&s->settled_mine_total);
        put->rc = 0;
        put->err = (struct err){0};
    } else {
        count(&s->settled_others_total);
        layer_answer_move(put, &c->child);
        obj_request_fail(put, -ERR_EXISTS, "another object is there");
    }
    end(c);
}

static void end_late(struct retry_call *c) {
    count(&c->layer->state.gave_up_total);
    uint64_t seconds = c->layer->options.give_up_us / 1000000;
    if (c->above->rc == 0)
        obj_request_fail(c->above, -ERR_TIMEOUT, "no answer within %" PRIu64 " s", seconds);
    else
        err_wrap(&c->above->err, "gave up after %u attempts in %" PRIu64 " s", c->failures,
                 seconds);
    end(c);
}

static void end_cancelled(struct retry_call *c) {
    obj_request_fail(c->above, -ERR_CANCELLED, "cancelled");
    end(c);
}

static void on_child_done(struct obj_request *child) {
    struct retry_call *c = container_of(child, struct retry_call, child);
    bool settling = c->state == SETTLING;
    CHECK(settling || c->state == ATTEMPT);
    bool final = is_final(child->rc);
    if (final)
        note_answer(c->layer);
    else if (child->rc != -ERR_CANCELLED)
        note_failure(c->layer, &child->err);

    if (final && settling) {
        settle(c);
    } else if (final && !(child->verb == OBJ_PUT && child->rc == -ERR_EXISTS)) {
        layer_answer_move(c->above, child);
        end(c);
    } else if (c->cancelled) {
        end_cancelled(c);
    } else if (c->late) {
        if (child->rc != -ERR_CANCELLED && child->rc != -ERR_EXISTS)
            take_failure(c);
        end_late(c);
    } else if (is_refusal(child->rc) && c->layer->options.give_up_us > 0 &&
               c->failures + 1 >= REFUSALS_MAX) {
        take_failure(c);
        count(&c->layer->state.gave_up_total);
        end(c);
    } else if (final) {
        start(c, SETTLING);
    } else {
        pause_then(c, c->state);
    }
}

static void on_ending(struct env_event *event) {
    struct retry_call *c = container_of(event, struct retry_call, ending);
    CHECK(c->state == ENDING);
    end_cancelled(c);
}

static void stop_pause(struct retry_call *c) {
    env_timer_stop(c->layer->store.env, &c->pause);
    c->layer->state.waiting--;
    c->state = ENDING;
}

static void on_deadline(struct env_timer *timer) {
    struct retry_call *c = container_of(timer, struct retry_call, deadline);
    c->late = true;
    if (c->state == PAUSING) {
        stop_pause(c);
        end_late(c);
    } else if (c->state != ENDING) {
        objstore_cancel(c->layer->below, &c->child);
    }
}

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct retry_store *l = layer_of(store);
    obj_request_check(req);
    struct retry_call *c = NEW(struct retry_call);
    c->above = req;
    c->layer = l;
    c->pause.fn = on_pause_over;
    c->deadline.fn = on_deadline;
    c->ending.fn = on_ending;
    req->priv = c;
    req->rc = 0;
    l->under_way++;
    if (l->options.give_up_us > 0)
        env_timer_start(store->env, &c->deadline, l->options.give_up_us);
    start(c, ATTEMPT);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    struct retry_call *c = req->priv;
    if (c->cancelled)
        return;
    c->cancelled = true;
    if (c->state == PAUSING) {
        stop_pause(c);
        env_post(store->env, &c->ending);
    } else {
        objstore_cancel(c->layer->below, &c->child);
    }
}

static void op_close(struct objstore *store) {
    struct retry_store *l = layer_of(store);
    CHECK(l->under_way == 0);
    objstore_close(l->below);
    free(l);
}

static const struct objstore_ops retry_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

struct objstore *objstore_retry_new(struct objstore *below, const struct retry_options *options) {
    struct retry_store *l = NEW(struct retry_store);
    l->store = (struct objstore){.ops = &retry_ops, .env = below->env};
    l->below = below;
    if (options)
        l->options = *options;
    struct retry_options *o = &l->options;
    o->pause_us_min = o->pause_us_min ? o->pause_us_min : PAUSE_US_MIN;
    o->pause_us_max = o->pause_us_max ? o->pause_us_max : PAUSE_US_MAX;
    o->refused_pause_us_max =
        o->refused_pause_us_max ? o->refused_pause_us_max : REFUSED_PAUSE_US_MAX;
    CHECK(o->pause_us_min <= o->pause_us_max && o->pause_us_max < UINT64_C(1) << 32);
    return &l->store;
}

const struct retry_state *objstore_retry_state(const struct objstore *layer) {
    CHECK(layer->ops == &retry_ops);
    return &container_of(layer, const struct retry_store, store)->state;
}

const struct objstore *objstore_retry_below(const struct objstore *layer) {
    CHECK(layer->ops == &retry_ops);
    return container_of(layer, const struct retry_store, store)->below;
}
