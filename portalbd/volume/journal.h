/* The journal: a ring of numbered writes in memory, between the acknowledgement and the object
 * store. Owner thread; workers may read the data of records that are not freed yet. docs/format.md
 * has the layout.
 *
 * Positions count bytes ever appended and never wrap; position p lies at byte p % size of the ring.
 * A record never wraps around the end of the ring. */
#pragma once

#include "portalbd/format/segment.h"

enum {
    JOURNAL_RECORD_HEADER = 48,              /* bytes in front of a record's data */
    JOURNAL_DATA_MAX = 1024 * 1024,          /* bytes of data in one record */
    JOURNAL_SIZE_MIN = 4 * JOURNAL_DATA_MAX, /* bytes of the ring */
};

struct journal;

struct journal_record {
    uint64_t pos;    /* of its header */
    uint64_t end;    /* position behind it */
    uint64_t number; /* of the write: contiguous */
    uint64_t sector;
    uint64_t count;    /* sectors */
    uint8_t kind;      /* extent_kind */
    uint64_t data_pos; /* DATA: of its first byte; else = pos */
};

/* An anonymous ring of `size` bytes (multiple of 4096, >= JOURNAL_SIZE_MIN); its first write will
 * have number first_number. */
struct journal *journal_new(uint64_t size, uint64_t first_number);
void journal_free(struct journal *j);

/* Appends one write: DATA of count sectors (<= 1 MiB) from data, or a ZERO or HOLE of any length.
 * False: no room now. */
bool journal_append(struct journal *j, uint8_t kind, uint64_t sector, uint64_t count,
                    const uint8_t *data, struct journal_record *ret);
/* The record at position pos < journal_head(); skips padding. */
void journal_read(const struct journal *j, uint64_t pos, struct journal_record *ret);
/* Bytes at a position; valid until freed. A record's data is contiguous. */
const uint8_t *journal_data(const struct journal *j, uint64_t pos);

/* Frees everything below pos. */
void journal_free_to(struct journal *j, uint64_t pos);

uint64_t journal_head(const struct journal *j); /* position behind the newest record */
uint64_t journal_tail(const struct journal *j); /* everything below is freed */
uint64_t journal_size(const struct journal *j); /* bytes */
