/* Flattening: a clone that is FLATTEN_DEPTH clones away from a volume that stands alone gets data
 * of its own, so that chains stay short; afterwards it needs no pin (held_pins.c).
 *
 *   collapse (all runs into one) --> its entries of others' objects, in the order of sectors: GET,
 *   into moved/<id> --> a run of those places, at the age of the run that was walked --> ... -->
 *   collapse: nothing names others any more
 *
 * A move (moving.c) that evacuates nothing: others' objects are theirs to delete. Only one run is
 * walked, so what newer ones shadow may be moved for nothing, but never wrongly: what is moved goes
 * in at the age of the run that it comes from, below all newer ones.
 *
 * I1  The places go in at the age of the run that they were read from; no merge takes runs from
 * both sides of it until then. I2  Merges of such a volume take no parts over from others. */
#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/volume/flatten.h"
#include "portalbd/volume/moving.h"

enum {
    GETS_AT_ONCE = 8,
    READ_AHEAD_PAGES = 64,
    OBJECT_BYTES = 8 << 20, /* of frames in a moved object */
    OBJECT_EXTENTS_MAX = 16 * 1024,
    BATCH_BYTES = 64 << 20, /* moved with one run */
    RUNS_MANY = 8,          /* collapsed from here on */
};
_Static_assert(OBJECT_EXTENTS_MAX <= (int)SEGMENT_EXTENTS_MAX, "a segment of format 1");
_Static_assert(OBJECT_BYTES + EXTENT_FRAMES_MAX * (int)FRAME_SIZE_MAX * GETS_AT_ONCE <=
                   (int)SEGMENT_SIZE_MAX + OBJECT_BYTES,
               "what is read at once fits behind a full object");

/* One entry of others. */
struct foreign {
    struct flatten *flatten;
    struct map_entry entry;
    uint16_t lens[EXTENT_FRAMES_MAX];
    char key[KEY_MAX];
    struct buf body, plain;
    int rc;
    struct err err;
};

struct flatten {
    struct gc *gc;
    struct volume *v;
    struct run_reader *run; /* a reference: the oldest run */
    uint64_t age;           /* of it */
    struct run_writer *writer;
    struct foreign *some; /* owned; GETS_AT_ONCE */
    struct buf frames;    /* of the object that is being built */
    struct segment_table table;
    uint64_t batch_bytes;
};

/* --- one object --- */

static void object_reset(struct flatten *f) {
    buf_release(&f->frames);
    segment_table_release(&f->table);
    f->table = (struct segment_table){0};
}

static void add_extent(struct flatten *f, const struct foreign *x) {
    struct segment_table *t = &f->table;
    t->extents = grown_array(t->extents, t->extent_count, sizeof *t->extents);
    t->extents[t->extent_count++] =
        (struct segment_extent){.sector = x->entry.sector,
                                .count = x->entry.count,
                                .kind = EXTENT_DATA,
                                .off = (uint32_t)(SEGMENT_HEADER_SIZE + f->frames.len),
                                .first_len = (uint32_t)t->len_count};
    for (uint64_t done = 0; done < x->entry.count; done += FRAME_SECTORS_MAX) {
        size_t n = (size_t)MIN(x->entry.count - done, (uint64_t)FRAME_SECTORS_MAX);
        buf_reserve(&f->frames, FRAME_SIZE_MAX);
        size_t len = frame_encode(f->frames.data + f->frames.len,
                                  x->plain.data + done * SECTOR_SIZE, n, true);
        f->frames.len += len;
        t->lens = grown_array(t->lens, t->len_count, sizeof *t->lens);
        t->lens[t->len_count++] = (uint16_t)len;
    }
}

