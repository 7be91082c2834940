/* A volume is a block device like any other: the suite, on a store in memory, with answers at once
 * and with segments and checkpoints so small that every path of the engine is taken. */
#include "tests/support/test.h"

#include <stdio.h>

#include "common/fiber.h"
#include "portalbd/catalog/catalog.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/retry.h"
#include "portalbd/volume/volume.h"
#include "tests/support/blockdev_suite.h"

enum { SIZE = 64 << 20 };

struct engine {
    struct loop *loop;
    struct objstore *store;
    struct catalog catalog;
    struct volume_config config; /* of the next open */
    struct volume *volume;
    unsigned created;
};

static void open_engine(struct engine *x) {
    struct err e;
    x->config.publish_epoch++;
    if (volume_open(&x->config, &x->volume, &e) < 0) {
        printf("volume_open: %s\n", e.text);
        CHECK(false);
    }
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void close_engine(struct engine *x) {
    struct err e;
    struct fiber_done freed;
    if (volume_close(x->volume, &e) < 0) {
        printf("volume_close: %s\n", e.text);
        CHECK(false);
    }
    fiber_done_init(&freed);
    volume_free(x->volume, on_freed, &freed);
    fiber_done_wait_always(loop_env(x->loop), &freed);
}

static struct blockdev *op_open(struct blockdev_factory *f, struct env *env, uint64_t size) {
    struct engine *x = f->arg;
    struct volume_info info;
    struct err e;
    char name[32];
    snprintf(name, sizeof name, "volume-%u", x->created++);
    struct volume_create create = {.name = name, .size_bytes = size};
    CHECK(catalog_volume_create(&x->catalog, &create, &info, &e) == 0);
    x->config.env = env;
    x->config.store = x->store;
    x->config.key = info.record.key;
    x->config.publish_epoch = 0;
    volume_info_release(&info);
    open_engine(x);
    return volume_blockdev(x->volume);
}

static void op_close(struct blockdev_factory *f, struct env *env, struct blockdev *dev) {
    (void)env;
    (void)dev;
    close_engine(f->arg);
}

static struct blockdev *op_reopen(struct blockdev_factory *f, struct env *env,
                                  struct blockdev *dev) {
    (void)env;
    (void)dev;
    struct engine *x = f->arg;
    close_engine(x);
    open_engine(x);
    return volume_blockdev(x->volume);
}

static void start_fiber(void *arg) {
    struct engine *x = arg;
    struct env *env = loop_env(x->loop);
    x->store = objstore_retry_new(objstore_memory_new(env), NULL);
    catalog_init(&x->catalog, env, x->store, "pool");
}

static void stop_fiber(void *arg) {
    objstore_close(((struct engine *)arg)->store);
}

static void run(const char *name, uint64_t size, struct volume_config config) {
    struct engine x = {.loop = loop_new(2), .config = config};
    struct blockdev_factory f = {.name = name,
                                 .size_bytes = size,
                                 .open = op_open,
                                 .close = op_close,
                                 .reopen = op_reopen,
                                 .arg = &x};
    loop_thread_start(x.loop, "suite");
    loop_call(x.loop, start_fiber, &x);
    assert_int_equal(blockdev_suite_run(x.loop, &f), 0);
    loop_call(x.loop, stop_fiber, &x);
    loop_thread_stop(x.loop);
    loop_free(x.loop);
}

static void test_defaults(void **state) {
    (void)state;
    run("volume", SIZE, (struct volume_config){0});
}

static void test_tight(void **state) {
    (void)state;
    run("tight", SIZE,
        (struct volume_config){.journal_size = 4 << 20,
                               .cache_size = 1 << 20,
                               .segment_size = 128 << 10,
                               .checkpoint_segments = 4,
                               .checkpoint_extents = 64,
                               .runs_max = 2});
}

static void test_huge(void **state) {
    (void)state;
    run("exbibyte", UINT64_C(1) << 60, (struct volume_config){0});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_tight),
        cmocka_unit_test(test_huge),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
