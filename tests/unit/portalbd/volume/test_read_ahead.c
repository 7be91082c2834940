/* Read-ahead: what a sequential reader costs in time and requests, and what it must not do. */
#include "tests/support/test.h"

#include <stdlib.h>

#include "portalbd/volume/volume_internal.h"
#include "tests/support/volume_rig.h"

enum { MI = 1024 * 1024, SIZE = 64 * MI, LATENCY_US = 15 * 1000 };

static const struct volume_config config = {.cache_size = 16 * MI, .journal_size = 64 * MI};

/* A cold volume that is full of data, whose store takes its time to answer GETs. */
static void make_cold(struct volume_rig *r) {
    rig_write(r, 0, SIZE, 1);
    rig_reopen(r);
    objstore_fault_add(r->fault, &(struct fault_rule){.kind = FAULT_DELAY,
                                                      .verbs = 1 << OBJ_GET,
                                                      .delay_us_min = LATENCY_US,
                                                      .delay_us_max = LATENCY_US});
}

static void read_at(struct volume_rig *r, uint64_t off, uint64_t len) {
    uint8_t *buf = xmalloc(len), *want = xmalloc(len);
    assert_int_equal(rig_do(r, BD_READ, 0, off, len, buf), 0);
    rig_fill(want, off, len, 1);
    assert_memory_equal(buf, want, len);
    free(buf);
    free(want);
}

static uint64_t read_sequence(struct volume_rig *r, uint64_t off, uint64_t len, uint64_t step) {
    uint64_t start = env_now_us(r->env);
    for (uint64_t done = 0; done < len; done += step)
        read_at(r, off + done, step);
    return env_now_us(r->env) - start;
}

/* --- what it is for --- */

static void sequence(struct volume_rig *r) {
    make_cold(r);
    uint64_t gets = rig_gets(r);
    uint64_t us = read_sequence(r, 0, 32 * MI, 128 * 1024);
    /* Alone, 256 READs would wait 256 times. With up to 4 MiB ahead it is once for each window. */
    assert_in_range(us, LATENCY_US, 20 * LATENCY_US);
    assert_in_range(rig_gets(r) - gets, 32, 100);
    struct volume_status s = rig_status(r);
    assert_int_equal(s.read_streams, 1);
    assert_in_range(s.read_ahead_bytes, 30 * MI, 32 * MI + read_ahead_budget(config.cache_size));
}

/* READs at depth 8 that come in pairs swapped, as from several queues. */
static void swapped(struct volume_rig *r) {
    enum { DEPTH = 8, LEN = 256 * 1024 };
    make_cold(r);
    uint64_t gets = rig_gets(r);
    uint8_t *buf = xmalloc(DEPTH * LEN), *want = xmalloc(LEN);
    for (uint64_t off = 0; off < 16 * MI; off += DEPTH * LEN) {
        struct rig_request q[DEPTH];
        for (uint64_t i = 0; i < DEPTH; i++)
            rig_submit(r, &q[i ^ 1], BD_READ, 0, off + (i ^ 1) * LEN, LEN, buf + (i ^ 1) * LEN);
        for (uint64_t i = 0; i < DEPTH; i++) {
            assert_int_equal(rig_wait(r, &q[i]), 0);
            rig_fill(want, off + i * LEN, LEN, 1);
            assert_memory_equal(buf + i * LEN, want, LEN);
        }
    }
    assert_in_range(rig_gets(r) - gets, 16, 50); /* 64 READs */
    free(buf);
    free(want);
}

static void two_readers(struct volume_rig *r) {
    make_cold(r);
    uint64_t start = env_now_us(r->env);
    for (uint64_t off = 0; off < 16 * MI; off += 128 * 1024) {
        read_at(r, off, 128 * 1024);
        read_at(r, off + 32 * MI, 128 * 1024);
        read_at(r, (off * 7919 + 4096 * 5) % (16 * MI) + 16 * MI, 4096); /* and somebody else */
    }
    assert_int_equal(rig_status(r).read_streams, 2);
    assert_in_range(rig_status(r).read_ahead_bytes, 28 * MI, 40 * MI);
    /* The 128 random READs wait one by one; the others hardly ever. */
    assert_in_range(env_now_us(r->env) - start, 0, (128 + 50) * LATENCY_US);
}

/* --- what it must not do --- */

static void random_reads(struct volume_rig *r) {
    make_cold(r);
    uint64_t at = 1;
    for (int i = 0; i < 2000; i++) {
        at = at * UINT64_C(6364136223846793005) + 1442695040888963407u;
        read_at(r, (at >> 40) % (SIZE / 4096) * 4096, 4096);
    }
    /* READs that happen to lie behind another; ones beside a READ just before are not enough. */
    assert_in_range(rig_status(r).read_ahead_bytes, 0, 4 * MI);
}

static void pattern_breaks(struct volume_rig *r) {
    make_cold(r);
    read_sequence(r, 0, 8 * MI, 128 * 1024);
    assert_int_equal(fiber_sleep_us(r->env, 1000 * 1000), 0);
    uint64_t fetched = rig_status(r).read_ahead_bytes, gets = rig_gets(r);
    assert_in_range(fetched, 7 * MI, 8 * MI + read_ahead_budget(config.cache_size));
    for (uint64_t i = 1; i < 20; i++)
        read_at(r, SIZE - i * 2 * MI, 4096);
    assert_int_equal(rig_status(r).read_ahead_bytes, fetched);
    assert_in_range(rig_gets(r) - gets, 19, 22); /* a page of the map or two among them */
}

