/* What a record leaves in a sector: its number and the sector's own, so that every byte tells who
 * wrote it. */
#include "tests/sim/checker.h"

#include <string.h>

#define STAMP_MAGIC UINT64_C(0x706f7274616c0000)

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t stamp_value(uint32_t stamp, uint64_t sector) {
    bool some_zero = stamp % 4 == 2;
    return some_zero && mix(sector * 31 + stamp) % 4 == 0 ? 0 : stamp;
}

void stamp_fill(uint8_t *to, uint32_t stamp, uint64_t sector) {
    memset(to, 0, SECTOR_SIZE);
    if (stamp_value(stamp, sector) == 0)
        return;
    uint64_t words[SECTOR_SIZE / 8];
    bool random = stamp % 4 == 0;
    uint64_t fill = mix(sector << 20 ^ stamp);
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        words[i] = random ? mix(fill + i) : fill;
    words[0] = STAMP_MAGIC << 16 ^ stamp;
    words[1] = sector;
    memcpy(to, words, sizeof words);
}

uint32_t stamp_read(const uint8_t *from, uint64_t sector) {
    static const uint8_t zeroes[SECTOR_SIZE];
    if (memcmp(from, zeroes, SECTOR_SIZE) == 0)
        return 0;
    uint64_t word;
    memcpy(&word, from, sizeof word);
    uint64_t stamp = word ^ STAMP_MAGIC << 16;
    uint8_t expected[SECTOR_SIZE];
    if (stamp == 0 || stamp >= STAMP_GARBAGE)
        return STAMP_GARBAGE;
    stamp_fill(expected, (uint32_t)stamp, sector);
    return memcmp(from, expected, SECTOR_SIZE) == 0 ? (uint32_t)stamp : STAMP_GARBAGE;
}
