/* The page cache: a hash of pages by (part, number), and a list of those that may go, the least
 * recently used first.
 *
 *   absent --page_cache_read--> LOADING --the fetch ends well--> READY --room is wanted--> absent
 *                                  \--it fails--> FAILED --the last waiter leaves--> absent
 *
 * The fiber that found a page absent fetches it; others that want it meanwhile wait. When the
 * fetching fiber was cancelled, one of the waiters takes its place.
 *
 * I1  A page is in the hash while it is LOADING or READY, and on the LRU exactly when it is READY
 *     and nobody holds it.
 * I2  READY pages that nobody holds never exceed the limit. */
#include "portalbd/cache/page_cache.h"

#include <stdlib.h>

enum { BUCKETS_MIN = 64 };

enum page_state { PAGE_LOADING, PAGE_READY, PAGE_FAILED };

struct cached_page {
    struct list_node lru;
    struct cached_page *next; /* in its bucket */
    struct random_id id;
    uint32_t number;
    enum page_state state;
    unsigned holders; /* fibers inside page_cache_read that look at it */
    int rc;           /* FAILED: why */
    struct waitq waiters;
    uint8_t *bytes; /* owned; READY */
};

struct page_cache {
    struct env *env;
    struct objstore *store; /* borrowed */
    size_t pages_max;
    size_t page_count;            /* READY */
    size_t entry_count;           /* in the hash */
    struct cached_page **buckets; /* owned; bucket_count is a power of two */
    size_t bucket_count;
    struct list_node lru;
    uint64_t hits;
    uint64_t misses;
};

struct page_cache *page_cache_new(struct env *env, struct objstore *store, size_t bytes_max) {
    struct page_cache *c = NEW(struct page_cache);
    c->env = env;
    c->store = store;
    c->pages_max = MAX(bytes_max / RUN_PAGE_SIZE, 1);
    c->bucket_count = BUCKETS_MIN;
    c->buckets = xcalloc(c->bucket_count, sizeof(struct cached_page *));
    list_init(&c->lru);
    return c;
}

/* --- the hash --- */

/* Part ids are random already. */
static size_t bucket_of(const struct page_cache *c, const struct random_id *id, uint32_t number) {
    uint64_t h;
    memcpy(&h, id->bytes, sizeof h);
    h = (h ^ number) * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(h >> 32) & (c->bucket_count - 1);
}

static struct cached_page *find(const struct page_cache *c, const struct random_id *id,
                                uint32_t number) {
    struct cached_page *p = c->buckets[bucket_of(c, id, number)];
    while (p && !(p->number == number && random_id_equal(&p->id, id)))
        p = p->next;
    return p;
}

static void hash_grow(struct page_cache *c) {
    struct cached_page **old = c->buckets;
    size_t old_count = c->bucket_count;
    c->bucket_count *= 2;
    c->buckets = xcalloc(c->bucket_count, sizeof(struct cached_page *));
    for (size_t i = 0; i < old_count; i++) {
        for (struct cached_page *p = old[i], *next; p; p = next) {
            next = p->next;
            size_t b = bucket_of(c, &p->id, p->number);
            p->next = c->buckets[b];
            c->buckets[b] = p;
        }
    }
    free(old);
}

static void hash_insert(struct page_cache *c, struct cached_page *p) {
    if (c->entry_count >= c->bucket_count)
        hash_grow(c);
    size_t b = bucket_of(c, &p->id, p->number);
    p->next = c->buckets[b];
    c->buckets[b] = p;
    c->entry_count++;
}

static void hash_remove(struct page_cache *c, struct cached_page *p) {
    struct cached_page **at = &c->buckets[bucket_of(c, &p->id, p->number)];
    while (*at != p) {
        CHECK(*at);
        at = &(*at)->next;
    }
    *at = p->next;
    c->entry_count--;
}

/* --- pages --- */

static void page_free(struct cached_page *p) {
    CHECK(p->holders == 0);
    CHECK(waitq_empty(&p->waiters));
    free(p->bytes);
    free(p);
}

