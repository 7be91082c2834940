/* The page cache: hits, the limit, one fetch for many, failures and cancellations. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "portalbd/cache/page_cache.h"
#include "portalbd/objstore/memory.h"

enum { PAGES = 32 };
static const char key[] = "volumes/x/map/1";
static const struct random_id part = {{1, 2, 3}};

/* A store that counts the GETs it passes on, and can hold them back. */
struct gate {
    struct objstore base;
    struct objstore *inner;
    unsigned gets;
};

static void gate_submit(struct objstore *store, struct obj_request *req) {
    struct gate *g = container_of(store, struct gate, base);
    g->gets++;
    objstore_submit(g->inner, req);
}

static void gate_cancel(struct objstore *store, struct obj_request *req) {
    objstore_cancel(container_of(store, struct gate, base)->inner, req);
}

static const struct objstore_ops gate_ops = {.submit = gate_submit, .cancel = gate_cancel};

struct fixture {
    struct loop *loop;
    struct env *env;
    struct memory_store *memory;
    struct gate gate;
    struct page_cache *cache;
    int running;
    int ok;
    int failed;
    int cancelled;
};

static void open_all(void *arg) {
    struct fixture *f = arg;
    f->gate = (struct gate){.base = {.ops = &gate_ops, .env = f->env},
                            .inner = objstore_memory_open(f->env, f->memory)};
    f->cache = page_cache_new(f->env, &f->gate.base, 4 * RUN_PAGE_SIZE);
    CLEANUP_BUF struct buf body = {0};
    for (int i = 0; i < PAGES; i++)
        memset(buf_extend(&body, RUN_PAGE_SIZE), i, RUN_PAGE_SIZE);
    assert_int_equal(objstore_put(f->gate.inner, key, buf_view(&body), NULL, NULL), 0);
}

static void close_all(void *arg) {
    struct fixture *f = arg;
    page_cache_free(f->cache);
    objstore_close(f->gate.inner);
}

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){.loop = loop_new(1), .memory = memory_store_new()};
    f.env = loop_env(f.loop);
    loop_thread_start(f.loop, "test");
    loop_call(f.loop, open_all, &f);
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, close_all, f);
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    memory_store_free(f->memory);
    return 0;
}

static int read_page(struct fixture *f, uint32_t page) {
    uint8_t out[RUN_PAGE_SIZE];
    int rc = page_cache_read(f->cache, key, &part, page, out, NULL);
    if (rc == 0) {
        assert_int_equal(out[0], page);
        assert_int_equal(out[RUN_PAGE_SIZE - 1], page);
    }
    return rc;
}

static void limit(void *arg) {
    struct fixture *f = arg;
    for (int round = 0; round < 3; round++)
        for (uint32_t i = 0; i < 4; i++)
            assert_int_equal(read_page(f, i), 0);
    assert_int_equal(f->gate.gets, 4);
    assert_int_equal(page_cache_stats(f->cache).hits, 8);
    for (uint32_t i = 0; i < PAGES; i++) {
        assert_int_equal(read_page(f, i), 0);
        assert_int_equal(read_page(f, 0), 0); /* what is used stays */
        assert_true(page_cache_stats(f->cache).bytes <= 4 * RUN_PAGE_SIZE);
    }
    assert_int_equal(f->gate.gets, PAGES);
    assert_int_equal(read_page(f, PAGES - 1), 0);
    assert_int_equal(f->gate.gets, PAGES);
    assert_int_equal(read_page(f, 5), 0);
    assert_int_equal(f->gate.gets, PAGES + 1);
}

static void reader(void *arg) {
    struct fixture *f = arg;
    int rc = read_page(f, 7);
    *(rc == 0 ? &f->ok : rc == -ERR_CANCELLED ? &f->cancelled : &f->failed) += 1;
    f->running--;
}

static void wait_readers(struct fixture *f) {
    while (f->running > 0)
        fiber_yield(f->env);
}

static void single_flight(void *arg) {
    struct fixture *f = arg;
    f->running = 10;
    for (int i = 0; i < 10; i++)
        fiber_start(f->env, reader, f);
    wait_readers(f);
    assert_int_equal(f->ok, 10);
    assert_int_equal(f->gate.gets, 1);
}

/* The one that fetches is cancelled: another takes its place, nobody else fails. */
static void cancelled_fetch(void *arg) {
    struct fixture *f = arg;
    f->running = 10;
    struct fiber *fibers[10];
    for (int i = 0; i < 10; i++)
        fibers[i] = fiber_start(f->env, reader, f);
    fiber_yield(f->env);
    fiber_cancel(fibers[0]);
    fiber_cancel(fibers[5]);
    wait_readers(f);
    assert_int_equal(f->ok, 8);
    assert_int_equal(f->cancelled, 2);
    assert_int_equal(f->gate.gets, 2);
}

static void failures(void *arg) {
    struct fixture *f = arg;
    uint8_t byte = 0;
    memory_store_replace(f->memory, key, view_of(&byte, 1));
    f->running = 3;
    for (int i = 0; i < 3; i++)
        fiber_start(f->env, reader, f);
    wait_readers(f);
    assert_int_equal(f->failed, 3);
    memory_store_remove(f->memory, key);
    assert_int_equal(read_page(f, 7), -ERR_NOT_FOUND);
    assert_int_equal(page_cache_stats(f->cache).bytes, 0);
}

#define FIBER_TEST(name, fn)                                                                       \
    static void name(void **state) {                                                               \
        struct fixture *f = *state;                                                                \
        loop_call(f->loop, fn, f);                                                                 \
    }
FIBER_TEST(test_limit, limit)
FIBER_TEST(test_single_flight, single_flight)
FIBER_TEST(test_cancelled_fetch, cancelled_fetch)
FIBER_TEST(test_failures, failures)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_single_flight, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancelled_fetch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failures, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
