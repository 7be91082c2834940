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

enum { WORDS = SECTOR_SIZE / 8 };

/* The words behind the first two. */
static inline uint64_t filling(uint32_t stamp, uint64_t fill, size_t i) {
    return stamp % 4 == 0 ? fill * (2 * i + 1) : fill;
}

static uint64_t fill_of(uint32_t stamp, uint64_t sector) {
    return mix(sector << 20 ^ stamp);
}

void stamp_fill(uint8_t *to, uint32_t stamp, uint64_t sector) {
    if (stamp_value(stamp, sector) == 0) {
        memset(to, 0, SECTOR_SIZE);
        return;
    }
    uint64_t words[WORDS] = {STAMP_MAGIC << 16 ^ stamp, sector};
    uint64_t fill = fill_of(stamp, sector);
    for (size_t i = 2; i < WORDS; i++)
        words[i] = filling(stamp, fill, i);
    memcpy(to, words, sizeof words);
}

static bool is_filled(const uint8_t *from, uint32_t stamp, uint64_t fill) {
    uint64_t words[WORDS], wrong = 0;
    if (stamp % 4 != 0) /* all the same: the first is right, and each is like the one before */
        return memcmp(from + 16, &fill, 8) == 0 &&
               memcmp(from + 16, from + 24, SECTOR_SIZE - 24) == 0;
    memcpy(words, from, sizeof words);
    for (size_t i = 2; i < WORDS; i++)
        wrong |= words[i] ^ filling(stamp, fill, i);
    return wrong == 0;
}

uint32_t stamp_read(const uint8_t *from, uint64_t sector) {
    static const uint8_t zeroes[SECTOR_SIZE];
    uint64_t head[2];
    memcpy(head, from, sizeof head);
    if (head[0] == 0)
        return memcmp(from, zeroes, SECTOR_SIZE) == 0 ? 0 : STAMP_GARBAGE;
    uint64_t stamp = head[0] ^ STAMP_MAGIC << 16;
    if (stamp == 0 || stamp >= STAMP_GARBAGE || head[1] != sector ||
        stamp_value((uint32_t)stamp, sector) == 0)
        return STAMP_GARBAGE;
    uint64_t fill = fill_of((uint32_t)stamp, sector);
    return is_filled(from, (uint32_t)stamp, fill) ? (uint32_t)stamp : STAMP_GARBAGE;
}
