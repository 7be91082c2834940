/* The timer heap, beside a sorted array of the same timers. */
#include "tests/support/test.h"

#include <stdlib.h>

#include "common/timer_heap.h"

static void test_order_and_ties(void **state) {
    (void)state;
    struct timer_heap h = {0};
    struct env_timer t[4] = {{0}};
    assert_null(timer_heap_first(&h));
    timer_heap_start(&h, &t[0], 30);
    timer_heap_start(&h, &t[1], 10);
    timer_heap_start(&h, &t[2], 10);
    timer_heap_start(&h, &t[3], 20);
    assert_true(env_timer_running(&t[2]));
    const struct env_timer *want[] = {&t[1], &t[2], &t[3], &t[0]};
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        struct env_timer *first = timer_heap_first(&h);
        assert_ptr_equal(first, want[i]);
        timer_heap_stop(&h, first);
        assert_false(env_timer_running(first));
    }
    assert_null(timer_heap_first(&h));
    timer_heap_stop(&h, &t[0]); /* stopped already: nothing happens */
    timer_heap_release(&h);
}

static void test_restart_moves(void **state) {
    (void)state;
    struct timer_heap h = {0};
    struct env_timer a = {0}, b = {0};
    timer_heap_start(&h, &a, 10);
    timer_heap_start(&h, &b, 20);
    timer_heap_start(&h, &a, 30);
    assert_int_equal(h.count, 2);
    assert_ptr_equal(timer_heap_first(&h), &b);
    timer_heap_start(&h, &a, 20); /* a tie: b was started first */
    assert_ptr_equal(timer_heap_first(&h), &b);
    timer_heap_stop(&h, &b);
    timer_heap_stop(&h, &a);
    timer_heap_release(&h);
}

enum { TIMERS = 64, STEPS = 20000 };

static const struct env_timer *earliest(const struct env_timer *t) {
    const struct env_timer *best = NULL;
    for (int i = 0; i < TIMERS; i++)
        if (env_timer_running(&t[i]) && (!best || t[i].due_us < best->due_us ||
                                         (t[i].due_us == best->due_us && t[i].order < best->order)))
            best = &t[i];
    return best;
}

static void test_random_steps(void **state) {
    (void)state;
    struct timer_heap h = {0};
    struct env_timer t[TIMERS] = {{0}};
    srand(1);
    for (int i = 0; i < STEPS; i++) {
        struct env_timer *one = &t[rand() % TIMERS];
        if (rand() % 3 == 0)
            timer_heap_stop(&h, one);
        else
            timer_heap_start(&h, one, (uint64_t)(rand() % 50));
        assert_ptr_equal(timer_heap_first(&h), earliest(t));
    }
    struct env_timer *first;
    while ((first = timer_heap_first(&h)))
        timer_heap_stop(&h, first);
    timer_heap_release(&h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_ties),
        cmocka_unit_test(test_restart_moves),
        cmocka_unit_test(test_random_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
