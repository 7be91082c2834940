/* The list of runs of an open volume: insertion at an age, the barrier, merges beside checkpoints,
 * on a memory store and a virtual clock. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/retry.h"
#include "portalbd/objstore/stats.h"
#include "portalbd/volume/run_writer.h"
#include "portalbd/volume/volume_internal.h"
#include "tests/support/virtual_env.h"

enum { VOLUME_SIZE = 8 * 1024 * 1024, BLOCK = 4096 };

struct world {
    struct virtual_env venv;
    struct env *env;
    struct memory_store *bucket;
    struct objstore *store;
    const struct objstore_stats *stats; /* of the store */
    struct volume_key key;
    struct volume *v;
    bool finished; /* the test's fiber reached its end */
};

static void create_volume(struct world *w) {
    struct manifest m = {.number = 1, .size_bytes = VOLUME_SIZE, .block_size = 4096};
    struct err e = {0};
    env_random(w->env, m.nonce.bytes, sizeof m.nonce.bytes);
    root_init(&m.root, &w->key);
    m.root.next_seq = 1;
    ok(manifest_put(w->store, &w->key, &m, &e), &e);
    manifest_release(&m);
}

static void open_volume(struct world *w) {
    struct volume_config c = {.env = w->env,
                              .store = w->store,
                              .key = w->key,
                              .publish_epoch = 1,
                              .journal_size = 4 * 1024 * 1024,
                              .cache_size = 256 * 1024,
                              .gc_off = true};
    struct err e = {0};
    ok(volume_open(&c, &w->v, &e), &e);
}

struct sync_request {
    struct bd_request req;
    struct fiber_done done;
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct sync_request, req)->done);
}

static void request(struct world *w, enum bd_op op, uint64_t off, uint64_t len, void *buf) {
    struct sync_request s = {.req = {.op = op, .off = off, .len = len, .done = on_done}};
    if (op == BD_READ)
        s.req.read_buf = buf;
    else if (op == BD_WRITE)
        s.req.write_data = buf;
    fiber_done_init(&s.done);
    if (!bd_submit(volume_blockdev(w->v), &s.req))
        fiber_done_wait_always(w->env, &s.done);
    assert_int_equal(s.req.rc, 0);
}

static void write_block(struct world *w, uint64_t block, uint8_t what) {
    uint8_t data[BLOCK];
    memset(data, what, sizeof data);
    request(w, BD_WRITE, block * BLOCK, BLOCK, data);
}

static void assert_block(struct world *w, uint64_t block, uint8_t what) {
    uint8_t data[BLOCK];
    request(w, BD_READ, block * BLOCK, BLOCK, data);
    for (size_t i = 0; i < BLOCK; i++)
        if (data[i] != what)
            fail_msg("block %u holds %u, not %u", (unsigned)block, data[i], what);
}

/* A run of its own for each call; due merges start, and are not waited for. */
static void checkpoint(struct world *w) {
    struct err e = {0};
    ok(checkpoint_now(w->v, &e), &e);
}

