/* The device in memory and stacks of layers over it are block devices like any other. */
#include "tests/support/test.h"

#include "portalbd/blockdev/blockdev_fiber.h"
#include "portalbd/blockdev/delay.h"
#include "portalbd/blockdev/fault.h"
#include "portalbd/blockdev/stats.h"
#include "portalbd/blockdev/validate.h"
#include "tests/support/blockdev_suite.h"
#include "tests/support/memory_blockdev.h"

enum { SIZE = 32 << 20 };

static struct blockdev *open_memory(struct blockdev_factory *f, struct env *env, uint64_t size) {
    (void)f;
    (void)env;
    return memory_blockdev_open(size);
}

static struct blockdev *open_stack(struct blockdev_factory *f, struct env *env, uint64_t size) {
    (void)f;
    struct blockdev *dev = bd_fault_open(memory_blockdev_open(size));
    dev = bd_stats_open(dev, env, NULL, NULL);
    return bd_validate_open(dev);
}

static struct blockdev *open_slow(struct blockdev_factory *f, struct env *env, uint64_t size) {
    (void)f;
    struct blockdev *dev = bd_delay_open(memory_blockdev_open(size), env, 0, 300);
    return bd_stats_open(dev, env, NULL, NULL);
}

static void close_dev(struct blockdev_factory *f, struct env *env, struct blockdev *dev) {
    (void)f;
    (void)env;
    dev->ops->close(dev);
}

static void run(struct blockdev_factory f) {
    struct loop *loop = loop_new(1);
    loop_thread_start(loop, "suite");
    assert_int_equal(blockdev_suite_run(loop, &f), 0);
    loop_thread_stop(loop);
    loop_free(loop);
}

static void test_memory(void **state) {
    (void)state;
    run((struct blockdev_factory){.name = "memory",
                                  .size_bytes = SIZE,
                                  .open = open_memory,
                                  .close = close_dev,
                                  .exact_status = true});
}

static void test_huge(void **state) {
    (void)state;
    run((struct blockdev_factory){.name = "huge",
                                  .size_bytes = UINT64_C(64) << 30,
                                  .open = open_memory,
                                  .close = close_dev,
                                  .exact_status = true});
}

static void test_stack(void **state) {
    (void)state;
    run((struct blockdev_factory){.name = "validate+stats+fault",
                                  .size_bytes = SIZE,
                                  .open = open_stack,
                                  .close = close_dev,
                                  .exact_status = true});
}

static void test_slow(void **state) {
    (void)state;
    run((struct blockdev_factory){.name = "stats+delay",
                                  .size_bytes = SIZE,
                                  .open = open_slow,
                                  .close = close_dev,
                                  .exact_status = true});
}

/* --- what the layers add --- */

struct probe {
    struct env *env;
    struct blockdev *fault, *dev;
    int rcs[6];
    struct bd_stats stats;
};

static void probe_fiber(void *arg) {
    struct probe *p = arg;
    uint8_t data[4096] = {1};
    p->fault = bd_fault_open(memory_blockdev_open(SIZE));
    p->dev = bd_stats_open(bd_delay_open(p->fault, p->env, 2000, 2000), p->env, NULL, NULL);
    bd_fault_arm(p->fault, BD_WRITE, 2, -ERR_IO, false);
    for (unsigned i = 0; i < 3; i++)
        p->rcs[i] = bd_write(p->env, p->dev, 0, data, sizeof data, 0);
    bd_fault_arm(p->fault, BD_READ, 1, -ERR_CORRUPT, true);
    for (unsigned i = 3; i < 5; i++)
        p->rcs[i] = bd_read(p->env, p->dev, 0, data, sizeof data);
    bd_fault_arm(p->fault, BD_READ, 0, 0, false);
    p->rcs[5] = bd_read(p->env, p->dev, 0, data, sizeof data);
    p->stats = *bd_stats_of(p->dev);
    p->dev->ops->close(p->dev);
}

static void test_faults_are_counted(void **state) {
    (void)state;
    struct loop *loop = loop_new(1);
    loop_thread_start(loop, "probe");
    struct probe p = {.env = loop_env(loop)};
    loop_call(loop, probe_fiber, &p);
    loop_thread_stop(loop);
    loop_free(loop);
    static const int want[6] = {0, -ERR_IO, 0, -ERR_CORRUPT, -ERR_CORRUPT, 0};
    assert_memory_equal(p.rcs, want, sizeof want);
    const struct bd_op_stats *w = &p.stats.ops[BD_WRITE], *r = &p.stats.ops[BD_READ];
    assert_int_equal(metrics_results_get(&w->results, 0), 2);
    assert_int_equal(metrics_results_get(&w->results, -ERR_IO), 1);
    assert_int_equal(metrics_counter_get(&w->bytes), 2 * 4096);
    assert_int_equal(metrics_results_get(&r->results, -ERR_CORRUPT), 2);
    assert_int_equal(metrics_histogram_count(&r->latency), 3);
    assert_true(metrics_histogram_quantile(&r->latency, 0) >= 2000);
    assert_int_equal(metrics_gauge_get(&p.stats.in_flight), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_huge),
        cmocka_unit_test(test_stack),
        cmocka_unit_test(test_slow),
        cmocka_unit_test(test_faults_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
