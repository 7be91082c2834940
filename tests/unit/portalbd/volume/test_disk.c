/* A volume with a disk cache: what was read or written once costs no GET, and a bad disk no more
 * than that. */
#include "tests/support/test.h"

#include <stdlib.h>

#include "portalbd/volume/volume_internal.h"
#include "tests/support/memory_medium.h"
#include "tests/support/volume_rig.h"

enum { MI = 1024 * 1024, SIZE = 32 * MI };

static struct memory_medium medium;

static void settle(struct volume_rig *r) {
    assert_int_equal(rig_do(r, BD_FLUSH, 0, 0, 0, NULL), 0);
    assert_int_equal(fiber_sleep_us(r->env, 1000 * 1000), 0);
}

/* The RAM cache of 1 MiB holds nothing of what is read next. */
static void reads(struct volume_rig *r) {
    rig_write(r, 0, SIZE, 1);
    rig_reopen(r); /* the index is gone: cold */
    assert_int_equal(rig_status(r).disk_cache_bytes, 0);
    rig_check(r, 0, SIZE, 1);
    settle(r);
    assert_in_range(rig_status(r).disk_cache_bytes, SIZE, SIZE + MI);
    uint64_t gets = rig_gets(r);
    rig_check(r, 0, SIZE, 1);
    uint8_t got[8192], want[8192];
    for (uint64_t i = 0; i < 200; i++) {
        uint64_t off = i * 7919 * 512 % (SIZE - sizeof got);
        assert_int_equal(rig_do(r, BD_READ, 0, off, sizeof got, got), 0);
        rig_fill(want, off, sizeof want, 1);
        assert_memory_equal(got, want, sizeof got);
    }
    assert_in_range(rig_gets(r) - gets, 0, 2);
    assert_int_equal(rig_status(r).disk_cache_size, medium.medium.size);
}

static void writes(struct volume_rig *r) {
    for (uint64_t off = 0; off < 16 * MI; off += 4 * MI) {
        rig_write(r, off, 4 * MI, 1);
        settle(r);
    }
    rig_write(r, 4 * MI, MI, 2); /* over older ones */
    settle(r);
    uint64_t gets = rig_gets(r);
    rig_check(r, 0, 4 * MI, 1);
    rig_check(r, 4 * MI, MI, 2);
    rig_check(r, 5 * MI, 11 * MI, 1);
    assert_int_equal(rig_gets(r), gets);
}

static void bad_disk(struct volume_rig *r) {
    for (int kind = 0; kind < 3; kind++) {
        rig_write(r, 0, 8 * MI, 1 + (unsigned)kind);
        settle(r);
        medium.fail_reads = kind == 0;
        medium.flip = kind == 1;
        medium.fail_writes = kind == 2;
        if (kind == 2)
            rig_write(r, 8 * MI, 8 * MI, 1);
        settle(r);
        rig_check(r, 0, 8 * MI, 1 + (unsigned)kind);
        struct volume_status s = rig_status(r);
        assert_true(s.disk_cache_off);
        assert_int_equal(s.health, VOLUME_HEALTH_OK);
        uint64_t n = medium.reads + medium.writes;
        rig_check(r, 0, 8 * MI, 1 + (unsigned)kind);
        assert_int_equal(medium.reads + medium.writes, n);
        medium.fail_reads = medium.flip = medium.fail_writes = false;
        rig_reopen(r);
        assert_false(rig_status(r).disk_cache_off);
    }
}

/* The disk is smaller than what is read, again and again. */
static void too_small(struct volume_rig *r) {
    rig_write(r, 0, 96 * MI, 1);
    for (int i = 0; i < 3; i++)
        rig_check(r, 0, 96 * MI, 1);
    uint8_t got[4096], want[4096];
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t off = i * 7919 * 4096 % (96 * MI);
        assert_int_equal(rig_do(r, BD_READ, 0, off, sizeof got, got), 0);
        rig_fill(want, off, sizeof want, 1);
        assert_memory_equal(got, want, sizeof got);
    }
    assert_true(rig_status(r).disk_cache_bytes <= medium.medium.size);
    assert_true(rig_status(r).disk_cache_hits > 0);
    assert_false(rig_status(r).disk_cache_off);
}

/* Dropped while fills and reads are under way. */
static void dropped(struct volume_rig *r) {
    rig_write(r, 0, SIZE, 1);
    for (int turns = 0; turns < 60; turns += 3) {
        struct rig_request q[4];
        uint8_t *buf = xmalloc(4 * MI);
        for (uint64_t i = 0; i < ARRAY_LEN(q); i++)
            rig_submit(r, &q[i], i % 2 ? BD_READ : BD_WRITE, 0, i * 2 * MI, MI, buf + i * MI);
        for (int t = 0; t < turns; t++)
            assert_int_equal(fiber_yield(r->env), 0);
        rig_drop(r);
        for (uint64_t i = 0; i < ARRAY_LEN(q); i++)
            assert_true(q[i].done.done);
        free(buf);
        rig_open(r);
    }
}

static void run(uint64_t size, void (*test)(struct volume_rig *r)) {
    memory_medium_init(&medium, DISK_CACHE_SIZE_MIN);
    struct volume_config c = {.cache_size = MI, .journal_size = 64 * MI, .disk = &medium.medium};
    rig_run(size, &c, test);
    memory_medium_release(&medium);
}

#define RIG_TEST(name, size)                                                                       \
    static void test_##name(void **state) {                                                        \
        (void)state;                                                                               \
        run(size, name);                                                                           \
    }
RIG_TEST(reads, SIZE)
RIG_TEST(writes, SIZE)
RIG_TEST(bad_disk, SIZE)
RIG_TEST(too_small, 96 * MI)
RIG_TEST(dropped, SIZE)

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reads), cmocka_unit_test(test_writes),
                                       cmocka_unit_test(test_bad_disk),
                                       cmocka_unit_test(test_too_small),
                                       cmocka_unit_test(test_dropped)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