static void small_cache(struct volume_rig *r) {
    make_cold(r);
    read_sequence(r, 0, 4 * MI, 4096);
    struct volume_status s = rig_status(r);
    assert_in_range(s.read_ahead_bytes, 3 * MI, 5 * MI); /* nothing was fetched twice */
    assert_in_range(s.cache_bytes, 1, 256 * 1024);
}

/* What is in use stays, though a scan reads twice the cache. */
static void hot_data_stays(struct volume_rig *r) {
    make_cold(r);
    for (int i = 0; i < 3; i++)
        for (uint64_t at = 0; at < 8 * MI; at += 64 * 1024)
            read_at(r, 32 * MI + (at * 37) % (8 * MI), 64 * 1024);
    read_sequence(r, 0, 32 * MI, 128 * 1024);
    uint64_t misses = rig_status(r).cache_misses;
    for (uint64_t at = 0; at < 8 * MI; at += 64 * 1024)
        read_at(r, 32 * MI + (at * 37) % (8 * MI), 64 * 1024);
    assert_in_range(rig_status(r).cache_misses - misses, 0, 8);
}

/* A write while the same sectors are on their way from the store. */
static void write_meanwhile(struct volume_rig *r) {
    make_cold(r);
    for (uint64_t off = 0; list_empty(&r->v->misses); off += 128 * 1024)
        read_at(r, off, 128 * 1024);
    const struct read_op *op = list_entry(r->v->misses.prev, struct read_op, node);
    uint64_t at = (op->sector + op->count / 2) * SECTOR_SIZE;
    uint8_t buf[4096], got[4096];
    rig_fill(buf, 0, sizeof buf, 9);
    struct rig_request q;
    rig_submit(r, &q, BD_READ, 0, at, sizeof got, got);
    assert_false(q.done.done);
    assert_int_equal(rig_do(r, BD_WRITE, 0, at, sizeof buf, buf), 0);
    assert_int_equal(rig_wait(r, &q), 0);
    assert_int_equal(rig_do(r, BD_READ, 0, at, sizeof got, got), 0);
    assert_memory_equal(got, buf, sizeof buf);
    assert_int_equal(rig_do(r, BD_FLUSH, 0, 0, 0, NULL), 0);
    assert_int_equal(fiber_sleep_us(r->env, 1000 * 1000), 0);
    assert_int_equal(rig_do(r, BD_READ, 0, at, sizeof got, got), 0);
    assert_memory_equal(got, buf, sizeof buf);
}

/* READs of the same cold sectors at the same time cost one GET. */
static void one_get_for_all(struct volume_rig *r) {
    make_cold(r);
    read_at(r, 6 * MI, 4096); /* a page of the map */
    uint64_t gets = rig_gets(r);
    struct rig_request q[6];
    uint8_t buf[6][4096];
    for (size_t i = 0; i < ARRAY_LEN(q); i++)
        rig_submit(r, &q[i], BD_READ, 0, 5 * MI, 4096, buf[i]);
    for (size_t i = 0; i < ARRAY_LEN(q); i++) {
        assert_int_equal(rig_wait(r, &q[i]), 0);
        assert_memory_equal(buf[i], buf[0], 4096);
    }
    assert_int_equal(rig_gets(r) - gets, 1);
    assert_int_equal(rig_status(r).read_waits, 5);
}

/* The volume goes away in the middle of it. */
static void dropped(struct volume_rig *r) {
    for (uint64_t us = 0; us < 3 * LATENCY_US; us += 4000) {
        if (us == 0)
            make_cold(r);
        else
            rig_open(r);
        struct rig_request q[4];
        uint8_t *buf = xmalloc(MI);
        for (uint64_t i = 0; i < ARRAY_LEN(q); i++)
            rig_submit(r, &q[i], BD_READ, 0, i * MI / 4, MI / 4, buf + i * MI / 4);
        assert_int_equal(fiber_sleep_us(r->env, us), 0);
        rig_drop(r);
        for (size_t i = 0; i < ARRAY_LEN(q); i++)
            assert_true(q[i].done.done);
        free(buf);
    }
}

#define RIG_TEST(name)                                                                             \
    static void test_##name(void **state) {                                                        \
        (void)state;                                                                               \
        rig_run(SIZE, &config, name);                                                              \
    }
RIG_TEST(sequence)
RIG_TEST(swapped)
RIG_TEST(two_readers)
RIG_TEST(random_reads)
RIG_TEST(pattern_breaks)
RIG_TEST(hot_data_stays)
RIG_TEST(write_meanwhile)
RIG_TEST(one_get_for_all)
RIG_TEST(dropped)

static void test_small_cache(void **state) {
    (void)state;
    struct volume_config c = config;
    c.cache_size = 256 * 1024;
    rig_run(SIZE, &c, small_cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sequence),        cmocka_unit_test(test_swapped),
        cmocka_unit_test(test_two_readers),     cmocka_unit_test(test_random_reads),
        cmocka_unit_test(test_pattern_breaks),  cmocka_unit_test(test_small_cache),
        cmocka_unit_test(test_hot_data_stays),  cmocka_unit_test(test_write_meanwhile),
        cmocka_unit_test(test_one_get_for_all), cmocka_unit_test(test_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
