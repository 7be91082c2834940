/* The retry layer on a virtual clock: memory store, fault layer, retry layer. */
#include "tests/support/test.h"

#include <string.h>

#include "portalbd/objstore/fault.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/objstore_fiber.h"
#include "portalbd/objstore/retry.h"
#include "tests/support/virtual_env.h"

struct fixture {
    struct virtual_env v;
    struct env *env;
    struct memory_store *memory;
    struct objstore *fault;
    struct objstore *s;
    struct fiber *fiber;
    unsigned trouble_began, trouble_ended;
    uint64_t ended_us;
    int rc;
    struct err err;
    bool ran;
};

static void on_trouble(void *arg, const struct err *why) {
    struct fixture *f = arg;
    if (why)
        f->trouble_began++;
    else
        f->trouble_ended++;
}

static void open_stack(struct fixture *f, uint64_t give_up_us) {
    struct retry_options o = {.give_up_us = give_up_us, .on_trouble = on_trouble, .arg = f};
    f->fault = objstore_fault_new(objstore_memory_open(f->env, f->memory));
    f->s = objstore_retry_new(f->fault, &o);
}

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){0};
    virtual_env_init(&f.v, 7);
    f.env = &f.v.env;
    f.memory = memory_store_new();
    open_stack(&f, 0);
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    objstore_close(f->s);
    memory_store_free(f->memory);
    virtual_env_release(&f->v);
    return 0;
}

static void put_hello(void *arg) {
    struct fixture *f = arg;
    f->rc = objstore_put(f->s, "a/key", view_of_str("hello"), NULL, &f->err);
    f->ended_us = env_now_us(f->env);
    f->ran = true;
}

static void test_pauses_grow_and_are_capped(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_FAIL, .times = 20});
    uint64_t start = f->v.now_us;
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, 0);
    /* 100, 200, ... 6400 ms, then 13 x 10 s; each between its half and its whole. */
    uint64_t full = 12700000 + 13 * 10000000, took = f->ended_us - start;
    assert_true(took >= full / 2 && took <= full);
    assert_int_equal(f->trouble_began, 1);
    assert_int_equal(f->trouble_ended, 1);
    const struct retry_state *r = objstore_retry_state(f->s);
    assert_int_equal(r->retries_total, 20);
    assert_int_equal(r->trouble_since_us, 0);
    assert_int_equal(r->waiting, 0);
    assert_int_equal(r->last.code, -ERR_TRANSIENT);
}

static void test_denied_is_retried_with_a_long_cap(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(f->fault,
                       &(struct fault_rule){.kind = FAULT_FAIL, .code = -ERR_DENIED, .times = 30});
    uint64_t start = f->v.now_us;
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, 0);
    assert_true(f->ended_us - start > 20 * 30 * UINT64_C(1000000));
}

static void test_retry_after_is_honoured(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(
        f->fault, &(struct fault_rule){.kind = FAULT_FAIL, .times = 1, .retry_after_us = 7000000});
    uint64_t start = f->v.now_us;
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, 0);
    assert_true(f->ended_us - start >= 7000000);
}

static void test_lost_answer_is_settled_as_mine(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_LOSE, .times = 1});
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, 0);
    assert_int_equal(objstore_retry_state(f->s)->settled_mine_total, 1);
    assert_int_equal(objstore_fault_requests(f->fault), 3); /* put, put, get */
}

static void put_other(void *arg) {
    struct fixture *f = arg;
    CLEANUP_BUF struct buf existing = {0};
    f->rc = objstore_put(f->s, "a/key", view_of_str("other"), &existing, &f->err);
    assert_int_equal(f->rc, -ERR_EXISTS);
    assert_true(view_equal(buf_view(&existing), view_of_str("hello")));
    f->ran = true;
}

static void test_refused_by_another(void **state) {
    struct fixture *f = *state;
    memory_store_replace(f->memory, "a/key", view_of_str("hello"));
    virtual_env_call(&f->v, put_other, f);
    assert_true(f->ran);
    assert_non_null(strstr(f->err.text, "a/key"));
}

