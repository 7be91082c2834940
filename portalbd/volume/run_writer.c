/* Writing a map run.
 *
 * Entries wait one deep, so that neighbours can be joined: holes and zeroes of one kind, and data
 * whose frames follow each other in one object. From there they go into the page being built, full
 * pages into the part being built, full parts to the store, and in the end the index. Memory is one
 * part and the index.
 *
 * I1  Objects that a run names in its usage table are there once each, in the order of first use;
 *     its pages name them by that number.
 * I2  Nothing is named by anybody until the index is stored and the caller's manifest names it. */
#include "portalbd/volume/run_writer.h"

#include <stdlib.h>

enum {
    PART_TARGET = 8 * 1024 * 1024, /* bytes: smaller than the format's limit, to bound memory */
    SLOTS_MIN = 64,                /* of the table of references */
    ENCODE_INLINE_MAX = 16 * 1024, /* objects and pages of an index; larger ones are a job */
};
_Static_assert(PART_TARGET <= (int)RUN_PART_SIZE_MAX, "a part of format 1");
_Static_assert(PART_TARGET % (int)RUN_PAGE_SIZE == 0, "parts hold whole pages");

struct run_writer {
    struct env *env;
    struct objstore *store; /* borrowed */
    struct volume_key own;
    struct run_index index;
    size_t usage_cap;

    struct map_entry pending; /* the last entry; count 0: none */
    uint16_t pending_lens[EXTENT_FRAMES_MAX];
    uint32_t pending_ref; /* number of its object */

    uint8_t page[RUN_PAGE_SIZE];
    struct run_page_builder builder;
    struct buf part;      /* full pages */
    uint64_t *page_first; /* owned; of the part's pages */
    size_t page_count;
    size_t page_cap;
    uint64_t part_end; /* behind the last entry of the part's pages */
    uint64_t stored_bytes;

    uint32_t *slots; /* owned: open addressing, number in the usage table + 1; 0: free */
    size_t slot_count;
};

struct run_writer *run_writer_new(struct env *env, struct objstore *store,
                                  const struct volume_key *own) {
    struct run_writer *w = NEW(struct run_writer);
    w->env = env;
    w->store = store;
    w->own = *own;
    w->index.volumes = xcalloc(RUN_VOLUMES_MAX, sizeof *w->index.volumes);
    w->slot_count = SLOTS_MIN;
    w->slots = xcalloc(w->slot_count, sizeof *w->slots);
    env_random(env, w->index.nonce.bytes, RANDOM_ID_SIZE);
    run_page_start(&w->builder, w->page);
    return w;
}

void run_writer_free(struct run_writer *w) {
    run_index_release(&w->index);
    buf_release(&w->part);
    free(w->page_first);
    free(w->slots);
    free(w);
}

/* --- tables of volumes and objects --- */

static int volume_index(struct run_writer *w, const struct volume_key *v, uint16_t *ret,
                        struct err *e) {
    struct run_index *x = &w->index;
    for (size_t i = 0; i < x->volume_count; i++) {
        if (volume_key_equal(&x->volumes[i], v)) {
            *ret = (uint16_t)i;
            return 0;
        }
    }
    if (x->volume_count == RUN_VOLUMES_MAX)
        return err_set(e, -ERR_OVERLOAD, "a map run of more than %d volumes", RUN_VOLUMES_MAX);
    *ret = (uint16_t)x->volume_count;
    x->volumes[x->volume_count++] = *v;
    return 0;
}

static size_t slot_of(const struct run_writer *w, const struct obj_ref *ref) {
    uint64_t id;
    memcpy(&id, ref->id.bytes, sizeof id);
    uint64_t h = (ref->seq ^ id) * UINT64_C(0x9e3779b97f4a7c15);
    h = (h ^ ((uint64_t)ref->volume << 8 | ref->kind)) * UINT64_C(0xff51afd7ed558ccd);
    return (size_t)(h >> 32) & (w->slot_count - 1);
}

