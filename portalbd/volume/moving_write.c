/* What is live of a batch of victims, into objects of its own: built on workers, put side by side
 * when GC is behind; their places go into a run. */
#include <stdlib.h>

#include "portalbd/volume/moving_internal.h"

enum {
    PUTS_AT_ONCE = 3,             /* when GC is behind; else one */
    MOVED_RAW_MAX = 14 << 20,     /* of an object: its frames as they are */
    MOVED_FRAMES_MAX = 32 * 1024, /* so at most as many extents */
};
_Static_assert(MOVED_FRAMES_MAX <= (int)SEGMENT_EXTENTS_MAX, "a segment of format 1");

/* One moved object, built on a worker. */
struct moved_build {
    struct move *move;
    const struct live_piece *pieces;
    size_t piece_count;
    struct object_name name;
    struct segment_meta meta;
    uint8_t header[SEGMENT_HEADER_SIZE];
    struct buf frames;
    struct buf tail;
    struct segment_table table;
    int rc;
    struct err err;
};

static void moved_build_release(struct moved_build *b) {
    buf_release(&b->frames);
    buf_release(&b->tail);
    segment_table_release(&b->table);
}

/* Frames keep the bounds that they have, so that a later overwrite leaves the same pieces live. */
static void add_frame(struct moved_build *b, uint64_t sector, uint64_t count, const uint8_t *data) {
    struct segment_table *t = &b->table;
    struct segment_extent *last = t->extent_count > 0 ? &t->extents[t->extent_count - 1] : NULL;
    bool joins = last && last->sector + last->count == sector &&
                 last->count % FRAME_SECTORS_MAX == 0 && last->count + count <= EXTENT_SECTORS_MAX;
    if (!joins) {
        t->extents = grown_array(t->extents, t->extent_count, sizeof *t->extents);
        last = &t->extents[t->extent_count++];
        *last = (struct segment_extent){.sector = sector,
                                        .kind = EXTENT_DATA,
                                        .off = (uint32_t)(SEGMENT_HEADER_SIZE + b->frames.len),
                                        .first_len = (uint32_t)t->len_count};
    }
    buf_reserve(&b->frames, FRAME_SIZE_MAX);
    size_t len = frame_encode(b->frames.data + b->frames.len, data, count, true);
    b->frames.len += len;
    t->lens = grown_array(t->lens, t->len_count, sizeof *t->lens);
    t->lens[t->len_count++] = (uint16_t)len;
    last->count += count;
}

static void add_raw(struct moved_build *b, const struct live_piece *p) {
    const uint8_t *data = b->move->raw.data + p->raw - 1;
    for (uint64_t done = 0; done < p->count;) {
        uint64_t n = MIN(p->count - done, (uint64_t)FRAME_SECTORS_MAX);
        add_frame(b, p->sector + done, n, data + done * SECTOR_SIZE);
        done += n;
    }
}

static int add_piece(struct moved_build *b, const struct live_piece *p, struct err *e) {
    if (p->raw > 0) {
        add_raw(b, p);
        return 0;
    }
    const struct victim *x = &b->move->victims[p->victim];
    uint8_t data[FRAME_SECTORS_MAX * SECTOR_SIZE];
    uint64_t skip = p->skip, done = 0, off = p->off;
    while (done < p->count) {
        uint64_t n = MIN(FRAME_SECTORS_MAX - skip, p->count - done);
        if (off > x->body.len)
            return err_set(e, -ERR_CORRUPT, "the map wants more than the object has");
        size_t stored;
        int rc = frame_decode(view_of(x->body.data + off, x->body.len - off), data,
                              (size_t)(skip + n), &stored, e);
        if (rc < 0)
            return rc;
        add_frame(b, p->sector + done, n, data + skip * SECTOR_SIZE);
        off += stored;
        done += n;
        skip = 0;
    }
    return 0;
}

/* Its frames, when nothing of it becomes smaller. */
static size_t piece_raw_bytes(const struct live_piece *p) {
    return (size_t)p->count * SECTOR_SIZE + (size_t)p->frames * FRAME_HEADER_SIZE;
}

/* Frames of a part of a frame may be larger than what is stored, hardly ever in all. */
static size_t frames_room(const struct moved_build *b) {
    size_t stored = 0, raw = 0;
    for (size_t i = 0; i < b->piece_count; i++) {
        stored += b->pieces[i].stored_len;
        raw += piece_raw_bytes(&b->pieces[i]);
    }
    return MIN(stored, raw) + FRAME_SIZE_MAX;
}

