/* The engine on a memory store and a virtual clock: what was written reads back, also after a clean
 * close, after a crash, by a second opener; checkpoints and merges happen in between. (tests/sim
 * does the same for thousands of seeds, with faults.) */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/fiber.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/retry.h"
#include "portalbd/volume/manifest_store.h"
#include "portalbd/volume/volume.h"
#include "tests/support/virtual_env.h"

enum { VOLUME_SIZE = 8 * 1024 * 1024, WRITES = 3000 };

struct world {
    struct virtual_env venv;
    struct env *env;
    struct memory_store *bucket;
    struct objstore *store;
    struct volume_key key;
    struct volume *v;
    uint8_t *image;
    uint64_t seed;
    uint64_t merges;
    bool finished; /* the test's fiber reached its end */
};

static uint32_t next_random(struct world *w) {
    w->seed = w->seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33);
}

/* --- helpers, all of them for fibers --- */

static void create_volume(struct world *w) {
    struct manifest m = {.number = 1, .size_bytes = VOLUME_SIZE, .block_size = 4096};
    env_random(w->env, m.nonce.bytes, sizeof m.nonce.bytes);
    root_init(&m.root, &w->key);
    m.root.next_seq = 1;
    struct err e = {0};
    int rc = manifest_put(w->store, &w->key, &m, &e);
    if (rc < 0)
        fail_msg("%s", e.text);
    manifest_release(&m);
}

static struct volume_config small_config(struct world *w) {
    return (struct volume_config){
        .env = w->env,
        .store = w->store,
        .key = w->key,
        .publish_epoch = 1,
        .journal_size = 4 * 1024 * 1024,
        .cache_size = 256 * 1024,
        .segment_size = 64 * 1024,
        .checkpoint_segments = 12,
        .runs_max = 3,
    };
}

static void open_volume(struct world *w) {
    struct volume_config c = small_config(w);
    struct err e = {0};
    if (volume_open(&c, &w->v, &e) < 0)
        fail_msg("%s", e.text);
}

struct sync_request {
    struct bd_request req;
    struct fiber_done done;
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct sync_request, req)->done);
}

