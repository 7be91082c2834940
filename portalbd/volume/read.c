/* The read side.
 *
 *   READ --all in the RAM cache--> copied, done
 *        --else--> a fiber: memtables, then runs newest first, say where each sector is (pieces);
 * journal bytes and zeroes are copied at once, stored frames come by ranged GETs, near ones by one
 * GET, all at the same time
 *
 * I1 What a read returns was the volume's content at one moment for each sector, not before the
 * request came. I2 Sectors that changed since a read looked at the map are not filled into the
 * cache (read_op.changed). I3 A frame's checksum is verified before its bytes are used. I4 A
 * missing object is corruption only if we are still the newest writer (or the pin still stands). */
#include <stdio.h>
#include <stdlib.h>

#include "portalbd/volume/volume_internal.h"

enum {
    GET_SIZE_MAX = 4 * 1024 * 1024,  /* bytes of one ranged GET */
    GET_GAP_MAX = 32 * 1024,         /* bytes between frames that one GET still bridges */
    READ_SLICE = 4 * 1024 * 1024,    /* bytes of a READ that are looked up and fetched at a time */
    DECODE_INLINE_MAX = 32 * 1024,   /* bytes of frames that are not worth a worker */
    STATUS_SLICE = 64 * 1024 * 1024, /* bytes of a BLOCK_STATUS that are looked up at a time */
};

/* Where [sector, sector + count) is. Stored pieces carry their own lens. */
struct piece {
    uint64_t sector;
    uint64_t count;
    uint8_t kind;
    bool found;      /* false: nobody has it: a hole */
    bool in_journal; /* DATA in the journal at pos */
    uint64_t pos;
    struct obj_ref ref;
    struct volume_key owner; /* whose prefix ref is under */
    uint32_t off;
    uint32_t stored_len;
    uint8_t skip;
    uint16_t len_count;
    uint16_t lens[EXTENT_FRAMES_MAX];
};

struct pieces {
    struct piece *items; /* owned */
    size_t count;
    size_t cap;
};

struct read_op {
    struct list_node node; /* on v->misses */
    uint64_t serial;       /* ascending along the list */
    uint64_t sector;
    uint64_t count;
    bool changed; /* something in it was written since the map was looked at */
};

void read_mark_changed(struct volume *v, uint64_t sector, uint64_t count) {
    list_for_each (&v->misses, node) {
        struct read_op *op = list_entry(node, struct read_op, node);
        if (sector < op->sector + op->count && op->sector < sector + count)
            op->changed = true;
    }
}

/* From before the lookup until nothing of what it found is used any more. */
static void op_begin(struct volume *v, struct read_op *op, uint64_t sector, uint64_t count) {
    *op = (struct read_op){.serial = ++v->read_serial, .sector = sector, .count = count};
    list_push_back(&v->misses, &op->node);
}

static void op_end(struct volume *v, struct read_op *op) {
    list_remove(&op->node);
    waitq_wake_all(&v->read_ended);
}

int read_wait_older(struct volume *v, uint64_t serial, struct err *e) {
    CHECK(serial <= v->read_serial);
    while (!list_empty(&v->misses) &&
           list_entry(v->misses.next, struct read_op, node)->serial <= serial)
        if (waitq_wait(v->env, &v->read_ended) < 0)
            return err_set(e, -ERR_CANCELLED, "cancelled");
    return 0;
}

/* --- looking up --- */

static struct piece *add_piece(struct pieces *p) {
    if (p->count == p->cap) {
        p->cap = MAX(p->cap * 2, (size_t)8);
        p->items = xrealloc(p->items, p->cap * sizeof *p->items);
    }
    return &p->items[p->count++];
}

static void set_stored(struct piece *x, const struct map_entry *m, const struct volume_key *owner) {
    x->ref = m->ref;
    x->owner = *owner;
    x->off = m->off;
    x->skip = m->skip;
    x->len_count = m->len_count;
    x->stored_len = map_entry_stored_len(m);
    memcpy(x->lens, m->lens, m->len_count * sizeof *m->lens);
}

