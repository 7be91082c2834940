/* Pages of map runs in memory: a bounded LRU that all runs of a volume share. A page that ten
 * fibers want is fetched once. Pages are immutable, so nothing is ever invalidated. Owner thread.
 */
#pragma once

#include "portalbd/format/run.h"
#include "portalbd/objstore/objstore_fiber.h"

struct page_cache;

/* bytes_max: of pages; a page that is being read may come on top. store: borrowed. */
struct page_cache *page_cache_new(struct env *env, struct objstore *store, size_t bytes_max);
/* When no fiber is inside page_cache_read. */
void page_cache_free(struct page_cache *c);

/* fiber. Copies one page of a part into out (RUN_PAGE_SIZE bytes). key: of the part's object; id:
 * the part's random id. -ERR_NOT_FOUND: the object is not there (the caller knows whether that is
 * damage); -ERR_CORRUPT: it is too short. The page's own checksum is run_page_open's matter. */
int page_cache_read(struct page_cache *c, const char *key, const struct random_id *id,
                    uint32_t page, uint8_t *out, struct err *e);

struct page_cache_stats {
    uint64_t hits;
    uint64_t misses; /* reads that fetched, or waited for another's fetch */
    size_t bytes;    /* of pages held now */
};
struct page_cache_stats page_cache_stats(const struct page_cache *c);
