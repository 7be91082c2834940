/* The RAM cache of a volume's sectors, keyed by the volume's address. Owner thread.
 *
 * Pages of RAM_CACHE_PAGE bytes with a bit for each valid sector. Fixed memory: when it is full,
 * pages that were not used lately make room (CLOCK). Pages that came as "read once" hold at most
 * 3/8 of a full cache: beyond that the oldest of them makes room. The second read of one makes it
 * a page like others. */
#pragma once

#include "common/mem.h"

enum { RAM_CACHE_PAGE_SECTORS = 8, RAM_CACHE_PAGE = RAM_CACHE_PAGE_SECTORS * SECTOR_SIZE };

struct ram_cache;

/* size: bytes of data, at least one page; the index comes on top (about 1/100). Memory is touched
 * as it fills. */
struct ram_cache *ram_cache_new(uint64_t size);
void ram_cache_free(struct ram_cache *c);

/* Copies count sectors from sector on into buf, when all of them are there. */
bool ram_cache_read(struct ram_cache *c, uint64_t sector, uint64_t count, uint8_t *buf);
/* Stores sectors; they read back until they are evicted. */
void ram_cache_write(struct ram_cache *c, uint64_t sector, uint64_t count, const uint8_t *data);
/* The same for what a sequential reader will probably read once. */
void ram_cache_write_once(struct ram_cache *c, uint64_t sector, uint64_t count,
                          const uint8_t *data);
/* Forgets sectors. O(min(count, pages of the cache)). */
void ram_cache_drop(struct ram_cache *c, uint64_t sector, uint64_t count);

uint64_t ram_cache_used(const struct ram_cache *c); /* bytes of pages in use */