/* The slot where the reference is, or would go. */
static uint32_t *find_slot(struct run_writer *w, const struct obj_ref *ref) {
    size_t i = slot_of(w, ref);
    while (w->slots[i] != 0 && !obj_ref_equal(&w->index.usage[w->slots[i] - 1].ref, ref))
        i = (i + 1) & (w->slot_count - 1);
    return &w->slots[i];
}

static void slots_grow(struct run_writer *w) {
    free(w->slots);
    w->slot_count *= 2;
    w->slots = xcalloc(w->slot_count, sizeof *w->slots);
    for (size_t i = 0; i < w->index.usage_count; i++)
        *find_slot(w, &w->index.usage[i].ref) = (uint32_t)i + 1;
}

/* The number of an object in the usage table. */
static int ref_index(struct run_writer *w, const struct obj_ref *ref, uint32_t *ret,
                     struct err *e) {
    struct run_index *x = &w->index;
    uint32_t *slot = find_slot(w, ref);
    if (*slot == 0) {
        if (x->usage_count == RUN_USAGE_MAX)
            return err_set(e, -ERR_OVERLOAD, "a map run of more than %d objects", RUN_USAGE_MAX);
        if (x->usage_count == w->usage_cap) {
            w->usage_cap = MAX(w->usage_cap * 2, 16);
            x->usage = xrealloc(x->usage, w->usage_cap * sizeof *x->usage);
        }
        x->usage[x->usage_count++] = (struct run_usage){.ref = *ref};
        *slot = (uint32_t)x->usage_count;
        *ret = *slot - 1;
        if (x->usage_count * 2 > w->slot_count)
            slots_grow(w);
        return 0;
    }
    *ret = *slot - 1;
    return 0;
}

/* --- pages and parts --- */

static void page_flush(struct run_writer *w) {
    run_page_finish(&w->builder);
    buf_append(&w->part, w->page, RUN_PAGE_SIZE);
    if (w->page_count == w->page_cap) {
        w->page_cap = MAX(w->page_cap * 2, 16);
        w->page_first = xrealloc(w->page_first, w->page_cap * sizeof *w->page_first);
    }
    w->page_first[w->page_count++] = w->builder.first_sector;
    w->part_end = w->builder.next_sector;
    run_page_start(&w->builder, w->page);
}

/* fiber. Stores the part. */
static int part_flush(struct run_writer *w, struct err *e) {
    struct run_index *x = &w->index;
    CHECK(w->page_count > 0);
    CHECK(w->part.len == w->page_count * RUN_PAGE_SIZE);
    if (x->part_count == RUN_PARTS_MAX)
        return err_set(e, -ERR_OVERLOAD, "a map run of more than %d parts", RUN_PARTS_MAX);
    struct run_part p = {.ref = {.kind = OBJ_MAP},
                         .first_sector = w->page_first[0],
                         .last_sector = w->part_end - 1,
                         .page_count = (uint32_t)w->page_count};
    int rc = volume_index(w, &w->own, &p.ref.volume, e);
    if (rc < 0)
        return rc;
    char key[KEY_MAX];
    env_random(w->env, p.ref.id.bytes, RANDOM_ID_SIZE);
    key_map(key, &w->own, &p.ref.id);
    rc = objstore_put(w->store, key, buf_view(&w->part), NULL, e);
    if (rc < 0)
        return rc;
    w->stored_bytes += w->part.len;
    p.page_first = xcalloc(w->page_count, sizeof *p.page_first);
    memcpy(p.page_first, w->page_first, w->page_count * sizeof *p.page_first);
    x->parts = xrealloc(x->parts, (x->part_count + 1) * sizeof *x->parts);
    x->parts[x->part_count++] = p;
    buf_clear(&w->part);
    w->page_count = 0;
    return 0;
}

