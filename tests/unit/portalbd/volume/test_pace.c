/* Pacing, and what a slow PUT does to everything else. */
#include "tests/support/test.h"

#include <stdlib.h>

#include "portalbd/volume/volume_internal.h"
#include "tests/support/volume_rig.h"

enum { MI = 1024 * 1024, SIZE = 256 * MI, MS = 1000 };

/* --- the arithmetic --- */

static void test_admit(void **state) {
    (void)state;
    enum { RING = 64 * MI };
    struct pace p = {0};
    assert_int_equal(pace_admit(&p, 1000, RING, RING, MI, PACE_FREE), 0); /* nothing is known */
    pace_start(&p, 1000);
    pace_freed(&p, 1000 + 1000 * MS, 100 * MI, true);
    assert_int_equal(p.rate, 100 * MI);
    uint64_t now = 2000 * MS;
    for (int i = 0; i < 100; i++)
        assert_int_equal(pace_admit(&p, now, RING / 4 * 3 - 1, RING, MI, PACE_FREE), 0);
    /* At 7/8 as fast as it drains: one MiB in 10 ms. */
    assert_int_equal(pace_admit(&p, now, RING / 8 * 7, RING, MI, PACE_FREE), 0);
    assert_in_range(pace_admit(&p, now, RING / 8 * 7, RING, MI, PACE_FREE), 9 * MS, 11 * MS);
    now += 10 * MS;
    assert_int_equal(pace_admit(&p, now, RING / 8 * 7, RING, MI, PACE_FREE), 0);
    now += 10 * MS;
    /* Nearly full: slower, but never stopped. */
    assert_int_equal(pace_admit(&p, now, RING - MI, RING, MI, PACE_FREE), 0);
    assert_in_range(pace_admit(&p, now, RING - MI, RING, MI, PACE_FREE), 60 * MS, 1000 * MS);
}

static void test_rate(void **state) {
    (void)state;
    struct pace p = {0};
    pace_start(&p, 1000);
    pace_freed(&p, 2000, 8 * MI, true); /* too short to say anything */
    assert_int_equal(p.rate, 0);
    pace_start(&p, 5000 * MS);
    for (int i = 1; i <= 20; i++)
        pace_freed(&p, 5000 * MS + (uint64_t)i * 100 * MS, 8 * MI, false);
    assert_in_range(p.rate, 75 * MI, 85 * MI);
    /* Nothing for three seconds: who asks is let in slowly. */
    uint64_t now = 10 * 1000 * MS;
    assert_int_equal(pace_admit(&p, now, 56 * MI, 64 * MI, MI, PACE_FREE), 0);
    assert_in_range(pace_admit(&p, now, 56 * MI, 64 * MI, MI, PACE_FREE), 50 * MS, 1000 * MS);
}

static void test_debt_rate(void **state) {
    (void)state;
    const uint64_t live = UINT64_C(100) * 1024 * MI;
    assert_int_equal(pace_debt_rate(0, 1), PACE_FREE);
    assert_int_equal(pace_debt_rate(live / 100 * 8, live), PACE_FREE);
    assert_in_range(pace_debt_rate(live / 1000 * 95, live), 512 * MI, 1024 * MI);
    assert_in_range(pace_debt_rate(live / 100 * 16, live), 60 * MI, 68 * MI);
    assert_in_range(pace_debt_rate(live / 100 * 32, live), 3 * MI, 5 * MI);
    assert_in_range(pace_debt_rate(live * 10, live), 32 * 1024, 256 * 1024);
    for (uint64_t percent = 10; percent < 300; percent++) /* no step anywhere */
        assert_in_range(pace_debt_rate(live / 100 * percent, live), 1,
                        pace_debt_rate(live / 100 * (percent - 1), live));
    /* Slower than the journal would allow: the journal is empty. */
    struct pace p = {0};
    assert_int_equal(pace_admit(&p, 5000, 0, 64 * MI, MI, 100 * MI), 0);
    assert_in_range(pace_admit(&p, 5000, 0, 64 * MI, MI, 100 * MI), 9 * MS, 11 * MS);
    assert_int_equal(pace_admit(&p, 5000, 0, 64 * MI, MI, PACE_FREE), 0);
}

/* --- in a volume --- */

static const struct volume_config config = {.cache_size = 16 * MI, .journal_size = 64 * MI};

static void delay_puts(struct volume_rig *r, const char *key_part, unsigned times, uint64_t us) {
    objstore_fault_add(r->fault, &(struct fault_rule){.kind = FAULT_DELAY,
                                                      .verbs = 1 << OBJ_PUT,
                                                      .key_part = key_part,
                                                      .times = times,
                                                      .delay_us_min = us,
                                                      .delay_us_max = us});
}

/* A writer that is faster than the store: what it waits for each MiB. */
static void stream(struct volume_rig *r) {
    delay_puts(r, "/log/", 0, 400 * MS); /* at most 7 of 8 MiB at a time: about 140 MiB/s */
    uint8_t *buf = xmalloc(MI);
    uint64_t start = env_now_us(r->env), longest = 0, late = 0;
    for (uint64_t i = 0; i < 1024; i++) {
        rig_fill(buf, i * MI, MI, 1);
        struct rig_request q;
        rig_submit(r, &q, BD_WRITE, 0, i * MI % SIZE, MI, buf);
        assert_int_equal(rig_wait(r, &q), 0);
        if (i < 256)
            continue; /* the rate is not known before something is stored */
        longest = MAX(longest, q.end_us - q.start_us);
        late += q.end_us - q.start_us > 100 * MS;
    }
    uint64_t us = env_now_us(r->env) - start;
    struct volume_status s = rig_status(r);
    assert_in_range(us, 5 * 1000 * MS, 9 * 1000 * MS); /* what the store can take */
    assert_in_range(longest, 1, 250 * MS);             /* without pacing: a PUT's 400 ms */
    assert_in_range(late, 0, 20);
    assert_true(s.write_waits_paced > 100);
    assert_in_range(s.drain_rate, 60 * MI, 300 * MI);
    free(buf);
}