/* fiber. Stores what has come together, and puts its places into the run. */
static int put_object(struct flatten *f, struct err *e) {
    struct volume *v = f->v;
    struct object_name n = {.class = CLASS_CONTENT, .kind = OBJ_MOVED};
    if (f->table.extent_count == 0)
        return 0;
    struct segment_meta meta = {
        .kind = SEGMENT_MOVED, .epoch = v->manifest.epoch, .nonce = v->manifest.nonce};
    segment_volume_hash(meta.volume_hash, &v->config.key);
    env_random(v->env, n.id.bytes, sizeof n.id.bytes);
    uint8_t header[SEGMENT_HEADER_SIZE];
    char key[KEY_MAX];
    CLEANUP_BUF struct buf tail = {0};
    segment_encode_header(header, &meta);
    segment_encode_tail(&tail, &meta, &f->table, SEGMENT_HEADER_SIZE + f->frames.len);
    object_key(key, &v->config.key, &n);
    struct view parts[] = {view_of(header, sizeof header), buf_view(&f->frames), buf_view(&tail)};
    int rc = objstore_put_parts(v->store, key, parts, ARRAY_LEN(parts), e);
    size_t size = sizeof header + f->frames.len + tail.len;
    if (rc == 0) {
        own_objects_add(&f->gc->objects, &n, (uint32_t)size);
        v->stats.gc_bytes_moved += size;
        f->batch_bytes += size;
    }
    if (rc == 0)
        rc = moving_add_places(f->writer, &v->config.key, &n.id, &f->table, e);
    object_reset(f);
    return rc;
}

/* --- entries of others --- */

/* A job: the plain sectors of an entry. */
static void decode(void *arg) {
    struct foreign *x = arg;
    uint64_t skip = x->entry.skip, done = 0;
    size_t off = 0;
    buf_reserve(&x->plain, (size_t)x->entry.count * SECTOR_SIZE);
    while (x->rc == 0 && done < x->entry.count) {
        uint8_t data[FRAME_SECTORS_MAX * SECTOR_SIZE];
        uint64_t n = MIN(FRAME_SECTORS_MAX - skip, x->entry.count - done);
        size_t stored = 0;
        x->rc = frame_decode(view_part(buf_view(&x->body), off, x->body.len - off), data,
                             (size_t)(skip + n), &stored, &x->err);
        if (x->rc < 0)
            err_wrap(&x->err, "'%s' at byte %zu", x->key, x->entry.off + off);
        else
            buf_append(&x->plain, data + skip * SECTOR_SIZE, (size_t)n * SECTOR_SIZE);
        off += stored;
        done += n;
        skip = 0;
    }
}

static void read_foreign(void *arg) {
    struct foreign *x = arg;
    uint32_t len = map_entry_stored_len(&x->entry);
    x->rc = objstore_get_range(x->flatten->v->store, x->key, x->entry.off, len, &x->body, &x->err);
    if (x->rc == 0 && x->body.len != len)
        x->rc = err_set(&x->err, -ERR_CORRUPT, "'%s' ends in the middle of a frame", x->key);
    if (x->rc == 0)
        fiber_run_job(x->flatten->v->env, decode, x);
}

/* fiber. */
static int take_some(struct flatten *f, size_t count, struct err *e) {
    struct fiber_group group;
    fiber_group_init(&group, f->v->env);
    for (size_t i = 0; i < count; i++)
        fiber_group_start(&group, read_foreign, &f->some[i]);
    int rc = fiber_group_wait(&group);
    if (rc < 0)
        err_set_text(e, rc, "flattening was cancelled");
    for (size_t i = 0; i < count; i++) {
        struct foreign *x = &f->some[i];
        if (rc == 0 && x->rc < 0)
            rc = err_copy(e, &x->err);
        if (rc == 0)
            add_extent(f, x);
        buf_release(&x->body);
        buf_release(&x->plain);
        if (rc == 0 &&
            (f->frames.len >= OBJECT_BYTES || f->table.extent_count >= OBJECT_EXTENTS_MAX))
            rc = put_object(f, e);
    }
    return rc;
}

static bool is_foreign(const struct flatten *f, const struct map_entry *m) {
    const struct run_index *x = run_reader_index(f->run);
    return m->kind == EXTENT_DATA && !gc_is_own(f->gc, &x->volumes[m->ref.volume]);
}

static void remember(struct flatten *f, size_t i, const struct map_entry *m) {
    const struct run_index *index = run_reader_index(f->run);
    struct foreign *x = &f->some[i];
    *x = (struct foreign){.flatten = f, .entry = *m};
    memcpy(x->lens, m->lens, m->len_count * sizeof *m->lens);
    x->entry.lens = x->lens;
    key_of_ref(x->key, &index->volumes[m->ref.volume], &m->ref);
}