/* --- entries --- */

/* fiber. The pending entry goes into the page. */
static int pending_flush(struct run_writer *w, struct err *e) {
    struct map_entry *m = &w->pending;
    if (m->count == 0)
        return 0;
    if (!run_page_add(&w->builder, m, w->pending_ref)) {
        page_flush(w);
        bool fits = run_page_add(&w->builder, m, w->pending_ref);
        CHECK(fits);
    }
    if (m->kind == EXTENT_DATA)
        w->index.usage[w->pending_ref].bytes += map_entry_stored_len(m);
    w->index.entry_count++;
    m->count = 0;
    return w->part.len >= PART_TARGET ? part_flush(w, e) : 0;
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

static void pending_set(struct run_writer *w, const struct map_entry *m, const struct obj_ref *ref,
                        uint32_t number) {
    w->pending = *m;
    w->pending.ref = *ref;
    w->pending_ref = number;
    if (m->kind == EXTENT_DATA) {
        CHECK(m->len_count <= EXTENT_FRAMES_MAX);
        memcpy(w->pending_lens, m->lens, m->len_count * sizeof *m->lens);
        w->pending.lens = w->pending_lens;
    }
}

int run_writer_add(struct run_writer *w, const struct map_entry *entry,
                   const struct volume_key *owner, struct err *e) {
    CHECK(entry->count >= 1);
    CHECK((entry->kind == EXTENT_DATA) == (owner != NULL));
    CHECK(w->pending.count == 0 || entry->sector >= w->pending.sector + w->pending.count);
    struct obj_ref ref = {0};
    uint32_t number = 0;
    int rc = 0;
    if (owner) {
        ref = entry->ref;
        rc = volume_index(w, owner, &ref.volume, e);
        if (rc == 0)
            rc = ref_index(w, &ref, &number, e);
    }
    if (rc == 0 && joins(w, entry, number)) {
        pending_join(w, entry);
        return 0;
    }
    if (rc == 0)
        rc = pending_flush(w, e);
    if (rc == 0)
        pending_set(w, entry, &ref, number);
    return rc;
}

/* --- the index --- */

struct encode_job {
    const struct run_index *index;
    struct buf *out;
    struct err *e;
    int rc;
};

static void encode(void *arg) {
    struct encode_job *job = arg;
    job->rc = run_index_encode(job->out, job->index, job->e);
}

static int index_store(struct run_writer *w, struct root_run *ret_run, struct err *e) {
    CLEANUP_BUF struct buf body = {0};
    struct err why = {0};
    struct encode_job job = {.index = &w->index, .out = &body, .e = &why};
    size_t pages = (size_t)(w->stored_bytes / RUN_PAGE_SIZE);
    if (w->index.usage_count + pages <= ENCODE_INLINE_MAX)
        encode(&job);
    else
        fiber_run_job(w->env, encode, &job);
    if (job.rc < 0)
        return err_copy(e, &why);
    struct root_run run = {.index = {.kind = OBJ_MAP},
                           .entry_count = w->index.entry_count,
                           .size = w->stored_bytes + body.len};
    char key[KEY_MAX];
    env_random(w->env, run.index.id.bytes, RANDOM_ID_SIZE);
    key_map(key, &w->own, &run.index.id);
    int rc = objstore_put(w->store, key, buf_view(&body), NULL, e);
    if (rc == 0)
        *ret_run = run;
    return rc;
}

int run_writer_finish(struct run_writer *w, struct root_run *ret_run, struct err *e) {
    int rc = pending_flush(w, e);
    if (rc < 0)
        return rc;
    if (w->index.entry_count == 0) {
        *ret_run = (struct root_run){0};
        return 0;
    }
    if (w->builder.entries > 0)
        page_flush(w);
    if (w->page_count > 0)
        rc = part_flush(w, e);
    return rc < 0 ? rc : index_store(w, ret_run, e);
}
