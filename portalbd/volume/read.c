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
#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/volume/lookup.h"

enum {
    GET_SIZE_MAX = 5 * 1024 * 1024, /* bytes of one ranged GET: a slice and its frames' headers */
    GET_GAP_MAX = 32 * 1024,        /* bytes between frames that one GET still bridges */
    READ_SLICE = 4 * 1024 * 1024,   /* bytes of a READ that are looked up and fetched at a time */
    DECODE_INLINE_MAX = 32 * 1024,  /* bytes of frames that are not worth a worker */
    WAITS_MAX = 8,      /* reads under way that a READ waits for before it fetches itself */
    AHEAD_GETS_MAX = 4, /* a read-ahead of more GETs lets everything else go first */
};

/* --- ops: what is being read --- */

void read_op_start(struct volume *v, struct read_op *op, uint64_t sector, uint64_t count) {
    *op = (struct read_op){.serial = ++v->read_serial, .sector = sector, .count = count};
    waitq_init(&op->ended);
    list_push_back(&v->misses, &op->node);
}

void read_op_end(struct volume *v, struct read_op *op) {
    list_remove(&op->node);
    waitq_wake_all(&op->ended);
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

static bool overlap(uint64_t a, uint64_t a_count, uint64_t b, uint64_t b_count) {
    return a < b + b_count && b < a + a_count;
}

void read_mark_changed(struct volume *v, uint64_t sector, uint64_t count) {
    list_for_each (&v->misses, node) {
        struct read_op *op = list_entry(node, struct read_op, node);
        if (!overlap(sector, count, op->sector, op->count))
            continue;
        if (op->changed_count < ARRAY_LEN(op->changed))
            op->changed[op->changed_count] = (struct read_range){sector, count};
        op->changed_count++;
    }
}

static bool has_changed(const struct read_op *op, uint64_t sector, uint64_t count) {
    if (MUTANT("fill-what-changed"))
        return false;
    if (op->changed_count > ARRAY_LEN(op->changed))
        return true; /* it did not count where */
    for (size_t i = 0; i < op->changed_count; i++)
        if (overlap(sector, count, op->changed[i].sector, op->changed[i].count))
            return true;
    return false;
}

static struct read_op *find_op(struct volume *v, uint64_t sector, uint64_t count) {
    list_for_each (&v->misses, node) {
        struct read_op *op = list_entry(node, struct read_op, node);
        if (op->fetches && overlap(sector, count, op->sector, op->count))
            return op;
    }
    return NULL;
}

/* --- fetching --- */

/* A part of a READ: its destination and what is still to be fetched. */
struct slice {
    struct volume *v;
    uint64_t sector;
    uint64_t count;
    uint8_t *buf;
    bool ahead; /* nobody has asked for it yet */
    struct pieces pieces;
    size_t fetching;
    struct waitq fetched;
};

static uint8_t *slice_at(const struct slice *s, uint64_t sector) {
    return s->buf + (sector - s->sector) * SECTOR_SIZE;
}

/* One ranged GET, and the pieces [first, first + count) of the sorted list that it brings; or one
 * piece from the disk cache. */
struct fetch {
    struct obj_request req;
    struct env_job job;
    bool from_disk;
    uint64_t disk_pos;
    struct slice *slice;
    struct piece **pieces;
    size_t piece_count;
    char key[KEY_MAX];
    uint32_t off;
    uint32_t len;
    bool answered;
    size_t body_len;
    int rc; /* of the decoding */
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

static void decode_fetch(struct env_job *job) {
    struct fetch *f = container_of(job, struct fetch, job);
    for (size_t i = 0; f->rc == 0 && i < f->piece_count; i++)
        f->rc = decode_piece(f, f->pieces[i], &f->err);
}

/* On a worker. */
static void read_disk(struct env_job *job) {
    struct fetch *f = container_of(job, struct fetch, job);
    buf_reserve(&f->req.body, f->len);
    f->rc = disk_cache_read(f->slice->v->disk, f->disk_pos, f->req.body.data, f->len, &f->err);
    f->req.body.len = f->len;
    decode_fetch(job);
}

/* What came from the store, and is good, goes to the disk. */
static void keep_on_disk(struct fetch *f) {
    struct volume *v = f->slice->v;
    if (!v->disk || f->from_disk || f->rc < 0 || f->req.body.len != f->len)
        return;
    struct disk_key key = disk_key_of(&f->pieces[0]->owner, &f->pieces[0]->ref);
    struct disk_fill *fill = disk_fill_new(v->disk, &key, f->off, &f->req.body);
    for (size_t i = 0; fill && i < f->piece_count; i++)
        disk_fill_frames(fill, f->pieces[i]->off, f->pieces[i]->lens, f->pieces[i]->len_count);
    volume_fill_disk(v, fill);
}

static void end_fetch(struct env_job *job) {
    struct fetch *f = container_of(job, struct fetch, job);
    struct slice *s = f->slice;
    keep_on_disk(f);
    buf_release(&f->req.body); /* others of the slice may still take long */
    if (--s->fetching == 0)
        waitq_wake_all(&s->fetched);
}

/* What has come is decoded at once, while other GETs are under way: on a worker, or here when it is
 * little. */
static void on_fetched(struct obj_request *req) {
    struct fetch *f = container_of(req, struct fetch, req);
    f->answered = true;
    f->body_len = req->body.len;
    f->job = (struct env_job){.run = decode_fetch, .done = end_fetch};
    bool whole = req->rc == 0 && req->body.len == f->len;
    if (whole && f->len > DECODE_INLINE_MAX) {
        env_job_submit(f->slice->v->env, &f->job);
        return;
    }
    if (whole)
        decode_fetch(&f->job);
    end_fetch(&f->job);
}

/* The disk did not give what it promised: the store has it still. */
static void check_disk(struct fetch *f) {
    struct volume *v = f->slice->v;
    bool overwritten = !disk_cache_still_valid(v->disk, f->disk_pos);
    if (f->rc == 0 && !overwritten)
        return;
    f->pieces[0]->fetched = false;
    f->pieces[0]->not_on_disk = true;
    if (!overwritten)
        volume_disk_failed(v, &f->err);
}

static int fetch_result(struct fetch *f, struct err *e) {
    if (f->from_disk) {
        check_disk(f);
        return 0;
    }
    if (f->req.rc == -ERR_NOT_FOUND)
        return read_explain_missing(f->slice->v, f->key, e);
    if (f->req.rc < 0) /* -ERR_CORRUPT: another object's size */
        f->rc = err_copy(&f->err, &f->req.err);
    else if (f->body_len != f->len)
        f->rc = err_set(&f->err, -ERR_CORRUPT, "%s ends at byte %zu, the map wants %u", f->key,
                        f->off + f->body_len, f->off + f->len);
    if (f->rc == -ERR_CORRUPT)
        return read_explain_damage(f->slice->v, &f->err, e);
    return f->rc < 0 ? err_copy(e, &f->err) : 0;
}

/* What the disk cache has; moves the pieces that it does not have to the front of the list. */
static size_t plan_from_disk(struct slice *s, struct piece **sorted, size_t *count,
                             struct fetch *fetches, struct piece **on_disk) {
    size_t n = 0, rest = 0;
    for (size_t i = 0; i < *count; i++) {
        struct piece *p = sorted[i];
        struct disk_key key = disk_key_of(&p->owner, &p->ref);
        uint64_t pos;
        if (p->not_on_disk || !disk_cache_find(s->v->disk, &key, p->off, p->stored_len, &pos)) {
            sorted[rest++] = p;
            continue;
        }
        on_disk[n] = p;
        fetches[n] = (struct fetch){.slice = s,
                                    .from_disk = true,
                                    .disk_pos = pos,
                                    .pieces = &on_disk[n],
                                    .piece_count = 1,
                                    .off = p->off,
                                    .len = p->stored_len};
        key_of_ref(fetches[n++].key, &p->owner, &p->ref);
    }
    *count = rest;
    return n;
}

/* Groups the stored pieces (sorted by place) into GETs. */
static size_t plan_gets(struct slice *s, struct piece **sorted, size_t count,
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

static void start_fetches(struct slice *s, struct fetch *fetches, size_t count, bool many) {
    for (size_t i = 0; i < count; i++) {
        struct fetch *f = &fetches[i];
        if (f->from_disk) {
            f->answered = true;
            f->job = (struct env_job){.run = read_disk, .done = end_fetch};
            env_job_submit(s->v->env, &f->job);
            continue;
        }
        f->req = (struct obj_request){.verb = OBJ_GET,
                                      .key = f->key,
                                      .off = f->off,
                                      .len = f->len,
                                      .size_max = f->len,
                                      .background = s->ahead && many,
                                      .done = on_fetched};
        objstore_submit(s->v->store, &f->req);
    }
}

/* fiber. Submits all, waits for all, also when cancelled. */
static int run_fetches(struct slice *s, struct fetch *fetches, size_t count, struct err *e) {
    struct volume *v = s->v;
    waitq_init(&s->fetched);
    s->fetching = count;
    start_fetches(s, fetches, count, count > AHEAD_GETS_MAX);
    int rc = waitq_wait(v->env, &s->fetched);
    if (rc < 0) {
        for (size_t i = 0; i < count; i++)
            if (!fetches[i].answered)
                objstore_cancel(v->store, &fetches[i].req);
        if (s->fetching > 0)
            waitq_wait_always(v->env, &s->fetched);
        rc = err_set(e, -ERR_SHUTDOWN, "the volume is closing");
    }
    for (size_t i = 0; i < count; i++) {
        if (rc == 0)
            rc = fetch_result(&fetches[i], e);
        obj_request_release(&fetches[i].req);
    }
    return rc;
}

/* fiber. */
static int fetch_list(struct slice *s, struct piece **sorted, size_t count, struct err *e) {
    qsort(sorted, count, sizeof(struct piece *), compare_places);
    struct fetch *fetches = xcalloc(count, sizeof *fetches);
    struct piece **on_disk = xcalloc(count, sizeof(struct piece *));
    size_t n = s->v->disk ? plan_from_disk(s, sorted, &count, fetches, on_disk) : 0;
    n += plan_gets(s, sorted, count, fetches + n);
    int rc = run_fetches(s, fetches, n, e);
    free(fetches);
    free(on_disk);
    return rc;
}

/* fiber. A second round is for what the disk did not give. */
static int fetch_stored(struct slice *s, struct err *e) {
    struct piece **sorted = xcalloc(s->pieces.count, sizeof(struct piece *));
    int rc = 0;
    for (int round = 0; rc == 0 && round < 2; round++) {
        size_t count = 0;
        for (size_t i = 0; i < s->pieces.count; i++) {
            struct piece *p = &s->pieces.items[i];
            bool stored = p->found && p->kind == EXTENT_DATA && !p->in_journal;
            if (!stored || p->fetched || (round > 0 && !p->not_on_disk) ||
                ram_cache_read(s->v->cache, p->sector, p->count, slice_at(s, p->sector)))
                continue;
            p->fetched = true;
            sorted[count++] = p;
        }
        if (count > 0)
            rc = fetch_list(s, sorted, count, e);
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

/* fiber. Reads what the op covers into buf and keeps it in the cache. */
static int read_op_run(struct volume *v, struct read_op *op, uint8_t *buf, struct err *e) {
    struct slice s;
    int rc = slice_start(&s, v, op->sector, op->count, buf) ? 0 : slice_finish(&s, e);
    free(s.pieces.items);
    if (rc == 0 && !has_changed(op, op->sector, op->count))
        ram_cache_write(v->cache, op->sector, op->count, buf);
    return rc;
}

int read_op_run_ahead(struct volume *v, struct read_op *op, struct err *e) {
    uint8_t *buf = xmalloc(op->count * SECTOR_SIZE);
    struct slice s = {.v = v, .sector = op->sector, .count = op->count, .buf = buf, .ahead = true};
    lookup_memory(v, op->sector, op->count, &s.pieces);
    int rc = lookup_runs(v, &s.pieces, e);
    if (rc == 0)
        rc = fetch_stored(&s, e);
    for (size_t i = 0; rc == 0 && i < s.pieces.count; i++) {
        const struct piece *p = &s.pieces.items[i];
        if (p->fetched && !has_changed(op, p->sector, p->count))
            ram_cache_write_once(v->cache, p->sector, p->count, slice_at(&s, p->sector));
    }
    free(s.pieces.items);
    free(buf);
    return rc;
}

/* fiber. Reads sectors into buf and keeps them in the cache. What is under way already is waited
 * for: one GET is enough. */
static int read_sectors(struct volume *v, uint64_t sector, uint64_t count, uint8_t *buf,
                        struct err *e) {
    struct read_op *other;
    bool cached = ram_cache_read(v->cache, sector, count, buf), waited = false;
    for (int i = 0; !cached && i < WAITS_MAX && (other = find_op(v, sector, count)) != NULL; i++) {
        waited = true;
        if (waitq_wait(v->env, &other->ended) < 0)
            return err_set(e, -ERR_SHUTDOWN, "the volume is closing");
        cached = ram_cache_read(v->cache, sector, count, buf);
    }
    v->stats.read_waits += waited;
    if (cached) {
        v->stats.cache_hits++;
        return 0;
    }
    v->stats.cache_misses++;
    struct read_op op;
    read_op_start(v, &op, sector, count);
    op.fetches = true;
    int rc = read_op_run(v, &op, buf, e);
    read_op_end(v, &op);
    return rc;
}

/* --- requests --- */

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
    read_complete(v, req, rc);
}

bool read_submit(struct volume *v, struct bd_request *req) {
    uint64_t sector = req->off / SECTOR_SIZE, count = req->len / SECTOR_SIZE;
    v->stats.bytes_read += req->len;
    req->rc = 0;
    bool cached = ram_cache_read(v->cache, sector, count, req->read_buf);
    read_ahead_note(v, sector, count, cached);
    if (cached) {
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
    read_complete(v, req, rc);
}

bool prefetch_submit(struct volume *v, struct bd_request *req) {
    volume_fiber_start(v, prefetch_fiber, req);
    return false;
}
