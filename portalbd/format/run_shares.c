/* Shares of a part: what its entries take from which objects. They follow the part's pages.
 *
 *   0   u32  CRC32C of all behind it
 *   4   u32  magic "PBMS"
 *   8   u8   version 1
 *   9   u8   cipher, 0
 *   10  u16  0
 *   12  u32  key id, 0
 *   16  u32  shares
 *   20       of each: varint number of the object in the run's usage table less that of the one
 *            before (of the first: itself), varint bytes
 *
 * I1  Numbers ascend, bytes are not zero: there is one encoding. */
#include <stdlib.h>

#include "common/crc32c.h"
#include "portalbd/format/run.h"
#include "portalbd/format/wire_internal.h"

enum { MAGIC_SHARES = 0x534d4250, VERSION = 1 };
enum {
    SHARES_CRC = 0,
    SHARES_MAGIC = 4,
    SHARES_VERSION = 8,
    SHARES_CIPHER = 9,
    SHARES_RESERVED = 10,
    SHARES_KEY = 12,
    SHARES_COUNT = 16,
    SHARES_HEADER_SIZE = 20,
};
enum { SHARE_BYTES_MIN = 2 };

void run_shares_encode(struct buf *out, const struct run_share *shares, size_t count) {
    CHECK(count <= RUN_USAGE_MAX);
    size_t start = out->len;
    memset(buf_extend(out, SHARES_HEADER_SIZE), 0, SHARES_HEADER_SIZE);
    uint32_t before = 0;
    for (size_t i = 0; i < count; i++) {
        CHECK(i == 0 || shares[i].number > before);
        CHECK(shares[i].bytes >= 1 && shares[i].bytes <= RUN_USAGE_BYTES_MAX);
        varint_append(out, shares[i].number - before);
        varint_append(out, shares[i].bytes);
        before = shares[i].number;
    }
    uint8_t *p = out->data + start;
    size_t len = out->len - start;
    CHECK(len <= RUN_SHARES_SIZE_MAX);
    store_le32(p + SHARES_MAGIC, MAGIC_SHARES);
    p[SHARES_VERSION] = VERSION;
    store_le32(p + SHARES_COUNT, (uint32_t)count);
    store_le32(p + SHARES_CRC, crc32c(view_of(p + SHARES_MAGIC, len - SHARES_MAGIC)));
}

static int decode_header(struct view in, size_t *ret_count, struct err *e) {
    const uint8_t *p = in.data;
    if (in.len < SHARES_HEADER_SIZE || in.len > RUN_SHARES_SIZE_MAX)
        return err_set(e, -ERR_CORRUPT, "shares of a map part: %zu bytes", in.len);
    if (load_le32(p + SHARES_MAGIC) != MAGIC_SHARES)
        return err_set(e, -ERR_CORRUPT, "shares of a map part: these bytes are none");
    if (load_le32(p + SHARES_CRC) != crc32c(view_part(in, SHARES_MAGIC, in.len - SHARES_MAGIC)))
        return err_set(e, -ERR_CORRUPT, "shares of a map part: the checksum does not match");
    if (p[SHARES_VERSION] != VERSION || p[SHARES_CIPHER] != 0)
        return err_set(e, -ERR_UNSUPPORTED,
                       "shares of a map part: version %u, cipher %u were written by a newer "
                       "portalbd",
                       p[SHARES_VERSION], p[SHARES_CIPHER]);
    size_t count = load_le32(p + SHARES_COUNT);
    if (load_le16(p + SHARES_RESERVED) != 0 || load_le32(p + SHARES_KEY) != 0 ||
        count > RUN_USAGE_MAX || count > (in.len - SHARES_HEADER_SIZE) / SHARE_BYTES_MIN)
        return err_set(e, -ERR_CORRUPT, "shares of a map part: %zu in %zu bytes", count, in.len);
    *ret_count = count;
    return 0;
}

int run_shares_decode(struct run_share **ret, size_t *ret_count, struct view in, struct err *e) {
    size_t count;
    int rc = decode_header(in, &count, e);
    if (rc < 0)
        return rc;
    struct run_share *shares = xcalloc(MAX(count, 1), sizeof *shares);
    struct reader r = reader_of(view_part(in, SHARES_HEADER_SIZE, in.len - SHARES_HEADER_SIZE));
    uint64_t number = 0;
    bool good = true;
    for (size_t i = 0; good && i < count; i++) {
        uint64_t step = reader_varint_max(&r, RUN_USAGE_MAX);
        uint64_t bytes = reader_varint_max(&r, RUN_USAGE_BYTES_MAX);
        number += step;
        good = !r.bad && (i == 0 || step > 0) && bytes > 0 && number < RUN_USAGE_MAX;
        shares[i] = (struct run_share){.number = (uint32_t)number, .bytes = bytes};
    }
    if (!good || reader_left(&r) != 0) {
        free(shares);
        return err_set(e, -ERR_CORRUPT, "shares of a map part: damaged at byte %zu", r.pos);
    }
    *ret = shares;
    *ret_count = count;
    return 0;
}
