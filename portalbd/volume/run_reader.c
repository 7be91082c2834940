/* Map runs on the store, for reading.
 *
 * The index is in memory as long as the reader; pages come one by one through the page cache, or,
 * for whoever walks the whole run, many with one GET and past the cache, which a merge would only
 * flush.
 *
 * I1  What an entry says lies between the fences of its page, and the first fence is its first
 *     entry: a page that is not the one asked for is damage. */
#include "portalbd/volume/run_reader.h"

#include <stdlib.h>

enum { DECODE_INLINE_MAX = 64 * 1024 }; /* bytes of an index or of shares; more are a job */

struct run_reader {
    struct env *env;
    struct objstore *store;   /* borrowed */
    struct page_cache *pages; /* borrowed */
    unsigned refs;
    struct run_index index;
};

/* --- opening --- */

struct decode_job {
    struct view in;
    struct run_index *index;
    struct err *e;
    int rc;
};

static void decode(void *arg) {
    struct decode_job *job = arg;
    job->rc = run_index_decode(job->index, job->in, job->e);
}

int run_index_check(const struct run_index *x, uint64_t entry_count,
                    const struct volume_key *volumes, size_t volume_count, struct err *e) {
    CHECK(volume_count > 0);
    if (x->entry_count != entry_count)
        return err_set(e, -ERR_CORRUPT, "a run of %llu entries, its root says %llu",
                       (unsigned long long)x->entry_count, (unsigned long long)entry_count);
    for (size_t i = 0; i < x->volume_count; i++) {
        size_t k = 0;
        while (k < volume_count && !volume_key_equal(&x->volumes[i], &volumes[k]))
            k++;
        if (k == volume_count)
            return err_set(e, -ERR_CORRUPT, "a run about volume %s, which its root does not know",
                           x->volumes[i].text);
    }
    return 0;
}

int run_reader_open(struct env *env, struct objstore *store, struct page_cache *pages,
                    const struct root_run *run, const struct volume_key *volumes,
                    size_t volume_count, struct run_reader **ret, struct err *e) {
    char key[KEY_MAX];
    CLEANUP_BUF struct buf body = {0};
    struct err why = {0};
    CHECK(run->index.volume < volume_count);
    key_map(key, &volumes[run->index.volume], &run->index.id);
    int rc = objstore_get(store, key, RUN_INDEX_SIZE_MAX, &body, e);
    if (rc < 0)
        return rc;
    struct run_index index = {0};
    struct decode_job job = {.in = buf_view(&body), .index = &index, .e = &why};
    fiber_run_job_if(env, body.len > DECODE_INLINE_MAX, decode, &job);
    if (job.rc == 0) {
        job.rc = run_index_check(&index, run->entry_count, volumes, volume_count, &why);
        if (job.rc < 0)
            run_index_release(&index);
    }
    if (job.rc < 0) {
        err_wrap(&why, "'%s'", key);
        return err_copy(e, &why);
    }
    *ret = run_reader_new(env, store, pages, &index);
    return 0;
}

struct run_reader *run_reader_new(struct env *env, struct objstore *store, struct page_cache *pages,
                                  struct run_index *index) {
    struct run_reader *r = NEW(struct run_reader);
    CHECK(index->part_count > 0);
    *r =
        (struct run_reader){.env = env, .store = store, .pages = pages, .refs = 1, .index = *index};
    *index = (struct run_index){0};
    return r;
}

void run_reader_ref(struct run_reader *r) {
    CHECK(r->refs > 0);
    r->refs++;
}

void run_reader_unref(struct run_reader *r) {
    CHECK(r->refs > 0);
    if (--r->refs > 0)
        return;
    run_index_release(&r->index);
    free(r);
}

const struct run_index *run_reader_index(const struct run_reader *r) {
    return &r->index;
}

/* --- pages --- */

void run_iter_init(struct run_iter *it, struct run_reader *r, uint32_t read_ahead) {
    CHECK(read_ahead >= 1);
    CHECK(read_ahead <= RUN_READ_AHEAD_MAX);
    *it = (struct run_iter){.reader = r, .read_ahead = read_ahead};
}

void run_iter_release(struct run_iter *it) {
    free(it->buf);
    *it = (struct run_iter){0};
}