static void build_run(void *arg) {
    struct moved_build *b = arg;
    buf_reserve(&b->frames, frames_room(b)); /* growing, it would double */
    for (size_t i = 0; b->rc == 0 && i < b->piece_count; i++) {
        b->rc = add_piece(b, &b->pieces[i], &b->err);
        if (b->rc < 0) {
            char key[KEY_MAX];
            object_key(key, &b->move->v->config.key, &b->move->names[b->pieces[i].victim]);
            err_wrap(&b->err, "'%s' at byte %u", key, b->pieces[i].off);
            return;
        }
    }
    CHECK(b->table.extent_count <= SEGMENT_EXTENTS_MAX);
    segment_encode_header(b->header, &b->meta);
    segment_encode_tail(&b->tail, &b->meta, &b->table, SEGMENT_HEADER_SIZE + b->frames.len);
}

/* How many of these pieces make one object. */
static size_t pieces_of_object(const struct live_piece *p, size_t count) {
    uint64_t stored = 0, raw = 0, frames = 0;
    size_t n = 0;
    while (n < count) {
        stored += p[n].stored_len;
        raw += piece_raw_bytes(&p[n]);
        frames += p[n].frames;
        if (n > 0 && (stored > MOVED_BYTES || raw > MOVED_RAW_MAX || frames > MOVED_FRAMES_MAX))
            break;
        n++;
    }
    return n;
}

int moving_add_places(struct run_writer *w, const struct volume_key *own,
                      const struct random_id *id, const struct segment_table *t, struct err *e) {
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < t->extent_count; i++) {
        const struct segment_extent *x = &t->extents[i];
        struct map_entry entry = {.sector = x->sector,
                                  .count = x->count,
                                  .kind = EXTENT_DATA,
                                  .len_count = (uint16_t)extent_frames(x->count),
                                  .off = x->off,
                                  .ref = {.kind = OBJ_MOVED, .id = *id},
                                  .lens = t->lens + x->first_len};
        rc = run_writer_add(w, &entry, own, e);
    }
    return rc;
}

/* fiber. Builds one object and stores it. */
static void store_run(void *arg) {
    struct moved_build *b = arg;
    struct volume *v = b->move->v;
    b->meta = (struct segment_meta){
        .kind = SEGMENT_MOVED, .epoch = v->manifest.epoch, .nonce = v->manifest.nonce};
    segment_volume_hash(b->meta.volume_hash, &v->config.key);
    fiber_run_job(v->env, build_run, b);
    CHECK(b->move->unbuilt >= b->piece_count);
    b->move->unbuilt -= b->piece_count;
    if (b->move->unbuilt == 0)
        moving_drop_bodies(b->move); /* the PUTs may take long */
    if (b->rc < 0)
        return;
    b->name = (struct object_name){.class = CLASS_CONTENT, .kind = OBJ_MOVED};
    env_random(v->env, b->name.id.bytes, sizeof b->name.id.bytes);
    char key[KEY_MAX];
    object_key(key, &v->config.key, &b->name);
    struct view parts[] = {view_of(b->header, sizeof b->header), buf_view(&b->frames),
                           buf_view(&b->tail)};
    b->rc = objstore_put_parts(v->store, key, parts, ARRAY_LEN(parts), &b->err);
    if (b->rc < 0)
        return;
    size_t size = sizeof b->header + b->frames.len + b->tail.len;
    own_objects_add(&b->move->gc->objects, &b->name, (uint32_t)size);
    v->stats.gc_bytes_moved += size;
}

/* fiber. Some objects side by side; their places go into the run in order. */
static int write_some(struct move *m, struct moved_build *builds, size_t count, struct err *e) {
    struct fiber_group group;
    fiber_group_init(&group, m->v->env);
    for (size_t i = 0; i < count; i++)
        fiber_group_start(&group, store_run, &builds[i]);
    if (fiber_group_wait(&group) < 0)
        return err_set(e, -ERR_CANCELLED, "moving was cancelled");
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = builds[i].rc < 0 ? err_copy(e, &builds[i].err)
                              : moving_add_places(m->writer, &m->v->config.key, &builds[i].name.id,
                                                  &builds[i].table, e);
    return rc;
}

int moving_write(struct move *m, struct err *e) {
    size_t at_once = gc_is_behind(m->gc) ? PUTS_AT_ONCE : 1;
    int rc = 0;
    m->writer = run_writer_new(m->v->env, m->v->store, &m->v->config.key, map_shape(m->v));
    m->unbuilt = m->pieces.count;
    for (size_t at = 0; rc == 0 && at < m->pieces.count && !gc_must_stop(m->gc);) {
        struct moved_build builds[PUTS_AT_ONCE] = {0};
        size_t count = 0;
        for (; count < at_once && at < m->pieces.count; count++) {
            struct moved_build *b = &builds[count];
            b->move = m;
            b->pieces = m->pieces.items + at;
            b->piece_count = pieces_of_object(b->pieces, m->pieces.count - at);
            at += b->piece_count;
        }
        rc = write_some(m, builds, count, e);
        for (size_t i = 0; i < count; i++)
            moved_build_release(&builds[i]);
    }
    return rc;
}
