/* fsck: the objects that LISTs show, and the bytes of those that are needed.
 *
 * A volume may have millions of objects, and many more frames: objects are one sorted array; frames
 * are kept for as many objects at a time as FRAMES_MAX allows, and for each such chunk the entries
 * of all runs are walked once more. A map entry must lie on frames of its object, in length and in
 * sector. */
#include "portalbd/catalog/fsck_internal.h"

#include <stdlib.h>

enum {
    FRAMES_MAX = 4 * 1024 * 1024, /* of a chunk, and those of one batch on top */
    BATCH = 4,                    /* objects read at once, of at most SEGMENT_SIZE_MAX */
};

/* --- names --- */

int fsck_name_compare(const struct fsck_name *a, const struct fsck_name *b) {
    if (a->volume != b->volume)
        return a->volume < b->volume ? -1 : 1;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    return memcmp(a->id.bytes, b->id.bytes, RANDOM_ID_SIZE);
}

struct fsck_name fsck_name_of_log(uint16_t volume, uint64_t seq) {
    struct fsck_name n = {.volume = volume, .kind = OBJ_LOG};
    for (int i = 0; i < 8; i++)
        n.id.bytes[i] = (uint8_t)(seq >> (56 - 8 * i));
    return n;
}

struct fsck_name fsck_name_of(uint16_t volume, const struct obj_ref *ref) {
    if (ref->kind == OBJ_LOG)
        return fsck_name_of_log(volume, ref->seq);
    return (struct fsck_name){.volume = volume, .kind = ref->kind, .id = ref->id};
}

uint64_t fsck_name_seq(const struct fsck_name *n) {
    CHECK(n->kind == OBJ_LOG);
    uint64_t seq = 0;
    for (int i = 0; i < 8; i++)
        seq = seq << 8 | n->id.bytes[i];
    return seq;
}

void fsck_name_key(char key[KEY_MAX], const struct fsck_table *t, const struct fsck_name *n) {
    struct obj_ref ref = {.kind = n->kind};
    if (n->kind == OBJ_LOG)
        ref.seq = fsck_name_seq(n);
    else
        ref.id = n->id;
    key_of_ref(key, &t->volumes[n->volume], &ref);
}

/* --- the table --- */

void fsck_table_release(struct fsck_table *t) {
    free(t->volumes);
    free(t->listed);
    free(t->items);
    *t = (struct fsck_table){0};
}

uint16_t fsck_table_volume(struct fsck_table *t, const struct volume_key *v) {
    for (size_t i = 0; i < t->volume_count; i++)
        if (volume_keys_equal(&t->volumes[i], v))
            return (uint16_t)i;
    CHECK(t->volume_count < UINT16_MAX);
    t->volumes = xrealloc(t->volumes, (t->volume_count + 1) * sizeof *t->volumes);
    t->listed = xrealloc(t->listed, (t->volume_count + 1) * sizeof *t->listed);
    t->volumes[t->volume_count] = *v;
    t->listed[t->volume_count] = false;
    return (uint16_t)t->volume_count++;
}

static int compare_objects(const void *a, const void *b) {
    const struct fsck_object *x = a, *y = b;
    return fsck_name_compare(&x->name, &y->name);
}

struct fsck_object *fsck_table_find(const struct fsck_table *t, const struct fsck_name *n) {
    struct fsck_object wanted = {.name = *n};
    if (t->count == 0)
        return NULL;
    return bsearch(&wanted, t->items, t->count, sizeof *t->items, compare_objects);
}

static void append(struct fsck_table *t, const struct fsck_name *n, uint64_t size) {
    if ((t->count & (t->count - 1)) == 0) /* at powers of two */
        t->items = xrealloc(t->items, MAX(2 * t->count, (size_t)64) * sizeof *t->items);
    t->items[t->count++] =
        (struct fsck_object){.name = *n, .size = (uint32_t)MIN(size, (uint64_t)UINT32_MAX)};
}

