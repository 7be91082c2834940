/* The RAM cache: an arena of pages, an open-addressing index from page number to slot, CLOCK
 * eviction. Read-once pages are also in a list, the oldest first.
 *
 * I1 index[] holds slot + 1 of every used slot, reachable from its hash by linear probing; deletion
 * shifts back. I2 A used slot has at least one valid sector. I3 once.count is the length of the
 * list of read-once slots, which are used ones. */
#include "portalbd/cache/ram_cache.h"

#include <stdlib.h>
#include <string.h>

struct slot {
    uint64_t page; /* address / RAM_CACHE_PAGE_SECTORS */
    uint8_t valid; /* a bit a sector; 0: the slot is free */
    uint8_t used;  /* CLOCK's reference bit */
    bool once;     /* on the list of read-once pages */
};

/* Free slots use `next` alone. Slot numbers + 1; 0: none. */
struct link {
    uint32_t next;
    uint32_t prev;
};

struct ram_cache {
    uint8_t *data; /* mapping of slot_count pages */
    struct slot *slots;
    uint32_t *index;
    uint32_t index_mask;
    uint32_t slot_count;
    uint32_t used_count;
    uint32_t fresh; /* slots from here on were never used */
    uint32_t hand;
    uint32_t free_slot; /* one free slot + 1 below `fresh`, else 0: drops push here */
    struct link *links;
    struct {
        uint32_t first, last; /* slot + 1 */
        uint32_t count;
        uint32_t max; /* of a full cache */
    } once;
};

struct ram_cache *ram_cache_new(uint64_t size) {
    struct ram_cache *c = NEW(struct ram_cache);
    uint64_t count = MAX(size / RAM_CACHE_PAGE, (uint64_t)1);
    CHECK(count < UINT32_MAX / 4);
    c->slot_count = (uint32_t)count;
    c->data = xmalloc((size_t)count * RAM_CACHE_PAGE); /* touched only as it fills */
    c->slots = xcalloc(count, sizeof *c->slots);
    c->links = xcalloc(count, sizeof *c->links);
    c->once.max = MAX(c->slot_count / 8 * 3, 1u);
    uint32_t index_size = 4;
    while (index_size < count * 2)
        index_size *= 2;
    c->index = xcalloc(index_size, sizeof *c->index);
    c->index_mask = index_size - 1;
    return c;
}

void ram_cache_free(struct ram_cache *c) {
    if (!c)
        return;
    free(c->data);
    free(c->slots);
    free(c->links);
    free(c->index);
    free(c);
}

