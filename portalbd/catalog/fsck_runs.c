/* fsck: map runs. The index names parts and objects; the pages must be where it says, in order, and
 * each entry must lie inside its object. When the frames of objects are at hand, an entry must also
 * lie on whole frames, of the lengths that it says, that hold the sectors that it says. */
#include "portalbd/catalog/fsck_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/volume/run_reader.h"

enum { PAGES_AT_ONCE = 256 };

/* --- what a run needs --- */

static const struct fsck_object *need(struct fsck_check *c, const struct fsck_name *n,
                                      uint8_t flags, const char *who) {
    struct fsck_object *o = fsck_table_find(&c->table, n);
    if (o)
        o->flags |= flags;
    if (o || !(flags & FSCK_NEEDED) || c->miss_count == FSCK_MISSES_MAX)
        return o;
    if (!c->misses)
        c->misses = xcalloc(FSCK_MISSES_MAX, sizeof *c->misses);
    struct fsck_miss *m = &c->misses[c->miss_count++];
    m->name = *n;
    snprintf(m->who, sizeof m->who, "%s", who);
    return NULL;
}

void fsck_need(struct fsck_check *c, const struct fsck_name *n, uint8_t flags, const char *who) {
    (void)need(c, n, flags, who);
}

static int compare_names(const void *a, const void *b) {
    return fsck_name_compare(a, b);
}

const struct fsck_root_run *fsck_root_run(const struct fsck_root *r,
                                          const struct fsck_name *index) {
    for (size_t i = 0; i < r->run_count; i++)
        if (fsck_name_compare(&r->runs[i].index, index) == 0)
            return &r->runs[i];
    return NULL;
}

/* What the roots that name this run make of an object in its usage table. */
static uint8_t usage_flags(const struct fsck_check *c, const struct fsck_name *run,
                           const struct fsck_name *object) {
    uint8_t flags = 0;
    for (size_t i = 0; i < c->root_count && flags != (FSCK_NEEDED | FSCK_HELD); i++) {
        const struct fsck_root *r = &c->roots[i];
        if (!fsck_root_run(r, run))
            continue;
        bool evacuated =
            r->evacuated_count > 0 && bsearch(object, r->evacuated, r->evacuated_count,
                                              sizeof *r->evacuated, compare_names) != NULL;
        if (!evacuated)
            flags |= FSCK_NEEDED | FSCK_HELD;
    }
    return flags;
}

/* --- reading one --- */

/* Bytes of an object. Who wrote the run may count a frame that is needed in part as a whole one. */
struct charge {
    uint64_t least, most;
};

struct run_walk {
    struct fsck_check *c;
    struct run_index x;
    uint16_t volumes[RUN_VOLUMES_MAX]; /* of its table, in ours */
    char key[KEY_MAX];                 /* of what is looked at: index, then part */
    uint64_t size;                     /* of index and parts */
    uint64_t next_sector;
    uint64_t entries;
    size_t first, last; /* with frames: only entries of these objects */
    const struct fsck_frames *frames;
    struct charge *charges; /* owned; of each object of x, what the entries of this part take */
    uint64_t *shared;       /* owned; ... what the shares of the parts up to now say */
    bool gone;
};

static void run_walk_release(struct run_walk *w) {
    run_index_release(&w->x);
    free(w->charges);
    free(w->shared);
}

static int load_index(struct run_walk *w, const struct fsck_name *index, struct err *e) {
    fsck_name_key(w->key, &w->c->table, index);
    int rc = -ERR_CORRUPT;
    for (int look = 0; rc == -ERR_CORRUPT && look < 2; look++) {
        CLEANUP_BUF struct buf body = {0};
        rc = fsck_get(w->c->f, w->key, RUN_INDEX_SIZE_MAX, &body, e);
        if (rc == 0)
            rc = run_index_decode(&w->x, buf_view(&body), e);
        w->size = body.len;
    }
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < w->x.part_count; i++)
        w->size += run_part_size(&w->x.parts[i]);
    for (size_t i = 0; i < w->x.volume_count; i++)
        w->volumes[i] = fsck_table_volume(&w->c->table, &w->x.volumes[i]);
    w->charges = xcalloc(MAX(w->x.usage_count, (size_t)1), sizeof *w->charges);
    w->shared = xcalloc(MAX(w->x.usage_count, (size_t)1), sizeof *w->shared);
    return fsck_table_fill(&w->c->table, w->c->store, e);
}