static void add_mem_extent(struct volume *v, struct pieces *out, const struct mem_extent *x) {
    struct piece *p = add_piece(out);
    *p = (struct piece){
        .sector = x->sector, .count = x->count, .kind = x->kind, .found = true, .pos = x->pos};
    if (x->kind != EXTENT_DATA)
        return;
    p->in_journal = !x->stored;
    if (x->stored) {
        struct map_entry m = mem_extent_entry(x);
        set_stored(p, &m, &v->manifest.root.volumes[x->volume]);
    }
}

/* Splits `in` (pieces not found) by what the memtable knows. */
static void lookup_memtable(struct volume *v, const struct memtable *t, uint64_t sector,
                            uint64_t count, struct pieces *out) {
    uint64_t end = sector + count;
    while (sector < end) {
        const struct mem_extent *x = memtable_seek(t, sector);
        uint64_t next = x ? MIN(MAX(x->sector, sector), end) : end;
        if (next > sector)
            *add_piece(out) = (struct piece){.sector = sector, .count = next - sector};
        if (next == end)
            return;
        uint64_t to = MIN(x->sector + x->count, end);
        struct mem_extent part = mem_extent_part(x, next, to - next);
        add_mem_extent(v, out, &part);
        sector = to;
    }
}

static void refine_by_memtable(struct volume *v, const struct memtable *t, struct pieces *p) {
    struct pieces out = {0};
    for (size_t i = 0; i < p->count; i++) {
        if (p->items[i].found)
            *add_piece(&out) = p->items[i];
        else
            lookup_memtable(v, t, p->items[i].sector, p->items[i].count, &out);
    }
    free(p->items);
    *p = out;
}

/* The same by a run: fiber. */
static int lookup_run(struct run_reader *r, struct run_iter *it, uint64_t sector, uint64_t count,
                      struct pieces *out, struct err *e) {
    const struct run_index *index = run_reader_index(r);
    uint64_t end = sector + count;
    int rc = run_iter_seek(it, sector, e);
    while (rc == 0 && sector < end) {
        int found = run_iter_next(it, e);
        if (found < 0)
            return found;
        uint64_t next = found ? MIN(MAX(it->entry.sector, sector), end) : end;
        if (next > sector)
            *add_piece(out) = (struct piece){.sector = sector, .count = next - sector};
        if (next == end)
            return 0;
        struct map_entry m = it->entry;
        uint64_t to = MIN(m.sector + m.count, end);
        map_entry_narrow(&m, next, to - next);
        struct piece *p = add_piece(out);
        *p = (struct piece){.sector = next, .count = to - next, .kind = m.kind, .found = true};
        if (m.kind == EXTENT_DATA)
            set_stored(p, &m, &index->volumes[m.ref.volume]);
        sector = to;
    }
    return rc;
}

static int refine_by_run(struct run_reader *r, struct pieces *p, struct err *e) {
    struct pieces out = {0};
    struct run_iter it;
    run_iter_init(&it, r, 1);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < p->count; i++) {
        if (p->items[i].found)
            *add_piece(&out) = p->items[i];
        else
            rc = lookup_run(r, &it, p->items[i].sector, p->items[i].count, &out, e);
    }
    run_iter_release(&it);
    free(p->items);
    *p = out;
    return rc;
}

static bool all_found(const struct pieces *p) {
    for (size_t i = 0; i < p->count; i++)
        if (!p->items[i].found)
            return false;
    return true;
}

static void lookup_memory(struct volume *v, uint64_t sector, uint64_t count, struct pieces *p) {
    lookup_memtable(v, v->active, sector, count, p);
    if (v->frozen)
        refine_by_memtable(v, v->frozen, p);
}

