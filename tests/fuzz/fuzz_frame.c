/* libFuzzer: frames, as they came and with the checksum made right; and data as frames. */
#include <stdlib.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "portalbd/format/segment.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(struct view in) {
    uint8_t out[FRAME_SECTORS_MAX * SECTOR_SIZE];
    size_t len = 0;
    for (size_t sectors = 1; sectors <= FRAME_SECTORS_MAX; sectors *= 2)
        if (frame_decode(in, out, sectors, &len, NULL) == 0)
            CHECK(len > FRAME_HEADER_SIZE && len <= in.len);
}

static void encode(const uint8_t *data, size_t size, bool compress) {
    uint8_t raw[FRAME_SECTORS_MAX * SECTOR_SIZE] = {0}, out[sizeof raw], frame[FRAME_SIZE_MAX];
    memcpy(raw, data, MIN(size, sizeof raw));
    size_t sectors = MAX(DIV_UP(MIN(size, sizeof raw), SECTOR_SIZE), (size_t)1), len;
    size_t stored = frame_encode(frame, raw, sectors, compress);
    CHECK(stored <= FRAME_HEADER_SIZE + sectors * SECTOR_SIZE);
    CHECK(frame_decode(view_of(frame, stored), out, sectors, &len, NULL) == 0);
    CHECK(len == stored && memcmp(out, raw, sectors * SECTOR_SIZE) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decode(view_of(data, size));
    encode(data, size, true);
    encode(data, size, false);
    if (size < FRAME_HEADER_SIZE)
        return 0;
    uint8_t *copy = xmalloc(size);
    memcpy(copy, data, size);
    size_t len = MIN(load_le16(copy + 4), size - FRAME_HEADER_SIZE);
    uint32_t crc = crc32c(view_of(copy, 8));
    store_le32(copy + 8, crc32c_extend(crc, view_of(copy + FRAME_HEADER_SIZE, len)));
    decode(view_of(copy, size));
    free(copy);
    return 0;
}