/* fiber. Walks from *sector on until the batch is full; *ret_end: there is nothing behind it. */
static int walk(struct flatten *f, uint64_t *sector, bool *ret_end, struct err *e) {
    struct run_iter it;
    size_t count = 0;
    run_iter_init(&it, f->run, READ_AHEAD_PAGES);
    int found = 1, rc = run_iter_seek(&it, *sector, e);
    while (rc == 0 && found > 0 && f->batch_bytes < BATCH_BYTES && !gc_must_stop(f->gc)) {
        found = run_iter_next(&it, e);
        if (found < 0)
            rc = found;
        if (found > 0) {
            *sector = it.entry.sector + it.entry.count;
            if (is_foreign(f, &it.entry))
                remember(f, count++, &it.entry);
        }
        if (rc == 0 && count > 0 && (count == GETS_AT_ONCE || found == 0)) {
            rc = take_some(f, count, e);
            count = 0;
        }
    }
    if (rc == 0 && count > 0)
        rc = take_some(f, count, e);
    run_iter_release(&it);
    *ret_end = found == 0;
    return rc == 0 ? put_object(f, e) : rc;
}

/* --- a batch --- */

/* fiber. */
static int install(struct flatten *f, bool *ret_moved, struct err *e) {
    struct volume *v = f->v;
    struct root_run run = {0};
    int rc = run_writer_finish(f->writer, &run, e);
    if (rc < 0 || run.entry_count == 0)
        return rc;
    if (fiber_mutex_lock(v->env, &v->checkpoint_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "flattening was cancelled");
    rc = fiber_mutex_lock(v->env, &v->manifest_mutex);
    if (rc == 0) {
        struct manifest next = manifest_next(&v->manifest);
        run.age = MUTANT("flatten-on-top") ? next.root.runs[0].age : f->age; /* I1 */
        rc = run_list_insert(v, &next, &run, run_writer_reader(f->writer, v->pages), e);
        fiber_mutex_unlock(&v->manifest_mutex);
    } else {
        rc = err_set(e, -ERR_CANCELLED, "flattening was cancelled");
    }
    fiber_mutex_unlock(&v->checkpoint_mutex);
    *ret_moved |= rc == 0;
    return rc;
}

/* fiber. */
static int batch(struct gc *g, uint64_t *sector, bool *ret_end, bool *ret_moved, struct err *e) {
    struct volume *v = g->v;
    CHECK(v->run_count > 0);
    struct flatten f = {.gc = g,
                        .v = v,
                        .run = v->runs[v->run_count - 1],
                        .age = v->manifest.root.runs[v->run_count - 1].age};
    run_reader_ref(f.run);
    f.some = xcalloc(GETS_AT_ONCE, sizeof *f.some);
    f.writer = run_writer_new(v->env, v->store, &v->config.key, map_shape(v));
    levels_hold(v, f.age);
    int rc = walk(&f, sector, ret_end, e);
    if (rc == 0 && !gc_must_stop(g))
        rc = install(&f, ret_moved, e);
    levels_release(v);
    run_writer_free(f.writer);
    run_reader_unref(f.run);
    object_reset(&f);
    free(f.some);
    if (rc == -ERR_NOT_FOUND || rc == -ERR_STALE) { /* whoever deleted it, it was not us */
        struct err missing = *e;
        rc = read_explain_missing(v, missing.text, e);
    }
    return rc;
}

int gc_flatten(struct gc *g, bool *ret_moved, struct err *e) {
    struct volume *v = g->v;
    *ret_moved = false;
    uint32_t depth = v->config.flatten_depth ? v->config.flatten_depth : FLATTEN_DEPTH;
    if (v->manifest.depth < depth || v->manifest.held_pin_count == 0 || v->run_count == 0 ||
        !gc_needs_others(g))
        return 0;
    uint64_t sector = 0;
    bool end = false;
    int rc = checkpoint_now(v, e); /* what the tail of others has become is in a run */
    if (rc == 0)
        rc = levels_collapse(v, e);
    while (rc == 0 && !end && v->run_count > 0 && !gc_must_stop(g)) {
        rc = batch(g, &sector, &end, ret_moved, e);
        if (rc == 0 && v->run_count >= RUNS_MANY && !gc_must_stop(g))
            rc = levels_collapse(v, e);
    }
    if (rc == 0 && end && !gc_must_stop(g))
        rc = levels_rewrite(v, e);
    *ret_moved |= end;
    return rc;
}
