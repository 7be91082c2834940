/* A map run on the store, open for reading: lookups through the page cache. Owner thread; fibers
 * where it says so. */
#pragma once

#include "portalbd/cache/page_cache.h"
#include "portalbd/format/root.h"
#include "portalbd/objstore/objstore_fiber.h"

struct run_reader;

/* Is this the index that a root with this table of volumes means? Its key says nothing of what is
 * in it, and an index of another run would be believed: other bytes read, needed ones condemned.
 * -ERR_CORRUPT. */
int run_index_check(const struct run_index *x, uint64_t entry_count,
                    const struct volume_key *volumes, size_t volume_count, struct err *e);

/* fiber. Reads the index object of a root's run; volumes: that root's table. pages: shared,
 * borrowed. -ERR_CORRUPT: also what run_index_check says. */
int run_reader_open(struct env *env, struct objstore *store, struct page_cache *pages,
                    const struct root_run *run, const struct volume_key *volumes,
                    size_t volume_count, struct run_reader **ret, struct err *e);
/* The same of a run whose index is at hand: takes it over. */
struct run_reader *run_reader_new(struct env *env, struct objstore *store, struct page_cache *pages,
                                  struct run_index *index);
void run_reader_ref(struct run_reader *r);
void run_reader_unref(
    struct run_reader *r); /* the last one frees it; iterators hold none of their own */

/* Borrowed as long as the reader: parts, usage, table of volumes. */
const struct run_index *run_reader_index(const struct run_reader *r);

/* The first part that ends at or behind the sector; part_count when there is none. */
size_t run_index_find_part(const struct run_index *x, uint64_t sector);
/* fiber. What a part's entries take from objects; *ret is the caller's (free). */
int run_reader_shares(struct run_reader *r, size_t part, struct run_share **ret, size_t *ret_count,
                      struct err *e);

enum { RUN_READ_AHEAD_MAX = 256 }; /* pages */

/* Walks entries in the order of sectors. entry.ref.volume indexes run_reader_index()->volumes;
 * entry and its lens are valid until the next call. An iterator must not be copied. */
struct run_iter {
    struct run_reader *reader; /* borrowed */
    uint32_t read_ahead; /* pages to load at once: 1 for lookups, through the page cache; more for
                            merges, past it */
    size_t part;         /* the page that the cursor walks, or the next to walk */
    uint32_t page;
    bool page_open;
    bool numbers_only; /* see run_page_cursor */
    uint8_t *buf;      /* owned: up to read_ahead pages */
    size_t buf_part;   /* what is in it: pages [buf_first, buf_first + buf_count) of that part */
    uint32_t buf_first;
    uint32_t buf_count;
    struct run_page_cursor cursor;
    struct map_entry entry;
};
/* At the start of the run. */
void run_iter_init(struct run_iter *it, struct run_reader *r, uint32_t read_ahead);
void run_iter_release(struct run_iter *it);
/* fiber. Next run_iter_next gives the first entry that ends behind sector. Pages in between are not
 * read. */
int run_iter_seek(struct run_iter *it, uint64_t sector, struct err *e);
/* fiber. 1: it->entry is set; 0: the run has ended; < 0: an error. */
int run_iter_next(struct run_iter *it, struct err *e);

/* The same two without waiting, on any thread as long as the iterator is nobody else's:
 * RUN_ITER_WANTS_LOAD asks for run_iter_load and then the same call again. */
enum { RUN_ITER_WANTS_LOAD = 2 };
int run_iter_try_seek(struct run_iter *it, uint64_t sector, struct err *e);
int run_iter_try_next(struct run_iter *it, struct err *e);
int run_iter_load(struct run_iter *it, struct err *e); /* fiber */
/* fiber. Pages [first, first + count) of a part, past the cache; *ret is the caller's (free). */
int run_reader_pages(struct run_reader *r, size_t part, uint32_t first, uint32_t count,
                     uint8_t **ret, struct err *e);
/* In place of run_iter_load: pages that run_reader_pages brought, the first of them the one that
 * the iterator is at. Takes pages over. */
void run_iter_take(struct run_iter *it, uint8_t *pages, uint32_t count);
