/* Fibers on the real loop: waits, wakes, time-outs, cancellation, groups, jobs, mutexes. */
#include "tests/support/test.h"

#include "common/fiber.h"
#include "common/loop.h"

struct fixture {
    struct loop *loop;
    struct env *env;
    struct waitq queue;
    struct fiber_mutex mutex;
    int order[8];
    int count;
    int result;
    bool in_section;
};

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){.loop = loop_new(2)};
    f.env = loop_env(f.loop);
    waitq_init(&f.queue);
    fiber_mutex_init(&f.mutex);
    loop_thread_start(f.loop, "test");
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    return 0;
}

static void waiter(void *arg) {
    struct fixture *f = arg;
    f->result = waitq_wait(f->env, &f->queue);
    f->order[f->count++] = 2;
}

static void wake_in_order(void *arg) {
    struct fixture *f = arg;
    fiber_start(f->env, waiter, f);
    assert_int_equal(fiber_yield(f->env), 0);
    assert_false(waitq_empty(&f->queue));
    f->order[f->count++] = 1;
    waitq_wake_all(&f->queue);
    assert_int_equal(fiber_yield(f->env), 0);
    assert_int_equal(f->count, 2);
    assert_int_equal(f->order[0], 1);
    assert_int_equal(f->order[1], 2);
    assert_int_equal(f->result, 0);
}

static void test_wake(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, wake_in_order, f);
    assert_int_equal(f->count, 2);
}

static void time_out(void *arg) {
    struct fixture *f = arg;
    uint64_t start = env_now_us(f->env);
    assert_int_equal(waitq_wait_for(f->env, &f->queue, 3000), -ERR_TIMEOUT);
    assert_true(env_now_us(f->env) - start >= 3000);
    assert_true(waitq_empty(&f->queue));
    f->count = 1;
}

static void test_timeout(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, time_out, f);
    assert_int_equal(f->count, 1);
}

static void cancel_others(void *arg) {
    struct fixture *f = arg;
    struct fiber *w = fiber_start(f->env, waiter, f);
    assert_int_equal(fiber_yield(f->env), 0);
    fiber_cancel(w);
    assert_int_equal(fiber_yield(f->env), 0);
    assert_int_equal(f->result, -ERR_CANCELLED);
    assert_true(waitq_empty(&f->queue));
}

static void test_cancel(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, cancel_others, f);
    assert_int_equal(f->result, -ERR_CANCELLED);
}

static void member(void *arg) {
    struct fixture *f = arg;
    assert_int_equal(fiber_sleep_us(f->env, 1000), 0);
    f->count++;
}

static void group_of_five(void *arg) {
    struct fixture *f = arg;
    struct fiber_group g;
    fiber_group_init(&g, f->env);
    for (int i = 0; i < 5; i++)
        fiber_group_start(&g, member, f);
    assert_int_equal(fiber_group_wait(&g), 0);
    assert_int_equal(f->count, 5);
}

static void test_group(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, group_of_five, f);
    assert_int_equal(f->count, 5);
}

static void endless_member(void *arg) {
    struct fixture *f = arg;
    if (waitq_wait(f->env, &f->queue) == -ERR_CANCELLED)
        f->count++;
}

static void endless_group(void *arg) {
    struct fixture *f = arg;
    struct fiber_group g;
    fiber_group_init(&g, f->env);
    for (int i = 0; i < 3; i++)
        fiber_group_start(&g, endless_member, f);
    f->result = fiber_group_wait(&g);
}

static void cancel_group(void *arg) {
    struct fixture *f = arg;
    struct fiber *owner = fiber_start(f->env, endless_group, f);
    for (int i = 0; i < 3; i++)
        assert_int_equal(fiber_yield(f->env), 0);
    fiber_cancel(owner);
    for (int i = 0; i < 3; i++)
        assert_int_equal(fiber_yield(f->env), 0);
}

static void test_group_cancel(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, cancel_group, f);
    assert_int_equal(f->count, 3);
    assert_int_equal(f->result, -ERR_CANCELLED);
}

static void add_on_worker(void *arg) {
    __atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
}

static void run_jobs(void *arg) {
    struct fixture *f = arg;
    for (int i = 0; i < 10; i++)
        fiber_run_job(f->env, add_on_worker, &f->count);
}

static void test_jobs(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, run_jobs, f);
    assert_int_equal(f->count, 10);
}

static void locker(void *arg) {
    struct fixture *f = arg;
    assert_int_equal(fiber_mutex_lock(f->env, &f->mutex), 0);
    assert_false(f->in_section);
    f->in_section = true;
    assert_int_equal(fiber_sleep_us(f->env, 500), 0);
    f->in_section = false;
    f->count++;
    fiber_mutex_unlock(&f->mutex);
}

static void contend(void *arg) {
    struct fixture *f = arg;
    struct fiber_group g;
    fiber_group_init(&g, f->env);
    for (int i = 0; i < 4; i++)
        fiber_group_start(&g, locker, f);
    assert_int_equal(fiber_group_wait(&g), 0);
}

static void test_mutex(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, contend, f);
    assert_int_equal(f->count, 4);
}

/* Uses its stack, over a wait. */
static void deep_member(void *arg) {
    struct fixture *f = arg;
    volatile uint8_t bytes[64 * 1024];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7);
    assert_int_equal(fiber_yield(f->env), 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], (uint8_t)(i * 7));
    f->count++;
}

/* Fewer at a time than stacks are kept, and more: new stacks, used ones, ones that are given back.
 */
static void reuse_stacks(void *arg) {
    struct fixture *f = arg;
    static const int counts[] = {3, 3, 200, 5, 200};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        struct fiber_group g;
        fiber_group_init(&g, f->env);
        for (int k = 0; k < counts[i]; k++)
            fiber_group_start(&g, deep_member, f);
        assert_int_equal(fiber_group_wait(&g), 0);
    }
}

static void test_stacks(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, reuse_stacks, f);
    assert_int_equal(f->count, 3 + 3 + 200 + 5 + 200);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_wake, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timeout, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_group, setup, teardown),
        cmocka_unit_test_setup_teardown(test_group_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_jobs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mutex, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stacks, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
