/* The disk cache. Positions count bytes from the start for ever; a position lies at position % size
 * of the medium, and is gone once `head` is more than `size` beyond it. A fill never crosses the
 * end of the medium.
 *
 * Entries are a ring in the order of their positions, so the oldest entry is always the next whose
 * bytes are overwritten. A hash leads from (object, granule of the offset) to chains of them. What
 * one entry covers begins in one granule; it may end in the next, with its last frame.
 *
 * I1 tail <= head of the entries, at most entry_max apart. I2 Every ready entry in [tail, head)
 * lies at a position that is still valid. I3 filling_bytes <= DISK_FILL_BYTES_MAX, or one single
 * fill. */
#include "portalbd/cache/disk_cache.h"

#include <stdlib.h>
#include <string.h>

#include "common/fiber.h"
#include "common/mutant.h"
#include "portalbd/format/segment.h"

struct entry {
    struct disk_key key;
    uint64_t pos;
    uint32_t off;
    uint32_t len;
    uint32_t next; /* in its chain: entry number % entry_max, + 1; 0: the last */
    bool ready;    /* written, and in the hash */
};

struct disk_cache {
    struct env *env;
    struct disk_medium *medium; /* borrowed */
    struct entry *entries;
    uint64_t entry_max;
    uint64_t entry_head, entry_tail; /* numbers */
    uint32_t *buckets;
    uint64_t bucket_mask;
    uint64_t head; /* position of the next fill */
    uint64_t filling_bytes;
    struct disk_cache_stats stats;
};

struct span {
    uint32_t off;
    uint32_t len;
};

struct disk_fill {
    struct disk_cache *cache;
    struct disk_key key;
    uint32_t off;
    struct buf bytes; /* owned */
    struct span *spans;
    size_t span_count;
    size_t span_cap;
    uint64_t pos;
    int rc;
    struct err err;
};

/* --- life --- */

struct disk_cache *disk_cache_new(struct env *env, struct disk_medium *m) {
    CHECK(m->size >= DISK_CACHE_SIZE_MIN);
    struct disk_cache *c = NEW(struct disk_cache);
    c->env = env;
    c->medium = m;
    c->entry_max = MIN(m->size / (DISK_GRANULE / 4), (uint64_t)DISK_ENTRIES_MAX);
    c->entries = xcalloc(c->entry_max, sizeof *c->entries);
    uint64_t buckets = 1024;
    while (buckets < c->entry_max)
        buckets *= 2;
    c->buckets = xcalloc(buckets, sizeof *c->buckets);
    c->bucket_mask = buckets - 1;
    return c;
}

void disk_cache_free(struct disk_cache *c) {
    if (!c)
        return;
    CHECK(c->filling_bytes == 0);
    free(c->entries);
    free(c->buckets);
    free(c);
}

struct disk_key disk_key_of(const struct volume_key *owner, const struct obj_ref *ref) {
    uint8_t hash[16];
    segment_volume_hash(hash, owner);
    struct disk_key key;
    memcpy(&key.volume, hash, sizeof key.volume);
    key.volume ^= ref->kind;
    key.object = ref->seq;
    if (ref->kind != OBJ_LOG) /* random, so half of it names it */
        memcpy(&key.object, ref->id.bytes, sizeof key.object);
    return key;
}

void disk_cache_turn_off(struct disk_cache *c) {
    c->stats.off = true;
    c->stats.bytes = 0;
}

struct disk_cache_stats disk_cache_stats(const struct disk_cache *c) {
    return c->stats;
}

/* --- the index --- */

static struct entry *entry_at(const struct disk_cache *c, uint64_t number) {
    return &c->entries[number % c->entry_max];
}

static uint32_t *bucket_of(const struct disk_cache *c, const struct disk_key *key, uint32_t off) {
    uint64_t h = (key->volume ^ key->object * UINT64_C(0x9e3779b97f4a7c15)) + off / DISK_GRANULE;
    h *= UINT64_C(0xbf58476d1ce4e5b9);
    return &c->buckets[(h ^ h >> 32) & c->bucket_mask];
}

static bool is_key(const struct entry *x, const struct disk_key *key) {
    return x->key.volume == key->volume && x->key.object == key->object;
}

static void unlink_entry(struct disk_cache *c, struct entry *x) {
    uint32_t mine = (uint32_t)(x - c->entries) + 1;
    uint32_t *at = bucket_of(c, &x->key, x->off);
    while (*at != mine) {
        CHECK(*at != 0);
        at = &c->entries[*at - 1].next;
    }
    *at = x->next;
    c->stats.bytes -= MIN(c->stats.bytes, (uint64_t)x->len);
    x->ready = false;
}

static void drop_oldest(struct disk_cache *c) {
    CHECK(c->entry_tail < c->entry_head);
    struct entry *x = entry_at(c, c->entry_tail++);
    if (x->ready)
        unlink_entry(c, x);
}

bool disk_cache_still_valid(const struct disk_cache *c, uint64_t pos) {
    return MUTANT("disk-cache-overwritten") || (!c->stats.off && c->head <= pos + c->medium->size);
}

static const struct entry *find(const struct disk_cache *c, const struct disk_key *key,
                                uint32_t granule_off, uint32_t off, uint32_t len) {
    for (uint32_t i = *bucket_of(c, key, granule_off); i != 0; i = c->entries[i - 1].next) {
        const struct entry *x = &c->entries[i - 1];
        if (is_key(x, key) && x->off <= off && off + len <= x->off + x->len)
            return x;
    }
    return NULL;
}