/* Refused on the first try although it is ours: a transport below repeated it silently. */
static void test_refused_on_the_first_try_but_mine(void **state) {
    struct fixture *f = *state;
    memory_store_replace(f->memory, "a/key", view_of_str("hello"));
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, 0);
}

static void test_longer_object_with_the_same_start_is_another(void **state) {
    struct fixture *f = *state;
    memory_store_replace(f->memory, "a/key", view_of_str("hello world"));
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, -ERR_EXISTS);
}

static void test_refused_then_gone_is_stale(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(
        f->fault, &(struct fault_rule){
                      .kind = FAULT_FAIL, .verbs = 1 << OBJ_PUT, .code = -ERR_EXISTS, .times = 1});
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, -ERR_STALE);
    assert_false(memory_store_find(f->memory, "a/key", NULL));
}

static void test_settling_is_retried(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_LOSE, .times = 1});
    objstore_fault_add(f->fault,
                       &(struct fault_rule){.kind = FAULT_FAIL, .verbs = 1 << OBJ_GET, .times = 3});
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, 0);
    assert_int_equal(objstore_fault_requests(f->fault), 6);
}

static void put_big(void *arg) {
    struct fixture *f = arg;
    CLEANUP_BUF struct buf b = {0};
    memset(buf_extend(&b, 300000), 'x', 300000);
    struct view parts[3] = {view_part(buf_view(&b), 0, 70001), view_part(buf_view(&b), 70001, 0),
                            view_part(buf_view(&b), 70001, 229999)};
    assert_int_equal(objstore_put_parts(f->s, "big", parts, 3, &f->err), 0);
    b.data[65535] = 'y';
    assert_int_equal(objstore_put_parts(f->s, "big", parts, 3, &f->err), -ERR_EXISTS);
    f->ran = true;
}

static void test_big_bodies_are_compared_in_parts(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_LOSE, .times = 1});
    virtual_env_call(&f->v, put_big, f);
    assert_true(f->ran);
}

static void get_absent(void *arg) {
    struct fixture *f = arg;
    CLEANUP_BUF struct buf b = {0};
    f->rc = objstore_get(f->s, "absent", 100, &b, &f->err);
    f->ran = true;
}

static void test_absent_is_final(void **state) {
    struct fixture *f = *state;
    virtual_env_call(&f->v, get_absent, f);
    assert_int_equal(f->rc, -ERR_NOT_FOUND);
    assert_int_equal(objstore_fault_requests(f->fault), 1);
}

static void start_put(struct fixture *f) {
    f->fiber = fiber_start(f->env, put_hello, f);
}

static void test_cancel_while_it_pauses(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_FAIL});
    start_put(f);
    virtual_env_run_until(&f->v, 60000000);
    assert_false(f->ran);
    assert_true(objstore_retry_state(f->s)->trouble_since_us != 0);
    assert_int_equal(objstore_retry_state(f->s)->waiting, 1);
    fiber_cancel(f->fiber);
    virtual_env_run_ready(&f->v);
    assert_true(f->ran);
    assert_int_equal(f->rc, -ERR_CANCELLED);
}

static void test_cancel_while_it_hangs(void **state) {
    struct fixture *f = *state;
    objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_HANG});
    start_put(f);
    virtual_env_run_until(&f->v, 1000000);
    fiber_cancel(f->fiber);
    virtual_env_run_ready(&f->v);
    assert_true(f->ran);
    assert_int_equal(f->rc, -ERR_CANCELLED);
}

static void test_cancelled_fiber_sends_nothing(void **state) {
    struct fixture *f = *state;
    start_put(f);
    fiber_cancel(f->fiber);
    virtual_env_run(&f->v);
    assert_int_equal(f->rc, -ERR_CANCELLED);
    assert_int_equal(objstore_fault_requests(f->fault), 0);
}

static void reopen_giving_up(struct fixture *f) {
    objstore_close(f->s);
    open_stack(f, 5000000);
}

static void test_gives_up_with_the_last_error(void **state) {
    struct fixture *f = *state;
    reopen_giving_up(f);
    objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_FAIL});
    uint64_t start = f->v.now_us;
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, -ERR_TRANSIENT);
    assert_int_equal(f->ended_us - start, 5000000);
    assert_non_null(strstr(f->err.text, "gave up after"));
}