static void evict(struct page_cache *c, size_t pages_max) {
    while (c->page_count > pages_max && !list_empty(&c->lru)) {
        struct cached_page *p = list_entry(list_pop_front(&c->lru), struct cached_page, lru);
        CHECK(p->state == PAGE_READY);
        hash_remove(c, p);
        c->page_count--;
        page_free(p);
    }
}

void page_cache_free(struct page_cache *c) {
    evict(c, 0);
    CHECK(c->page_count == 0);
    CHECK(c->entry_count == 0);
    free(c->buckets);
    free(c);
}

static void hold(struct cached_page *p) {
    if (list_linked(&p->lru))
        list_remove(&p->lru);
    p->holders++;
}

static void drop(struct page_cache *c, struct cached_page *p) {
    CHECK(p->holders > 0);
    if (--p->holders > 0)
        return;
    if (p->state == PAGE_FAILED) {
        page_free(p);
        return;
    }
    if (p->state == PAGE_READY) {
        list_push_back(&c->lru, &p->lru);
        evict(c, c->pages_max);
    }
}

static int fetch(struct page_cache *c, const char *key, struct cached_page *p, struct err *e) {
    CLEANUP_BUF struct buf body = {0};
    uint64_t off = (uint64_t)p->number * RUN_PAGE_SIZE;
    int rc = objstore_get_range(c->store, key, off, RUN_PAGE_SIZE, &body, e);
    if (rc < 0)
        return rc;
    if (body.len != RUN_PAGE_SIZE)
        return err_set(e, -ERR_CORRUPT, "'%s': page %u has %zu bytes", key, p->number, body.len);
    p->bytes = xmalloc(RUN_PAGE_SIZE);
    memcpy(p->bytes, body.data, RUN_PAGE_SIZE);
    return 0;
}

/* fiber. Fetches a page that is absent; returns it held, LOADING no more. */
static struct cached_page *load(struct page_cache *c, const char *key, const struct random_id *id,
                                uint32_t number, struct err *e) {
    struct cached_page *p = NEW(struct cached_page);
    *p = (struct cached_page){.id = *id, .number = number, .state = PAGE_LOADING, .holders = 1};
    waitq_init(&p->waiters);
    hash_insert(c, p);
    p->rc = fetch(c, key, p, e);
    if (p->rc < 0) {
        p->state = PAGE_FAILED;
        hash_remove(c, p);
    } else {
        p->state = PAGE_READY;
        c->page_count++;
    }
    waitq_wake_all(&p->waiters);
    return p;
}

int page_cache_read(struct page_cache *c, const char *key, const struct random_id *id,
                    uint32_t page, uint8_t *out, struct err *e) {
    for (bool first = true;; first = false) {
        bool fetched = false;
        int rc = 0;
        struct cached_page *p = find(c, id, page);
        if (p)
            hold(p);
        if (first)
            *(p && p->state == PAGE_READY ? &c->hits : &c->misses) += 1;
        if (!p) {
            p = load(c, key, id, page, e);
            fetched = true;
        }
        while (rc == 0 && p->state == PAGE_LOADING)
            rc = waitq_wait(c->env, &p->waiters);
        if (rc < 0) {
            rc = err_set(e, rc, "'%s': cancelled", key);
        } else if (p->state == PAGE_FAILED) {
            rc = fetched ? p->rc : err_set(e, p->rc, "'%s': page %u could not be read", key, page);
        } else {
            CHECK(p->state == PAGE_READY);
            memcpy(out, p->bytes, RUN_PAGE_SIZE);
        }
        drop(c, p);
        /* Another fiber's fetch that was cancelled is no reason for this one to fail. */
        if (rc != -ERR_CANCELLED || fetched || fiber_cancelled(c->env))
            return rc;
    }
}

struct page_cache_stats page_cache_stats(const struct page_cache *c) {
    return (struct page_cache_stats){
        .hits = c->hits, .misses = c->misses, .bytes = c->page_count * RUN_PAGE_SIZE};
}
