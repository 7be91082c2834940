/* Segments and frames: round trips, every truncation, every flipped bit, the limits. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "portalbd/format/segment.h"

static struct segment_meta some_meta(void) {
    struct segment_meta m = {.kind = SEGMENT_DATA, .epoch = 7, .seq = 3, .last_write = 99};
    memset(m.volume_hash, 0x11, sizeof m.volume_hash);
    memset(m.nonce.bytes, 0x22, sizeof m.nonce.bytes);
    memset(m.journal.bytes, 0x33, sizeof m.journal.bytes);
    return m;
}

static void assert_meta_equal(const struct segment_meta *a, const struct segment_meta *b) {
    uint8_t x[SEGMENT_HEADER_SIZE], y[SEGMENT_HEADER_SIZE];
    segment_encode_header(x, a);
    segment_encode_header(y, b);
    assert_memory_equal(x, y, sizeof x);
}

static void fill(uint8_t *data, size_t len, unsigned seed, bool compressible) {
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1103515245 + 12345;
        data[i] = compressible ? (uint8_t)(i / 64) : (uint8_t)(seed >> 16);
    }
}

/* Builds a segment of extents whose frames are made here. */
struct maker {
    struct buf object;
    struct segment_table table;
};

static void maker_add(struct maker *k, uint64_t sector, uint64_t count, uint8_t kind) {
    struct segment_table *t = &k->table;
    t->extents = xrealloc(t->extents, (t->extent_count + 1) * sizeof *t->extents);
    struct segment_extent *x = &t->extents[t->extent_count++];
    *x = (struct segment_extent){.sector = sector, .count = count, .kind = kind};
    if (kind != EXTENT_DATA)
        return;
    x->off = (uint32_t)k->object.len;
    x->first_len = (uint32_t)t->len_count;
    t->lens = xrealloc(t->lens, (t->len_count + extent_frames(count)) * sizeof *t->lens);
    while (count > 0) {
        uint8_t data[FRAME_SECTORS_MAX * SECTOR_SIZE], frame[FRAME_SIZE_MAX];
        size_t sectors = MIN(count, FRAME_SECTORS_MAX);
        fill(data, sizeof data, (unsigned)sector, t->len_count & 1);
        size_t len = frame_encode(frame, data, sectors, true);
        buf_append(&k->object, frame, len);
        t->lens[t->len_count++] = (uint16_t)len;
        count -= sectors;
    }
}

static void maker_start(struct maker *k, const struct segment_meta *m) {
    *k = (struct maker){0};
    segment_encode_header(buf_extend(&k->object, SEGMENT_HEADER_SIZE), m);
}

static void maker_release(struct maker *k) {
    buf_release(&k->object);
    segment_table_release(&k->table);
}

static void test_round_trip(void **state) {
    (void)state;
    struct segment_meta m = some_meta(), back;
    struct maker k;
    maker_start(&k, &m);
    maker_add(&k, 100, 8, EXTENT_DATA);
    maker_add(&k, 0, SECTORS_MAX, EXTENT_HOLE);
    maker_add(&k, SECTORS_MAX - 1, 1, EXTENT_DATA);
    maker_add(&k, 5000, EXTENT_SECTORS_MAX, EXTENT_DATA);
    maker_add(&k, 7, 3, EXTENT_ZERO);
    segment_encode_tail(&k.object, &m, &k.table, k.object.len);

    struct segment_table t;
    size_t need = 0;
    struct err e = {0};
    size_t size = k.object.len;
    int rc = segment_decode_tail(buf_view(&k.object), size, &back, &t, &need, &e);
    assert_int_equal(rc, 0);
    assert_meta_equal(&m, &back);
    assert_int_equal(t.extent_count, k.table.extent_count);
    for (size_t i = 0; i < t.extent_count; i++) {
        assert_true(t.extents[i].sector == k.table.extents[i].sector);
        assert_true(t.extents[i].count == k.table.extents[i].count);
        assert_int_equal(t.extents[i].kind, k.table.extents[i].kind);
        assert_int_equal(t.extents[i].off, k.table.extents[i].off);
        assert_int_equal(t.extents[i].first_len, k.table.extents[i].first_len);
    }
    assert_int_equal(t.len_count, k.table.len_count);
    assert_memory_equal(t.lens, k.table.lens, t.len_count * sizeof *t.lens);

    uint8_t out[FRAME_SECTORS_MAX * SECTOR_SIZE], want[sizeof out];
    size_t len;
    struct view frame =
        view_part(buf_view(&k.object), t.extents[3].off, t.lens[t.extents[3].first_len]);
    assert_int_equal(frame_decode(frame, out, FRAME_SECTORS_MAX, &len, &e), 0);
    assert_int_equal(len, frame.len);
    fill(want, sizeof want, (unsigned)(5000), t.extents[3].first_len & 1);
    assert_memory_equal(out, want, sizeof want);
    segment_table_release(&t);

    for (size_t part = 0; part < size; part++) { /* every suffix asks for what is missing */
        struct view tail = view_of(k.object.data + size - part, part);
        rc = segment_decode_tail(tail, size, &back, &t, &need, NULL);
        if (rc == 0) {
            segment_table_release(&t);
            continue;
        }
        assert_int_equal(rc, -ERR_OVERLOAD);
        assert_true(need > part && need <= size);
    }
    maker_release(&k);
}

static int decode_whole(struct view object) {
    struct segment_meta m;
    struct segment_table t;
    size_t need;
    int rc = segment_decode_tail(object, object.len, &m, &t, &need, NULL);
    if (rc == 0)
        segment_table_release(&t);
    return rc;
}

