/* Writing a map run.
 *
 * Entries wait one deep, so that neighbours can be joined: holes and zeroes of one kind, and data
 * whose frames follow each other in one object. From there they go into the page being built, full
 * pages into a chunk, chunks to the store as parts, and in the end the index. Memory is one and a
 * half parts and the index.
 *
 *   entry -> pending -> page -> chunks[0] of part_size; what comes then -> chunks[1]
 *                               chunks[1] is half of it: chunks[0] is stored, and [1] becomes [0]
 *                               something else must come next: both are stored as one part
 *
 * So a part that is written anew with a few entries more stays one part, and no crumbs remain.
 *
 * With a base, its parts may be named again unread. The usage table then begins with what the base
 * charges objects with, and in the end the shares of the parts that were not named again are taken
 * off it.
 *
 * I1  Objects that a run names in its usage table are there once each; its pages name them by
 *     that number. What is charged is the sum of the shares of its parts.
 * I2  Nothing is named by anybody until the index is stored and the caller's manifest names it.
 * I3  Parts are in order and do not overlap. */
#include "portalbd/volume/run_writer.h"

#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/volume/usage_table.h"

enum {
    PART_SIZE_DEFAULT = 8 * 1024 * 1024, /* bytes: below the format's limit, to bound memory */
    PART_SIZE_MIN = 2 * RUN_PAGE_SIZE,   /* so that a chunk that makes it full is itself not */
    PART_SMALL = 4, /* a part of less than one in so many of the size is small */
    PARTS_FREE = 4, /* the first quarter of the parts may be as small as that, the rest must not */
    PARTS_MANY = 2, /* would it be half as many as there may be, they become larger: */
    LARGER_OF_8 = 21,      /* eighths of their size */
    INLINE_MAX = 8 * 1024, /* objects and pages to work on at once; more are a job */
    COPY_COST = 64,        /* ... a page that is copied counts as so many */
};
_Static_assert(PART_SIZE_DEFAULT / 8 * LARGER_OF_8 / 2 * 3 + 8 * RUN_PAGE_SIZE <=
                   (int)RUN_PART_SIZE_MAX,
               "a part of format 1");

/* Bytes of objects, by their numbers. */
struct charges {
    uint64_t *bytes; /* owned; of each number below `cap` */
    size_t cap;
    struct run_share *shares; /* owned; the numbers that have any */
    size_t count;
    size_t shares_cap;
};

/* A part in the making. */
struct chunk {
    struct buf pages;
    uint64_t *page_first; /* owned */
    size_t page_count;
    size_t page_cap;
    uint64_t end; /* behind its last entry */
    uint64_t sectors;
    uint32_t entries;
    struct charges charges;
};

struct run_writer {
    struct env *env;
    struct objstore *store; /* borrowed */
    struct volume_key own;
    size_t part_size;
    size_t parts_max;
    size_t page_entries;
    struct run_index index;
    struct usage_table table;
    uint64_t stored_bytes; /* of parts, those taken over too */
    bool stored;           /* the index is on the store */

    struct map_entry pending; /* the last entry; count 0: none */
    uint16_t pending_lens[EXTENT_FRAMES_MAX];
    uint32_t pending_ref; /* number of its object */

    uint8_t page[RUN_PAGE_SIZE];
    struct run_page_builder builder;
    struct chunk chunks[2]; /* [1] is empty unless [0] has part_size */

    struct run_reader *base; /* borrowed; NULL: none */
    bool *reused;            /* owned; of each part of base */
    size_t reused_count;
};

static size_t shape_part_size(struct run_shape shape) {
    return shape.part_size ? MAX(shape.part_size, (uint32_t)PART_SIZE_MIN) : PART_SIZE_DEFAULT;
}

static size_t shape_parts_max(struct run_shape shape) {
    CHECK(shape.parts_max == 0 || (shape.parts_max >= 8 && shape.parts_max <= RUN_PARTS_MAX));
    return shape.parts_max ? shape.parts_max : RUN_PARTS_MAX;
}