/* 1: the frames of its object are not at hand. 0, or -ERR_CORRUPT. */
static int check_frames(const struct run_walk *w, const struct map_entry *m,
                        const struct fsck_object *o, struct err *e) {
    size_t index = (size_t)(o - w->c->table.items);
    if (index < w->first || index >= w->last || !(o->flags & FSCK_CHECKED) ||
        w->frames[index].count == 0)
        return 1;
    const struct fsck_frames *f = &w->frames[index];
    size_t low = 0, high = f->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (f->items[mid].off < m->off)
            low = mid + 1;
        else
            high = mid;
    }
    uint64_t first_sector = m->sector - m->skip; /* of its first frame */
    for (size_t i = 0; i < m->len_count; i++) {
        const struct fsck_frame *frame = low + i < f->count ? &f->items[low + i] : NULL;
        uint64_t wanted =
            MIN(m->skip + m->count - i * FRAME_SECTORS_MAX, (uint64_t)FRAME_SECTORS_MAX);
        if (!frame || (i == 0 && frame->off != m->off) || frame->len != m->lens[i])
            return err_set(e, -ERR_CORRUPT, "no such frame at %u of its object", m->off);
        if (frame->sector != first_sector + i * FRAME_SECTORS_MAX || frame->sectors < wanted)
            return err_set(e, -ERR_CORRUPT, "the frame at %u of its object holds other sectors",
                           frame->off);
    }
    return 0;
}

static bool is_fence(const struct fsck_object *o) {
    return o->name.kind == OBJ_LOG && o->size == SEGMENT_FENCE_SIZE;
}

static int check_entry(struct run_walk *w, const struct map_entry *m, struct err *e) {
    if (m->sector < w->next_sector)
        return err_set(e, -ERR_CORRUPT, "it overlaps the one before");
    w->next_sector = m->sector + m->count;
    if ((m->sector + m->count) * SECTOR_SIZE > w->c->size_bytes)
        return err_set(e, -ERR_CORRUPT, "it ends behind the volume");
    if (m->kind != EXTENT_DATA)
        return 0;
    struct fsck_name n = fsck_name_of(w->volumes[m->ref.volume], &m->ref);
    const struct fsck_object *o = fsck_table_find(&w->c->table, &n);
    if (!o) /* evacuated, or told already */
        return 0;
    /* Evacuated, deleted, and a sleeping opener woke up and put its fence there. */
    if (is_fence(o))
        return 0; /* where it is needed, mark() has told */
    if (m->off > o->size || map_entry_stored_len(m) > o->size - m->off)
        return err_set(e, -ERR_CORRUPT, "it ends behind its object, of %u bytes", o->size);
    int rc = w->frames ? check_frames(w, m, o, e) : 0;
    return rc < 0 ? rc : 0;
}

static int check_page(struct run_walk *w, const struct run_part *part, uint32_t number,
                      struct view page, struct err *e) {
    struct run_page_cursor cursor;
    int rc = run_page_open(&cursor, &w->x, page, e);
    if (rc < 0)
        return err_wrap(e, "page %u", number);
    bool first = true;
    while ((rc = run_page_next(&cursor, e)) > 0) {
        if (first && cursor.entry.sector != run_part_page_first(part, number))
            return err_set(e, -ERR_CORRUPT, "page %u is not the one that the index means", number);
        first = false;
        w->entries++;
        if (cursor.entry.kind == EXTENT_DATA) {
            w->charges[cursor.last_ref].least += map_entry_charge(&cursor.entry);
            w->charges[cursor.last_ref].most += map_entry_stored_len(&cursor.entry);
        }
        rc = check_entry(w, &cursor.entry, e);
        if (rc < 0)
            return err_wrap(e, "the entry of sector %llu", (unsigned long long)cursor.entry.sector);
    }
    return rc < 0 ? err_wrap(e, "page %u", number) : 0;
}

