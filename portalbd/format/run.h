/* Map entries and map runs: bytes <-> structs, pure and bounded. Any thread.
 *
 * A run is a sorted list of entries that do not overlap. It is stored as parts (objects of pages of
 * RUN_PAGE_SIZE bytes, each decodable alone, and behind them the part's shares) and an index object
 * (parts, fences of pages, usage table, volume table), all under map/<id>. The next run may name
 * parts of this one again: its usage table keeps the numbers under which their pages know objects,
 * and the shares say what a part that it does not name took with it. */
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
/* DATA: bytes of its object that it is charged with, >= 1: its frames, but of one that it needs a
 * part of no more than that part alone would take. */
uint32_t map_entry_charge(const struct map_entry *m);

enum {
    RUN_PAGE_SIZE = 4096,                 /* bytes, crc included */
    RUN_PART_SIZE_MAX = 32 * 1024 * 1024, /* bytes of pages */
    RUN_PAGE_ENTRIES_MAX = 1024,
    RUN_PARTS_MAX = 4096,
    RUN_INDEX_SIZE_MAX = 64 * 1024 * 1024,
    RUN_VOLUMES_MAX = 64,
    RUN_USAGE_MAX = 4 * 1024 * 1024, /* objects that one run references */
    RUN_SHARES_SIZE_MAX = 64 * 1024 * 1024,
};
#define RUN_USAGE_BYTES_MAX (UINT64_C(1) << 62) /* that one object may be charged with */

struct run_index;

/* --- pages --- */

/* Builds pages one entry at a time; entries come in order of sector and do not overlap. Pages name
 * an entry's object by its number in the run's usage table (run_index.usage): `ref_index`. */
struct run_page_builder {
    uint8_t *page; /* RUN_PAGE_SIZE bytes, borrowed */
    size_t len;
    size_t entries;
    uint64_t first_sector;
    uint64_t next_sector; /* behind the last entry */
    uint64_t last_count;  /* of the last entry, for deltas */
    uint32_t last_ref;
    uint32_t last_end; /* off behind the last DATA entry's frames */
    uint16_t restarts[RUN_PAGE_ENTRIES_MAX / 16];
};
void run_page_start(struct run_page_builder *b, uint8_t *page);
/* False when the page is full: finish it and start the next. An entry always fits an empty page.
 * ref_index: of m->ref in the run's usage table; DATA only. */
bool run_page_add(struct run_page_builder *b, const struct map_entry *m, uint32_t ref_index);
void run_page_finish(struct run_page_builder *b); /* restart points, crc */

/* Walks a page. Entries are decoded into the cursor; lens live in it. */
struct run_page_cursor {
    struct view page;          /* borrowed */
    const struct run_index *x; /* borrowed */
    size_t pos;
    size_t index; /* of the next entry */
    size_t count;
    size_t end; /* of the entries' bytes in the page */
    uint64_t next_sector;
    uint64_t last_count;
    uint32_t last_ref;
    uint32_t last_end;
    bool numbers_only;      /* entry.ref is left empty, for who goes by last_ref; that this number
                               is free in the index is then the caller's to see */
    bool pending;           /* seek has decoded `entry` already */
    struct map_entry entry; /* the current one when run_page_next returned 1; its lens point into
                               the cursor, which therefore must not be copied */
    uint16_t lens[EXTENT_FRAMES_MAX];
};
/* Checks the page's crc and bounds. The page and the index, whose tables its entries name, are
 * borrowed until the cursor is used no more. */
int run_page_open(struct run_page_cursor *c, const struct run_index *x, struct view page,
                  struct err *e);
/* Moves to the first entry whose end is > sector, so that a following run_page_next gives it. */
int run_page_seek(struct run_page_cursor *c, uint64_t sector, struct err *e);
/* 1: c->entry is set. 0: the page has ended. < 0: -ERR_CORRUPT. */
int run_page_next(struct run_page_cursor *c, struct err *e);

/* --- index --- */

struct run_part {
    struct obj_ref ref;    /* OBJ_MAP; volume index into the run's own table */
    uint64_t first_sector; /* of its first entry */
    uint64_t last_sector;  /* the last sector of its last entry */
    uint64_t sectors;      /* that its entries cover */
    uint32_t entries;
    uint32_t page_count;
    uint32_t shares_len; /* bytes of its shares, which begin behind its pages */
    /* The fences: first sectors of its pages but the first one, less first_sector. One of the two
     * is there when page_count > 1, the wide one if it must be. For run_part_page_first. */
    uint32_t *fences;      /* owned */
    uint64_t *fences_wide; /* owned */
};
/* Bytes of its object: pages and shares. */
static inline uint64_t run_part_size(const struct run_part *p) {
    return (uint64_t)p->page_count * RUN_PAGE_SIZE + p->shares_len;
}
/* The first sector of a page. */
static inline uint64_t run_part_page_first(const struct run_part *p, uint32_t page) {
    CHECK(page < p->page_count);
    if (page == 0)
        return p->first_sector;
    return p->first_sector + (p->fences ? p->fences[page - 1] : p->fences_wide[page - 1]);
}
/* Makes the fences; first_sector, last_sector and page_count are set. page_first: of each page. */
void run_part_set_fences(struct run_part *p, const uint64_t *page_first);

struct run_usage {
    struct obj_ref ref; /* LOG or MOVED; volume index into the run's own table */
    uint64_t bytes;     /* stored bytes of frames that entries of this run reference */
};
/* A number that no page uses: everything in it is zero, it names no object. */
static inline bool run_usage_is_free(const struct run_usage *u) {
    return u->bytes == 0;
}

struct run_index {
    struct volume_key *volumes; /* owned; the table that this run's references index; [0] need not
                                   be the own volume */
    size_t volume_count;
    struct run_part *parts; /* owned */
    size_t part_count;
    struct run_usage *usage; /* owned; pages name objects by their number here */
    size_t usage_count;
    uint64_t entry_count; /* of all parts */
    struct random_id nonce;
};
void run_index_release(struct run_index *x);
/* -ERR_OVERLOAD when it would be larger than RUN_INDEX_SIZE_MAX. */
int run_index_encode(struct buf *out, const struct run_index *x, struct err *e);
/* *ret is filled on success only. */
int run_index_decode(struct run_index *ret, struct view in, struct err *e);

/* --- shares --- */

/* What a part's entries take of the bytes of run_usage: numbers ascend, bytes >= 1. */
struct run_share {
    uint32_t number; /* of the object in the usage table */
    uint64_t bytes;
};
void run_shares_encode(struct buf *out, const struct run_share *shares, size_t count);
/* *ret, owned by the caller (free), and *ret_count are set on success only. */
int run_shares_decode(struct run_share **ret, size_t *ret_count, struct view in, struct err *e);
