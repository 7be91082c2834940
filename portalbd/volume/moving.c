/* Moving.
 *
 *   victims: own objects of which the runs and the pins need little, or many small ones that no
 *   pin needs; in no tail
 *   --> hold merges at the age of the newest run --> GET the victims --> look their sectors up in
 *   the runs of that moment --> what is live, sorted by sector, into moved/<id> --> a run of those
 *   places --> a manifest that inserts it at that age and lists the victims as evacuated
 *   --> the next pass finds them to be garbage
 *
 * Writes, checkpoints and merges of either side of the age go on meanwhile: what they say is newer
 * than the run, or older and shadowed by it. A move that ends half way leaves moved objects that
 * nobody names: garbage of the next pass, or of the next scrub.
 *
 * I1  Liveness is by the runs of the root that the age belongs to, never by the memtable.
 * I2  The run goes in at the age it was computed at; no merge takes runs from both sides of it
 *     until then.
 * I3  A victim is evacuated by the very manifest that inserts its places. */
#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/volume/moving_internal.h"

enum {
    OVERHEAD = 512,     /* bytes of header, table and footer that say nothing about what is live */
    VICTIMS_MAX = 2048, /* of one batch */
    VICTIM_BYTES_MAX = 16 << 20, /* of one batch: they are in memory */
    BATCH_SHARE = 8,             /* or one part in so many of what is live */
    SMALL_BYTES_MAX = 16 << 20,  /* of one batch that repacks */
    SMALL_COUNT = 4096,          /* so many small ones are repacked whatever their bytes */
    SMALL_COUNT_MIN = 8,         /* fewer are no burden */
    THOROUGH_PERCENT_MAX = 85,
    RAW_MAX = 16 << 20,                /* plain bytes from the cache in one batch */
    GETS_AT_ONCE = 8,                  /* of victims */
    EVACUATED_MAX = ROOT_LIST_MAX / 2, /* from here on moving waits for merges */
};
_Static_assert(VICTIMS_MAX + EVACUATED_MAX <= ROOT_LIST_MAX, "a batch fits the list");

void moving_drop_bodies(struct move *m) {
    for (size_t i = 0; i < m->victim_count; i++)
        buf_release(&m->victims[i].body);
    buf_release(&m->raw);
}

static void move_release(struct move *m) {
    moving_drop_bodies(m);
    for (size_t i = 0; i < m->victim_count; i++)
        if (!m->victims[i].table_borrowed)
            segment_table_release(&m->victims[i].table);
    free(m->victims);
    free(m->names);
    free(m->pieces.items);
    if (m->writer)
        run_writer_free(m->writer);
    gc_snapshot_release(&m->root);
}

/* --- choosing --- */

/* What may be moved at all. */
static bool is_movable(const struct gc *g, const struct own_object *o) {
    /* A tail's has nothing live yet. */
    return o->state == OBJECT_LIVE && o->kind != OBJ_MAP && o->mark == g->mark && o->live > 0 &&
           o->size > 0;
}

/* What the head or a pin needs of it: what was overwritten does not come back, so that the oldest
 * root, which needs most, needs all that the others do. */
static uint32_t used_bytes(const struct own_object *o) {
    return MIN(MAX(o->live, o->pinned), o->size);
}

static bool is_pinned(const struct gc *g, const struct own_object *o) {
    struct object_name n = own_object_name(o);
    return pin_needs_object(&g->needs, &n);
}

/* Moving what a pin needs takes more space until that pin goes: not more of it than must be. And
 * the tables of what is small may be a large part of it, which moving does not change. */
static bool is_empty(const struct gc *g, const struct own_object *o, bool thorough) {
    uint64_t percent = g->v->config.gc_live_percent;
    if (thorough && o->size >= g->v->config.segment_size / 2 && !is_pinned(g, o))
        percent = MIN(percent + percent / 2, (uint64_t)THOROUGH_PERCENT_MAX);
    return o->size > OVERHEAD &&
           (uint64_t)used_bytes(o) * 100 < (uint64_t)(o->size - OVERHEAD) * percent;
}

uint32_t gc_move_gain(const struct gc *g, const struct own_object *o) {
    return is_movable(g, o) && is_empty(g, o, false) ? o->size - used_bytes(o) : 0;
}