static void append_listed(struct fsck_table *t, uint16_t volume, uint8_t kind,
                          const struct obj_list *page) {
    for (size_t i = 0; i < page->count; i++) {
        struct obj_ref ref = {.kind = kind};
        int rc = kind == OBJ_LOG ? key_parse_log(page->entries[i].key, &ref.seq)
                                 : key_parse_random(page->entries[i].key, &ref.id);
        if (rc < 0)
            continue; /* not ours */
        struct fsck_name n = fsck_name_of(volume, &ref);
        append(t, &n, page->entries[i].size);
    }
}

static int list_folder(struct fsck_table *t, struct objstore *s, uint16_t volume, uint8_t kind,
                       struct err *e) {
    static const char *const folders[] = {
        [OBJ_LOG] = "log/", [OBJ_MOVED] = "moved/", [OBJ_MAP] = "map/"};
    char prefix[KEY_MAX], after[OBJ_KEY_MAX + 1] = "";
    key_volume_prefix(prefix, &t->volumes[volume]);
    CHECK(strlen(prefix) + strlen(folders[kind]) < sizeof prefix);
    strcat(prefix, folders[kind]);
    for (bool more = true; more;) {
        struct obj_list page = {0};
        int rc = objstore_list(s, prefix, after[0] ? after : NULL, OBJ_LIST_MAX, &page, e);
        if (rc < 0)
            return rc;
        append_listed(t, volume, kind, &page);
        more = page.more && page.count > 0;
        if (more)
            memcpy(after, page.entries[page.count - 1].key,
                   strlen(page.entries[page.count - 1].key) + 1);
        obj_list_release(&page);
    }
    return 0;
}

void fsck_table_refresh(struct fsck_table *t) {
    for (size_t i = 0; i < t->volume_count; i++)
        t->listed[i] = false;
}

/* The flags of what was there before: `old` is sorted. */
static void keep_checked(struct fsck_table *t, const struct fsck_object *old, size_t old_count) {
    size_t k = 0;
    for (size_t i = 0; i < t->count; i++) {
        while (k < old_count && compare_objects(&old[k], &t->items[i]) < 0)
            k++;
        if (k < old_count && compare_objects(&old[k], &t->items[i]) == 0)
            t->items[i].flags = old[k].flags;
    }
}

int fsck_table_fill(struct fsck_table *t, struct objstore *s, struct err *e) {
    size_t listed = 0;
    while (listed < t->volume_count && t->listed[listed])
        listed++;
    if (listed == t->volume_count)
        return 0;
    bool again = !t->listed[0]; /* all of them, or new ones */
    struct fsck_object *old = t->items;
    size_t old_count = t->count;
    int rc = 0;
    t->items = NULL;
    t->count = 0;
    for (size_t i = 0; i < old_count; i++) {
        if (again)
            old[i].flags &= FSCK_CHECKED;
        else
            append(t, &old[i].name, old[i].size);
    }
    for (size_t v = 0; rc == 0 && v < t->volume_count; v++) {
        for (uint8_t kind = OBJ_LOG; rc == 0 && !t->listed[v] && kind <= OBJ_MAP; kind++)
            rc = list_folder(t, s, (uint16_t)v, kind, e);
        t->listed[v] = true;
    }
    if (t->count > 0)
        qsort(t->items, t->count, sizeof *t->items, compare_objects);
    keep_checked(t, old, old_count);
    free(old);
    return rc;
}

/* --- bytes --- */

static void frame_add(struct fsck_frames *f, const struct fsck_frame *frame) {
    if ((f->count & (f->count - 1)) == 0)
        f->items = xrealloc(f->items, MAX(2 * f->count, (size_t)64) * sizeof *f->items);
    f->items[f->count++] = *frame;
}

static void frames_release(struct fsck_frames *f) {
    free(f->items);
    *f = (struct fsck_frames){0};
}

