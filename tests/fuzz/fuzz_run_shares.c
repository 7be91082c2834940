/* libFuzzer: shares of map parts, as they came and with the checksum made right. What decodes is
 * encoded to the same bytes. */
#include <stdlib.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "portalbd/format/run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(struct view in) {
    struct run_share *shares;
    size_t count;
    struct err e = {0};
    if (run_shares_decode(&shares, &count, in, &e) < 0) {
        CHECK(e.code < 0);
        return;
    }
    struct buf out = {0};
    run_shares_encode(&out, shares, count);
    CHECK(view_equal(buf_view(&out), in));
    buf_release(&out);
    free(shares);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decode(view_of(data, size));
    if (size < 4)
        return 0;
    uint8_t *copy = xmalloc(size);
    memcpy(copy, data, size);
    store_le32(copy, crc32c(view_of(copy + 4, size - 4)));
    decode(view_of(copy, size));
    free(copy);
    return 0;
}