/* The entry that holds byte `off`: it begins in that granule, or with a frame of the one before. */
static const struct entry *find_byte(const struct disk_cache *c, const struct disk_key *key,
                                     uint32_t off) {
    const struct entry *x = find(c, key, off, off, 1);
    if (!x && off >= DISK_GRANULE)
        x = find(c, key, off - DISK_GRANULE, off, 1);
    return x;
}

bool disk_cache_find(struct disk_cache *c, const struct disk_key *key, uint32_t off, uint32_t len,
                     uint64_t *ret_pos) {
    CHECK(len > 0);
    if (c->stats.off)
        return false;
    const struct entry *first = find_byte(c, key, off), *x = first;
    uint32_t end = off + len;
    /* Entries of one fill lie in the medium as in the object. */
    while (x && x->off + x->len < end) {
        const struct entry *next = find_byte(c, key, x->off + x->len);
        x = next && next->pos - next->off == first->pos - first->off ? next : NULL;
    }
    *(x ? &c->stats.hits : &c->stats.misses) += 1;
    if (!x)
        return false;
    *ret_pos = first->pos + (off - first->off);
    CHECK(disk_cache_still_valid(c, first->pos));
    return true;
}

int disk_cache_read(const struct disk_cache *c, uint64_t pos, uint8_t *buf, size_t len,
                    struct err *e) {
    return c->medium->read(c->medium, pos % c->medium->size, buf, len, e);
}

/* --- filling --- */

struct disk_fill *disk_fill_new(struct disk_cache *c, const struct disk_key *key, uint32_t off,
                                struct buf *bytes) {
    bool room = c->filling_bytes == 0 || c->filling_bytes + bytes->len <= DISK_FILL_BYTES_MAX;
    if (c->stats.off || bytes->len == 0 || !room || bytes->len > c->medium->size / 4) {
        c->stats.dropped_bytes += bytes->len;
        buf_release(bytes);
        return NULL;
    }
    struct disk_fill *f = NEW(struct disk_fill);
    *f = (struct disk_fill){.cache = c, .key = *key, .off = off, .bytes = *bytes};
    *bytes = (struct buf){0};
    c->filling_bytes += f->bytes.len;
    return f;
}

static void add_span(struct disk_fill *f, uint32_t off, uint32_t len) {
    struct span *last = f->span_count ? &f->spans[f->span_count - 1] : NULL;
    if (last && last->off + last->len == off && last->off / DISK_GRANULE == off / DISK_GRANULE) {
        last->len += len;
        return;
    }
    if (f->span_count == f->span_cap) {
        f->span_cap = MAX(f->span_cap * 2, (size_t)16);
        f->spans = xrealloc(f->spans, f->span_cap * sizeof *f->spans);
    }
    f->spans[f->span_count++] = (struct span){off, len};
}

void disk_fill_frames(struct disk_fill *f, uint32_t off, const uint16_t *lens, size_t count) {
    for (size_t i = 0; i < count; i++) {
        CHECK(off >= f->off && off + lens[i] <= f->off + f->bytes.len);
        add_span(f, off, lens[i]);
        off += lens[i];
    }
}

/* Takes the next place in the ring, and entries that nobody finds yet; what lay there is dropped
 * before it is overwritten. Returns the number of the first entry. */
static uint64_t reserve(struct disk_fill *f) {
    struct disk_cache *c = f->cache;
    uint64_t size = c->medium->size, len = f->bytes.len;
    if (c->head % size + len > size)
        c->head += size - c->head % size;
    f->pos = c->head;
    c->head += len;
    while (c->entry_tail < c->entry_head &&
           !disk_cache_still_valid(c, entry_at(c, c->entry_tail)->pos))
        drop_oldest(c);
    uint64_t first = c->entry_head;
    for (size_t i = 0; i < f->span_count; i++) {
        if (c->entry_head - c->entry_tail == c->entry_max)
            drop_oldest(c);
        *entry_at(c, c->entry_head++) = (struct entry){.key = f->key,
                                                       .pos = f->pos + (f->spans[i].off - f->off),
                                                       .off = f->spans[i].off,
                                                       .len = f->spans[i].len};
    }
    return first;
}

static void publish(struct disk_fill *f, uint64_t first) {
    struct disk_cache *c = f->cache;
    for (uint64_t n = MAX(first, c->entry_tail); n < first + f->span_count; n++) {
        struct entry *x = entry_at(c, n);
        uint32_t *at = bucket_of(c, &x->key, x->off);
        x->next = *at;
        x->ready = true;
        *at = (uint32_t)(x - c->entries) + 1;
        c->stats.bytes += x->len;
    }
    c->stats.filled_bytes += f->bytes.len;
}

static void write_job(void *arg) {
    struct disk_fill *f = arg;
    struct disk_medium *m = f->cache->medium;
    f->rc = m->write(m, f->pos % m->size, buf_view(&f->bytes), &f->err);
}

int disk_fill_run(struct disk_fill *f, struct err *e) {
    struct disk_cache *c = f->cache;
    int rc = 0;
    if (!c->stats.off && f->span_count > 0 && f->span_count < c->entry_max) {
        uint64_t first = reserve(f);
        fiber_run_job(c->env, write_job, f);
        if (f->rc < 0)
            rc = err_copy(e, &f->err);
        else if (!c->stats.off)
            publish(f, first);
    }
    CHECK(c->filling_bytes >= f->bytes.len);
    c->filling_bytes -= f->bytes.len;
    buf_release(&f->bytes);
    free(f->spans);
    free(f);
    return rc;
}