/* fiber. A GET that found nothing: are we still the one who may say so? */
int read_explain_missing(struct volume *v, const char *what, struct err *e) {
    if (v->read_only) {
        char root_key[KEY_MAX];
        key_pin_root(root_key, &v->config.key, &v->pin);
        CLEANUP_BUF struct buf body = {0};
        int rc = objstore_get(v->store, root_key, MANIFEST_SIZE_MAX, &body, e);
        if (rc < 0 && rc != -ERR_NOT_FOUND)
            return rc;
        struct pin_root root;
        bool gone = rc == -ERR_NOT_FOUND || pin_root_decode(&root, buf_view(&body), NULL) < 0;
        if (!gone) {
            gone = root.expired;
            pin_root_release(&root);
        }
        if (gone)
            return err_set(e, -ERR_SHUTDOWN, "the snapshot was deleted");
    } else {
        /* The mutex: a manifest of our own that is put meanwhile would look like another's. */
        if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0)
            return err_set(e, -ERR_CANCELLED, "cancelled");
        int rc = manifest_check_newest(v->store, &v->config.key, v->manifest.number, e);
        fiber_mutex_unlock(&v->manifest_mutex);
        if (rc == -ERR_FENCED)
            volume_break(v, VOL_FENCED, e);
        if (rc < 0)
            return rc;
    }
    return err_set(e, -ERR_CORRUPT, "missing from the store: %s", what);
}

/* fiber. What the memtables did not know, by the runs of this moment. */
static int lookup_runs(struct volume *v, struct pieces *p, struct err *e) {
    struct run_reader *runs[ROOT_RUNS_MAX];
    size_t run_count = v->run_count;
    CHECK(run_count <= ARRAY_LEN(runs));
    for (size_t i = 0; i < run_count; i++) {
        runs[i] = v->runs[i];
        run_reader_ref(runs[i]);
    }
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < run_count && !all_found(p); i++)
        rc = refine_by_run(runs[i], p, e);
    for (size_t i = 0; i < run_count; i++)
        run_reader_unref(runs[i]);
    if (rc == -ERR_NOT_FOUND) {
        char missing[ERR_TEXT_MAX];
        snprintf(missing, sizeof missing, "%s", e->text);
        rc = read_explain_missing(v, missing, e);
    }
    return rc;
}

/* --- fetching --- */

/* A part of a READ: its destination and what is still to be fetched. */
struct slice {
    struct volume *v;
    uint64_t sector;
    uint64_t count;
    uint8_t *buf;
    struct pieces pieces;
    size_t fetching;
    struct waitq fetched;
};

static uint8_t *slice_at(const struct slice *s, uint64_t sector) {
    return s->buf + (sector - s->sector) * SECTOR_SIZE;
}

/* One ranged GET, and the pieces [first, first + count) of the sorted list that it brings. */
struct fetch {
    struct obj_request req;
    struct slice *slice;
    struct piece **pieces;
    size_t piece_count;
    char key[KEY_MAX];
    uint32_t off;
    uint32_t len;
    bool ended;
    int rc;
    struct err err;
};

static int compare_places(const void *a, const void *b) {
    const struct piece *x = *(struct piece *const *)a, *y = *(struct piece *const *)b;
    int rc = strcmp(x->owner.text, y->owner.text);
    if (rc == 0) {
        struct obj_ref xr = x->ref, yr = y->ref;
        xr.volume = yr.volume = 0;
        rc = obj_ref_compare(&xr, &yr);
    }
    return rc ? rc : (x->off > y->off) - (x->off < y->off);
}

static bool same_object(const struct piece *a, const struct piece *b) {
    struct obj_ref ar = a->ref, br = b->ref;
    ar.volume = br.volume = 0;
    return strcmp(a->owner.text, b->owner.text) == 0 && obj_ref_equal(&ar, &br);
}

static void on_fetched(struct obj_request *req) {
    struct fetch *f = container_of(req, struct fetch, req);
    f->ended = true;
    if (--f->slice->fetching == 0)
        waitq_wake_all(&f->slice->fetched);
}

