/* The virtual world: order, sleep, kill, and that a seed is a run. */
#include "tests/support/test.h"

#include "common/mem.h"
#include "tests/sim/sim_env.h"

struct ticker {
    struct sim_proc proc;
    struct waitq never;
    unsigned ticks;
    uint64_t last_us;
    bool ended;
    bool stuck;
};

static void tick(void *arg) {
    struct ticker *t = arg;
    for (unsigned i = 0; i < 100; i++) {
        if (fiber_sleep_us(&t->proc.env, 1000) < 0)
            break;
        t->ticks++;
        t->last_us = env_now_us(&t->proc.env);
    }
    if (t->stuck)
        (void)waitq_wait(&t->proc.env, &t->never);
    t->ended = true;
}

static void add_one(void *arg) {
    (*(unsigned *)arg)++;
}

static void run_jobs(void *arg) {
    struct ticker *t = arg;
    for (unsigned i = 0; i < 10; i++)
        fiber_run_job(&t->proc.env, add_one, &t->ticks);
    t->ended = true;
}

static void ticker_init(struct ticker *t, struct sim_world *w, const char *name,
                        void (*fn)(void *)) {
    *t = (struct ticker){0};
    sim_proc_init(&t->proc, w, name);
    waitq_init(&t->never);
    fiber_start(&t->proc.env, fn, t);
}

static void test_time_goes_on_only_by_what_happens(void **state) {
    (void)state;
    struct sim_world w;
    sim_world_init(&w, 1);
    struct ticker a, b;
    ticker_init(&a, &w, "a", tick);
    ticker_init(&b, &w, "b", run_jobs);
    uint64_t last = 0;
    while (sim_step(&w)) {
        assert_true(w.now_us >= last);
        last = w.now_us;
    }
    assert_true(a.ended && b.ended);
    assert_int_equal(a.ticks, 100);
    assert_int_equal(b.ticks, 10);
    assert_true(last >= 1000000 + 100 * 1000 && last < 1000000 + 200 * 1000);
    sim_proc_release(&a.proc);
    sim_proc_release(&b.proc);
    sim_world_release(&w);
}

static void test_a_sleeper_catches_up(void **state) {
    (void)state;
    struct sim_world w;
    sim_world_init(&w, 2);
    struct ticker a, b;
    ticker_init(&a, &w, "a", tick);
    ticker_init(&b, &w, "b", tick);
    while (a.ticks < 10)
        assert_true(sim_step(&w));
    sim_proc_sleep(&a.proc, 10 * 1000000);
    uint64_t wake_us = w.now_us + 10 * 1000000;
    while (!b.ended)
        assert_true(sim_step(&w));
    assert_int_equal(a.ticks, 10);
    while (sim_step(&w))
        continue;
    assert_true(a.ended && a.last_us >= wake_us);
    sim_proc_release(&a.proc);
    sim_proc_release(&b.proc);
    sim_world_release(&w);
}

static void test_kill_ends_every_fiber(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed < 50; seed++) {
        struct sim_world w;
        sim_world_init(&w, seed);
        struct ticker a;
        ticker_init(&a, &w, "a", seed % 2 ? tick : run_jobs);
        a.stuck = true;
        for (uint64_t i = 0; i < seed * 3; i++)
            sim_step(&w);
        sim_proc_kill(&a.proc);
        assert_true(a.ended);
        sim_proc_release(&a.proc);
        sim_world_release(&w);
    }
}

static uint64_t digest_of(uint64_t seed) {
    struct sim_world w;
    sim_world_init(&w, seed);
    struct ticker a, b;
    ticker_init(&a, &w, "a", tick);
    ticker_init(&b, &w, "b", run_jobs);
    while (sim_step(&w))
        continue;
    sim_proc_release(&a.proc);
    sim_proc_release(&b.proc);
    uint64_t digest = w.digest;
    sim_world_release(&w);
    return digest;
}

static void test_a_seed_is_a_run(void **state) {
    (void)state;
    assert_true(digest_of(7) == digest_of(7));
    assert_true(digest_of(7) != digest_of(8));
}

static void test_draws(void **state) {
    (void)state;
    struct sim_world w;
    sim_world_init(&w, 3);
    unsigned low = 0, hits = 0;
    for (unsigned i = 0; i < 10000; i++) {
        uint64_t v = sim_skewed(&w, 10, 1000);
        assert_in_range(v, 10, 1000);
        low += v < 50;
        hits += sim_chance(&w, 100);
    }
    assert_true(low > 3000);
    assert_in_range(hits, 800, 1200);
    sim_world_release(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_time_goes_on_only_by_what_happens),
        cmocka_unit_test(test_a_sleeper_catches_up),
        cmocka_unit_test(test_kill_ends_every_fiber),
        cmocka_unit_test(test_a_seed_is_a_run),
        cmocka_unit_test(test_draws),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
