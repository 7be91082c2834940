/* The limit layer: never more below it than allowed, and who goes first. */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>

#include "portalbd/objstore/fault.h"
#include "portalbd/objstore/limit.h"
#include "portalbd/objstore/memory.h"
#include "tests/support/virtual_env.h"

enum { REQUESTS = 40, SMALL = 100, LARGE = 5000 };

struct fixture {
    struct virtual_env v;
    struct objstore *s;
    struct view body;
    uint8_t bytes[LARGE];
    char keys[REQUESTS][16];
    struct obj_request reqs[REQUESTS];
    unsigned finished[REQUESTS]; /* 1 for the first that ended */
    unsigned count;
    unsigned max_in_flight;
    size_t max_bytes;
};

static struct fixture f;

static void on_done(struct obj_request *req) {
    const struct limit_state *l = objstore_limit_state(f.s);
    f.finished[req - f.reqs] = ++f.count;
    f.max_in_flight = MAX(f.max_in_flight, l->in_flight);
    f.max_bytes = MAX(f.max_bytes, l->bytes);
}

static int setup(void **state) {
    (void)state;
    f = (struct fixture){0};
    virtual_env_init(&f.v, 3);
    struct objstore *slow = objstore_fault_new(objstore_memory_new(&f.v.env));
    objstore_fault_add(slow, &(struct fault_rule){
                                 .kind = FAULT_DELAY, .delay_us_min = 1000, .delay_us_max = 1000});
    f.s = objstore_limit_new(slow, &(struct limit_options){.requests_max = 8,
                                                           .body_bytes_max = 20000,
                                                           .urgent_bytes_max = 1000});
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (size_t i = 0; i < REQUESTS; i++)
        obj_request_release(&f.reqs[i]);
    objstore_close(f.s);
    virtual_env_release(&f.v);
    return 0;
}

static struct view parts[REQUESTS];

static void submit(size_t i, size_t len, bool background) {
    snprintf(f.keys[i], sizeof f.keys[i], "k%zu", i);
    parts[i] = view_of(f.bytes, len);
    f.reqs[i] = (struct obj_request){.verb = OBJ_PUT,
                                     .key = f.keys[i],
                                     .parts = &parts[i],
                                     .part_count = 1,
                                     .background = background,
                                     .done = on_done};
    objstore_submit(f.s, &f.reqs[i]);
}

static void test_bounds(void **state) {
    (void)state;
    for (size_t i = 0; i < REQUESTS; i++)
        submit(i, i % 3 == 0 ? LARGE : SMALL, i % 5 == 0);
    virtual_env_run(&f.v);
    assert_int_equal(f.count, REQUESTS);
    assert_true(f.max_in_flight <= 8);
    assert_true(f.max_bytes <= 20000);
    assert_int_equal(objstore_limit_state(f.s)->in_flight, 0);
    assert_int_equal(objstore_limit_state(f.s)->bytes, 0);
    assert_int_equal(objstore_limit_state(f.s)->waiting, 0);
    for (size_t i = 0; i < REQUESTS; i++)
        assert_int_equal(f.reqs[i].rc, 0);
}

/* A small PUT does not stand behind large ones and background work that came long before. */
static void test_small_puts_go_first(void **state) {
    (void)state;
    for (size_t i = 0; i < 20; i++)
        submit(i, LARGE, false);
    for (size_t i = 20; i < 39; i++)
        submit(i, SMALL, true);
    submit(39, SMALL, false);
    uint64_t start = f.v.now_us;
    while (f.finished[39] == 0)
        virtual_env_run_until(&f.v, f.v.now_us + 100);
    assert_true(f.v.now_us - start <= 1100); /* with the first round */
    virtual_env_run(&f.v);
    assert_int_equal(f.count, REQUESTS);
}

/* However many urgent ones wait, the others move too. */
static void test_nobody_starves(void **state) {
    (void)state;
    for (size_t i = 0; i < 38; i++)
        submit(i, SMALL, false);
    submit(38, LARGE, false);
    submit(39, SMALL, true);
    virtual_env_run(&f.v);
    assert_true(f.finished[38] < 30);
    assert_true(f.finished[39] < 30);
}

static void test_larger_than_the_limit_goes_alone(void **state) {
    (void)state;
    static uint8_t huge[30000];
    submit(0, SMALL, false);
    struct view body = view_of(huge, sizeof huge);
    f.reqs[1] = (struct obj_request){
        .verb = OBJ_PUT, .key = "huge", .parts = &body, .part_count = 1, .done = on_done};
    objstore_submit(f.s, &f.reqs[1]);
    assert_int_equal(objstore_limit_state(f.s)->waiting, 1);
    virtual_env_run(&f.v);
    assert_int_equal(f.reqs[1].rc, 0);
}

static void test_cancel_while_it_waits(void **state) {
    (void)state;
    for (size_t i = 0; i < 10; i++)
        submit(i, SMALL, false);
    assert_int_equal(objstore_limit_state(f.s)->waiting, 2);
    objstore_cancel(f.s, &f.reqs[9]);
    objstore_cancel(f.s, &f.reqs[9]);
    assert_int_equal(f.count, 0);
    virtual_env_run_ready(&f.v);
    assert_int_equal(f.reqs[9].rc, -ERR_CANCELLED);
    assert_int_equal(f.count, 1);
    virtual_env_run(&f.v);
    assert_int_equal(f.count, 10);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_bounds),
        TEST(test_small_puts_go_first),
        TEST(test_nobody_starves),
        TEST(test_larger_than_the_limit_goes_alone),
        TEST(test_cancel_while_it_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