static void test_flips(void **state) {
    (void)state;
    struct segment_meta m = some_meta();
    struct maker k;
    maker_start(&k, &m);
    maker_add(&k, 64, 1, EXTENT_ZERO);
    maker_add(&k, 9, 70, EXTENT_HOLE);
    segment_encode_tail(&k.object, &m, &k.table, k.object.len);
    assert_int_equal(decode_whole(buf_view(&k.object)), 0);
    for (size_t bit = 0; bit < k.object.len * 8; bit++) {
        k.object.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(decode_whole(buf_view(&k.object)) < 0);
        k.object.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < k.object.len; len++)
        assert_true(decode_whole(view_of(k.object.data, len)) < 0);
    maker_release(&k);
}

static void test_fence(void **state) {
    (void)state;
    struct segment_meta m = some_meta(), back;
    m.kind = SEGMENT_FENCE;
    uint8_t fence[SEGMENT_FENCE_SIZE];
    segment_encode_fence(fence, &m);
    struct segment_table t;
    size_t need;
    assert_int_equal(
        segment_decode_tail(view_of(fence, sizeof fence), sizeof fence, &back, &t, &need, NULL), 0);
    assert_meta_equal(&m, &back);
    assert_int_equal(t.extent_count, 0);
    segment_table_release(&t);
    assert_int_equal(segment_decode_header(view_of(fence, sizeof fence), &back, NULL), 0);
    assert_meta_equal(&m, &back);
    for (size_t bit = 0; bit < sizeof fence * 8; bit++) {
        fence[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(decode_whole(view_of(fence, sizeof fence)) < 0);
        fence[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

/* No other segment has the size of a fence, however its table comes out. */
static void test_never_fence_size(void **state) {
    (void)state;
    struct segment_meta m = some_meta();
    bool padded = false;
    for (size_t extents = 1; extents < 200; extents++) {
        struct maker k;
        maker_start(&k, &m);
        for (size_t i = 0; i < extents; i++)
            maker_add(&k, i * 4, 1, EXTENT_HOLE);
        size_t body = k.object.len;
        segment_encode_tail(&k.object, &m, &k.table, body);
        assert_int_not_equal(k.object.len, SEGMENT_FENCE_SIZE);
        padded |= k.object.len == SEGMENT_FENCE_SIZE + 8;
        assert_int_equal(decode_whole(buf_view(&k.object)), 0);
        maker_release(&k);
    }
    assert_true(padded);
}

static void test_limits(void **state) {
    (void)state;
    struct segment_meta m = some_meta();
    struct maker k;
    maker_start(&k, &m);
    k.table.extents = xcalloc(SEGMENT_EXTENTS_MAX, sizeof *k.table.extents);
    for (size_t i = 0; i < SEGMENT_EXTENTS_MAX; i++)
        k.table.extents[i] =
            (struct segment_extent){.sector = i * 7, .count = 1, .kind = EXTENT_ZERO};
    k.table.extent_count = SEGMENT_EXTENTS_MAX;
    segment_encode_tail(&k.object, &m, &k.table, k.object.len);
    assert_int_equal(decode_whole(buf_view(&k.object)), 0);

    /* One more in the footer, with its checksum made good again, is refused. */
    uint8_t *footer = k.object.data + k.object.len - 128;
    footer[100] = 1;
    uint32_t crc = crc32c(view_of(footer, 124));
    memcpy(footer + 124, &crc, 4);
    assert_int_equal(decode_whole(buf_view(&k.object)), -ERR_CORRUPT);
    maker_release(&k);

    struct segment_table t;
    struct segment_meta back;
    size_t need;
    uint8_t byte = 0;
    assert_int_equal(
        segment_decode_tail(view_of(&byte, 1), SEGMENT_SIZE_MAX + 1, &back, &t, &need, NULL),
        -ERR_CORRUPT);
}

static void test_frames(void **state) {
    (void)state;
    uint8_t data[FRAME_SECTORS_MAX * SECTOR_SIZE], frame[FRAME_SIZE_MAX], out[sizeof data];
    size_t len;
    for (size_t sectors = 1; sectors <= FRAME_SECTORS_MAX; sectors++) {
        for (int variant = 0; variant < 4; variant++) {
            fill(data, sizeof data, (unsigned)sectors, variant & 1);
            size_t stored = frame_encode(frame, data, sectors, variant & 2);
            assert_true(stored <= FRAME_HEADER_SIZE + sectors * SECTOR_SIZE);
            assert_true((variant == 3) == (stored < FRAME_HEADER_SIZE + sectors * SECTOR_SIZE));
            assert_int_equal(frame_decode(view_of(frame, stored), out, sectors, &len, NULL), 0);
            assert_int_equal(len, stored);
            assert_memory_equal(out, data, sectors * SECTOR_SIZE);
            assert_int_equal(frame_decode(view_of(frame, stored), out, 1, &len, NULL), 0);
            if (sectors == FRAME_SECTORS_MAX)
                continue;
            assert_int_equal(frame_decode(view_of(frame, stored), out, sectors + 1, &len, NULL),
                             -ERR_CORRUPT);
        }
    }
    fill(data, sizeof data, 5, true);
    size_t stored = frame_encode(frame, data, 4, true);
    for (size_t bit = 0; bit < stored * 8; bit++) {
        frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(frame_decode(view_of(frame, stored), out, 4, &len, NULL), -ERR_CORRUPT);
        frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t cut = 0; cut < stored; cut++) {
        uint8_t *exact = xmalloc(cut + 1); /* a read behind it is seen by the sanitizer */
        memcpy(exact, frame, cut);
        assert_int_equal(frame_decode(view_of(exact, cut), out, 4, &len, NULL), -ERR_CORRUPT);
        free(exact);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_flips),
        cmocka_unit_test(test_fence),      cmocka_unit_test(test_never_fence_size),
        cmocka_unit_test(test_limits),     cmocka_unit_test(test_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