static uint32_t home(const struct ram_cache *c, uint64_t page) {
    return (uint32_t)((page * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & c->index_mask;
}

/* The place in index[] of the page, or of the empty place where it would go. */
static uint32_t probe(const struct ram_cache *c, uint64_t page) {
    uint32_t i = home(c, page);
    while (c->index[i] && c->slots[c->index[i] - 1].page != page)
        i = (i + 1) & c->index_mask;
    return i;
}

static struct slot *find(const struct ram_cache *c, uint64_t page) {
    uint32_t i = probe(c, page);
    return c->index[i] ? &c->slots[c->index[i] - 1] : NULL;
}

static uint8_t *slot_data(const struct ram_cache *c, const struct slot *s) {
    return c->data + (size_t)(s - c->slots) * RAM_CACHE_PAGE;
}

/* Removes a page from the index, moving back what probed past it. */
static void unindex(struct ram_cache *c, uint64_t page) {
    uint32_t hole = probe(c, page);
    CHECK(c->index[hole]);
    for (uint32_t i = (hole + 1) & c->index_mask; c->index[i]; i = (i + 1) & c->index_mask) {
        uint32_t h = home(c, c->slots[c->index[i] - 1].page);
        if (((i - h) & c->index_mask) >= ((i - hole) & c->index_mask)) {
            c->index[hole] = c->index[i];
            hole = i;
        }
    }
    c->index[hole] = 0;
}

static void once_add(struct ram_cache *c, struct slot *s) {
    uint32_t n = (uint32_t)(s - c->slots);
    CHECK(!s->once);
    s->once = true;
    c->links[n] = (struct link){.prev = c->once.last};
    if (c->once.last)
        c->links[c->once.last - 1].next = n + 1;
    else
        c->once.first = n + 1;
    c->once.last = n + 1;
    c->once.count++;
}

static void once_remove(struct ram_cache *c, struct slot *s) {
    struct link *l = &c->links[s - c->slots];
    CHECK(s->once && c->once.count > 0);
    s->once = false;
    *(l->prev ? &c->links[l->prev - 1].next : &c->once.first) = l->next;
    *(l->next ? &c->links[l->next - 1].prev : &c->once.last) = l->prev;
    c->once.count--;
}

static void release_slot(struct ram_cache *c, struct slot *s) {
    unindex(c, s->page);
    if (s->once)
        once_remove(c, s);
    s->valid = 0;
    c->used_count--;
    uint32_t n = (uint32_t)(s - c->slots);
    c->links[n].next = c->free_slot;
    c->free_slot = n + 1;
}

static void evict_one(struct ram_cache *c) {
    if (c->once.count >= c->once.max) {
        release_slot(c, &c->slots[c->once.first - 1]);
        return;
    }
    for (;;) {
        struct slot *s = &c->slots[c->hand];
        c->hand = (c->hand + 1) % c->slot_count;
        if (!s->valid)
            continue;
        if (!s->used) {
            release_slot(c, s);
            return;
        }
        s->used = 0;
    }
}

static struct slot *take_slot(struct ram_cache *c, uint64_t page) {
    if (!c->free_slot && c->fresh == c->slot_count)
        evict_one(c);
    uint32_t n;
    if (c->free_slot) {
        n = c->free_slot - 1;
        c->free_slot = c->links[n].next;
    } else {
        n = c->fresh++;
    }
    struct slot *s = &c->slots[n];
    CHECK(s->valid == 0);
    *s = (struct slot){.page = page};
    c->index[probe(c, page)] = n + 1;
    c->used_count++;
    return s;
}

/* The part of one page that [sector, sector + count) covers. */
struct span {
    uint64_t page;
    unsigned first;
    unsigned count;
    uint8_t mask;
};

static struct span span_at(uint64_t sector, uint64_t count) {
    struct span s = {.page = sector / RAM_CACHE_PAGE_SECTORS,
                     .first = sector % RAM_CACHE_PAGE_SECTORS};
    s.count = (unsigned)MIN(count, (uint64_t)(RAM_CACHE_PAGE_SECTORS - s.first));
    s.mask = (uint8_t)(((1u << s.count) - 1) << s.first);
    return s;
}

static bool has_all(const struct ram_cache *c, uint64_t sector, uint64_t count) {
    while (count > 0) {
        struct span p = span_at(sector, count);
        const struct slot *s = find(c, p.page);
        if (!s || (s->valid & p.mask) != p.mask)
            return false;
        sector += p.count;
        count -= p.count;
    }
    return true;
}

bool ram_cache_read(struct ram_cache *c, uint64_t sector, uint64_t count, uint8_t *buf) {
    /* A read that fails is no use of the pages that it would have found. */
    if (count > RAM_CACHE_PAGE_SECTORS && !has_all(c, sector, count))
        return false;
    while (count > 0) {
        struct span p = span_at(sector, count);
        struct slot *s = find(c, p.page);
        if (!s || (s->valid & p.mask) != p.mask)
            return false;
        if (s->once && s->used)
            once_remove(c, s);
        s->used = 1;
        memcpy(buf, slot_data(c, s) + p.first * SECTOR_SIZE, (size_t)p.count * SECTOR_SIZE);
        buf += (size_t)p.count * SECTOR_SIZE;
        sector += p.count;
        count -= p.count;
    }
    return true;
}

static void write_pages(struct ram_cache *c, uint64_t sector, uint64_t count, const uint8_t *data,
                        bool once) {
    while (count > 0) {
        struct span p = span_at(sector, count);
        struct slot *s = find(c, p.page);
        if (!s) {
            s = take_slot(c, p.page);
            if (once)
                once_add(c, s);
        }
        s->valid |= p.mask;
        memcpy(slot_data(c, s) + p.first * SECTOR_SIZE, data, (size_t)p.count * SECTOR_SIZE);
        data += (size_t)p.count * SECTOR_SIZE;
        sector += p.count;
        count -= p.count;
    }
}

void ram_cache_write(struct ram_cache *c, uint64_t sector, uint64_t count, const uint8_t *data) {
    write_pages(c, sector, count, data, false);
}

void ram_cache_write_once(struct ram_cache *c, uint64_t sector, uint64_t count,
                          const uint8_t *data) {
    write_pages(c, sector, count, data, true);
}

static void drop_from_slot(struct ram_cache *c, struct slot *s, uint8_t mask) {
    if ((s->valid & ~mask) == 0)
        release_slot(c, s);
    else
        s->valid &= (uint8_t)~mask;
}

void ram_cache_drop(struct ram_cache *c, uint64_t sector, uint64_t count) {
    if (count / RAM_CACHE_PAGE_SECTORS > c->fresh) {
        uint64_t end = sector + count;
        for (uint32_t i = 0; i < c->fresh; i++) {
            struct slot *s = &c->slots[i];
            uint64_t first = s->page * RAM_CACHE_PAGE_SECTORS;
            if (!s->valid || first >= end || first + RAM_CACHE_PAGE_SECTORS <= sector)
                continue;
            uint64_t from = MAX(first, sector);
            drop_from_slot(c, s, span_at(from, end - from).mask);
        }
        return;
    }
    while (count > 0) {
        struct span p = span_at(sector, count);
        struct slot *s = find(c, p.page);
        if (s)
            drop_from_slot(c, s, p.mask);
        sector += p.count;
        count -= p.count;
    }
}

uint64_t ram_cache_used(const struct ram_cache *c) {
    return (uint64_t)c->used_count * RAM_CACHE_PAGE;
}
