/* The hedge layer: slow requests are sent twice, few of them, and nothing is lost or left over. */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>

#include "portalbd/objstore/fault.h"
#include "portalbd/objstore/hedge.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/retry.h"
#include "tests/support/virtual_env.h"

enum { REQUESTS = 2000, USUAL_US = 20 * 1000, SLOW_US = 3 * 1000 * 1000 };

struct fixture {
    struct virtual_env v;
    struct objstore *fault, *hedge, *s;
    struct memory_store *bucket;
};
static struct fixture f;

static int setup(void **state) {
    (void)state;
    f = (struct fixture){0};
    virtual_env_init(&f.v, 3);
    f.bucket = memory_store_new();
    f.fault = objstore_fault_new(objstore_memory_open(&f.v.env, f.bucket));
    f.hedge = objstore_hedge_new(f.fault, NULL, NULL, NULL);
    f.s = objstore_retry_new(f.hedge, NULL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    objstore_close(f.s);
    memory_store_free(f.bucket);
    virtual_env_release(&f.v);
    return 0;
}

static void usual_latency(void) {
    objstore_fault_clear(f.fault);
    objstore_fault_add(f.fault, &(struct fault_rule){.kind = FAULT_DELAY,
                                                     .delay_us_min = USUAL_US / 2,
                                                     .delay_us_max = USUAL_US});
}

/* The next request that matches is slow: before it has its effect, or only its answer. */
static void slow_once(enum fault_kind kind, uint64_t delay_us) {
    objstore_fault_clear(f.fault);
    objstore_fault_add(
        f.fault, &(struct fault_rule){
                     .kind = kind, .times = 1, .delay_us_min = delay_us, .delay_us_max = delay_us});
    objstore_fault_add(f.fault, &(struct fault_rule){.kind = FAULT_DELAY,
                                                     .delay_us_min = USUAL_US / 2,
                                                     .delay_us_max = USUAL_US});
}

struct one {
    struct obj_request req;
    struct view body;
    char key[32];
    uint64_t end_us;
    bool done;
};

static void on_done(struct obj_request *req) {
    struct one *o = container_of(req, struct one, req);
    o->done = true;
    o->end_us = f.v.now_us;
}

static void start(struct one *o, enum obj_verb verb, const char *key, const char *text) {
    memset(o, 0, sizeof *o);
    snprintf(o->key, sizeof o->key, "%s", key);
    o->body = view_of(text, strlen(text));
    o->req = (struct obj_request){.verb = verb, .key = o->key, .done = on_done};
    if (verb == OBJ_PUT) {
        o->req.parts = &o->body;
        o->req.part_count = 1;
    } else {
        o->req.size_max = 1000;
    }
    objstore_submit(f.s, &o->req);
}

static uint64_t took(struct one *o, enum obj_verb verb, const char *key, const char *text) {
    uint64_t start_us = f.v.now_us;
    start(o, verb, key, text);
    virtual_env_run(&f.v);
    assert_true(o->done);
    return o->end_us - start_us;
}

/* Enough PUTs and GETs that the layer knows what is usual. */
static void warm_up(void) {
    usual_latency();
    struct one o;
    for (int i = 0; i < 100; i++) {
        char key[16];
        snprintf(key, sizeof key, "warm%d", i);
        took(&o, OBJ_PUT, key, "body");
        took(&o, OBJ_GET, key, "");
        obj_request_release(&o.req);
    }
    assert_int_equal(metrics_counter_get(&objstore_hedge_state(f.hedge)->verbs[OBJ_PUT].won), 0);
}

static uint64_t sent(enum obj_verb verb) {
    return metrics_counter_get(&objstore_hedge_state(f.hedge)->verbs[verb].sent);
}

static uint64_t won(enum obj_verb verb) {
    return metrics_counter_get(&objstore_hedge_state(f.hedge)->verbs[verb].won);
}

static void test_slow_get(void **state) {
    (void)state;
    struct one o;
    warm_up();
    uint64_t before = sent(OBJ_GET);
    slow_once(FAULT_DELAY, SLOW_US);
    assert_in_range(took(&o, OBJ_GET, "warm1", ""), USUAL_US, 3 * USUAL_US);
    assert_int_equal(o.req.rc, 0);
    assert_int_equal(o.req.body.len, 4);
    obj_request_release(&o.req);
    assert_int_equal(sent(OBJ_GET), before + 1);
    assert_int_equal(won(OBJ_GET), 1);
    assert_int_equal(objstore_hedge_state(f.hedge)->in_flight, 0);
}

static void test_slow_put(void **state) {
    (void)state;
    struct one o;
    warm_up();
    slow_once(FAULT_DELAY, SLOW_US); /* it has not happened yet */
    assert_in_range(took(&o, OBJ_PUT, "a", "nonce a"), USUAL_US, 3 * USUAL_US);
    assert_int_equal(o.req.rc, 0);
    slow_once(FAULT_DELAY_ANSWER, SLOW_US); /* it has: the second copy is refused */
    assert_in_range(took(&o, OBJ_PUT, "b", "nonce b"), USUAL_US, 4 * USUAL_US);
    assert_int_equal(o.req.rc, 0);
    assert_int_equal(objstore_retry_state(f.s)->settled_mine_total, 1);
    slow_once(FAULT_HANG, 0);
    assert_in_range(took(&o, OBJ_PUT, "c", "nonce c"), USUAL_US, 3 * USUAL_US);
    assert_int_equal(o.req.rc, 0);
    assert_int_equal(won(OBJ_PUT), 3);
}

/* Somebody else's object is somebody else's, however often we try. */
static void test_foreign(void **state) {
    (void)state;
    struct one o;
    warm_up();
    memory_store_replace(f.bucket, "a", view_of("theirs", 6));
    slow_once(FAULT_DELAY, SLOW_US);
    took(&o, OBJ_PUT, "a", "ours");
    assert_int_equal(o.req.rc, -ERR_EXISTS);
    obj_request_release(&o.req);
    struct view got;
    assert_true(memory_store_find(f.bucket, "a", &got));
    assert_int_equal(got.len, 6);
}

/* The second copy fails: the first is waited for. Both fail: the retry layer has its turn. */
static void test_failures(void **state) {
    (void)state;
    struct one o;
    warm_up();
    slow_once(FAULT_DELAY, 200 * 1000);
    objstore_fault_clear(f.fault);
    objstore_fault_add(f.fault, &(struct fault_rule){.kind = FAULT_DELAY,
                                                     .times = 1,
                                                     .delay_us_min = 200 * 1000,
                                                     .delay_us_max = 200 * 1000});
    objstore_fault_add(f.fault, &(struct fault_rule){.kind = FAULT_FAIL, .times = 1});
    uint64_t us = took(&o, OBJ_PUT, "a", "nonce a");
    assert_int_equal(o.req.rc, 0);
    assert_in_range(us, 200 * 1000, 210 * 1000);
    assert_int_equal(objstore_retry_state(f.s)->retries_total, 0);
    objstore_fault_clear(f.fault);
    objstore_fault_add(f.fault, &(struct fault_rule){.kind = FAULT_FAIL, .times = 1});
    took(&o, OBJ_PUT, "b", "nonce b");
    assert_int_equal(o.req.rc, 0);
    assert_int_equal(objstore_retry_state(f.s)->retries_total, 1);
}

/* When everything is slow, one in twenty is sent again, and soon nothing is slow any more. */
static void test_share(void **state) {
    (void)state;
    static struct one many[REQUESTS];
    warm_up();
    uint64_t before = sent(OBJ_PUT);
    objstore_fault_clear(f.fault);
    objstore_fault_add(f.fault, &(struct fault_rule){.kind = FAULT_DELAY,
                                                     .delay_us_min = 10 * USUAL_US,
                                                     .delay_us_max = 20 * USUAL_US});
    for (int i = 0; i < REQUESTS; i += 20) {
        for (int k = i; k < i + 20; k++) {
            char key[16];
            snprintf(key, sizeof key, "k%d", k);
            start(&many[k], OBJ_PUT, key, "nonce");
        }
        virtual_env_run(&f.v);
        for (int k = i; k < i + 20; k++)
            assert_int_equal(many[k].req.rc, 0);
    }
    assert_in_range(sent(OBJ_PUT) - before, 1, REQUESTS / 20 + 8);
    assert_true(metrics_counter_get(&objstore_hedge_state(f.hedge)->denied) > 0);
}

static void test_cancel(void **state) {
    (void)state;
    warm_up();
    for (uint64_t us = 0; us < 3 * USUAL_US; us += 3000) {
        struct one o;
        slow_once(FAULT_DELAY, SLOW_US);
        start(&o, OBJ_GET, "warm1", "");
        virtual_env_run_until(&f.v, f.v.now_us + us);
        if (!o.done)
            objstore_cancel(f.s, &o.req);
        virtual_env_run(&f.v);
        assert_true(o.done);
        assert_true(o.req.rc == 0 || o.req.rc == -ERR_CANCELLED);
        obj_request_release(&o.req);
        assert_int_equal(objstore_hedge_state(f.hedge)->in_flight, 0);
    }
}

/* Nothing is known at first, and nothing is sent twice. */
static void test_cold(void **state) {
    (void)state;
    struct one o;
    slow_once(FAULT_DELAY, SLOW_US);
    assert_in_range(took(&o, OBJ_PUT, "a", "x"), SLOW_US, 2 * SLOW_US);
    assert_int_equal(sent(OBJ_PUT), 0);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_slow_get), WITH(test_slow_put), WITH(test_foreign), WITH(test_failures),
        WITH(test_share),    WITH(test_cancel),   WITH(test_cold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