static void test_gives_up_at_once_when_refused(void **state) {
    struct fixture *f = *state;
    const int codes[] = {-ERR_DENIED, -ERR_NO_BUCKET, -ERR_CONFIG};
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        reopen_giving_up(f);
        objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_FAIL, .code = codes[i]});
        uint64_t start = f->v.now_us;
        virtual_env_call(&f->v, put_hello, f);
        assert_int_equal(f->rc, codes[i]);
        assert_true(f->ended_us - start < 500000);
        assert_int_equal(objstore_fault_requests(f->fault), 3);
    }
    reopen_giving_up(f); /* but not at the first time */
    objstore_fault_add(f->fault,
                       &(struct fault_rule){.kind = FAULT_FAIL, .code = -ERR_DENIED, .times = 2});
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, 0);
}

static void test_gives_up_on_a_store_that_hangs(void **state) {
    struct fixture *f = *state;
    reopen_giving_up(f);
    objstore_fault_add(f->fault, &(struct fault_rule){.kind = FAULT_HANG});
    virtual_env_call(&f->v, put_hello, f);
    assert_int_equal(f->rc, -ERR_TIMEOUT);
    assert_int_equal(objstore_retry_state(f->s)->gave_up_total, 1);
}

/* Y4: whatever the Nth operation does, the scenario comes to the same end. */
static void scenario(void *arg) {
    struct fixture *f = arg;
    struct err e;
    CLEANUP_BUF struct buf b = {0};
    struct obj_list list = {0};
    assert_int_equal(objstore_put(f->s, "sweep/1", view_of_str("one"), NULL, &e), 0);
    assert_int_equal(objstore_put(f->s, "sweep/2", view_of_str("two"), NULL, &e), 0);
    assert_int_equal(objstore_get(f->s, "sweep/1", 100, &b, &e), 0);
    assert_true(view_equal(buf_view(&b), view_of_str("one")));
    assert_int_equal(objstore_list(f->s, "sweep/", NULL, 10, &list, &e), 0);
    assert_int_equal(list.count, 2);
    obj_list_release(&list);
    assert_int_equal(objstore_delete_one(f->s, "sweep/1", &e), 0);
    assert_int_equal(objstore_delete_one(f->s, "sweep/2", &e), 0);
    f->ran = true;
}

static void test_fault_sweep(void **state) {
    struct fixture *f = *state;
    const enum fault_kind kinds[] = {FAULT_FAIL, FAULT_LOSE};
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
        bool untouched = false;
        for (uint64_t n = 1; !untouched; n++) {
            assert_true(n < 20);
            uint64_t hits = objstore_fault_hits(f->fault);
            objstore_fault_add(f->fault, &(struct fault_rule){.kind = kinds[k], .nth = n});
            f->ran = false;
            virtual_env_call(&f->v, scenario, f);
            assert_true(f->ran);
            untouched = objstore_fault_hits(f->fault) == hits;
            objstore_fault_clear(f->fault);
            assert_int_equal(memory_store_count(f->memory), 0);
        }
    }
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_pauses_grow_and_are_capped),
        TEST(test_denied_is_retried_with_a_long_cap),
        TEST(test_retry_after_is_honoured),
        TEST(test_lost_answer_is_settled_as_mine),
        TEST(test_refused_by_another),
        TEST(test_refused_on_the_first_try_but_mine),
        TEST(test_longer_object_with_the_same_start_is_another),
        TEST(test_refused_then_gone_is_stale),
        TEST(test_settling_is_retried),
        TEST(test_big_bodies_are_compared_in_parts),
        TEST(test_absent_is_final),
        TEST(test_cancel_while_it_pauses),
        TEST(test_cancel_while_it_hangs),
        TEST(test_cancelled_fiber_sends_nothing),
        TEST(test_gives_up_with_the_last_error),
        TEST(test_gives_up_at_once_when_refused),
        TEST(test_gives_up_on_a_store_that_hangs),
        TEST(test_fault_sweep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