/* The shares behind the pages are what the entries in the pages take. */
static int check_shares(struct run_walk *w, const struct run_part *part, struct err *e) {
    CLEANUP_BUF struct buf body = {0};
    struct run_share *shares;
    size_t count, takers = 0;
    int rc = objstore_get_range(w->c->store, w->key, (uint64_t)part->page_count * RUN_PAGE_SIZE,
                                part->shares_len, &body, e);
    w->c->f->result.bytes_read += body.len;
    if (rc == 0 && body.len != part->shares_len)
        rc = err_set(e, -ERR_CORRUPT, "its shares are shorter than the index says");
    if (rc == 0)
        rc = run_shares_decode(&shares, &count, buf_view(&body), e);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < w->x.usage_count; i++)
        takers += w->charges[i].most > 0;
    bool fits = takers == count;
    for (size_t i = 0; fits && i < count; i++) {
        const struct charge *c = &w->charges[MIN(shares[i].number, w->x.usage_count - 1)];
        fits = shares[i].number < w->x.usage_count && shares[i].bytes >= c->least &&
               shares[i].bytes <= c->most;
    }
    for (size_t i = 0; fits && i < count; i++)
        w->shared[shares[i].number] += shares[i].bytes;
    free(shares);
    return fits ? 0 : err_set(e, -ERR_CORRUPT, "its shares are not what its entries take");
}

static int check_part(struct run_walk *w, const struct run_part *part, struct err *e) {
    int rc = 0;
    memset(w->charges, 0, w->x.usage_count * sizeof *w->charges);
    for (uint32_t page = 0; rc == 0 && page < part->page_count; page += PAGES_AT_ONCE) {
        CLEANUP_BUF struct buf body = {0};
        uint32_t count = MIN(part->page_count - page, (uint32_t)PAGES_AT_ONCE);
        rc = objstore_get_range(w->c->store, w->key, (uint64_t)page * RUN_PAGE_SIZE,
                                (size_t)count * RUN_PAGE_SIZE, &body, e);
        w->c->f->result.bytes_read += body.len;
        if (rc == 0 && body.len != (size_t)count * RUN_PAGE_SIZE)
            rc = err_set(e, -ERR_CORRUPT, "it is shorter than the index says");
        for (uint32_t i = 0; rc == 0 && i < count; i++)
            rc =
                check_page(w, part, page + i,
                           view_part(buf_view(&body), (size_t)i * RUN_PAGE_SIZE, RUN_PAGE_SIZE), e);
    }
    if (rc == 0 && w->next_sector != part->last_sector + 1)
        rc = err_set(e, -ERR_CORRUPT, "its last sector is not the one that the index says");
    if (rc == 0 && !w->frames)
        rc = check_shares(w, part, e);
    return rc;
}

/* Damage is told and ends the walk of this run; an object that has gone sets w->gone. */
static int walk(struct run_walk *w, struct err *e) {
    for (size_t i = 0; i < w->x.part_count; i++) {
        const struct run_part *part = &w->x.parts[i];
        struct fsck_name n = fsck_name_of(w->volumes[part->ref.volume], &part->ref);
        if (!fsck_table_find(&w->c->table, &n))
            return 0; /* told already */
        fsck_name_key(w->key, &w->c->table, &n);
        uint64_t sector = w->next_sector, entries = w->entries;
        int rc = check_part(w, part, e);
        if (rc == -ERR_CORRUPT) {
            w->next_sector = sector;
            w->entries = entries;
            rc = check_part(w, part, e); /* not every bad bit is the store's */
        }
        if (rc == -ERR_NOT_FOUND) {
            w->gone = true;
            return 0;
        }
        if (rc == -ERR_CORRUPT || rc == -ERR_UNSUPPORTED) {
            fsck_report(w->c->f, FSCK_DAMAGE, w->key, "%s", e->text);
            return 0;
        }
        if (rc < 0)
            return rc;
    }
    return 1;
}

/* After a walk to the end. */
static void check_totals(const struct run_walk *w) {
    if (w->entries != w->x.entry_count)
        fsck_report(w->c->f, FSCK_DAMAGE, w->key, "%llu entries, its index says %llu",
                    (unsigned long long)w->entries, (unsigned long long)w->x.entry_count);
    for (size_t i = 0; i < w->x.usage_count; i++) {
        if (w->shared[i] == w->x.usage[i].bytes)
            continue;
        fsck_report(w->c->f, FSCK_DAMAGE, w->key,
                    "its parts take %llu bytes of object %zu, its index says %llu",
                    (unsigned long long)w->shared[i], i, (unsigned long long)w->x.usage[i].bytes);
        return; /* one is enough */
    }
}