/* One PUT of three seconds in the middle of everything. */
static void one_slow_put(struct volume_rig *r) {
    uint8_t *buf = xmalloc(MI), *got = xmalloc(4096);
    delay_puts(r, NULL, 0, 20 * MS);
    rig_write(r, 0, 16 * MI, 1);
    assert_int_equal(rig_do(r, BD_FLUSH, 0, 0, 0, NULL), 0);
    objstore_fault_clear(r->fault);
    delay_puts(r, "/log/", 1, 3000 * MS);
    delay_puts(r, NULL, 0, 20 * MS);
    struct rig_request before, behind;
    rig_fill(buf, 0, 4096, 2);
    assert_int_equal(rig_do(r, BD_WRITE, 0, 0, 4096, buf), 0);
    rig_submit(r, &before, BD_FLUSH, 0, 0, 0, NULL); /* its segment is the slow one */
    assert_int_equal(fiber_sleep_us(r->env, 5 * MS), 0);
    uint64_t start = env_now_us(r->env), longest = 0, puts = rig_puts(r), cuts = 0;
    /* For two seconds: reads, writes, and segments cut for a FLUSH that go out beside it. */
    rig_submit(r, &behind, BD_FLUSH, 0, 0, 0, NULL);
    for (uint64_t i = 0; env_now_us(r->env) - start < 2000 * MS; i++) {
        struct rig_request q;
        uint64_t off = 4096 + i * 4096 % (8 * MI);
        rig_fill(buf, off, 4096, 3);
        rig_submit(r, &q, BD_WRITE, 0, off, 4096, buf);
        assert_int_equal(rig_wait(r, &q), 0);
        longest = MAX(longest, q.end_us - q.start_us);
        rig_submit(r, &q, BD_READ, 0, off, 4096, got);
        assert_int_equal(rig_wait(r, &q), 0);
        assert_memory_equal(got, buf, 4096);
        longest = MAX(longest, q.end_us - q.start_us);
        assert_int_equal(fiber_sleep_us(r->env, 10 * MS), 0);
        cuts = rig_puts(r) - puts;
    }
    assert_in_range(longest, 0, 5 * MS);
    assert_in_range(cuts, 1, 8);
    assert_false(before.done.done);
    assert_int_equal(rig_wait(r, &before), 0);
    assert_in_range(before.end_us - before.start_us, 2900 * MS, 3200 * MS);
    assert_int_equal(rig_wait(r, &behind), 0);
    struct rig_request after;
    rig_submit(r, &after, BD_FLUSH, 0, 0, 0, NULL);
    assert_int_equal(rig_wait(r, &after), 0);
    assert_in_range(after.end_us - after.start_us, 0, 100 * MS);
    free(buf);
    free(got);
}

/* The same under a stream: bodies in flight stay within the journal, a quarter of the window stays
 * for cuts that a FLUSH waits for. */
static void flush_under_stream(struct volume_rig *r) {
    delay_puts(r, "/log/", 0, 3000 * MS);
    uint8_t *buf = xmalloc(MI);
    struct rig_request w[24];
    for (uint64_t i = 0; i < ARRAY_LEN(w); i++) {
        rig_fill(buf, i * MI, MI, 1);
        rig_submit(r, &w[i], BD_WRITE, 0, i * MI, MI, buf);
        assert_int_equal(rig_wait(r, &w[i]), 0);
        assert_int_equal(fiber_yield(r->env), 0);
    }
    /* 24 segments: the stream's share of the window is used up. Flushes still go out at once. */
    assert_int_equal(fiber_sleep_us(r->env, 1500 * MS), 0);
    struct volume_status s = rig_status(r);
    assert_int_equal(s.segments_in_flight, WINDOW - FLUSH_SLOTS);
    struct rig_request f[4];
    for (uint64_t i = 0; i < ARRAY_LEN(f); i++) {
        assert_int_equal(rig_do(r, BD_WRITE, 0, 0, 4096, buf), 0);
        rig_submit(r, &f[i], BD_FLUSH, 0, 0, 0, NULL);
        assert_int_equal(fiber_sleep_us(r->env, 10 * MS), 0);
    }
    s = rig_status(r);
    assert_int_equal(s.segments_in_flight, WINDOW - FLUSH_SLOTS + ARRAY_LEN(f));
    assert_true(s.journal_used <= s.journal_size);
    for (uint64_t i = 0; i < ARRAY_LEN(f); i++) {
        assert_int_equal(rig_wait(r, &f[i]), 0);
        assert_in_range(f[i].end_us - f[i].start_us, 2900 * MS, 3100 * MS);
    }
    free(buf);
}

static void test_stream(void **state) {
    (void)state;
    rig_run(SIZE, &config, stream);
}

static void test_one_slow_put(void **state) {
    (void)state;
    rig_run(SIZE, &config, one_slow_put);
}

static void test_flush_under_stream(void **state) {
    (void)state;
    struct volume_config c = config;
    c.segment_size = MI;
    rig_run(SIZE, &c, flush_under_stream);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_admit),        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_debt_rate),    cmocka_unit_test(test_stream),
        cmocka_unit_test(test_one_slow_put), cmocka_unit_test(test_flush_under_stream)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
