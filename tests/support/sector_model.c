/* Stamps in sectors. */
#include "tests/support/sector_model.h"

#include "tests/support/test.h"

#include <string.h>

#include "common/bytes.h"

enum { SECTOR = 512, WORDS = SECTOR / 8 };
static const uint32_t BAD = UINT32_MAX;

/* splitmix64: does not compress. */
static uint64_t word(uint32_t stamp, uint32_t sector, size_t i) {
    uint64_t z = ((uint64_t)stamp << 32 | sector) + (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    return z ^ (z >> 27);
}

static void fill(uint8_t *data, uint32_t stamp, uint32_t sector) {
    memset(data, 0, SECTOR);
    store_le32(data, stamp);
    for (size_t i = 1; i < WORDS && stamp != 0; i++)
        store_le64(data + i * 8, word(stamp, sector, i));
}

static uint32_t stamp_of(const uint8_t *data, uint32_t sector) {
    uint8_t want[SECTOR];
    uint32_t stamp = load_le32(data);
    fill(want, stamp, sector);
    return memcmp(want, data, sizeof want) == 0 ? stamp : BAD;
}

const struct sector_op *sector_model_add(struct sector_model *m, uint32_t sector, uint32_t count,
                                         bool data) {
    assert_true(m->count < SECTOR_MODEL_OPS);
    struct sector_op *op = &m->ops[m->count++];
    *op = (struct sector_op){.sector = sector, .count = count, .stamp = data ? ++m->last_stamp : 0};
    return op;
}

void sector_model_fill(uint8_t *data, const struct sector_op *op) {
    for (uint32_t i = 0; i < op->count && op->stamp != 0; i++)
        fill(data + (size_t)i * SECTOR, op->stamp, op->sector + i);
}

static void apply(uint32_t *image, const struct sector_op *op) {
    for (uint32_t i = 0; i < op->count; i++)
        image[op->sector + i] = op->stamp;
}

void sector_model_check(const struct sector_model *m, uint32_t sector, uint32_t count,
                        const uint8_t *data) {
    static uint32_t image[SECTOR_MODEL_SECTORS];
    memcpy(image, m->base, sizeof image);
    for (size_t i = 0; i < m->count; i++)
        apply(image, &m->ops[i]);
    for (uint32_t i = 0; i < count; i++)
        if (stamp_of(data + (size_t)i * SECTOR, sector + i) != image[sector + i])
            fail_msg("sector %u holds write %u, not %u", sector + i,
                     stamp_of(data + (size_t)i * SECTOR, sector + i), image[sector + i]);
}

bool sector_model_settle(struct sector_model *m, size_t from, const uint8_t *data) {
    static uint32_t found[SECTOR_MODEL_SECTORS], image[SECTOR_MODEL_SECTORS];
    for (uint32_t i = 0; i < SECTOR_MODEL_SECTORS; i++)
        found[i] = stamp_of(data + (size_t)i * SECTOR, i);
    memcpy(image, m->base, sizeof image);
    assert_true(from <= m->count);
    for (size_t k = 0;; k++) {
        if (k >= from && memcmp(found, image, sizeof found) == 0) {
            m->count = m->acked = k;
            return true;
        }
        if (k == m->count)
            return false;
        apply(image, &m->ops[k]);
    }
}
