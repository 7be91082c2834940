/* Building segments: what is compressed and what is not even tried. */
#include "tests/support/test.h"

#include "portalbd/volume/segment_build.h"
#include "tests/support/volume_rig.h"

enum { FRAME = FRAME_SECTORS_MAX * SECTOR_SIZE, FRAMES = 96, MI = 1024 * 1024 };

static size_t built(const uint8_t *data) {
    struct journal *j;
    struct volume_key key;
    struct random_id id = {.bytes = {1}};
    struct err e = {0};
    id_format_key(&key, ID_VOLUME, "0123456789abcdef0123456789abcdef", 1);
    assert_int_equal(journal_open(NULL, 8 * MI, &key, &j, &e), 0);
    journal_format(j, &id);
    struct journal_record r;
    uint64_t half = FRAMES / 2 * FRAME;
    assert_true(journal_append(j, EXTENT_DATA, 0, half / SECTOR_SIZE, data, &r));
    struct segment_build b = {.journal = j,
                              .from = r.pos,
                              .compress = true,
                              .meta = {.kind = SEGMENT_DATA,
                                       .epoch = 1,
                                       .seq = 1,
                                       .nonce = id,
                                       .journal = id,
                                       .last_write = 2}};
    assert_true(
        journal_append(j, EXTENT_DATA, half / SECTOR_SIZE, half / SECTOR_SIZE, data + half, &r));
    b.to = r.end;
    segment_build_run(&b);
    size_t len = b.frames.len;
    /* Room for what does not compress, and no more: several segments are in memory at a time. */
    assert_in_range(b.frames.cap, len, FRAMES * (FRAME + FRAME_HEADER_SIZE) + FRAME_SIZE_MAX);
    segment_build_release(&b);
    journal_free(j);
    return len;
}

static void test_compression(void **state) {
    (void)state;
    static uint8_t data[FRAMES * FRAME];
    size_t raw = FRAMES * (FRAME + FRAME_HEADER_SIZE);
    rig_fill(data, 0, sizeof data, 1);
    assert_int_equal(built(data), raw);
    /* Text behind a long stretch of noise is found again after at most eight frames. */
    memset(data + sizeof data / 2, 'x', sizeof data / 2);
    assert_in_range(built(data), raw / 2, raw / 2 + 9 * FRAME);
    /* One frame of noise among text costs nothing. */
    memset(data, 'x', sizeof data);
    rig_fill(data + 5 * FRAME, 0, FRAME, 1);
    assert_in_range(built(data), FRAME, 2 * FRAME);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_compression)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