static void settle(struct world *w) {
    struct err e = {0};
    ok(levels_settle(w->v, false, &e), &e);
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void free_volume(struct world *w) {
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(w->v, on_freed, &freed);
    fiber_done_wait_always(w->env, &freed);
    w->v = NULL;
}

static void close_volume(struct world *w) {
    struct err e = {0};
    ok(volume_close(w->v, &e), &e);
    free_volume(w);
}

static void lock_both(struct world *w) {
    ok(fiber_mutex_lock(w->env, &w->v->checkpoint_mutex), NULL);
    ok(fiber_mutex_lock(w->env, &w->v->manifest_mutex), NULL);
}

static void unlock_both(struct world *w) {
    fiber_mutex_unlock(&w->v->manifest_mutex);
    fiber_mutex_unlock(&w->v->checkpoint_mutex);
}

/* A run that says that one block is zeroes, put into the list at an age. */
static void insert_zero(struct world *w, uint64_t block, uint64_t age) {
    struct volume *v = w->v;
    struct err e = {0};
    struct root_run run;
    struct map_entry zero = {
        .sector = block * BLOCK / SECTOR_SIZE, .count = BLOCK / SECTOR_SIZE, .kind = EXTENT_ZERO};
    struct run_writer *writer = run_writer_new(w->env, w->store, &w->key, (struct run_shape){0});
    ok(run_writer_add(writer, &zero, NULL, &e), &e);
    ok(run_writer_finish(writer, &run, &e), &e);
    run.age = age;
    lock_both(w);
    struct manifest m = manifest_next(&v->manifest);
    ok(run_list_insert(v, &m, &run, run_writer_reader(writer, v->pages), &e), &e);
    unlock_both(w);
    run_writer_free(writer);
}

static void assert_list(struct world *w, size_t count, const uint64_t *ages) {
    const struct root *root = &w->v->manifest.root;
    assert_int_equal(w->v->run_count, count);
    assert_int_equal(root->run_count, count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(root->runs[i].age, ages[i]);
}

static uint64_t newest_age(struct world *w) {
    return w->v->manifest.root.runs[0].age;
}

/* --- scenarios --- */

static void insertion(void *arg) {
    struct world *w = arg;
    uint64_t ages[4];
    create_volume(w);
    open_volume(w);
    for (int i = 0; i < 3; i++) {
        write_block(w, 0, (uint8_t)(10 * i + 1)); /* and others, so that none covers another */
        for (uint64_t block = 0; block < 4; block++)
            write_block(w, 100 * (uint64_t)(i + 1) + block, (uint8_t)(10 * i + 1));
        checkpoint(w);
        ages[i] = newest_age(w);
    }
    /* of the middle's age: below what the last checkpoint says, above the rest */
    write_block(w, 8, 8);
    insert_zero(w, 8, ages[1]);
    assert_list(w, 4, (uint64_t[]){ages[2], ages[1], ages[1], ages[0]});
    insert_zero(w, 0, ages[1]);
    assert_list(w, 5, (uint64_t[]){ages[2], ages[1], ages[1], ages[1], ages[0]});
    assert_block(w, 0, 21);
    assert_block(w, 8, 8); /* the memtable is newer */
    insert_zero(w, 0, ages[2]);
    free_volume(w); /* what the next opener reads is the same list */
    open_volume(w);
    assert_list(w, 6, (uint64_t[]){ages[2], ages[2], ages[1], ages[1], ages[1], ages[0]});
    assert_block(w, 0, 0);
    assert_block(w, 301, 21);
    settle(w);
    assert_int_equal(w->v->run_count, 1);
    assert_block(w, 0, 0);
    assert_block(w, 301, 21);
    assert_block(w, 102, 1);
    close_volume(w);
    w->finished = true;
}

/* While a move is under way, merges keep to their side of it; what it inserts lands between. */
static void barrier(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    for (uint64_t i = 0; i < 3; i++) {
        write_block(w, i, 1);
        checkpoint(w);
    }
    uint64_t age = newest_age(w);
    levels_hold(w->v, age);
    for (uint64_t i = 0; i < 5; i++) {
        write_block(w, 10 + i, 2);
        if (i == 4)
            write_block(w, 0, 7); /* after the move was computed */
        checkpoint(w);
    }
    settle(w);
    assert_int_equal(w->v->stats.merges, 1);
    size_t above = 0;
    while (w->v->manifest.root.runs[above].age > age)
        above++;
    assert_int_equal(w->v->run_count - above, 3);
    insert_zero(w, 0, age);
    insert_zero(w, 1, age);
    levels_release(w->v);
    settle(w);
    assert_int_equal(w->v->run_count, 1);
    free_volume(w); /* with its cache: a true move changes nothing that is in it */
    open_volume(w);
    assert_block(w, 0, 7);
    assert_block(w, 1, 0);
    assert_block(w, 14, 2);
    close_volume(w);
    w->finished = true;
}

/* A run that newer ones cover by half is merged at once, however few there are. */
static void half_covered(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    for (uint64_t i = 0; i < 8; i++)
        write_block(w, i, 1);
    checkpoint(w);
    write_block(w, 0, 2);
    checkpoint(w);
    settle(w);
    assert_int_equal(w->v->run_count, 2);
    request(w, BD_TRIM, 0, 7 * BLOCK, NULL);
    checkpoint(w);
    settle(w);
    assert_int_equal(w->v->run_count, 1);
    const struct run_index *x = run_reader_index(w->v->runs[0]);
    assert_int_equal(x->entry_count, 1); /* holes are nothing at the bottom */
    assert_int_equal(x->usage_count, 1);
    assert_block(w, 7, 1);
    close_volume(w);
    w->finished = true;
}

/* Scattered and local writes by turns over a map of many parts: merges leave most of them alone. */
static void parts_stay(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    w->v->config.map_part_size = 2 * RUN_PAGE_SIZE;
    w->v->config.map_page_entries = 50;
    for (uint64_t i = 0; i < VOLUME_SIZE / BLOCK; i += 1)
        write_block(w, i * 769 % (VOLUME_SIZE / BLOCK), 1); /* scattered: an entry each */
    checkpoint(w);
    settle(w);
    size_t parts = run_reader_index(w->v->runs[0])->part_count;
    assert_true(parts >= 10);
    for (uint64_t i = 0; i < 3; i++) {
        for (uint64_t block = 0; block < 120; block++)
            write_block(w, 40 * i + block % 40 * 2, 2);
        checkpoint(w);
    }
    settle(w);
    assert_int_equal(w->v->run_count, 1);
    assert_true(w->v->stats.map_parts_reused >= parts / 2);
    assert_block(w, 0, 2);
    assert_block(w, 2000, 1);
    free_volume(w);
    open_volume(w);
    assert_block(w, 0, 2);
    assert_block(w, 2000, 1);
    close_volume(w);
    w->finished = true;
}

static size_t count(struct world *w, const char *part) {
    size_t n = 0;
    const char *key;
    struct view body;
    for (size_t i = 0; i < memory_store_count(w->bucket); i++)
        if (memory_store_at(w->bucket, i, &key, &body))
            n += strstr(key, part) != NULL;
    return n;
}

static uint64_t requests_sent(const struct world *w) {
    uint64_t n = 0;
    for (int verb = OBJ_GET; verb <= OBJ_DELETE; verb++)
        n += objstore_stats_requests(w->stats, (enum obj_verb)verb);
    return n;
}

/* 256 flushes are 256 segments, and a checkpoint: a part, an index, a manifest. Nothing that was
 * put is read back. */
static void requests(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    uint64_t sent = requests_sent(w);
    size_t segments = count(w, "/log/"), manifests = count(w, "/manifest/");
    for (uint64_t i = 0; i < 256; i++) {
        write_block(w, i * 7, 1);
        request(w, BD_FLUSH, 0, 0, NULL);
    }
    fiber_sleep_us(w->env, 10 * 1000 * 1000);
    assert_int_equal(w->v->stats.checkpoints, 1);
    assert_int_equal(requests_sent(w), sent + 256 + 3);
    assert_int_equal(count(w, "/log/"), segments + 256);
    assert_int_equal(count(w, "/map/"), 2);
    assert_int_equal(count(w, "/manifest/"), manifests + 1);
    close_volume(w);
    w->finished = true;
}

/* Runs above the limit: merged, and never more than a few too many; at a close too. */
static void bounded(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    w->v->config.runs_max = 2;
    for (uint64_t i = 0; i < 60; i++) {
        write_block(w, i % 16, (uint8_t)i);
        checkpoint(w);
        assert_true(w->v->run_count <= 2 + 4 + 1);
    }
    close_volume(w);
    open_volume(w);
    assert_true(w->v->run_count <= 2 || w->v->config.runs_max > 2);
    for (uint64_t i = 0; i < 16; i++)
        assert_block(w, i, (uint8_t)(i + (i < 12 ? 48 : 32)));
    free_volume(w);
    w->finished = true;
}

/* A volume that is dropped or closed while merges are under way. */
static void dropped(void *arg) {
    struct world *w = arg;
    create_volume(w);
    for (int round = 0; round < 6; round++) {
        open_volume(w);
        for (uint64_t i = 0; i < 4; i++) {
            write_block(w, i, (uint8_t)round);
            checkpoint(w);
        }
        if (round % 2)
            close_volume(w);
        else
            free_volume(w);
    }
    open_volume(w);
    for (uint64_t i = 0; i < 4; i++)
        assert_block(w, i, 5);
    close_volume(w);
    w->finished = true;
}

/* --- */

static void run_world(void (*fn)(void *arg)) {
    struct world w = {0};
    virtual_env_init(&w.venv, 1);
    w.env = &w.venv.env;
    w.bucket = memory_store_new();
    w.store = objstore_stats_new(
        objstore_retry_new(objstore_memory_open(w.env, w.bucket), &(struct retry_options){0}), NULL,
        NULL);
    w.stats = objstore_stats(w.store);
    id_format_key(&w.key, ID_VOLUME, "0123456789abcdef0123456789abcdef", 1);
    virtual_env_call(&w.venv, fn, &w);
    assert_true(w.finished);
    objstore_close(w.store);
    memory_store_free(w.bucket);
    virtual_env_release(&w.venv);
}

static void test_insertion(void **state) {
    (void)state;
    run_world(insertion);
}

static void test_barrier(void **state) {
    (void)state;
    run_world(barrier);
}

static void test_half_covered(void **state) {
    (void)state;
    run_world(half_covered);
}

static void test_parts_stay(void **state) {
    (void)state;
    run_world(parts_stay);
}

static void test_requests(void **state) {
    (void)state;
    run_world(requests);
}

static void test_bounded(void **state) {
    (void)state;
    run_world(bounded);
}

static void test_dropped(void **state) {
    (void)state;
    run_world(dropped);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_insertion),    cmocka_unit_test(test_barrier),
        cmocka_unit_test(test_half_covered), cmocka_unit_test(test_parts_stay),
        cmocka_unit_test(test_bounded),      cmocka_unit_test(test_requests),
        cmocka_unit_test(test_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