static int request(struct world *w, struct volume *v, enum bd_op op, unsigned flags, uint64_t off,
                   uint64_t len, void *buf) {
    struct sync_request s = {
        .req = {.op = op, .flags = flags, .off = off, .len = len, .done = on_done}};
    if (op == BD_READ)
        s.req.read_buf = buf;
    else if (op == BD_WRITE)
        s.req.write_data = buf;
    fiber_done_init(&s.done);
    if (!bd_submit(volume_blockdev(v), &s.req))
        fiber_done_wait_always(w->env, &s.done);
    return s.req.rc;
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void free_volume(struct world *w, struct volume *v) {
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(v, on_freed, &freed);
    fiber_done_wait_always(w->env, &freed);
}

static void close_volume(struct world *w) {
    struct err e = {0};
    if (volume_close(w->v, &e) < 0)
        fail_msg("%s", e.text);
    struct volume_status s;
    volume_status(w->v, &s);
    w->merges += s.merges;
    free_volume(w, w->v);
    w->v = NULL;
}

static void write_some(struct world *w, int writes) {
    for (int i = 0; i < writes; i++) {
        uint64_t sectors = VOLUME_SIZE / SECTOR_SIZE;
        uint64_t sector = next_random(w) % sectors;
        uint64_t count = 1 + next_random(w) % MIN(i % 20 ? 40u : 3000u, sectors - sector);
        uint8_t *at = w->image + sector * SECTOR_SIZE;
        uint32_t what = next_random(w) % 10;
        enum bd_op op = what < 8 ? BD_WRITE : what == 8 ? BD_TRIM : BD_WRITE_ZEROES;
        for (uint64_t k = 0; k < count * SECTOR_SIZE; k++)
            at[k] = op == BD_WRITE ? (uint8_t)(what < 4 ? next_random(w) : (uint32_t)i) : 0;
        unsigned flags = next_random(w) % 16 == 0 ? BD_FUA : 0;
        assert_int_equal(request(w, w->v, op, flags, sector * SECTOR_SIZE, count * SECTOR_SIZE, at),
                         0);
        if (next_random(w) % 50 == 0)
            assert_int_equal(request(w, w->v, BD_FLUSH, 0, 0, 0, NULL), 0);
    }
}

static void check_image(struct world *w, struct volume *v) {
    uint8_t *buf = xmalloc(VOLUME_SIZE);
    for (uint64_t off = 0; off < VOLUME_SIZE;) {
        uint64_t len = (1 + next_random(w) % 600) * UINT64_C(512);
        len = MIN(len, VOLUME_SIZE - off);
        assert_int_equal(request(w, v, BD_READ, 0, off, len, buf), 0);
        if (memcmp(buf, w->image + off, len) != 0) {
            uint64_t at = 0;
            while (buf[at] == w->image[off + at])
                at++;
            fail_msg("byte %llu is %u, not %u", (unsigned long long)(off + at), buf[at],
                     w->image[off + at]);
        }
        off += len;
    }
    assert_int_equal(request(w, v, BD_READ, 0, 0, VOLUME_SIZE, buf), 0);
    assert_memory_equal(buf, w->image, VOLUME_SIZE);
    free(buf);
}

/* --- scenarios --- */

static void life(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    check_image(w, w->v);
    struct volume_status s;
    for (int round = 0; round < 4; round++) {
        write_some(w, WRITES / 4);
        check_image(w, w->v);
        volume_status(w->v, &s);
        assert_true(s.checkpoints > 0);
        close_volume(w);
        open_volume(w);
        check_image(w, w->v);
    }
    assert_true(w->merges > 0);
    volume_status(w->v, &s);
    assert_int_equal(s.health, VOLUME_HEALTH_OK);
    assert_true(s.run_count <= 4);
    close_volume(w);
    w->finished = true;
}

static void crash(void *arg) {
    struct world *w = arg;
    create_volume(w);
    for (int round = 0; round < 6; round++) {
        open_volume(w);
        check_image(w, w->v);
        write_some(w, 200);
        assert_int_equal(request(w, w->v, BD_FLUSH, 0, 0, 0, NULL), 0);
        free_volume(w, w->v);
    }
    open_volume(w);
    check_image(w, w->v);
    close_volume(w);
    w->finished = true;
}

static void two_openers(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    write_some(w, 50);
    assert_int_equal(request(w, w->v, BD_FLUSH, 0, 0, 0, NULL), 0);
    struct volume *old = w->v;
    open_volume(w);
    check_image(w, w->v);
    uint8_t buf[4096] = {1};
    assert_int_equal(request(w, old, BD_WRITE, 0, 0, sizeof buf, buf), 0);
    assert_int_equal(request(w, old, BD_FLUSH, 0, 0, 0, NULL), -ERR_FENCED);
    assert_int_equal(request(w, old, BD_WRITE, 0, 0, sizeof buf, buf), -ERR_FENCED);
    struct volume_status s;
    volume_status(old, &s);
    assert_int_equal(s.health, VOLUME_HEALTH_FENCED);
    write_some(w, 50);
    check_image(w, w->v);
    free_volume(w, old);
    close_volume(w);
    open_volume(w);
    check_image(w, w->v);
    close_volume(w);
    w->finished = true;
}

/* The newest segment is deleted, and something else is put at its key. */
static void replace_newest_segment(struct world *w) {
    char prefix[KEY_MAX];
    key_log_prefix(prefix, &w->key);
    struct obj_list list = {0};
    struct err e;
    assert_int_equal(objstore_list(w->store, prefix, NULL, 1000, &list, &e), 0);
    size_t i = list.count;
    do
        i--;
    while (list.entries[i].size == SEGMENT_FENCE_SIZE);
    const char *key = list.entries[i].key;
    CLEANUP_BUF struct buf body = {0};
    assert_int_equal(objstore_get(w->store, key, SEGMENT_SIZE_MAX, &body, &e), 0);
    for (size_t k = SEGMENT_FENCE_SIZE; k < body.len; k++)
        body.data[k] ^= 0x55;
    assert_int_equal(objstore_delete_one(w->store, key, &e), 0);
    assert_int_equal(objstore_put(w->store, key, buf_view(&body), NULL, &e), 0);
    obj_list_release(&list);
}

static void other_object(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    uint8_t buf[4096];
    for (size_t i = 0; i < sizeof buf; i++)
        buf[i] = (uint8_t)next_random(w);
    assert_int_equal(request(w, w->v, BD_WRITE, BD_FUA, 0, sizeof buf, buf), 0);
    close_volume(w);
    open_volume(w); /* with nothing in its caches */
    replace_newest_segment(w);
    struct volume *old = w->v;
    assert_int_equal(request(w, old, BD_READ, 0, 0, sizeof buf, buf), -ERR_CORRUPT);
    open_volume(w);
    struct volume_status s;
    volume_status(old, &s);
    assert_int_equal(s.health, VOLUME_HEALTH_OK);
    assert_int_equal(request(w, old, BD_READ, 0, 0, sizeof buf, buf), -ERR_FENCED);
    volume_status(old, &s);
    assert_int_equal(s.health, VOLUME_HEALTH_FENCED);
    free_volume(w, old);
    close_volume(w);
    w->finished = true;
}

static void grow(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    write_some(w, 20);
    struct err e = {0};
    assert_int_equal(volume_grow(w->v, 4097, &e), -ERR_INVALID);
    assert_int_equal(volume_grow(w->v, UINT64_C(1) << 40, &e), 0);
    assert_int_equal(volume_grow(w->v, VOLUME_SIZE, &e), 0); /* smaller: nothing happens */
    assert_int_equal(bd_size_bytes(volume_blockdev(w->v)), UINT64_C(1) << 40);
    uint8_t buf[512] = {7}, back[512];
    uint64_t last = (UINT64_C(1) << 40) - 512;
    assert_int_equal(request(w, w->v, BD_WRITE, 0, last, 512, buf), 0);
    close_volume(w);
    open_volume(w);
    assert_int_equal(bd_size_bytes(volume_blockdev(w->v)), UINT64_C(1) << 40);
    assert_int_equal(request(w, w->v, BD_READ, 0, last, 512, back), 0);
    assert_memory_equal(buf, back, 512);
    assert_int_equal(request(w, w->v, BD_TRIM, 0, 0, UINT64_C(1) << 40, NULL), 0);
    memset(w->image, 0, VOLUME_SIZE);
    check_image(w, w->v);
    assert_int_equal(request(w, w->v, BD_READ, 0, last, 512, back), 0);
    assert_int_equal(back[0], 0);
    close_volume(w);
    w->finished = true;
}

static void status_request(struct world *w, uint64_t off, uint64_t len, unsigned flags,
                           struct bd_extent *items, size_t *ret_count) {
    struct sync_request s = {
        .req = {.op = BD_BLOCK_STATUS, .flags = flags, .off = off, .len = len, .done = on_done}};
    s.req.extents.items = items;
    fiber_done_init(&s.done);
    if (!bd_submit(volume_blockdev(w->v), &s.req))
        fiber_done_wait_always(w->env, &s.done);
    assert_int_equal(s.req.rc, 0);
    *ret_count = s.req.extents.count;
}

static void block_status(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    uint8_t buf[8192] = {1, [4096] = 1};
    static struct bd_extent items[BD_STATUS_EXTENTS_MAX];
    size_t count;
    for (int stored = 0; stored < 2; stored++) {
        assert_int_equal(request(w, w->v, BD_WRITE, 0, 8192, 8192, buf), 0);
        assert_int_equal(request(w, w->v, BD_TRIM, 0, 8192 + 512, 512, NULL), 0);
        assert_int_equal(request(w, w->v, BD_WRITE_ZEROES, BD_NO_HOLE, 65536, 4096, NULL), 0);
        if (stored) {
            struct err e = {0};
            assert_int_equal(volume_checkpoint(w->v, &e), 0);
        }
        status_request(w, 0, VOLUME_SIZE, 0, items, &count);
        const struct bd_extent want[] = {{8192, 3},
                                         {512, 0},
                                         {512, 3},
                                         {7168, 0},
                                         {49152, 3},
                                         {4096, 2},
                                         {VOLUME_SIZE - 69632, 3}};
        assert_int_equal(count, ARRAY_LEN(want));
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(items[i].len, want[i].len);
            assert_int_equal(items[i].state, want[i].state);
        }
        status_request(w, 8192, 1024, BD_REQ_ONE, items, &count);
        assert_int_equal(count, 1);
        assert_int_equal(items[0].len, 512);
    }
    close_volume(w);
    w->finished = true;
}

