/* The memtable: sectors -> where their newest bytes are, for everything since a checkpoint. Extents
 * do not overlap; a put shadows what it covers. A treap, split and merged at the edges of a put.
 * Owner thread. */
#pragma once

#include "portalbd/format/run.h"

/* Stored lengths of a segment's frames, shared by the extents that point into it. */
struct lens_block {
    uint32_t refs;
    uint16_t lens[];
};
struct lens_block *lens_block_new(const uint16_t *lens,
                                  size_t count); /* one reference, the caller's */
void lens_block_unref(struct lens_block *b);

struct mem_extent {
    uint64_t sector;
    uint64_t count;     /* sectors */
    uint8_t kind;       /* extent_kind */
    bool stored;        /* false: the record is in the journal at pos */
    uint8_t skip;       /* stored DATA: as in struct map_entry */
    uint16_t volume;    /* stored DATA: index into the root's table of volumes */
    uint32_t off;       /* stored DATA: of the first frame */
    uint32_t first_len; /* stored DATA: index into lens */
    uint64_t pos; /* not stored: journal position of its first byte (ZERO, HOLE: of its record) */
    uint64_t seq; /* stored: its segment */
    struct lens_block *lens; /* stored DATA: the table takes a reference of its own at a put */
};

struct memtable;

struct memtable *memtable_new(void);
void memtable_free(struct memtable *t);
size_t memtable_count(const struct memtable *t);

/* Newer than everything in it. */
void memtable_put(struct memtable *t, const struct mem_extent *x);
/* The first extent that ends behind `sector`, or NULL. Borrowed until the next change. */
const struct mem_extent *memtable_seek(const struct memtable *t, uint64_t sector);
/* [sector, sector + count) of an extent, which must lie inside it. */
struct mem_extent mem_extent_part(const struct mem_extent *x, uint64_t sector, uint64_t count);
/* A stored extent as a map entry; lens are borrowed from its lens_block. */
struct map_entry mem_extent_entry(const struct mem_extent *x);

/* A segment became durable: what came from its journal range [pos_from, pos_to) now points at the
 * segment. */
void memtable_set_stored(struct memtable *t, uint64_t pos_from, uint64_t pos_to, uint64_t seq,
                         const struct segment_table *table, struct lens_block *lens);
/* Replays a segment's table: puts all its extents, stored. */
void memtable_replay(struct memtable *t, uint16_t volume, uint64_t seq,
                     const struct segment_table *table);