static size_t larger_part_size(size_t part_size) {
    return part_size / 8 * LARGER_OF_8;
}

/* Parts that are not among the first quarter are at least of the part size, but the last. */
uint64_t run_shape_capacity(struct run_shape shape) {
    size_t parts = shape_parts_max(shape);
    return (uint64_t)(parts - parts / PARTS_FREE - 1) * larger_part_size(shape_part_size(shape));
}

struct run_writer *run_writer_new(struct env *env, struct objstore *store,
                                  const struct volume_key *own, struct run_shape shape) {
    struct run_writer *w = NEW(struct run_writer);
    w->env = env;
    w->store = store;
    w->own = *own;
    w->part_size = shape_part_size(shape);
    w->parts_max = shape_parts_max(shape);
    w->page_entries = shape.page_entries ? shape.page_entries : RUN_PAGE_ENTRIES_MAX;
    CHECK(w->part_size <= PART_SIZE_DEFAULT);
    usage_table_init(&w->table, &w->index);
    env_random(env, w->index.nonce.bytes, RANDOM_ID_SIZE);
    run_page_start(&w->builder, w->page);
    return w;
}

static void chunk_release(struct chunk *c) {
    buf_release(&c->pages);
    free(c->page_first);
    free(c->charges.bytes);
    free(c->charges.shares);
}

void run_writer_free(struct run_writer *w) {
    usage_table_release(&w->table);
    run_index_release(&w->index);
    for (size_t i = 0; i < ARRAY_LEN(w->chunks); i++)
        chunk_release(&w->chunks[i]);
    free(w->reused);
    free(w);
}

void run_writer_expect(struct run_writer *w, uint64_t bytes) {
    CHECK(w->index.part_count == 0 && w->chunks[0].page_count == 0);
    if (bytes > (uint64_t)w->parts_max / PARTS_MANY * w->part_size)
        w->part_size = larger_part_size(w->part_size);
}

void run_writer_inherit(struct run_writer *w, struct run_reader *base) {
    CHECK(!w->base && w->index.usage_count == 0);
    w->base = base;
    w->reused = xcalloc(MAX(run_reader_index(base)->part_count, 1), sizeof *w->reused);
    usage_table_inherit(&w->table, run_reader_index(base));
}

/* --- charges --- */

static void charge(struct charges *c, uint32_t number, uint64_t bytes) {
    CHECK(bytes > 0);
    if (number >= c->cap) {
        size_t cap = MAX((size_t)number + 1, c->cap * 2);
        c->bytes = xrealloc(c->bytes, cap * sizeof *c->bytes);
        memset(c->bytes + c->cap, 0, (cap - c->cap) * sizeof *c->bytes);
        c->cap = cap;
    }
    if (c->bytes[number] == 0) {
        if (c->count == c->shares_cap) {
            c->shares_cap = MAX(c->shares_cap * 2, 64);
            c->shares = xrealloc(c->shares, c->shares_cap * sizeof *c->shares);
        }
        c->shares[c->count++] = (struct run_share){.number = number};
    }
    c->bytes[number] += bytes;
}

static int compare_shares(const void *a, const void *b) {
    const struct run_share *x = a, *y = b;
    return (x->number > y->number) - (x->number < y->number);
}

/* Appends them in their encoding, adds them to the usage table, and forgets them. Not entry by
 * entry: the table is large, and entries name its objects in no order. */
static void charges_encode(struct charges *c, struct run_usage *usage, struct buf *out) {
    if (c->count > 0)
        qsort(c->shares, c->count, sizeof *c->shares, compare_shares);
    for (size_t i = 0; i < c->count; i++) {
        c->shares[i].bytes = c->bytes[c->shares[i].number];
        c->bytes[c->shares[i].number] = 0;
        usage[c->shares[i].number].bytes += c->shares[i].bytes;
    }
    run_shares_encode(out, c->shares, c->count);
    c->count = 0;
}