static int decode_piece(struct fetch *f, const struct piece *p, struct err *e) {
    const struct slice *s = f->slice;
    struct view in = view_part(buf_view(&f->req.body), p->off - f->off, p->stored_len);
    uint64_t skip = p->skip, done = 0;
    for (size_t i = 0; i < p->len_count; i++) {
        uint64_t n = MIN(FRAME_SECTORS_MAX - skip, p->count - done);
        uint8_t frame[FRAME_SECTORS_MAX * SECTOR_SIZE];
        uint8_t *to = slice_at(s, p->sector + done);
        bool whole = n == FRAME_SECTORS_MAX; /* else the frame may hold more than we want */
        size_t stored;
        struct view one = view_part(in, 0, p->lens[i]);
        int rc = frame_decode(one, whole ? to : frame, (size_t)(skip + n), &stored, e);
        if (rc < 0)
            return err_wrap(e, "%s at byte %zu", f->key,
                            (size_t)(in.data - f->req.body.data) + f->off);
        if (!whole)
            memcpy(to, frame + skip * SECTOR_SIZE, n * SECTOR_SIZE);
        in = view_part(in, p->lens[i], in.len - p->lens[i]);
        done += n;
        skip = 0;
    }
    CHECK(done == p->count);
    return 0;
}

/* On a worker, or inline when it is little. */
static void decode_fetch(void *arg) {
    struct fetch *f = arg;
    for (size_t i = 0; f->rc == 0 && i < f->piece_count; i++)
        f->rc = decode_piece(f, f->pieces[i], &f->err);
}

static int finish_fetch(struct fetch *f, struct err *e) {
    struct volume *v = f->slice->v;
    if (f->req.rc == -ERR_NOT_FOUND)
        return read_explain_missing(v, f->key, e);
    if (f->req.rc < 0)
        return err_copy(e, &f->req.err);
    if (f->req.body.len < f->len)
        return err_set(e, -ERR_CORRUPT, "%s ends at byte %zu, the map wants %u", f->key,
                       f->off + f->req.body.len, f->off + f->len);
    if (f->len > DECODE_INLINE_MAX)
        fiber_run_job(v->env, decode_fetch, f);
    else
        decode_fetch(f);
    return f->rc < 0 ? err_copy(e, &f->err) : 0;
}

/* Groups the stored pieces (sorted by place) into GETs. */
static size_t plan_fetches(struct slice *s, struct piece **sorted, size_t count,
                           struct fetch *fetches) {
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        struct piece *p = sorted[i];
        struct fetch *f = n ? &fetches[n - 1] : NULL;
        uint64_t end = (uint64_t)p->off + p->stored_len;
        if (f && same_object(f->pieces[0], p) && p->off <= f->off + f->len + GET_GAP_MAX &&
            end - f->off <= GET_SIZE_MAX) {
            f->len = MAX(f->len, (uint32_t)(end - f->off));
            f->piece_count++;
            continue;
        }
        f = &fetches[n++];
        *f = (struct fetch){.slice = s,
                            .pieces = &sorted[i],
                            .piece_count = 1,
                            .off = p->off,
                            .len = p->stored_len};
        key_of_ref(f->key, &p->owner, &p->ref);
    }
    return n;
}

/* fiber. Submits all, waits for all, also when cancelled. */
static int run_fetches(struct slice *s, struct fetch *fetches, size_t count, struct err *e) {
    struct volume *v = s->v;
    waitq_init(&s->fetched);
    s->fetching = count;
    for (size_t i = 0; i < count; i++) {
        struct fetch *f = &fetches[i];
        f->req = (struct obj_request){.verb = OBJ_GET,
                                      .key = f->key,
                                      .off = f->off,
                                      .len = f->len,
                                      .size_max = f->len,
                                      .done = on_fetched};
        objstore_submit(v->store, &f->req);
    }
    int rc = waitq_wait(v->env, &s->fetched);
    if (rc < 0) {
        for (size_t i = 0; i < count; i++)
            if (!fetches[i].ended)
                objstore_cancel(v->store, &fetches[i].req);
        if (s->fetching > 0)
            waitq_wait_always(v->env, &s->fetched);
        rc = err_set(e, -ERR_SHUTDOWN, "the volume is closing");
    }
    for (size_t i = 0; i < count; i++) {
        if (rc == 0)
            rc = finish_fetch(&fetches[i], e);
        obj_request_release(&fetches[i].req);
    }
    return rc;
}

