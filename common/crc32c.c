/* CRC32C by ISA-L, the one file that sees it. crc32_iscsi takes a non-const pointer and an int
 * length and inverts neither its seed nor its result. */
#include "common/crc32c.h"

#include <isa-l/crc.h>

enum { CHUNK_MAX = 1 << 30 }; /* bytes a call: its length is an int */

uint32_t crc32c_extend(uint32_t crc, struct view v) {
    uint32_t state = ~crc;
    while (v.len > 0) {
        size_t n = MIN(v.len, (size_t)CHUNK_MAX);
        state = crc32_iscsi((unsigned char *)(uintptr_t)v.data, (int)n, state);
        v = view_part(v, n, v.len - n);
    }
    return ~state;
}

uint32_t crc32c(struct view v) {
    return crc32c_extend(0, v);
}