struct encode_charges_job {
    struct charges *charges;
    struct run_usage *usage;
    struct buf *out;
};

static void encode_charges(void *arg) {
    struct encode_charges_job *job = arg;
    charges_encode(job->charges, job->usage, job->out);
}

static void charges_move(struct charges *to, struct charges *from) {
    for (size_t i = 0; i < from->count; i++) {
        uint32_t number = from->shares[i].number;
        charge(to, number, from->bytes[number]);
        from->bytes[number] = 0;
    }
    from->count = 0;
}

/* --- pages and parts --- */

/* Where the page that is being built goes. */
static struct chunk *current_chunk(struct run_writer *w) {
    return &w->chunks[w->chunks[0].pages.len >= w->part_size ? 1 : 0];
}

static void chunk_add_page(struct chunk *c, const uint8_t *page, uint64_t first) {
    buf_append(&c->pages, page, RUN_PAGE_SIZE);
    if (c->page_count == c->page_cap) {
        c->page_cap = MAX(c->page_cap * 2, 16);
        c->page_first = xrealloc(c->page_first, c->page_cap * sizeof *c->page_first);
    }
    c->page_first[c->page_count++] = first;
}

static void page_flush(struct run_writer *w) {
    struct chunk *c = current_chunk(w);
    run_page_finish(&w->builder);
    chunk_add_page(c, w->page, w->builder.first_sector);
    c->end = w->builder.next_sector;
    run_page_start(&w->builder, w->page);
}

static struct run_part *add_part(struct run_writer *w, struct err *e) {
    struct run_index *x = &w->index;
    if (x->part_count == w->parts_max) {
        err_set_text(e, -ERR_OVERLOAD, "a map run of more than %zu parts", w->parts_max);
        return NULL;
    }
    x->parts = xrealloc(x->parts, (x->part_count + 1) * sizeof *x->parts);
    struct run_part *p = &x->parts[x->part_count];
    *p = (struct run_part){0};
    return p;
}

/* Its end: it counts from now on. */
static void part_added(struct run_writer *w, const struct run_part *p) {
    struct run_index *x = &w->index;
    CHECK(x->part_count == 0 || p->first_sector > x->parts[x->part_count - 1].last_sector);
    x->entry_count += p->entries;
    x->part_count++;
    w->stored_bytes += run_part_size(p);
}

static void chunk_clear(struct chunk *c) {
    buf_clear(&c->pages);
    c->page_count = 0;
    c->sectors = 0;
    c->entries = 0;
}

/* fiber. Stores chunks[0] and empties it. */
static int store_part(struct run_writer *w, struct err *e) {
    struct chunk *c = &w->chunks[0];
    CHECK(c->page_count > 0);
    CHECK(c->pages.len == c->page_count * RUN_PAGE_SIZE);
    CHECK(c->pages.len <= RUN_PART_SIZE_MAX);
    struct run_part *p = add_part(w, e);
    uint16_t own;
    int rc = p ? usage_table_volume(&w->table, &w->own, &own, e) : -ERR_OVERLOAD;
    if (rc < 0)
        return rc;
    char key[KEY_MAX];
    p->ref = (struct obj_ref){.kind = OBJ_MAP, .volume = own};
    env_random(w->env, p->ref.id.bytes, RANDOM_ID_SIZE);
    key_map(key, &w->own, &p->ref.id);
    struct encode_charges_job job = {
        .charges = &c->charges, .usage = w->index.usage, .out = &c->pages};
    fiber_run_job_if(w->env, c->charges.count > INLINE_MAX, encode_charges, &job);
    p->first_sector = c->page_first[0];
    p->last_sector = c->end - 1;
    p->sectors = c->sectors;
    p->entries = c->entries;
    p->page_count = (uint32_t)c->page_count;
    p->shares_len = (uint32_t)(c->pages.len - c->page_count * RUN_PAGE_SIZE);
    rc = objstore_put(w->store, key, buf_view(&c->pages), NULL, e);
    if (rc < 0)
        return rc;
    p = &w->index.parts[w->index.part_count];
    run_part_set_fences(p, c->page_first);
    part_added(w, p);
    chunk_clear(c);
    return 0;
}

