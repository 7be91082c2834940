/* The fault layer's kinds, and what the stats layer counts of them. */
#include "tests/support/test.h"

#include <string.h>

#include "portalbd/objstore/fault.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/objstore_fiber.h"
#include "portalbd/objstore/stats.h"
#include "tests/support/virtual_env.h"

struct fixture {
    struct virtual_env v;
    struct memory_store *memory;
    struct objstore *fault;
    struct objstore *s; /* stats(fault(memory)) */
    struct metrics *metrics;
    int rc;
    bool ran;
};

static struct fixture f;

static int setup(void **state) {
    (void)state;
    f = (struct fixture){.memory = memory_store_new(), .metrics = metrics_new()};
    virtual_env_init(&f.v, 11);
    f.fault = objstore_fault_new(objstore_memory_open(&f.v.env, f.memory));
    f.s = objstore_stats_new(f.fault, f.metrics, METRICS_LABELS({"pool", "p"}));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    objstore_close(f.s);
    metrics_free(f.metrics);
    memory_store_free(f.memory);
    virtual_env_release(&f.v);
    return 0;
}

static void put_hello(void *arg) {
    struct err e;
    f.rc = objstore_put(f.s, arg, view_of_str("hello"), NULL, &e);
    f.ran = true;
}

static int put(const char *key) {
    f.ran = false;
    virtual_env_call(&f.v, put_hello, (void *)(uintptr_t)key);
    assert_true(f.ran);
    return f.rc;
}

static struct buf got;

static void get_into(void *arg) {
    struct err e;
    f.rc = objstore_get(f.s, arg, 0, &got, &e);
}

static int get(const char *key) {
    buf_release(&got);
    virtual_env_call(&f.v, get_into, (void *)(uintptr_t)key);
    return f.rc;
}

static void rule(struct fault_rule r) {
    objstore_fault_add(f.fault, &r);
}

static void test_fail_and_lose(void **state) {
    (void)state;
    rule((struct fault_rule){.kind = FAULT_FAIL, .nth = 2, .code = -ERR_DENIED});
    rule((struct fault_rule){.kind = FAULT_LOSE, .nth = 2}); /* of those the first did not take */
    assert_int_equal(put("1"), 0);
    assert_int_equal(put("2"), -ERR_DENIED);
    assert_false(memory_store_find(f.memory, "2", NULL));
    assert_int_equal(put("3"), -ERR_TRANSIENT);
    assert_true(memory_store_find(f.memory, "3", NULL));
    assert_int_equal(put("4"), 0);
    assert_int_equal(objstore_fault_requests(f.fault), 4);
    assert_int_equal(objstore_fault_hits(f.fault), 2);
}

static void test_only_some(void **state) {
    (void)state;
    rule((struct fault_rule){.kind = FAULT_FAIL, .verbs = 1 << OBJ_PUT, .key_part = "log/"});
    assert_int_equal(put("map/1"), 0);
    assert_int_equal(put("log/1"), -ERR_TRANSIENT);
    assert_int_equal(get("map/1"), 0);
    assert_int_equal(get("log/1"), -ERR_NOT_FOUND);
    objstore_fault_clear(f.fault);
    assert_int_equal(put("log/1"), 0);
    buf_release(&got);
}

static void test_spoiled_bodies(void **state) {
    (void)state;
    assert_int_equal(put("k"), 0);
    rule((struct fault_rule){.kind = FAULT_TRUNCATE, .times = 1});
    rule((struct fault_rule){.kind = FAULT_FLIP, .times = 1});
    assert_int_equal(get("k"), 0);
    assert_true(view_equal(buf_view(&got), view_of_str("he")));
    assert_int_equal(get("k"), 0);
    assert_int_equal(got.len, 5);
    assert_false(view_equal(buf_view(&got), view_of_str("hello")));
    assert_int_equal(get("k"), 0);
    assert_true(view_equal(buf_view(&got), view_of_str("hello")));
    buf_release(&got);
}

static void test_delays(void **state) {
    (void)state;
    rule((struct fault_rule){
        .kind = FAULT_DELAY, .times = 1, .delay_us_min = 5000, .delay_us_max = 5000});
    rule((struct fault_rule){
        .kind = FAULT_DELAY_ANSWER, .times = 1, .delay_us_min = 7000, .delay_us_max = 7000});
    uint64_t start = f.v.now_us;
    assert_int_equal(put("a"), 0);
    assert_int_equal(f.v.now_us - start, 5000);
    assert_int_equal(put("b"), 0);
    assert_int_equal(f.v.now_us - start, 12000);
}

static void test_hang_until_cancelled(void **state) {
    (void)state;
    const enum fault_kind kinds[] = {FAULT_HANG, FAULT_HANG_ANSWER};
    const char *keys[] = {"a", "b"};
    for (size_t i = 0; i < 2; i++) {
        rule((struct fault_rule){.kind = kinds[i], .times = 1});
        f.ran = false;
        struct fiber *fiber = fiber_start(&f.v.env, put_hello, (void *)(uintptr_t)keys[i]);
        virtual_env_run(&f.v);
        assert_false(f.ran);
        fiber_cancel(fiber);
        virtual_env_run(&f.v);
        assert_true(f.ran);
        assert_int_equal(f.rc, -ERR_CANCELLED);
        assert_true(memory_store_find(f.memory, keys[i], NULL) == (i == 1));
    }
}

static void test_stats(void **state) {
    (void)state;
    rule((struct fault_rule){.kind = FAULT_FAIL, .verbs = 1 << OBJ_PUT, .nth = 2});
    rule((struct fault_rule){
        .kind = FAULT_DELAY, .verbs = 1 << OBJ_GET, .delay_us_min = 9000, .delay_us_max = 9000});
    put("1");
    put("2");
    put("1");
    get("1");
    get("none");
    const struct objstore_stats *s = objstore_stats(f.s);
    assert_int_equal(objstore_stats_requests(s, OBJ_PUT), 3);
    assert_int_equal(metrics_results_get(&s->verbs[OBJ_PUT].results, 0), 1);
    assert_int_equal(metrics_results_get(&s->verbs[OBJ_PUT].results, -ERR_TRANSIENT), 1);
    assert_int_equal(metrics_results_get(&s->verbs[OBJ_PUT].results, -ERR_EXISTS), 1);
    assert_int_equal(metrics_counter_get(&s->verbs[OBJ_PUT].sent), 15);
    assert_int_equal(objstore_stats_requests(s, OBJ_GET), 2);
    assert_int_equal(metrics_counter_get(&s->verbs[OBJ_GET].received), 5);
    assert_true(metrics_histogram_quantile(&s->verbs[OBJ_GET].latency, 0.5) >= 9000);
    assert_int_equal(metrics_gauge_get(&s->in_flight), 0);
    CLEANUP_BUF struct buf text = {0};
    metrics_render(f.metrics, &text);
    assert_non_null(strstr(buf_cstr(&text), "portalbd_objstore_requests_total{"));
    assert_non_null(strstr(buf_cstr(&text), "pool=\"p\""));
    buf_release(&got);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_fail_and_lose),        TEST(test_only_some),
        TEST(test_spoiled_bodies),       TEST(test_delays),
        TEST(test_hang_until_cancelled), TEST(test_stats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
