/* The disk cache against a plain model: what is found is what was put there, however often the ring
 * went round; and what its errors do. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/fiber.h"
#include "portalbd/cache/disk_cache.h"
#include "tests/support/memory_medium.h"
#include "tests/support/virtual_env.h"

enum { OBJECTS = 60, OBJECT_SIZE = 3 * 1024 * 1024, ROUNDS = 3000 };

struct world {
    struct virtual_env v;
    struct memory_medium m;
    struct disk_cache *c;
    uint64_t seed;
    bool finished;
};

static uint32_t next_random(struct world *w) {
    w->seed = w->seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33);
}

static uint8_t byte_of(uint64_t object, uint64_t off) {
    uint64_t x = (object * OBJECT_SIZE + off) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint8_t)(x >> 40);
}

/* fiber. Puts frames of these lengths at off. */
static int fill(struct world *w, uint64_t object, uint32_t off, const uint16_t *lens, size_t count,
                struct err *e) {
    struct buf bytes = {0};
    uint32_t len = 0;
    for (size_t i = 0; i < count; i++)
        len += lens[i];
    buf_reserve(&bytes, len);
    for (uint32_t i = 0; i < len; i++)
        bytes.data[i] = byte_of(object, off + i);
    bytes.len = len;
    struct disk_key key = {.volume = 7, .object = object};
    struct disk_fill *f = disk_fill_new(w->c, &key, off, &bytes);
    if (!f)
        return 0;
    disk_fill_frames(f, off, lens, count);
    return disk_fill_run(f, e);
}

static bool check(struct world *w, uint64_t object, uint32_t off, uint32_t len) {
    struct disk_key key = {.volume = 7, .object = object};
    struct err e = {0};
    uint64_t pos;
    if (!disk_cache_find(w->c, &key, off, len, &pos))
        return false;
    uint8_t *buf = xmalloc(len);
    assert_int_equal(disk_cache_read(w->c, pos, buf, len, &e), 0);
    assert_true(disk_cache_still_valid(w->c, pos));
    for (uint32_t i = 0; i < len; i++)
        assert_int_equal(buf[i], byte_of(object, off + i));
    free(buf);
    return true;
}

static void run(void (*test)(struct world *w)) {
    struct world w = {.seed = 5};
    virtual_env_init(&w.v, 1);
    memory_medium_init(&w.m, DISK_CACHE_SIZE_MIN + 4096 * 3);
    w.c = disk_cache_new(&w.v.env, &w.m.medium);
    virtual_env_call(&w.v, (void (*)(void *))test, &w);
    assert_true(w.finished);
    disk_cache_free(w.c);
    memory_medium_release(&w.m);
    virtual_env_release(&w.v);
}

/* --- tests --- */

static void model(struct world *w) {
    struct err e = {0};
    uint16_t lens[128];
    uint64_t hits = 0, tries = 0;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t object = 1 + next_random(w) % OBJECTS;
        size_t count = 1 + next_random(w) % (round % 8 ? 12 : ARRAY_LEN(lens));
        uint32_t off = 96 + next_random(w) % (OBJECT_SIZE / 2);
        for (size_t i = 0; i < count; i++)
            lens[i] = (uint16_t)(round % 3 ? 16396 : 30 + next_random(w) % 16000);
        assert_int_equal(fill(w, object, off, lens, count, &e), 0);
        /* Any stretch of these frames is found. */
        size_t first = next_random(w) % count, n = 1 + next_random(w) % (count - first);
        uint32_t from = off, len = 0;
        for (size_t i = 0; i < first + n; i++)
            *(i < first ? &from : &len) += lens[i];
        assert_true(check(w, object, from, len));
        /* Anything else is right if it is found. */
        for (int i = 0; i < 4; i++, tries++)
            hits += check(w, 1 + next_random(w) % OBJECTS, next_random(w) % OBJECT_SIZE,
                          1 + next_random(w) % 20000);
    }
    struct disk_cache_stats s = disk_cache_stats(w->c);
    assert_true(s.filled_bytes > 3 * DISK_CACHE_SIZE_MIN);
    assert_in_range(s.bytes, DISK_CACHE_SIZE_MIN / 3, w->m.medium.size);
    assert_in_range(hits, tries / 50, tries);
    assert_false(s.off);
    w->finished = true;
}

/* Small frames only: the index is what is full. */
static void small_frames(struct world *w) {
    struct err e = {0};
    uint16_t len = 600;
    for (uint32_t i = 0; i < 20000; i++)
        assert_int_equal(fill(w, 1 + i / 100, 96 + i % 100 * 6000, &len, 1, &e), 0);
    assert_true(check(w, 200, 96 + 99 * 6000, 600));
    assert_false(check(w, 1, 96, 600));
    assert_in_range(disk_cache_stats(w->c).bytes, 600 * 4000, 600 * 4300);
    w->finished = true;
}

/* A read that began before its bytes were overwritten knows that. */
static void overwritten(struct world *w) {
    struct err e = {0};
    uint16_t lens[128];
    for (size_t i = 0; i < ARRAY_LEN(lens); i++)
        lens[i] = 16000;
    assert_int_equal(fill(w, 1, 96, lens, 1, &e), 0);
    struct disk_key key = {.volume = 7, .object = 1};
    uint64_t pos;
    assert_true(disk_cache_find(w->c, &key, 96, 16000, &pos));
    for (uint64_t i = 0; i < 33; i++)
        assert_int_equal(fill(w, 2 + i, 96, lens, ARRAY_LEN(lens), &e), 0);
    assert_false(disk_cache_still_valid(w->c, pos));
    assert_false(disk_cache_find(w->c, &key, 96, 16000, &pos));
    w->finished = true;
}

static void errors(struct world *w) {
    struct err e = {0};
    uint16_t len = 5000;
    assert_int_equal(fill(w, 1, 96, &len, 1, &e), 0);
    w->m.fail_writes = true;
    assert_int_equal(fill(w, 2, 96, &len, 1, &e), -ERR_IO);
    assert_false(check(w, 2, 96, 5000));
    disk_cache_turn_off(w->c);
    assert_false(check(w, 1, 96, 5000));
    w->m.fail_writes = false;
    uint64_t writes = w->m.writes;
    assert_int_equal(fill(w, 3, 96, &len, 1, &e), 0); /* not even tried */
    assert_int_equal(w->m.writes, writes);
    w->finished = true;
}

#define TEST(name)                                                                                 \
    static void test_##name(void **state) {                                                        \
        (void)state;                                                                               \
        run(name);                                                                                 \
    }
TEST(model)
TEST(small_frames)
TEST(overwritten)
TEST(errors)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model), cmocka_unit_test(test_small_frames),
        cmocka_unit_test(test_overwritten), cmocka_unit_test(test_errors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