static int fetch_stored(struct slice *s, struct err *e) {
    size_t count = 0;
    struct piece **sorted = xcalloc(s->pieces.count, sizeof(struct piece *));
    for (size_t i = 0; i < s->pieces.count; i++) {
        struct piece *p = &s->pieces.items[i];
        bool stored = p->found && p->kind == EXTENT_DATA && !p->in_journal;
        if (stored && !ram_cache_read(s->v->cache, p->sector, p->count, slice_at(s, p->sector)))
            sorted[count++] = p;
    }
    int rc = 0;
    if (count > 0) {
        qsort(sorted, count, sizeof(struct piece *), compare_places);
        struct fetch *fetches = xcalloc(count, sizeof *fetches);
        size_t n = plan_fetches(s, sorted, count, fetches);
        rc = run_fetches(s, fetches, n, e);
        free(fetches);
    }
    free(sorted);
    return rc;
}

/* What the memtables know of the slice is copied now: journal space may be freed at the next wait.
 */
static bool copy_from_memory(struct slice *s) {
    struct volume *v = s->v;
    bool complete = true;
    for (size_t i = 0; i < s->pieces.count; i++) {
        struct piece *p = &s->pieces.items[i];
        uint8_t *to = slice_at(s, p->sector);
        if (p->in_journal)
            memcpy(to, journal_data(v->journal, p->pos), p->count * SECTOR_SIZE);
        else if (p->found && p->kind != EXTENT_DATA)
            memset(to, 0, p->count * SECTOR_SIZE);
        else if (!p->found && v->run_count == 0)
            memset(to, 0, p->count * SECTOR_SIZE);
        else
            complete = false;
    }
    return complete;
}

/* Looks the slice up in memory and copies what is there. True: that was all. */
static bool slice_start(struct slice *s, struct volume *v, uint64_t sector, uint64_t count,
                        uint8_t *buf) {
    *s = (struct slice){.v = v, .sector = sector, .count = count, .buf = buf};
    lookup_memory(v, sector, count, &s->pieces);
    return copy_from_memory(s);
}

/* fiber. The rest of the slice, from runs and objects. */
static int slice_finish(struct slice *s, struct err *e) {
    int rc = lookup_runs(s->v, &s->pieces, e);
    for (size_t i = 0; rc == 0 && i < s->pieces.count; i++) {
        struct piece *p = &s->pieces.items[i];
        if (!p->found || p->kind != EXTENT_DATA)
            memset(slice_at(s, p->sector), 0, p->count * SECTOR_SIZE);
    }
    return rc == 0 ? fetch_stored(s, e) : rc;
}

/* fiber. Reads sectors into buf and keeps them in the cache. */
static int read_sectors(struct volume *v, uint64_t sector, uint64_t count, uint8_t *buf,
                        struct err *e) {
    if (ram_cache_read(v->cache, sector, count, buf)) {
        v->stats.cache_hits++;
        return 0;
    }
    v->stats.cache_misses++;
    struct read_op op;
    op_begin(v, &op, sector, count);
    struct slice s;
    int rc = slice_start(&s, v, sector, count, buf) ? 0 : slice_finish(&s, e);
    op_end(v, &op);
    free(s.pieces.items);
    if (rc == 0 && !op.changed)
        ram_cache_write(v->cache, sector, count, buf);
    return rc;
}

/* --- requests --- */

/* The end of a request that a fiber carried out; only volume_free cancels those. */
static void complete_in_fiber(struct volume *v, struct bd_request *req, int rc) {
    if (v->state == VOL_FENCED)
        rc = -ERR_FENCED;
    volume_complete(req, rc == -ERR_CANCELLED ? -ERR_SHUTDOWN : rc);
}

static void read_fiber(struct volume *v, void *arg) {
    struct bd_request *req = arg;
    struct err e = {0};
    int rc = 0;
    for (uint64_t done = 0; rc == 0 && done < req->len; done += READ_SLICE) {
        uint64_t len = MIN(req->len - done, (uint64_t)READ_SLICE);
        rc = read_sectors(v, (req->off + done) / SECTOR_SIZE, len / SECTOR_SIZE,
                          req->read_buf + done, &e);
        if (rc == 0 && done + len < req->len)
            rc = fiber_yield(v->env); /* memory may know it all: others have their turn */
    }
    if (rc < 0)
        volume_report_read_error(v, req, &e);
    complete_in_fiber(v, req, rc);
}