/* Segments without a checkpoint, until writes wait for one. */
static void fill_backlog(struct world *w) {
    struct volume_config c = small_config(w);
    c.checkpoint_segments = UINT32_MAX;
    struct err e = {0};
    if (volume_open(&c, &w->v, &e) < 0)
        fail_msg("%s", e.text);
    for (int i = 0; i < 4096; i++)
        assert_int_equal(request(w, w->v, BD_WRITE, BD_FUA, 0, 4096, w->image), 0);
}

static void backlog(void *arg) {
    struct world *w = arg;
    struct err e = {0};
    create_volume(w);
    memset(w->image, 1, 4096);
    fill_backlog(w);
    assert_int_equal(request(w, w->v, BD_WRITE, 0, 0, 4096, w->image), 0);
    close_volume(w);
    fill_backlog(w);
    memset(w->image, 2, 4096);
    struct sync_request last = {
        .req = {.op = BD_WRITE, .len = 4096, .write_data = w->image, .done = on_done}};
    fiber_done_init(&last.done);
    assert_false(bd_submit(volume_blockdev(w->v), &last.req));
    assert_int_equal(volume_close(w->v, &e), 0); /* in the same turn: with a write that waits */
    assert_true(last.done.done);
    assert_int_equal(last.req.rc, 0);
    free_volume(w, w->v);
    open_volume(w);
    check_image(w, w->v);
    close_volume(w);
    w->finished = true;
}

