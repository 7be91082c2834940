/* Map entries and map runs: bytes <-> structs, pure and bounded. Any thread.
 *
 * A run is a sorted list of entries that do not overlap. It is stored as parts (objects of pages of
 * RUN_PAGE_SIZE bytes, each decodable alone) and an index object (parts, fences of pages, usage
 * table, volume table), all under map/<id>. */
#pragma once

#include "portalbd/format/segment.h"

/* Where the bytes of [sector, sector + count) are. A value: small extents carry their frame lengths
 * inline. */
struct map_entry {
    uint64_t sector;
    uint64_t count;     /* sectors, >= 1 */
    uint8_t kind;       /* extent_kind */
    uint8_t skip;       /* DATA: sectors into its first frame, < 32 */
    uint16_t len_count; /* DATA: frames, = ceil((skip + count) / 32), <= EXTENT_FRAMES_MAX */
    uint32_t off;       /* DATA: of its first frame in the object, bytes */
    struct obj_ref ref; /* DATA */
    const uint16_t
        *lens; /* DATA: stored lengths of its frames; borrowed from whoever made the entry */
};

/* Narrows an entry to [sector, sector + count), which must lie inside it: advances off and lens by
 * whole frames, sets skip. */
void map_entry_narrow(struct map_entry *m, uint64_t sector, uint64_t count);
/* Bytes that its frames take in the object. */
uint32_t map_entry_stored_len(const struct map_entry *m);

enum {
    RUN_PAGE_SIZE = 4096,                 /* bytes, crc included */
    RUN_PART_SIZE_MAX = 32 * 1024 * 1024, /* bytes */
    RUN_PAGE_ENTRIES_MAX = 1024,
    RUN_PARTS_MAX = 4096,
    RUN_INDEX_SIZE_MAX = 64 * 1024 * 1024,
    RUN_VOLUMES_MAX = 64,
};

/* --- pages --- */

/* Builds pages one entry at a time; entries come in order of sector and do not overlap. */
struct run_page_builder {
    uint8_t *page; /* RUN_PAGE_SIZE bytes, borrowed */
    size_t len;
    size_t entries;
    uint64_t first_sector;
    uint64_t next_sector;  /* behind the last entry */
    struct map_entry last; /* for deltas */
    uint16_t restarts[RUN_PAGE_ENTRIES_MAX / 16];
};
void run_page_start(struct run_page_builder *b, uint8_t *page);
/* False when the page is full: finish it and start the next. An entry always fits an empty page. */
bool run_page_add(struct run_page_builder *b, const struct map_entry *m);
void run_page_finish(struct run_page_builder *b); /* restart points, crc */

/* Walks a page. Entries are decoded into the cursor; lens live in it. */
struct run_page_cursor {
    struct view page;
    size_t pos;
    size_t index;
    size_t count;
    struct map_entry entry; /* the current one when run_page_next returned 1 */
    uint16_t lens[EXTENT_FRAMES_MAX];
};
/* Checks the page's crc and bounds. */
int run_page_open(struct run_page_cursor *c, struct view page, struct err *e);
/* Moves to the first entry whose end is > sector, so that a following run_page_next gives it. */
int run_page_seek(struct run_page_cursor *c, uint64_t sector, struct err *e);
/* 1: c->entry is set. 0: the page has ended. < 0: -ERR_CORRUPT. */
int run_page_next(struct run_page_cursor *c, struct err *e);

/* --- index --- */

struct run_part {
    struct obj_ref ref;    /* OBJ_MAP; volume index into the run's own table */
    uint64_t first_sector; /* of its first entry */
    uint64_t last_sector;  /* the last sector of its last entry */
    uint32_t page_count;
    uint64_t *page_first; /* owned; page_count first sectors: the fences */
};
struct run_usage {
    struct obj_ref ref; /* LOG or MOVED; volume index into the run's own table */
    uint64_t bytes;     /* stored bytes of frames that entries of this run reference */
};
struct run_index {
    struct volume_key *volumes; /* owned; the table that this run's references index; [0] need not
                                   be the own volume */
    size_t volume_count;
    struct run_part *parts; /* owned */
    size_t part_count;
    struct run_usage *usage; /* owned; sorted by ref */
    size_t usage_count;
    uint64_t entry_count;
    struct random_id nonce;
};
void run_index_release(struct run_index *x);
void run_index_encode(struct buf *out, const struct run_index *x);
int run_index_decode(struct run_index *ret, struct view in, struct err *e);