bool run_writer_full(const struct run_writer *w) {
    return w->chunks[1].pages.len * 2 >= w->part_size;
}

int run_writer_store(struct run_writer *w, struct err *e) {
    CHECK(run_writer_full(w));
    int rc = store_part(w, e);
    if (rc < 0)
        return rc;
    struct chunk first = w->chunks[0];
    w->chunks[0] = w->chunks[1];
    w->chunks[1] = first;
    return 0;
}

/* Both chunks become one. */
static void join_chunks(void *arg) {
    struct run_writer *w = arg;
    struct chunk *to = &w->chunks[0], *from = &w->chunks[1];
    for (size_t i = 0; i < from->page_count; i++)
        chunk_add_page(to, from->pages.data + i * RUN_PAGE_SIZE, from->page_first[i]);
    if (from->page_count > 0)
        to->end = from->end;
    to->sectors += from->sectors;
    to->entries += from->entries;
    charges_move(&to->charges, &from->charges);
    chunk_clear(from);
}

/* --- entries --- */

/* The pending entry goes into the page. */
static void pending_flush(struct run_writer *w) {
    struct map_entry *m = &w->pending;
    if (m->count == 0)
        return;
    bool full = w->builder.entries >= w->page_entries;
    if (full || !run_page_add(&w->builder, m, w->pending_ref)) {
        page_flush(w);
        bool fits = run_page_add(&w->builder, m, w->pending_ref);
        CHECK(fits);
    }
    struct chunk *c = current_chunk(w);
    if (m->kind == EXTENT_DATA) {
        charge(&c->charges, w->pending_ref, map_entry_charge(m));
    }
    c->sectors += m->count;
    c->entries++;
    m->count = 0;
}

/* Can `m`, whose object has this number, be one entry with the pending one? */
static bool joins(const struct run_writer *w, const struct map_entry *m, uint32_t ref) {
    const struct map_entry *p = &w->pending;
    if (p->count == 0 || p->kind != m->kind || p->sector + p->count != m->sector)
        return false;
    if (m->kind != EXTENT_DATA)
        return true;
    return ref == w->pending_ref && m->skip == 0 && (p->skip + p->count) % FRAME_SECTORS_MAX == 0 &&
           p->skip + p->count + m->count <= EXTENT_SECTORS_MAX &&
           m->off == p->off + map_entry_stored_len(p);
}

static void pending_join(struct run_writer *w, const struct map_entry *m) {
    struct map_entry *p = &w->pending;
    p->count += m->count;
    if (m->kind != EXTENT_DATA)
        return;
    CHECK(p->len_count + m->len_count <= EXTENT_FRAMES_MAX);
    memcpy(w->pending_lens + p->len_count, m->lens, m->len_count * sizeof *m->lens);
    p->len_count = (uint16_t)(p->len_count + m->len_count);
}

static void pending_set(struct run_writer *w, const struct map_entry *m, uint32_t number) {
    w->pending = *m;
    w->pending_ref = number;
    w->pending.ref = (struct obj_ref){0}; /* pages name objects by number */
    if (m->kind == EXTENT_DATA) {
        CHECK(m->len_count <= EXTENT_FRAMES_MAX);
        memcpy(w->pending_lens, m->lens, m->len_count * sizeof *m->lens);
        w->pending.lens = w->pending_lens;
    }
}

int run_writer_number(struct run_writer *w, const struct obj_ref *ref,
                      const struct volume_key *owner, uint32_t *ret, struct err *e) {
    struct obj_ref own = *ref;
    int rc = usage_table_volume(&w->table, owner, &own.volume, e);
    return rc < 0 ? rc : usage_table_number(&w->table, &own, ret, e);
}