static void mark(struct run_walk *w, const struct fsck_name *index) {
    char who[64], hex[RANDOM_ID_HEX];
    random_id_to_hex(&index->id, hex);
    snprintf(who, sizeof who, "run %s", hex);
    for (size_t i = 0; i < w->x.part_count; i++) {
        const struct run_part *part = &w->x.parts[i];
        struct fsck_name n = fsck_name_of(w->volumes[part->ref.volume], &part->ref);
        const struct fsck_object *o = need(w->c, &n, FSCK_NEEDED | FSCK_HELD, who);
        if (o && o->size != run_part_size(part)) {
            char key[KEY_MAX];
            fsck_name_key(key, &w->c->table, &n);
            fsck_report(w->c->f, FSCK_DAMAGE, key,
                        "%u bytes, %s says %u pages and %u bytes of shares", o->size, who,
                        part->page_count, part->shares_len);
        }
    }
    for (size_t i = 0; i < w->x.usage_count; i++) {
        if (run_usage_is_free(&w->x.usage[i]))
            continue;
        const struct obj_ref *ref = &w->x.usage[i].ref;
        struct fsck_name n = fsck_name_of(w->volumes[ref->volume], ref);
        uint8_t flags = usage_flags(w->c, index, &n);
        const struct fsck_object *o = need(w->c, &n, flags, who);
        if (o && (flags & FSCK_NEEDED) && is_fence(o)) {
            char key[KEY_MAX];
            fsck_name_key(key, &w->c->table, &n);
            fsck_report(w->c->f, FSCK_DAMAGE, key, "a fence, where %s needs a segment", who);
        }
    }
}

/* Is this the index that a root means? True also of a root that does not name it. */
static bool check_against_root(const struct run_walk *w, const struct fsck_root *root,
                               const struct fsck_name *index) {
    const struct fsck_root_run *run = fsck_root_run(root, index);
    struct err why;
    if (!run)
        return true;
    int rc = run_index_check(&w->x, run->entry_count, root->volumes, root->volume_count, &why);
    if (rc == 0 && w->size != run->size)
        rc = err_set(&why, -ERR_CORRUPT, "a run of %llu bytes, its root says %llu",
                     (unsigned long long)w->size, (unsigned long long)run->size);
    if (rc < 0)
        fsck_report(w->c->f, FSCK_DAMAGE, w->key, "%s", why.text);
    return rc == 0;
}

int fsck_check_run(struct fsck_check *c, struct fsck_run *r, bool *ret_gone, struct err *e) {
    CLEANUP(run_walk_release) struct run_walk w = {.c = c};
    if (!fsck_table_find(&c->table, &r->index)) {
        c->blind = true;
        return 0; /* told already */
    }
    int rc = load_index(&w, &r->index, e);
    if (rc == -ERR_CORRUPT || rc == -ERR_UNSUPPORTED) {
        if (!r->done)
            fsck_report(c->f, FSCK_DAMAGE, w.key, "%s", e->text);
        r->done = r->damaged = c->blind = true;
        return 0;
    }
    if (rc == -ERR_NOT_FOUND)
        *ret_gone = true;
    if (rc < 0)
        return rc == -ERR_NOT_FOUND ? 0 : rc;
    for (size_t i = 0; i < c->root_count; i++)
        c->blind |= !check_against_root(&w, &c->roots[i], &r->index);
    mark(&w, &r->index);
    if (!r->done) {
        c->f->result.runs++;
        rc = walk(&w, e);
        c->f->result.entries += w.entries;
        fsck_name_key(w.key, &c->table, &r->index);
        if (rc > 0)
            check_totals(&w);
        r->done = rc >= 0 && !w.gone;
        r->damaged = rc == 0 && !w.gone;
    }
    *ret_gone |= w.gone;
    return rc < 0 ? rc : 0;
}

int fsck_check_entries(struct fsck_check *c, struct fsck_run *r, size_t first, size_t last,
                       const struct fsck_frames *frames, bool *ret_gone, struct err *e) {
    CLEANUP(run_walk_release)
    struct run_walk w = {.c = c, .first = first, .last = last, .frames = frames};
    if (r->damaged || !fsck_table_find(&c->table, &r->index))
        return 0; /* told already */
    int rc = load_index(&w, &r->index, e);
    if (rc == -ERR_CORRUPT || rc == -ERR_UNSUPPORTED)
        return 0; /* told already */
    if (rc == -ERR_NOT_FOUND)
        *ret_gone = true;
    if (rc < 0)
        return rc == -ERR_NOT_FOUND ? 0 : rc;
    rc = walk(&w, e);
    r->damaged = rc == 0 && !w.gone;
    *ret_gone |= w.gone;
    return rc < 0 ? rc : 0;
}