/* The frames of one extent, decoded, as its table says. */
static int read_extent(struct view body, const struct segment_extent *x, const uint16_t *lens,
                       struct fsck_frames *ret, struct err *e) {
    uint8_t out[FRAME_SECTORS_MAX * SECTOR_SIZE];
    uint32_t off = x->off;
    for (size_t i = 0; i < extent_frames(x->count); i++) {
        uint64_t sectors = MIN(x->count - i * FRAME_SECTORS_MAX, (uint64_t)FRAME_SECTORS_MAX);
        size_t len = 0;
        if (off > body.len || lens[i] > body.len - off)
            return err_set(e, -ERR_CORRUPT, "a frame lies behind the end");
        int rc = frame_decode(view_part(body, off, lens[i]), out, (size_t)sectors, &len, e);
        if (rc == 0 && len != lens[i])
            rc = err_set(e, -ERR_CORRUPT, "a frame of %zu bytes, the table says %u", len, lens[i]);
        if (rc < 0)
            return err_wrap(e, "the frame at %u", off);
        struct fsck_frame f = {.sector = x->sector + i * FRAME_SECTORS_MAX,
                               .off = off,
                               .len = lens[i],
                               .sectors = (uint8_t)sectors};
        frame_add(ret, &f);
        off += lens[i];
    }
    return 0;
}

static int check_meta(const struct fsck_check *c, const struct fsck_object *o, struct view body,
                      const struct segment_meta *m, struct err *e) {
    uint8_t hash[16];
    segment_volume_hash(hash, &c->table.volumes[o->name.volume]);
    if (body.len != o->size)
        return err_set(e, -ERR_CORRUPT, "%zu bytes, listed with %u", body.len, o->size);
    if (memcmp(hash, m->volume_hash, sizeof hash) != 0)
        return err_set(e, -ERR_CORRUPT, "a segment of another volume");
    if (o->name.kind == OBJ_MOVED)
        return m->kind == SEGMENT_MOVED ? 0 : err_set(e, -ERR_CORRUPT, "not a moved segment");
    if ((m->kind == SEGMENT_FENCE) != (body.len == SEGMENT_FENCE_SIZE) || m->kind == SEGMENT_MOVED)
        return err_set(e, -ERR_CORRUPT, "a segment of the wrong kind");
    if (m->seq != fsck_name_seq(&o->name))
        return err_set(e, -ERR_CORRUPT, "a segment with another number");
    if (o->name.volume == 0 && m->seq < c->next_seq && m->kind != SEGMENT_FENCE &&
        m->epoch > c->epoch)
        return err_set(e, -ERR_CORRUPT, "epoch %llx, above the manifest's %llx",
                       (unsigned long long)m->epoch, (unsigned long long)c->epoch);
    return 0;
}

static int check_segment(const struct fsck_check *c, const struct fsck_object *o, struct view body,
                         struct fsck_frames *ret, struct err *e) {
    struct segment_meta meta;
    struct segment_table table;
    size_t need;
    int rc = segment_decode_tail(body, body.len, &meta, &table, &need, e);
    if (rc < 0)
        return rc;
    rc = check_meta(c, o, body, &meta, e);
    for (size_t i = 0; rc == 0 && i < table.extent_count; i++) {
        const struct segment_extent *x = &table.extents[i];
        if (x->kind == EXTENT_DATA)
            rc = read_extent(body, x, table.lens + x->first_len, ret, e);
    }
    segment_table_release(&table);
    return rc;
}

/* --- batches, in fibers of their own --- */

struct reading {
    struct fsck_check *c;
    struct fsck_object *object;
    struct fsck_frames *frames;
    int rc;
    struct err err;
};