/* The emptiest first: they give most for the bytes that are written. */
static int compare_emptiness(const void *a, const void *b) {
    const struct victim *x = a, *y = b;
    uint64_t left = (uint64_t)x->used * y->size, right = (uint64_t)y->used * x->size;
    if (left != right)
        return left < right ? -1 : 1;
    return object_name_compare(&x->name, &y->name);
}

static int compare_victims(const void *a, const void *b) {
    const struct victim *x = a, *y = b;
    return object_name_compare(&x->name, &y->name);
}

struct candidates {
    struct victim *items; /* owned */
    size_t count;
    uint64_t bytes, dead;
};

static void candidates_add(struct candidates *c, const struct own_object *o) {
    uint32_t used = used_bytes(o);
    c->items = grown_array(c->items, c->count, sizeof *c->items);
    c->items[c->count++] =
        (struct victim){.name = own_object_name(o), .size = o->size, .used = used};
    c->bytes += o->size;
    c->dead += o->size - used;
}

/* Many small objects become few: those of which nothing was overwritten for longest first. */
static bool repacking_is_due(const struct gc *g, const struct candidates *small) {
    bool many = small->count >= SMALL_COUNT || small->bytes >= g->v->config.gc_move_bytes;
    return many && small->count >= SMALL_COUNT_MIN &&
           small->count >= 4 * (small->bytes / MOVED_BYTES + 1);
}

/* Takes the first that make one batch. */
static void take_batch(struct move *m, struct candidates *c, uint64_t bytes_max) {
    size_t n = 0;
    for (uint64_t bytes = 0; n < c->count && n < VICTIMS_MAX; n++) {
        bytes += c->items[n].size;
        if (n > 0 && bytes > bytes_max)
            break;
    }
    qsort(c->items, n, sizeof *c->items, compare_victims);
    m->names = xcalloc(n, sizeof *m->names);
    for (size_t i = 0; i < n; i++)
        m->names[i] = c->items[i].name;
    m->victims = c->items;
    m->victim_count = n;
    c->items = NULL;
}

/* The victims of one batch; none when it is not worth it. */
static void choose(struct move *m, bool thorough) {
    struct gc *g = m->gc;
    struct candidates empty = {0}, small = {0};
    for (size_t i = 0; i < g->objects.slot_count; i++) {
        const struct own_object *o = &g->objects.slots[i];
        if (!is_movable(g, o))
            continue;
        if (is_empty(g, o, thorough))
            candidates_add(&empty, o);
        if (o->size < SMALL_SEGMENT_MAX && !is_pinned(g, o))
            candidates_add(&small, o);
    }
    uint64_t bytes_max = MAX(g->live_bytes / BATCH_SHARE, (uint64_t)MOVED_BYTES / 2);
    if (empty.count > 0 && (thorough || empty.dead >= g->v->config.gc_move_bytes)) {
        qsort(empty.items, empty.count, sizeof *empty.items, compare_emptiness);
        take_batch(m, &empty, MIN(bytes_max, (uint64_t)VICTIM_BYTES_MAX));
    } else if (repacking_is_due(g, &small)) {
        qsort(small.items, small.count, sizeof *small.items, compare_victims);
        take_batch(m, &small, SMALL_BYTES_MAX);
    }
    free(empty.items);
    free(small.items);
}

/* Tables that we remember need no GET, at first. */
static void find_tables(struct move *m) {
    for (size_t i = 0; i < m->victim_count; i++) {
        struct victim *x = &m->victims[i];
        const struct segment_table *t =
            x->name.kind == OBJ_LOG ? small_segments_find(&m->gc->small, x->name.number) : NULL;
        x->table_borrowed = t != NULL;
        x->wanted = !t;
        if (t)
            x->table = *t;
    }
}

/* --- reading --- */

/* Is this object what its key says? */
static int check_victim(const struct move *m, const struct victim *x,
                        const struct segment_meta *meta, struct err *e) {
    uint8_t hash[16];
    segment_volume_hash(hash, &m->v->config.key);
    uint8_t kind = x->name.kind == OBJ_LOG ? SEGMENT_DATA : SEGMENT_MOVED;
    if (memcmp(hash, meta->volume_hash, sizeof hash) != 0 || meta->kind != kind ||
        meta->seq != x->name.number)
        return err_set(e, -ERR_CORRUPT, "the object is another one than its key says");
    return 0;
}

