/* A map that reaches its limit, made small by knobs: writes are refused, everything else goes on.
 */
#include "tests/support/test.h"

#include "portalbd/volume/volume_internal.h"
#include "tests/support/volume_rig.h"

enum { SIZE = 16 * 1024 * 1024, BLOCK = 4096, BLOCKS = SIZE / BLOCK, PARTS = 64 };

static const struct volume_config small = {.publish_epoch = 1,
                                           .journal_size = 4 * 1024 * 1024,
                                           .cache_size = 256 * 1024,
                                           .map_part_size = 1,
                                           .map_page_entries = 4,
                                           .map_parts_max = PARTS};

static int write_block(struct volume_rig *r, uint64_t block, unsigned version) {
    uint8_t data[BLOCK];
    rig_fill(data, block * BLOCK, BLOCK, version);
    return rig_do(r, BD_WRITE, 0, block * BLOCK, BLOCK, data);
}

static void trim(struct volume_rig *r, uint64_t block, uint64_t blocks) {
    assert_int_equal(rig_do(r, BD_TRIM, 0, block * BLOCK, blocks * BLOCK, NULL), 0);
}

static void assert_zero(struct volume_rig *r, uint64_t block) {
    uint8_t data[BLOCK];
    assert_int_equal(rig_do(r, BD_READ, 0, block * BLOCK, BLOCK, data), 0);
    for (size_t i = 0; i < BLOCK; i++)
        assert_int_equal(data[i], 0);
}

static void checkpoint(struct volume_rig *r) {
    struct err e = {0};
    ok(volume_checkpoint(r->v, &e), &e);
}

/* Every other block, so that each is an entry. How many, until the fill is reached or a write is
 * refused. */
static uint64_t fill(struct volume_rig *r, uint64_t percent) {
    for (uint64_t i = 0; i < BLOCKS / 2; i++) {
        int rc = write_block(r, 2 * i, 1);
        if (rc == -ERR_NO_SPACE)
            return i;
        assert_int_equal(rc, 0);
        if (i % 16 == 15)
            checkpoint(r);
        if (rig_status(r).map_fill_percent >= percent)
            return i + 1;
    }
    return BLOCKS / 2;
}

static void check_written(struct volume_rig *r, uint64_t from, uint64_t to) {
    for (uint64_t i = from; i < to; i++)
        rig_check(r, 2 * i * BLOCK, BLOCK, 1);
}

static void assert_full(struct volume_rig *r) {
    struct volume_status st = rig_status(r);
    assert_int_equal(st.health, VOLUME_HEALTH_FULL);
    assert_int_equal(st.why.code, -ERR_NO_SPACE);
    assert_true(st.map_fill_percent >= 100);
    assert_int_equal(write_block(r, 1, 2), -ERR_NO_SPACE);
    assert_int_equal(rig_do(r, BD_WRITE_ZEROES, BD_NO_HOLE, BLOCK, BLOCK, NULL), -ERR_NO_SPACE);
}

static void full(struct volume_rig *r) {
    struct err e = {0};
    uint64_t written = fill(r, UINT64_MAX);
    /* of 64 parts all but a quarter, and of these seven eighths */
    assert_true(written >= 700);
    assert_true(written < 1000);
    assert_full(r);
    check_written(r, 0, written);
    assert_int_equal(rig_do(r, BD_FLUSH, 0, 0, 0, NULL), 0);
    assert_int_equal(rig_do(r, BD_WRITE_ZEROES, 0, BLOCK, BLOCK, NULL), 0);
    checkpoint(r);
    ok(volume_collect(r->v, &e), &e);
    assert_full(r);
    assert_true(rig_status(r).run_count <= 8);
    rig_reopen(r);
    assert_full(r);
    check_written(r, 0, written);
    trim(r, 0, written);
    checkpoint(r);
    assert_int_equal(rig_status(r).health, VOLUME_HEALTH_OK);
    assert_int_equal(write_block(r, 1, 2), 0);
    rig_reopen(r);
    rig_check(r, BLOCK, BLOCK, 2);
    assert_zero(r, 0);
    check_written(r, written / 2 + 1, written);
}

static void test_full(void **state) {
    (void)state;
    rig_run(SIZE, &small, full);
}

/* Just below the limit no merge is too large, however the map is cut up by what is overwritten. */
static void nearly_full(struct volume_rig *r) {
    uint64_t written = fill(r, 90), seed = 1;
    for (unsigned round = 0; round < 200; round++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint64_t first = (seed >> 33) % written, count = 1 + (seed >> 13) % 12;
        for (uint64_t i = first; i < MIN(first + count, written); i++)
            assert_int_equal(write_block(r, 2 * i, 1), 0);
        checkpoint(r);
        assert_null(r->v->merge_too_large.oldest);
    }
    assert_true(r->v->stats.map_parts_reused > 0);
    assert_true(rig_status(r).map_fill_percent <= 100);
    check_written(r, 0, written);
}

static void test_nearly_full(void **state) {
    (void)state;
    rig_run(SIZE, &small, nearly_full);
}

/* Merges that the format cannot hold leave the runs as they are until enough is trimmed. */
static void too_large(struct volume_rig *r) {
    struct err e = {0};
    uint64_t written = fill(r, UINT64_MAX);
    assert_int_equal(written, BLOCKS / 2);
    rig_close(r);
    r->config.map_parts_max = 16;
    rig_open(r);
    assert_full(r);
    for (uint64_t i = 0; i < 400; i++) {
        trim(r, 10 * i, 1);
        if (i % 10 == 0)
            checkpoint(r);
    }
    checkpoint(r);
    assert_non_null(r->v->merge_too_large.oldest);
    assert_true(rig_status(r).run_count <= 8);
    assert_full(r);
    ok(volume_collect(r->v, &e), &e);
    rig_reopen(r);
    for (uint64_t i = 0; i < BLOCKS / 2; i += 7) {
        if (i % 5 == 0 && i < 2000)
            assert_zero(r, 2 * i);
        else
            check_written(r, i, i + 1);
    }
    trim(r, 0, BLOCKS - 100);
    checkpoint(r);
    assert_null(r->v->merge_too_large.oldest);
    assert_int_equal(rig_status(r).health, VOLUME_HEALTH_OK);
    assert_int_equal(write_block(r, 1, 2), 0);
    assert_zero(r, 2);
    check_written(r, BLOCKS / 2 - 4, BLOCKS / 2);
}

static void test_too_large(void **state) {
    (void)state;
    struct volume_config c = small;
    c.map_parts_max = 0;
    rig_run(SIZE, &c, too_large);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_nearly_full),
        cmocka_unit_test(test_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