static const struct run_part *current_part(const struct run_iter *it) {
    CHECK(it->part < it->reader->index.part_count);
    return &it->reader->index.parts[it->part];
}

static void part_key(const struct run_iter *it, char key[KEY_MAX]) {
    const struct run_part *p = current_part(it);
    key_map(key, &it->reader->index.volumes[p->ref.volume], &p->ref.id);
}

int run_reader_pages(struct run_reader *r, size_t part, uint32_t first, uint32_t count,
                     uint8_t **ret, struct err *e) {
    CHECK(part < r->index.part_count);
    const struct run_part *p = &r->index.parts[part];
    CHECK(count >= 1 && first < p->page_count && count <= p->page_count - first);
    char key[KEY_MAX];
    CLEANUP_BUF struct buf body = {0};
    key_map(key, &r->index.volumes[p->ref.volume], &p->ref.id);
    uint64_t off = (uint64_t)first * RUN_PAGE_SIZE;
    size_t len = (size_t)count * RUN_PAGE_SIZE;
    int rc = objstore_get_range(r->store, key, off, len, &body, e);
    if (rc < 0)
        return rc;
    if (body.len != len)
        return err_set(e, -ERR_CORRUPT, "'%s': %zu bytes at %llu instead of %zu", key, body.len,
                       (unsigned long long)off, len);
    *ret = body.data;
    body = (struct buf){0};
    return 0;
}

void run_iter_take(struct run_iter *it, uint8_t *pages, uint32_t count) {
    CHECK(count >= 1);
    CHECK(count <= current_part(it)->page_count - it->page);
    free(it->buf);
    it->buf = pages;
    it->buf_part = it->part;
    it->buf_first = it->page;
    it->buf_count = count;
}

static bool in_buffer(const struct run_iter *it) {
    return it->buf_part == it->part && it->page - it->buf_first < it->buf_count;
}

int run_iter_load(struct run_iter *it, struct err *e) {
    const struct run_part *p = current_part(it);
    it->buf_count = 0;
    if (it->read_ahead > 1) {
        uint32_t count = MIN(it->read_ahead, p->page_count - it->page);
        uint8_t *pages;
        int rc = run_reader_pages(it->reader, it->part, it->page, count, &pages, e);
        if (rc == 0)
            run_iter_take(it, pages, count);
        return rc;
    }
    char key[KEY_MAX];
    part_key(it, key);
    if (!it->buf)
        it->buf = xmalloc(RUN_PAGE_SIZE);
    int rc = page_cache_read(it->reader->pages, key, &p->ref.id, it->page, it->buf, e);
    if (rc < 0)
        return rc;
    it->buf_part = it->part;
    it->buf_first = it->page;
    it->buf_count = 1;
    return 0;
}

static int wrap_page(const struct run_iter *it, struct err *why, struct err *e) {
    char key[KEY_MAX];
    part_key(it, key);
    err_wrap(why, "'%s': page %u", key, it->page);
    return err_copy(e, why);
}

/* Opens the page that part and page name. */
static int open_page(struct run_iter *it, struct err *e) {
    const struct run_part *p = current_part(it);
    CHECK(it->page < p->page_count);
    it->page_open = false;
    if (!in_buffer(it))
        return RUN_ITER_WANTS_LOAD;
    struct err why;
    const uint8_t *bytes = it->buf + (size_t)(it->page - it->buf_first) * RUN_PAGE_SIZE;
    int rc = run_page_open(&it->cursor, &it->reader->index, view_of(bytes, RUN_PAGE_SIZE), &why);
    it->cursor.numbers_only = it->numbers_only;
    if (rc == 0 && it->cursor.next_sector != run_part_page_first(p, it->page))
        rc = err_set(&why, -ERR_CORRUPT, "it is another page than the index says");
    if (rc < 0)
        return wrap_page(it, &why, e);
    it->page_open = true;
    return 0;
}

/* The first sector that cannot belong to the current page. */
static uint64_t page_end(const struct run_iter *it) {
    const struct run_part *p = current_part(it);
    return it->page + 1 < p->page_count ? run_part_page_first(p, it->page + 1) : p->last_sector + 1;
}

/* --- walking --- */