/* Any size that an option can say is served: too small ones are raised, odd ones rounded up. */
static void journal_sizes(void *arg) {
    struct world *w = arg;
    create_volume(w);
    const uint64_t sizes[] = {1, 1024 * 1024, 5000001, UINT64_C(1) << 40};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct volume_config c = small_config(w);
        c.journal_size = sizes[i];
        c.segment_size = 0;
        struct err e = {0};
        if (volume_open(&c, &w->v, &e) < 0)
            fail_msg("%s", e.text);
        struct volume_status s;
        volume_status(w->v, &s);
        assert_true(s.journal_size >= sizes[i]);
        write_some(w, 200);
        memset(w->image, (int)i, VOLUME_SIZE);
        assert_int_equal(request(w, w->v, BD_WRITE, 0, 0, VOLUME_SIZE, w->image), 0);
        close_volume(w);
        open_volume(w);
        check_image(w, w->v);
        close_volume(w);
    }
    w->finished = true;
}

/* Whoever drops a volume with requests under way hears ESHUTDOWN from each of them. */
static void dropped(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    write_some(w, 300);
    close_volume(w);
    static struct bd_extent items[BD_STATUS_EXTENTS_MAX];
    for (int turns = 0; turns < 12; turns++) {
        open_volume(w);
        uint8_t *buf = xmalloc(VOLUME_SIZE);
        struct sync_request r[3] = {
            {.req = {.op = BD_READ, .len = VOLUME_SIZE, .read_buf = buf, .done = on_done}},
            {.req = {.op = BD_CACHE, .len = VOLUME_SIZE, .done = on_done}},
            {.req = {.op = BD_BLOCK_STATUS, .len = VOLUME_SIZE, .done = on_done}}};
        r[2].req.extents.items = items;
        for (size_t i = 0; i < ARRAY_LEN(r); i++) {
            fiber_done_init(&r[i].done);
            assert_false(bd_submit(volume_blockdev(w->v), &r[i].req));
        }
        for (int t = 0; t < turns; t++)
            assert_int_equal(fiber_yield(w->env), 0);
        free_volume(w, w->v);
        for (size_t i = 0; i < ARRAY_LEN(r); i++) {
            assert_true(r[i].done.done);
            if (r[i].req.rc != 0)
                assert_int_equal(r[i].req.rc, -ERR_SHUTDOWN);
        }
        free(buf);
    }
    w->finished = true;
}

/* --- set-up --- */

static void run(void (*scenario)(void *arg)) {
    struct world w = {.seed = 42};
    virtual_env_init(&w.venv, 1);
    w.env = &w.venv.env;
    w.bucket = memory_store_new();
    w.store = objstore_retry_new(objstore_memory_open(w.env, w.bucket), &(struct retry_options){0});
    id_format_key(&w.key, ID_VOLUME, "0123456789abcdef0123456789abcdef", 1);
    w.image = xcalloc(1, VOLUME_SIZE);
    virtual_env_call(&w.venv, scenario, &w);
    assert_true(w.finished);
    objstore_close(w.store);
    memory_store_free(w.bucket);
    virtual_env_release(&w.venv);
    free(w.image);
}

static void test_life(void **state) {
    (void)state;
    run(life);
}

static void test_crash(void **state) {
    (void)state;
    run(crash);
}

static void test_other_object(void **state) {
    (void)state;
    run(other_object);
}

static void test_two_openers(void **state) {
    (void)state;
    run(two_openers);
}

static void test_grow(void **state) {
    (void)state;
    run(grow);
}

static void test_block_status(void **state) {
    (void)state;
    run(block_status);
}

static void test_backlog(void **state) {
    (void)state;
    run(backlog);
}

static void test_journal_sizes(void **state) {
    (void)state;
    run(journal_sizes);
}

static void test_dropped(void **state) {
    (void)state;
    run(dropped);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),         cmocka_unit_test(test_crash),
        cmocka_unit_test(test_other_object), cmocka_unit_test(test_two_openers),
        cmocka_unit_test(test_grow),         cmocka_unit_test(test_block_status),
        cmocka_unit_test(test_backlog),      cmocka_unit_test(test_journal_sizes),
        cmocka_unit_test(test_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