/* fiber. */
static int read_victim(const struct move *m, struct victim *x, struct err *e) {
    char key[KEY_MAX];
    object_key(key, &m->v->config.key, &x->name);
    int rc = objstore_get(m->v->store, key, SEGMENT_SIZE_MAX, &x->body, e);
    if (rc < 0)
        return rc;
    struct segment_meta meta;
    size_t need;
    if (x->table_borrowed)
        x->table = (struct segment_table){0};
    x->table_borrowed = false;
    x->wanted = false;
    rc = segment_decode_tail(buf_view(&x->body), x->body.len, &meta, &x->table, &need, e);
    if (rc == 0)
        rc = check_victim(m, x, &meta, e);
    return rc < 0 ? err_wrap(e, "'%s'", key) : 0;
}

struct reader {
    const struct move *move;
    size_t *next; /* victim; shared */
    int rc;
    struct err err;
};

static void reader_run(void *arg) {
    struct reader *r = arg;
    while (r->rc == 0 && *r->next < r->move->victim_count && !gc_must_stop(r->move->gc)) {
        struct victim *x = &r->move->victims[(*r->next)++];
        if (x->wanted)
            r->rc = read_victim(r->move, x, &r->err);
    }
}

/* fiber. The bodies that are wanted. */
static int read_victims(struct move *m, struct err *e) {
    struct reader readers[GETS_AT_ONCE];
    struct fiber_group group;
    size_t next = 0;
    fiber_group_init(&group, m->v->env);
    for (size_t i = 0; i < GETS_AT_ONCE; i++) {
        readers[i] = (struct reader){.move = m, .next = &next};
        fiber_group_start(&group, reader_run, &readers[i]);
    }
    int rc = fiber_group_wait(&group);
    if (rc < 0)
        return err_set(e, -ERR_CANCELLED, "moving was cancelled");
    for (size_t i = 0; rc == 0 && i < GETS_AT_ONCE; i++)
        if (readers[i].rc < 0)
            rc = err_copy(e, &readers[i].err);
    return rc;
}

/* --- what is live --- */

