/* libFuzzer: the end of a segment. As it came, and with its checksums made right, so that what lies
 * behind them is reached. What decodes is encoded and decodes to the same again. */
#include <stdlib.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "portalbd/format/segment.h"

enum { FOOTER_SIZE = 128, TABLE_OFF = 88, TABLE_LEN = 92, TABLE_CRC = 96, FOOTER_CRC = 124 };
enum { HEADER_CRC = 92 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_again(struct view object, const struct segment_meta *m,
                        const struct segment_table *t) {
    struct buf out = {0};
    uint32_t body = load_le32(object.data + object.len - FOOTER_SIZE + TABLE_OFF);
    struct segment_meta m2;
    struct segment_table t2;
    size_t need;
    if (m->kind == SEGMENT_FENCE) {
        segment_encode_fence(buf_extend(&out, SEGMENT_FENCE_SIZE), m);
    } else {
        segment_encode_header(buf_extend(&out, SEGMENT_HEADER_SIZE), m);
        memset(buf_extend(&out, body - SEGMENT_HEADER_SIZE), 0, body - SEGMENT_HEADER_SIZE);
        segment_encode_tail(&out, m, t, body);
    }
    CHECK(segment_decode_tail(buf_view(&out), out.len, &m2, &t2, &need, NULL) == 0);
    CHECK(m2.seq == m->seq && m2.epoch == m->epoch && t2.extent_count == t->extent_count);
    CHECK(t2.extent_count == 0 ||
          memcmp(t2.extents, t->extents, t->extent_count * sizeof *t->extents) == 0);
    segment_table_release(&t2);
    buf_release(&out);
}

static void decode(struct view tail, uint64_t object_size) {
    struct segment_meta m;
    struct segment_table t;
    size_t need = 0;
    struct err e = {0};
    int rc = segment_decode_tail(tail, object_size, &m, &t, &need, &e);
    if (rc == 0) {
        if (tail.len == object_size)
            check_again(tail, &m, &t);
        segment_table_release(&t);
    } else if (rc == -ERR_OVERLOAD) {
        CHECK(need > tail.len && need <= object_size);
    }
    segment_decode_header(tail, &m, &e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decode(view_of(data, size), size);
    decode(view_of(data, size), size + 1000);
    if (size < SEGMENT_HEADER_SIZE + FOOTER_SIZE)
        return 0;
    uint8_t *copy = xmalloc(size);
    memcpy(copy, data, size);
    uint8_t *footer = copy + size - FOOTER_SIZE;
    uint32_t off = load_le32(footer + TABLE_OFF), len = load_le32(footer + TABLE_LEN);
    if ((uint64_t)off + len + FOOTER_SIZE == size)
        store_le32(footer + TABLE_CRC, crc32c(view_of(copy + off, len)));
    store_le32(footer + FOOTER_CRC, crc32c(view_of(footer, FOOTER_CRC)));
    store_le32(copy + HEADER_CRC, crc32c(view_of(copy, HEADER_CRC)));
    decode(view_of(copy, size), size);
    free(copy);
    return 0;
}
