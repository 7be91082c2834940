/* What uniform random overwrites cost in the long run: bytes put for each byte written, and space
 * over what is live. A 64 MiB volume with limits scaled down by 64 from those of a volume of 4 GiB;
 * the figures are printed. */
#include "tests/support/test.h"

#include <stdio.h>

#include "portalbd/objstore/stats.h"
#include "portalbd/volume/manifest_store.h"
#include "portalbd/volume/volume.h"
#include "tests/support/pool_fixture.h"

enum {
    VOLUME_SIZE = 64 << 20,
    BLOCK = 4096,
    WARM_UP = 4, /* volumes' worth of overwrites */
    MEASURED = 2,
    WRITES_A_MS = 64,
};

static struct pool_fixture fixture;
static struct volume *v;
static struct objstore *store;
static struct volume_key key;
static uint64_t seed = 1;

static uint64_t next_random(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

struct call {
    struct bd_request req;
    struct fiber_done done;
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct call, req)->done);
}

static void write_block(uint64_t block) {
    static uint64_t data[BLOCK / sizeof(uint64_t)];
    for (size_t i = 0; i < ARRAY_LEN(data); i++)
        data[i] = next_random();
    struct call c = {.req = {.op = BD_WRITE,
                             .off = block * BLOCK,
                             .len = BLOCK,
                             .write_data = (uint8_t *)data,
                             .done = on_done}};
    fiber_done_init(&c.done);
    if (!bd_submit(volume_blockdev(v), &c.req))
        fiber_done_wait_always(fixture.env, &c.done);
    assert_int_equal(c.req.rc, 0);
}

static uint64_t stored_bytes(void) {
    uint64_t bytes = 0;
    const char *name;
    struct view body;
    for (size_t i = 0; memory_store_at(fixture.memory, i, &name, &body); i++)
        bytes += body.len;
    return bytes;
}

static uint64_t sent_bytes(void) {
    return metrics_counter_get(&objstore_stats(store)->verbs[OBJ_PUT].sent);
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void open_volume_of(uint64_t size) {
    struct err e;
    struct manifest m = {.number = 1, .size_bytes = size, .block_size = 4096, .closed = true};
    root_init(&m.root, &key);
    assert_int_equal(manifest_put(store, &key, &m, &e), 0);
    manifest_release(&m);
    struct volume_config c = {.env = fixture.env,
                              .store = store,
                              .key = key,
                              .publish_epoch = 1,
                              .journal_size = 4 << 20,
                              .cache_size = 1 << 20,
                              .segment_size = 256 << 10,
                              .checkpoint_extents = 2048,
                              .gc_delay_us = 20000,
                              .gc_move_bytes = 256 << 10};
    assert_int_equal(volume_open(&c, &v, &e), 0);
}

static void overwrites(void *arg) {
    (void)arg;
    uint64_t blocks = VOLUME_SIZE / BLOCK, space = 0, samples = 0, sent = 0;
    open_volume_of(VOLUME_SIZE);
    for (uint64_t i = 0; i < blocks; i++)
        write_block(i);
    for (uint64_t i = 0; i < (WARM_UP + MEASURED) * blocks; i++) {
        if (i == WARM_UP * blocks)
            sent = sent_bytes();
        write_block(next_random() % blocks);
        if (i % WRITES_A_MS == 0)
            assert_int_equal(fiber_sleep_us(fixture.env, 1000), 0);
        if (i >= WARM_UP * blocks && i % (blocks / 16) == 0) {
            space += stored_bytes();
            samples++;
        }
    }
    double put = (double)(sent_bytes() - sent) / ((double)MEASURED * VOLUME_SIZE);
    double over = (double)space / (double)samples / VOLUME_SIZE;
    printf("put for each byte written: %.2f; space over live: %.2f\n", put, over);
    assert_true(put < 2.3);
    assert_true(over < 1.45);
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(v, on_freed, &freed);
    fiber_done_wait_always(fixture.env, &freed);
}

static void test_overwrites(void **state) {
    (void)state;
    pool_fixture_init(&fixture, 1);
    store = objstore_stats_new(fixture.store, NULL, NULL);
    fixture.store = store; /* the fixture closes it */
    char hash[33];
    name_hash(hash, "v");
    id_format_key(&key, ID_VOLUME, hash, 1);
    pool_fixture_run(&fixture, overwrites, NULL);
    pool_fixture_release(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overwrites),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