void run_writer_put(struct run_writer *w, const struct map_entry *entry, uint32_t number) {
    CHECK(entry->count >= 1);
    CHECK(!run_writer_full(w));
    CHECK(w->pending.count == 0 || entry->sector >= w->pending.sector + w->pending.count);
    CHECK(entry->kind != EXTENT_DATA || number < w->index.usage_count);
    if (joins(w, entry, number)) {
        pending_join(w, entry);
        return;
    }
    pending_flush(w);
    pending_set(w, entry, number);
}

int run_writer_add(struct run_writer *w, const struct map_entry *entry,
                   const struct volume_key *owner, struct err *e) {
    CHECK((entry->kind == EXTENT_DATA) == (owner != NULL));
    uint32_t number = 0;
    int rc = owner ? run_writer_number(w, &entry->ref, owner, &number, e) : 0;
    if (rc < 0)
        return rc;
    run_writer_put(w, entry, number);
    return run_writer_full(w) ? run_writer_store(w, e) : 0;
}

/* fiber. Everything that came so far is stored. */
static int flush_all(struct run_writer *w, struct err *e) {
    pending_flush(w);
    if (w->builder.entries > 0)
        page_flush(w);
    if (w->chunks[0].page_count == 0)
        return 0;
    const struct chunk *second = &w->chunks[1];
    fiber_run_job_if(w->env, second->page_count * COPY_COST + second->charges.count > INLINE_MAX,
                     join_chunks, w);
    return store_part(w, e);
}

/* --- parts of the base --- */

bool run_writer_may_reuse(const struct run_writer *w, size_t part) {
    bool free = w->index.part_count < w->parts_max / PARTS_FREE;
    size_t small = free ? w->part_size / PART_SMALL : w->part_size;
    size_t making = w->chunks[0].pages.len;
    if (!w->base)
        return false;
    if (making == 0 && (w->builder.entries > 0 || w->pending.count > 0))
        making = 1;
    const struct run_part *p = &run_reader_index(w->base)->parts[part];
    return (size_t)p->page_count * RUN_PAGE_SIZE >= small && (making == 0 || making >= small);
}

int run_writer_reuse(struct run_writer *w, size_t part, struct err *e) {
    CHECK(w->base && !w->reused[part]);
    const struct run_part *from = &run_reader_index(w->base)->parts[part];
    int rc = flush_all(w, e);
    if (rc < 0)
        return rc;
    struct run_part *p = add_part(w, e);
    if (!p)
        return -ERR_OVERLOAD;
    *p = *from; /* the numbers of volumes are the base's */
    size_t fences = p->page_count - 1;
    if (from->fences) {
        p->fences = xmalloc(fences * sizeof *p->fences);
        memcpy(p->fences, from->fences, fences * sizeof *p->fences);
    }
    if (from->fences_wide) {
        p->fences_wide = xmalloc(fences * sizeof *p->fences_wide);
        memcpy(p->fences_wide, from->fences_wide, fences * sizeof *p->fences_wide);
    }
    part_added(w, p);
    w->reused[part] = true;
    w->reused_count++;
    return 0;
}

struct discharge_job {
    struct run_writer *w;
    const struct run_share *shares; /* NULL: all that the base charged */
    size_t count;
    struct err *e;
    int rc;
};

/* Less of what the base charged. What it says there was is another's word: checked. */
static void discharge(void *arg) {
    struct discharge_job *job = arg;
    struct run_index *x = &job->w->index;
    const struct run_usage *base = run_reader_index(job->w->base)->usage;
    for (size_t i = 0; i < job->count; i++) {
        uint32_t number = job->shares ? job->shares[i].number : (uint32_t)i;
        uint64_t bytes = job->shares ? job->shares[i].bytes : base[i].bytes;
        if (number >= x->usage_count || x->usage[number].bytes < bytes) {
            job->rc = err_set(job->e, -ERR_CORRUPT,
                              "map run: its parts take more of object %u than it says", number);
            return;
        }
        x->usage[number].bytes -= bytes;
    }
}

