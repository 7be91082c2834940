/* Frames: up to 16 KiB of adjacent sectors, compressed on their own. The one file that sees LZ4.
 *
 *   0  u8   codec: 0 raw, 1 LZ4 block
 *   1  u8   0
 *   2  u16  length of the data, bytes
 *   4  u16  length of the payload, bytes
 *   6  u16  0
 *   8  u32  CRC32C of bytes 0..7 and the payload
 *   12      payload
 *
 * I1  An LZ4 payload is shorter than its data, a raw one exactly as long. */
#include <lz4.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "portalbd/format/segment.h"

enum { CODEC_RAW = 0, CODEC_LZ4 = 1 };
enum { CRC_OFF = 8 };
_Static_assert(FRAME_HEADER_SIZE == CRC_OFF + 4, "the payload follows the checksum");
_Static_assert(FRAME_SECTORS_MAX *SECTOR_SIZE <= UINT16_MAX, "lengths are 16 bits");

static uint32_t frame_crc(const uint8_t *frame, size_t payload_len) {
    uint32_t crc = crc32c(view_of(frame, CRC_OFF));
    return crc32c_extend(crc, view_of(frame + FRAME_HEADER_SIZE, payload_len));
}

size_t frame_encode(uint8_t *out, const uint8_t *data, size_t sectors, bool compress) {
    CHECK(sectors >= 1);
    CHECK(sectors <= FRAME_SECTORS_MAX);
    int raw = (int)(sectors * SECTOR_SIZE);
    uint8_t *payload = out + FRAME_HEADER_SIZE;
    int len = 0;
    if (compress)
        len = LZ4_compress_default((const char *)data, (char *)payload, raw, raw - 1);
    bool compressed = len > 0;
    if (!compressed) {
        memcpy(payload, data, (size_t)raw);
        len = raw;
    }
    CHECK(len <= raw);
    out[0] = compressed ? CODEC_LZ4 : CODEC_RAW;
    out[1] = 0;
    store_le16(out + 2, (uint16_t)raw);
    store_le16(out + 4, (uint16_t)len);
    store_le16(out + 6, 0);
    store_le32(out + CRC_OFF, frame_crc(out, (size_t)len));
    return FRAME_HEADER_SIZE + (size_t)len;
}

int frame_decode(struct view in, uint8_t *out, size_t sectors, size_t *ret_len, struct err *e) {
    CHECK(sectors >= 1);
    CHECK(sectors <= FRAME_SECTORS_MAX);
    if (in.len < FRAME_HEADER_SIZE)
        return err_set(e, -ERR_CORRUPT, "frame: cut short in its header");
    uint8_t codec = in.data[0];
    size_t raw = load_le16(in.data + 2);
    size_t len = load_le16(in.data + 4);
    if (len > in.len - FRAME_HEADER_SIZE)
        return err_set(e, -ERR_CORRUPT, "frame: %zu bytes are wanted, %zu are there", len,
                       in.len - FRAME_HEADER_SIZE);
    if (frame_crc(in.data, len) != load_le32(in.data + CRC_OFF))
        return err_set(e, -ERR_CORRUPT, "frame: the checksum does not match");
    if (in.data[1] != 0 || load_le16(in.data + 6) != 0)
        return err_set(e, -ERR_CORRUPT, "frame: reserved bytes are set");
    if (raw < sectors * SECTOR_SIZE || raw > FRAME_SECTORS_MAX * SECTOR_SIZE ||
        raw % SECTOR_SIZE != 0)
        return err_set(e, -ERR_CORRUPT, "frame: holds %zu bytes, %zu are wanted", raw,
                       sectors * SECTOR_SIZE);

    const uint8_t *payload = in.data + FRAME_HEADER_SIZE;
    if (codec == CODEC_RAW && len == raw) {
        memcpy(out, payload, raw);
    } else if (codec == CODEC_LZ4 && len < raw) {
        int n = LZ4_decompress_safe((const char *)payload, (char *)out, (int)len, (int)raw);
        if (n != (int)raw)
            return err_set(e, -ERR_CORRUPT, "frame: the compressed data is damaged");
    } else {
        return err_set(e, -ERR_CORRUPT, "frame: codec %u with %zu bytes for %zu", codec, len, raw);
    }
    *ret_len = FRAME_HEADER_SIZE + len;
    return 0;
}
