/* Faults by rule.
 *
 *   submit -> HELD (FAIL, DELAY, HANG) -> BELOW -> HELD_ANSWER (DELAY_ANSWER, HANG_ANSWER) -> done
 *
 * I1 The child is under way in BELOW, and only there.
 * I2 In HELD and HELD_ANSWER either the timer runs, or `turn` is posted, or the request hangs. */
#include "portalbd/objstore/fault.h"

#include <stdlib.h>

#include "portalbd/objstore/layer_internal.h"

enum state { HELD, BELOW, HELD_ANSWER };

struct live_rule {
    struct fault_rule rule;
    uint64_t matches;
    unsigned used;
};

struct fault_store {
    struct objstore store;
    struct objstore *below; /* owned */
    struct live_rule rules[FAULT_RULES_MAX];
    size_t rule_count;
    uint64_t requests;
    uint64_t hits;
    size_t under_way;
};

struct fault_call {
    struct obj_request child;
    struct obj_request *above;
    struct fault_store *layer;
    enum state state;
    bool has_rule;
    struct fault_rule rule;
    struct env_timer timer;
    struct env_event turn;
    bool turn_posted;
    bool cancelled;
};

static struct fault_store *layer_of(struct objstore *store) {
    return container_of(store, struct fault_store, store);
}

static bool matches(const struct fault_rule *r, const struct obj_request *req) {
    if (r->verbs != 0 && !(r->verbs & (1u << req->verb)))
        return false;
    const char *key = req->verb == OBJ_DELETE ? req->keys[0] : req->key;
    return !r->key_part || strstr(key, r->key_part);
}

static bool applies(struct fault_store *l, struct live_rule *live, const struct obj_request *req) {
    const struct fault_rule *r = &live->rule;
    if ((r->times != 0 && live->used == r->times) || !matches(r, req))
        return false;
    live->matches++;
    if ((r->nth != 0 && live->matches != r->nth) || live->matches <= r->after)
        return false;
    if (r->chance != 0 && env_random_u64(l->store.env) % 1000000 >= r->chance)
        return false;
    live->used++;
    return true;
}

static void end(struct fault_call *c) {
    struct obj_request *above = c->above;
    c->layer->under_way--;
    obj_request_release(&c->child);
    free(c);
    above->done(above);
}

static void spoil(struct fault_call *c, enum fault_kind kind) {
    struct buf *body = &c->above->body;
    if (body->len == 0 || c->above->rc < 0)
        return;
    if (kind == FAULT_TRUNCATE) {
        body->len /= 2;
    } else {
        uint64_t bit = env_random_u64(c->layer->store.env) % (body->len * 8);
        body->data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
}

static void answer_code(struct fault_call *c, const char *how) {
    obj_request_release(c->above);
    obj_request_fail(c->above, c->rule.code ? c->rule.code : -ERR_TRANSIENT, "%s by a fault rule",
                     how);
    c->above->retry_after_us = c->rule.retry_after_us;
}

static void hold_turn(struct fault_call *c, enum state state) {
    c->state = state;
    c->turn_posted = true;
    env_post(c->layer->store.env, &c->turn);
}

static void hold_delay(struct fault_call *c, enum state state) {
    CHECK(c->rule.delay_us_min <= c->rule.delay_us_max);
    c->state = state;
    uint64_t span = c->rule.delay_us_max - c->rule.delay_us_min + 1;
    env_timer_start(c->layer->store.env, &c->timer,
                    c->rule.delay_us_min + env_random_u64(c->layer->store.env) % span);
}

static void on_child_done(struct obj_request *child) {
    struct fault_call *c = container_of(child, struct fault_call, child);
    layer_answer_move(c->above, child);
    if (c->has_rule && !c->cancelled) {
        switch (c->rule.kind) {
        case FAULT_LOSE:
            answer_code(c, "its answer was lost");
            break;
        case FAULT_TRUNCATE:
        case FAULT_FLIP:
            spoil(c, c->rule.kind);
            break;
        case FAULT_DELAY_ANSWER:
            hold_delay(c, HELD_ANSWER);
            return;
        case FAULT_HANG_ANSWER:
            c->state = HELD_ANSWER;
            return;
        default:
            break;
        }
    }
    end(c);
}

static void send_below(struct fault_call *c) {
    c->state = BELOW;
    layer_child_init(&c->child, c->above);
    c->child.done = on_child_done;
    objstore_submit(c->layer->below, &c->child);
}

static void on_timer(struct env_timer *timer) {
    struct fault_call *c = container_of(timer, struct fault_call, timer);
    if (c->state == HELD)
        send_below(c);
    else
        end(c);
}

/* A FAIL, or the end of a held request that was cancelled. */
static void on_turn(struct env_event *event) {
    struct fault_call *c = container_of(event, struct fault_call, turn);
    CHECK(c->state != BELOW);
    if (c->cancelled) {
        obj_request_release(c->above);
        obj_request_fail(c->above, -ERR_CANCELLED, "cancelled");
    } else {
        answer_code(c, "failed");
    }
    end(c);
}

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct fault_store *l = layer_of(store);
    obj_request_check(req);
    struct fault_call *c = NEW(struct fault_call);
    c->above = req;
    c->layer = l;
    c->timer.fn = on_timer;
    c->turn.fn = on_turn;
    req->priv = c;
    req->rc = 0;
    l->under_way++;
    l->requests++;
    for (size_t i = 0; i < l->rule_count && !c->has_rule; i++) {
        c->has_rule = applies(l, &l->rules[i], req);
        c->rule = l->rules[i].rule;
    }
    l->hits += c->has_rule;
    if (c->has_rule && c->rule.kind == FAULT_FAIL)
        hold_turn(c, HELD);
    else if (c->has_rule && c->rule.kind == FAULT_DELAY)
        hold_delay(c, HELD);
    else if (c->has_rule && c->rule.kind == FAULT_HANG)
        c->state = HELD;
    else
        send_below(c);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    struct fault_call *c = req->priv;
    c->cancelled = true;
    if (c->state == BELOW) {
        objstore_cancel(c->layer->below, &c->child);
    } else if (!c->turn_posted) {
        env_timer_stop(store->env, &c->timer);
        hold_turn(c, c->state);
    }
}

static void op_close(struct objstore *store) {
    struct fault_store *l = layer_of(store);
    CHECK(l->under_way == 0);
    objstore_close(l->below);
    free(l);
}

static const struct objstore_ops fault_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

struct objstore *objstore_fault_new(struct objstore *below) {
    struct fault_store *l = NEW(struct fault_store);
    l->store = (struct objstore){.ops = &fault_ops, .env = below->env};
    l->below = below;
    return &l->store;
}

void objstore_fault_add(struct objstore *layer, const struct fault_rule *rule) {
    CHECK(layer->ops == &fault_ops);
    struct fault_store *l = layer_of(layer);
    CHECK(l->rule_count < FAULT_RULES_MAX);
    l->rules[l->rule_count++] = (struct live_rule){.rule = *rule};
}

void objstore_fault_clear(struct objstore *layer) {
    CHECK(layer->ops == &fault_ops);
    layer_of(layer)->rule_count = 0;
}

uint64_t objstore_fault_requests(const struct objstore *layer) {
    CHECK(layer->ops == &fault_ops);
    return container_of(layer, const struct fault_store, store)->requests;
}

uint64_t objstore_fault_hits(const struct objstore *layer) {
    CHECK(layer->ops == &fault_ops);
    return container_of(layer, const struct fault_store, store)->hits;
}