size_t run_index_find_part(const struct run_index *x, uint64_t sector) {
    size_t low = 0, high = x->part_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (x->parts[middle].last_sector < sector)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The last page that begins at or before the sector; the first one when none does. */
static uint32_t find_page(const struct run_part *p, uint64_t sector) {
    uint32_t low = 0, high = p->page_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (run_part_page_first(p, middle) <= sector)
            low = middle;
        else
            high = middle;
    }
    return low;
}

int run_iter_try_seek(struct run_iter *it, uint64_t sector, struct err *e) {
    const struct run_index *x = &it->reader->index;
    size_t part = run_index_find_part(x, sector);
    if (part == x->part_count) {
        it->part = part;
        it->page_open = false;
        return 0;
    }
    uint32_t page = find_page(&x->parts[part], sector);
    if (!it->page_open || it->part != part || it->page != page) {
        it->part = part;
        it->page = page;
        int rc = open_page(it, e);
        if (rc != 0)
            return rc;
    }
    struct err why;
    if (run_page_seek(&it->cursor, sector, &why) < 0) {
        it->page_open = false;
        return wrap_page(it, &why, e);
    }
    return 0;
}

static int take_entry(struct run_iter *it, struct err *e) {
    const struct map_entry *m = &it->cursor.entry;
    if (m->sector + m->count > page_end(it)) {
        struct err why;
        err_set_text(&why, -ERR_CORRUPT, "its entries overlap those of the next page");
        return wrap_page(it, &why, e);
    }
    it->entry = *m;
    return 1;
}

int run_iter_try_next(struct run_iter *it, struct err *e) {
    const struct run_index *x = &it->reader->index;
    for (;;) {
        if (it->page_open) {
            struct err why;
            int rc = run_page_next(&it->cursor, &why);
            if (rc < 0)
                return wrap_page(it, &why, e);
            if (rc > 0)
                return take_entry(it, e);
            it->page_open = false;
            it->page++;
        }
        if (it->part < x->part_count && it->page == x->parts[it->part].page_count) {
            it->part++;
            it->page = 0;
        }
        if (it->part == x->part_count)
            return 0;
        int rc = open_page(it, e);
        if (rc != 0)
            return rc;
    }
}

int run_iter_seek(struct run_iter *it, uint64_t sector, struct err *e) {
    int rc;
    while ((rc = run_iter_try_seek(it, sector, e)) == RUN_ITER_WANTS_LOAD) {
        rc = run_iter_load(it, e);
        if (rc < 0)
            return rc;
    }
    return rc;
}

int run_iter_next(struct run_iter *it, struct err *e) {
    int rc;
    while ((rc = run_iter_try_next(it, e)) == RUN_ITER_WANTS_LOAD) {
        rc = run_iter_load(it, e);
        if (rc < 0)
            return rc;
    }
    return rc;
}

struct shares_job {
    struct view in;
    struct run_share *shares; /* the caller's */
    size_t count;
    struct err why;
    int rc;
};

static void decode_shares(void *arg) {
    struct shares_job *job = arg;
    job->rc = run_shares_decode(&job->shares, &job->count, job->in, &job->why);
}

int run_reader_shares(struct run_reader *r, size_t part, struct run_share **ret, size_t *ret_count,
                      struct err *e) {
    CHECK(part < r->index.part_count);
    const struct run_part *p = &r->index.parts[part];
    char key[KEY_MAX];
    CLEANUP_BUF struct buf body = {0};
    key_map(key, &r->index.volumes[p->ref.volume], &p->ref.id);
    uint64_t off = (uint64_t)p->page_count * RUN_PAGE_SIZE;
    int rc = objstore_get_range(r->store, key, off, p->shares_len, &body, e);
    if (rc < 0)
        return rc;
    struct shares_job job = {.in = buf_view(&body)};
    if (body.len != p->shares_len)
        job.rc = err_set(&job.why, -ERR_CORRUPT, "%zu bytes of shares instead of %u", body.len,
                         p->shares_len);
    else
        fiber_run_job_if(r->env, body.len > DECODE_INLINE_MAX, decode_shares, &job);
    if (job.rc < 0) {
        err_wrap(&job.why, "'%s'", key);
        return err_copy(e, &job.why);
    }
    *ret = job.shares;
    *ret_count = job.count;
    return 0;
}
