/* The journal: a ring of numbered writes in memory, between the acknowledgement and the object
 * store. The memory may outlive the process; then the next one finds in it what was acknowledged
 * and not stored. Owner thread; workers may read the data of records that are not freed yet.
 * docs/format.md has the layout.
 *
 * Positions count bytes ever appended and never wrap; position p lies at byte p % size of the ring.
 * A record never wraps around the end of the ring. */
#pragma once

#include "portalbd/format/segment.h"

enum {
    JOURNAL_HEADER_SIZE = 4096,         /* bytes in front of the ring */
    JOURNAL_RECORD_HEADER = 48,         /* bytes in front of a record's data */
    JOURNAL_DATA_MAX = 1024 * 1024,     /* bytes of data in one record */
    JOURNAL_SIZE_MIN = 4 * 1024 * 1024, /* bytes of memory, the header included */
};

struct journal;
struct journal_memory; /* portalbd/volume/volume.h */

struct journal_record {
    uint64_t pos;    /* of its header */
    uint64_t end;    /* position behind it */
    uint64_t number; /* of the write: contiguous */
    uint64_t sector;
    uint64_t count;    /* sectors */
    uint8_t kind;      /* extent_kind */
    uint64_t data_pos; /* DATA: of its first byte; else = pos */
};

/* --- life --- */

/* Looks at the memory, of which nothing is believed, and changes nothing in it. m (borrowed until
 * journal_free) NULL: anonymous memory of `size` bytes. The journal has an id only if a valid
 * header of this volume is there; then journal_recover comes next, else journal_format. -ERR_BUSY:
 * there is no room even for the header. -ERR_UNSUPPORTED: made by a newer version. -ERR_INVALID. */
int journal_open(struct journal_memory *m, uint64_t size, const struct volume_key *volume,
                 struct journal **ret, struct err *e);
void journal_free(struct journal *j);

const struct random_id *journal_id(const struct journal *j); /* zero: there is no valid header */
/* Why the header is not valid; NULL when it is, or when the memory is new. */
const char *journal_damage(const struct journal *j);
bool journal_outlives(const struct journal *j); /* the process */
/* How many whole records it seems to hold, for people. */
uint64_t journal_count_writes(struct journal *j);

/* Makes it an empty journal with this id, whose first write will have number 1. */
void journal_format(struct journal *j, const struct random_id *id);

/* What a restart finds. */
struct journal_found {
    uint64_t from;     /* position of the first record above last_write */
    uint64_t end;      /* position behind the last good record: from .. end is to be replayed */
    uint64_t number;   /* of the last of them; last_write when there is none */
    struct err damage; /* code != 0: why the records from `end` on are not good */
};
/* Walks the records, of which nothing is believed. last_write: the number of the last write that
 * the store has; sectors: of the volume. -ERR_BUSY: no room for pages that should be there. */
int journal_scan(struct journal *j, uint64_t last_write, uint64_t sectors,
                 struct journal_found *ret, struct err *e);
/* Frees what the store has, cuts off what is not good, and goes on with the number behind the last
 * that is left. */
void journal_recover(struct journal *j, const struct journal_found *found);

/* --- use --- */

/* Appends one write: DATA of count sectors (<= 1 MiB) from data, or a ZERO or HOLE of any length.
 * False: no room now. */
bool journal_append(struct journal *j, uint8_t kind, uint64_t sector, uint64_t count,
                    const uint8_t *data, struct journal_record *ret);
/* The last append found room in the ring, but the system gave no memory for it: nobody says when to
 * try again. */
bool journal_starved(const struct journal *j);
/* The record at position pos < journal_head(); skips padding. */
void journal_read(const struct journal *j, uint64_t pos, struct journal_record *ret);
/* Bytes at a position; valid until freed. A record's data is contiguous. */
const uint8_t *journal_data(const struct journal *j, uint64_t pos);

/* Frees everything below pos. */
void journal_free_to(struct journal *j, uint64_t pos);

uint64_t journal_head(const struct journal *j); /* position behind the newest record */
uint64_t journal_tail(const struct journal *j); /* everything below is freed */
uint64_t journal_size(const struct journal *j); /* bytes of the ring */
