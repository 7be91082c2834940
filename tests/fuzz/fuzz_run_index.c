/* libFuzzer: indexes of map runs, as they came and with the checksums made right. What decodes is
 * encoded to the same bytes. */
#include <stdlib.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "portalbd/format/run.h"

enum { HEADER_SIZE = 64, BODY_LEN = 52, BODY_CRC = 56, HEADER_CRC = 60 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(struct view in) {
    struct run_index x;
    struct err e = {0};
    if (run_index_decode(&x, in, &e) < 0) {
        CHECK(e.code < 0);
        return;
    }
    struct buf out = {0};
    CHECK(run_index_encode(&out, &x, NULL) == 0);
    CHECK(view_equal(buf_view(&out), in));
    buf_release(&out);
    run_index_release(&x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decode(view_of(data, size));
    if (size < HEADER_SIZE)
        return 0;
    uint8_t *copy = xmalloc(size);
    memcpy(copy, data, size);
    store_le32(copy + BODY_LEN, (uint32_t)(size - HEADER_SIZE));
    store_le32(copy + BODY_CRC, crc32c(view_of(copy + HEADER_SIZE, size - HEADER_SIZE)));
    store_le32(copy + HEADER_CRC, crc32c(view_of(copy, HEADER_CRC)));
    decode(view_of(copy, size));
    free(copy);
    return 0;
}
