/* What a small volume must hold: the image it began with and the stream of writes to it, of which
 * some are acknowledged and some are flushed. Each write has a stamp of its own in each of its
 * sectors, so that content tells which writes it holds. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SECTOR_MODEL_SECTORS = 6144, SECTOR_MODEL_OPS = 1024 };

struct sector_op {
    uint32_t sector, count;
    uint32_t stamp; /* 0: zeroes */
};

struct sector_model {
    uint32_t base[SECTOR_MODEL_SECTORS];    /* stamps */
    struct sector_op ops[SECTOR_MODEL_OPS]; /* since, in their order */
    size_t count;                           /* writes that were sent */
    size_t acked, flushed;
    uint32_t last_stamp;
};

/* A write is about to be sent. Borrowed. */
const struct sector_op *sector_model_add(struct sector_model *m, uint32_t sector, uint32_t count,
                                         bool data);
/* The bytes of its sectors. */
void sector_model_fill(uint8_t *data, const struct sector_op *op);

/* Fails the test unless these sectors hold all that was sent. */
void sector_model_check(const struct sector_model *m, uint32_t sector, uint32_t count,
                        const uint8_t *data);
/* data: all SECTOR_MODEL_SECTORS. Do they hold the first k writes for some k >= from? The others
 * are forgotten then: they never were. */
bool sector_model_settle(struct sector_model *m, size_t from, const uint8_t *data);