static void read_object(void *arg) {
    struct reading *r = arg;
    char key[KEY_MAX];
    fsck_name_key(key, &r->c->table, &r->object->name);
    for (int look = 0; look < 2; look++) { /* a second one: not every bad bit is the store's */
        CLEANUP_BUF struct buf body = {0};
        frames_release(r->frames);
        r->rc = fsck_get(r->c->f, key, SEGMENT_SIZE_MAX, &body, &r->err);
        if (r->rc == 0)
            r->rc = check_segment(r->c, r->object, buf_view(&body), r->frames, &r->err);
        if (r->rc != -ERR_CORRUPT && r->rc != -ERR_OVERLOAD && r->rc != -ERR_UNSUPPORTED)
            return;
    }
}

/* *ret_gone: one of them is not there any more. */
static int read_batch(struct fsck_check *c, struct reading *batch, size_t count, bool *ret_gone,
                      struct err *e) {
    struct fiber_group group;
    fiber_group_init(&group, c->f->catalog->env);
    for (size_t i = 0; i < count; i++)
        fiber_group_start(&group, read_object, &batch[i]);
    int rc = fiber_group_wait(&group);
    if (rc < 0)
        return err_set(e, rc, "cancelled");
    for (size_t i = 0; i < count; i++) {
        struct reading *r = &batch[i];
        char key[KEY_MAX];
        fsck_name_key(key, &c->table, &r->object->name);
        if (r->rc == -ERR_NOT_FOUND) {
            *ret_gone = true;
            continue;
        }
        if (r->rc == -ERR_CORRUPT || r->rc == -ERR_OVERLOAD || r->rc == -ERR_UNSUPPORTED)
            fsck_report(c->f, FSCK_DAMAGE, key, "%s", r->err.text);
        else if (r->rc < 0)
            return err_copy(e, &r->err);
        r->object->flags |= FSCK_CHECKED;
        c->f->result.objects++;
        c->f->result.frames += r->frames->count;
    }
    return 0;
}

static bool is_due(const struct fsck_check *c, const struct fsck_object *o) {
    return (o->flags & FSCK_NEEDED) && !(o->flags & FSCK_CHECKED) && o->name.kind != OBJ_MAP &&
           (o->name.volume == 0 || !c->whole_pool);
}

/* Reads objects from `first` on until there are enough frames; *ret_last: behind the last one. */
static int read_chunk(struct fsck_check *c, size_t first, struct fsck_frames *frames,
                      size_t *ret_last, bool *ret_any, bool *ret_gone, struct err *e) {
    size_t total = 0, i = first;
    while (i < c->table.count && total < FRAMES_MAX && !*ret_gone) {
        struct reading batch[BATCH];
        size_t count = 0;
        for (; i < c->table.count && count < BATCH; i++)
            if (is_due(c, &c->table.items[i]))
                batch[count++] =
                    (struct reading){.c = c, .object = &c->table.items[i], .frames = &frames[i]};
        if (count == 0)
            break;
        *ret_any = true;
        int rc = read_batch(c, batch, count, ret_gone, e);
        if (rc < 0)
            return rc;
        for (size_t k = 0; k < count; k++)
            total += batch[k].frames->count;
        if (c->f->on_progress)
            c->f->on_progress(c->f->arg, &c->f->result, c->volume->text);
    }
    *ret_last = i;
    return 0;
}

int fsck_check_objects(struct fsck_check *c, bool *ret_gone, struct err *e) {
    struct fsck_frames *frames = xcalloc(MAX(c->table.count, (size_t)1), sizeof *frames);
    int rc = 0;
    for (size_t first = 0, last = 0; rc == 0 && first < c->table.count && !*ret_gone;
         first = last) {
        bool any = false;
        rc = read_chunk(c, first, frames, &last, &any, ret_gone, e);
        for (size_t i = 0; rc == 0 && any && i < c->run_count; i++)
            rc = fsck_check_entries(c, &c->runs[i], first, last, frames, ret_gone, e);
        for (size_t i = first; i < MAX(last, first); i++)
            frames_release(&frames[i]);
    }
    for (size_t i = 0; i < c->table.count; i++)
        frames_release(&frames[i]);
    free(frames);
    return rc;
}