bool read_submit(struct volume *v, struct bd_request *req) {
    uint64_t sector = req->off / SECTOR_SIZE, count = req->len / SECTOR_SIZE;
    v->stats.bytes_read += req->len;
    req->rc = 0;
    if (ram_cache_read(v->cache, sector, count, req->read_buf)) {
        v->stats.cache_hits++;
        return true;
    }
    if (req->len <= READ_SLICE) {
        struct slice s;
        bool complete = slice_start(&s, v, sector, count, req->read_buf);
        free(s.pieces.items);
        if (complete)
            return true;
    }
    volume_fiber_start(v, read_fiber, req);
    return false;
}

static void prefetch_fiber(struct volume *v, void *arg) {
    struct bd_request *req = arg;
    uint64_t len_max = MIN(req->len, v->config.cache_size / 2);
    uint8_t *buf = xmalloc(READ_SLICE);
    struct err e = {0};
    int rc = 0;
    for (uint64_t done = 0; rc == 0 && done < len_max; done += READ_SLICE) {
        uint64_t len = MIN(len_max - done, (uint64_t)READ_SLICE);
        rc = read_sectors(v, (req->off + done) / SECTOR_SIZE, len / SECTOR_SIZE, buf, &e);
        if (rc == 0)
            rc = fiber_yield(v->env);
    }
    free(buf);
    complete_in_fiber(v, req, rc);
}

bool prefetch_submit(struct volume *v, struct bd_request *req) {
    volume_fiber_start(v, prefetch_fiber, req);
    return false;
}

/* Adds a stretch to the answer. False: the answer is full. */
static bool add_status(struct bd_request *req, uint64_t len, uint32_t state) {
    size_t max = req->flags & BD_REQ_ONE ? 1 : BD_STATUS_EXTENTS_MAX;
    struct bd_extent *last =
        req->extents.count ? &req->extents.items[req->extents.count - 1] : NULL;
    if (last && last->state == state) {
        last->len += len;
        return true;
    }
    if (req->extents.count == max)
        return false;
    req->extents.items[req->extents.count++] = (struct bd_extent){.len = len, .state = state};
    return true;
}

static bool add_piece_status(struct bd_request *req, const struct piece *p) {
    uint32_t state = 0;
    if (!p->found || p->kind == EXTENT_HOLE)
        state = BD_EXTENT_HOLE | BD_EXTENT_ZERO;
    else if (p->kind == EXTENT_ZERO)
        state = BD_EXTENT_ZERO;
    return add_status(req, p->count * SECTOR_SIZE, state);
}

static void block_status_fiber(struct volume *v, void *arg) {
    struct bd_request *req = arg;
    struct err e = {0};
    int rc = 0;
    bool room = true;
    req->extents.count = 0;
    for (uint64_t done = 0; rc == 0 && room && done < req->len;) {
        uint64_t len = MIN(req->len - done, (uint64_t)STATUS_SLICE);
        struct pieces p = {0};
        struct read_op op;
        op_begin(v, &op, (req->off + done) / SECTOR_SIZE, len / SECTOR_SIZE);
        lookup_memory(v, op.sector, op.count, &p);
        rc = lookup_runs(v, &p, &e);
        op_end(v, &op);
        for (size_t i = 0; rc == 0 && room && i < p.count; i++)
            room = add_piece_status(req, &p.items[i]);
        free(p.items);
        done += len;
        if (rc == 0 && room && done < req->len)
            rc = fiber_yield(v->env);
    }
    if (rc < 0)
        volume_report_read_error(v, req, &e);
    complete_in_fiber(v, req, rc);
}

bool block_status_submit(struct volume *v, struct bd_request *req) {
    volume_fiber_start(v, block_status_fiber, req);
    return false;
}