static int compare_ranges(const void *a, const void *b) {
    const struct sector_range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* What the victims hold, in order, joined where it touches. */
static struct sector_range *victims_ranges(const struct move *m, size_t *ret_count) {
    size_t count = 0, n = 0;
    for (size_t i = 0; i < m->victim_count; i++)
        count += m->victims[i].table.extent_count;
    struct sector_range *r = xcalloc(count + 1, sizeof *r);
    for (size_t i = 0; i < m->victim_count; i++) {
        const struct segment_table *t = &m->victims[i].table;
        for (size_t k = 0; k < t->extent_count; k++)
            if (t->extents[k].kind == EXTENT_DATA)
                r[n++] = (struct sector_range){.first = t->extents[k].sector,
                                               .end = t->extents[k].sector + t->extents[k].count};
    }
    qsort(r, n, sizeof *r, compare_ranges);
    size_t last = 0;
    for (size_t i = 1; i < n; i++) {
        if (r[i].first <= r[last].end)
            r[last].end = MAX(r[last].end, r[i].end);
        else
            r[++last] = r[i];
    }
    *ret_count = n > 0 ? last + 1 : 0;
    return r;
}

/* fiber. */
static int find_live(struct move *m, struct err *e) {
    size_t count;
    struct sector_range *ranges = victims_ranges(m, &count);
    int rc =
        moving_find_live(&m->pieces, m->gc, &m->root, ranges, count, m->names, m->victim_count, e);
    free(ranges);
    return rc;
}

/* --- from the cache --- */

static bool in_memtable(const struct memtable *t, uint64_t sector, uint64_t count) {
    const struct mem_extent *x = t ? memtable_seek(t, sector) : NULL;
    return x && x->sector < sector + count;
}

/* The cache has the newest content: that is this piece only if nothing newer than the root says
 * anything about its sectors. (Else a write that is not stored yet would come back after a crash
 * that loses it.) */
static bool is_newest(const struct move *m, const struct live_piece *p) {
    const struct volume *v = m->v;
    return v->manifest.root.runs[0].age == m->age && !in_memtable(v->active, p->sector, p->count) &&
           !in_memtable(v->frozen, p->sector, p->count);
}

/* Takes from the cache what is there; the victims of the rest are wanted. */
static void look_into_cache(struct move *m) {
    for (size_t i = 0; i < m->pieces.count; i++) {
        struct live_piece *p = &m->pieces.items[i];
        struct victim *x = &m->victims[p->victim];
        size_t len = (size_t)p->count * SECTOR_SIZE, at = m->raw.len;
        if (x->body.len > 0 || x->wanted)
            continue;
        x->wanted = true;
        if (at + len > RAW_MAX || (!is_newest(m, p) && !MUTANT("moves-newer-data")))
            continue;
        buf_reserve(&m->raw, len);
        if (!ram_cache_read(m->v->cache, p->sector, p->count, m->raw.data + at))
            continue;
        m->raw.len += len;
        p->raw = (uint32_t)at + 1;
        x->wanted = false;
    }
}

/* --- the manifest --- */

/* fiber; both mutexes held. */
static int put_moved(struct move *m, struct root_run *run, struct err *e) {
    struct volume *v = m->v;
    struct manifest next = manifest_next(&v->manifest);
    struct root *root = &next.root;
    root->evacuated = xrealloc(root->evacuated,
                               (root->evacuated_count + m->victim_count) * sizeof *root->evacuated);
    for (size_t i = 0; i < m->victim_count && !MUTANT("move-evacuates-nothing"); i++)
        root->evacuated[root->evacuated_count++] = (struct obj_ref){
            .kind = m->names[i].kind, .seq = m->names[i].number, .id = m->names[i].id};
    CHECK(root->evacuated_count <= ROOT_LIST_MAX);
    run->age = MUTANT("moved-run-on-top") ? root->runs[0].age : m->age;
    return run_list_insert(v, &next, run, run_writer_reader(m->writer, v->pages), e);
}

/* fiber. */
static int install(struct move *m, struct err *e) {
    struct volume *v = m->v;
    struct root_run run = {0};
    int rc = run_writer_finish(m->writer, &run, e);
    if (rc < 0)
        return rc;
    if (fiber_mutex_lock(v->env, &v->checkpoint_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "moving was cancelled");
    rc = fiber_mutex_lock(v->env, &v->manifest_mutex);
    if (rc == 0) {
        rc = put_moved(m, &run, e);
        fiber_mutex_unlock(&v->manifest_mutex);
    } else {
        rc = err_set(e, -ERR_CANCELLED, "moving was cancelled");
    }
    fiber_mutex_unlock(&v->checkpoint_mutex);
    return rc;
}

/* fiber. */
static int move_batch(struct move *m, bool *ret_moved, struct err *e) {
    find_tables(m);
    int rc = read_victims(m, e);
    if (rc == 0 && !gc_must_stop(m->gc))
        rc = find_live(m, e);
    if (rc == 0 && !gc_must_stop(m->gc)) {
        look_into_cache(m);
        rc = read_victims(m, e);
    }
    if (rc == 0 && !gc_must_stop(m->gc))
        rc = moving_write(m, e);
    *ret_moved = false;
    if (rc == 0 && !gc_must_stop(m->gc)) {
        rc = install(m, e);
        *ret_moved = rc == 0;
    }
    /* An object that we read, or one of ours before its lost answer was repeated: whoever deleted
     * it, it was not us. */
    if (rc == -ERR_NOT_FOUND || rc == -ERR_STALE) {
        struct err missing = *e;
        rc = read_explain_missing(m->v, missing.text, e);
    }
    if (*ret_moved) {
        gc_paid(m->gc);
        m->v->stats.gc_moves++;
        m->v->stats.gc_victims += m->victim_count;
    }
    return rc;
}

int gc_move(struct gc *g, bool thorough, bool *ret_moved, struct err *e) {
    struct volume *v = g->v;
    bool blocked = false;
    *ret_moved = false;
    if (v->run_count == 0 || run_list_full(v) || v->manifest.root.evacuated_count > EVACUATED_MAX)
        return 0;
    int rc = g->needs_known ? 0 : gc_look_at_pins(g, &blocked, e);
    if (rc < 0 || blocked || gc_must_stop(g) || v->run_count == 0)
        return rc;
    CLEANUP(move_release) struct move m = {.gc = g, .v = v};
    gc_snapshot_take(&m.root, v);
    choose(&m, thorough);
    if (m.victim_count == 0)
        return 0;
    m.age = m.root.root.runs[0].age;
    if (!MUTANT("merge-across-move"))
        levels_hold(v, m.age);
    rc = move_batch(&m, ret_moved, e);
    if (!MUTANT("merge-across-move"))
        levels_release(v);
    return rc;
}