static int discharge_shares(struct run_writer *w, const struct run_share *shares, size_t count,
                            struct err *e) {
    struct err why = {0};
    struct discharge_job job = {.w = w, .shares = shares, .count = count, .e = &why};
    fiber_run_job_if(w->env, count > INLINE_MAX, discharge, &job);
    return job.rc < 0 ? err_copy(e, &why) : 0;
}

static int discharge_part(struct run_writer *w, size_t part, struct err *e) {
    struct run_share *shares;
    size_t count;
    int rc = run_reader_shares(w->base, part, &shares, &count, e);
    if (rc < 0)
        return rc;
    rc = discharge_shares(w, shares, count, e);
    free(shares);
    return rc;
}

/* fiber. What parts of the base that are not part of this run took of objects is given back. */
static int discharge_base(struct run_writer *w, struct err *e) {
    const struct run_index *x = run_reader_index(w->base);
    int rc = 0;
    if (MUTANT("merge-keeps-usage"))
        return 0;
    if (w->reused_count == 0) /* all of it, then: no need to ask each part */
        return discharge_shares(w, NULL, x->usage_count, e);
    for (size_t i = 0; rc == 0 && i < x->part_count; i++)
        if (!w->reused[i] || MUTANT("merge-discharges-reused"))
            rc = discharge_part(w, i, e);
    return rc;
}

/* --- the index --- */

struct encode_job {
    struct usage_table *table;
    struct run_index *index;
    struct buf *out;
    struct err *e;
    int rc;
};

/* The index becomes what a reader makes of its bytes: nothing is stored that cannot be read. */
static void encode(void *arg) {
    struct encode_job *job = arg;
    usage_table_finish(job->table);
    job->rc = run_index_encode(job->out, job->index, job->e);
    if (job->rc < 0)
        return;
    run_index_release(job->index);
    job->rc = run_index_decode(job->index, buf_view(job->out), job->e);
}

static int index_store(struct run_writer *w, struct root_run *ret_run, struct err *e) {
    CLEANUP_BUF struct buf body = {0};
    struct err why = {0};
    struct encode_job job = {.table = &w->table, .index = &w->index, .out = &body, .e = &why};
    size_t pages = (size_t)(w->stored_bytes / RUN_PAGE_SIZE);
    fiber_run_job_if(w->env, w->index.usage_count + pages > INLINE_MAX, encode, &job);
    if (job.rc < 0)
        return err_copy(e, &why);
    CHECK(w->index.part_count > 0 && w->index.entry_count > 0);
    struct root_run run = {.index = {.kind = OBJ_MAP},
                           .entry_count = w->index.entry_count,
                           .size = w->stored_bytes + body.len};
    char key[KEY_MAX];
    env_random(w->env, run.index.id.bytes, RANDOM_ID_SIZE);
    key_map(key, &w->own, &run.index.id);
    int rc = objstore_put(w->store, key, buf_view(&body), NULL, e);
    if (rc < 0)
        return rc;
    w->stored = true;
    *ret_run = run;
    return 0;
}

int run_writer_finish(struct run_writer *w, struct root_run *ret_run, struct err *e) {
    int rc = flush_all(w, e);
    if (rc < 0)
        return rc;
    if (w->index.part_count == 0) {
        *ret_run = (struct root_run){0};
        return 0;
    }
    if (w->base)
        rc = discharge_base(w, e);
    return rc < 0 ? rc : index_store(w, ret_run, e);
}

struct run_reader *run_writer_reader(struct run_writer *w, struct page_cache *pages) {
    if (w->index.part_count == 0)
        return NULL;
    CHECK(w->stored);
    w->stored = false;
    return run_reader_new(w->env, w->store, pages, &w->index);
}
