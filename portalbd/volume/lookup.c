/* The map as a read sees it: memtables, then runs newest first; and BLOCK_STATUS, which wants to
 * know nothing else. */
#include "portalbd/volume/lookup.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/volume/pins.h"

enum {
    STATUS_SLICE = 64 * 1024 * 1024, /* bytes of a BLOCK_STATUS that are looked up at a time */
};

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

void lookup_memory(struct volume *v, uint64_t sector, uint64_t count, struct pieces *p) {
    lookup_memtable(v, v->active, sector, count, p);
    if (v->frozen)
        refine_by_memtable(v, v->frozen, p);
}

/* fiber. Is the snapshot that we serve there still? */
static int check_pin(struct volume *v, struct err *e) {
    const struct volume_key *key = &v->config.key;
    struct pin_root root;
    int rc = pin_root_get(v->store, key, &v->pin, &root, e);
    if (rc < 0 && rc != -ERR_NOT_FOUND)
        return rc;
    bool gone = rc == -ERR_NOT_FOUND;
    if (!gone) {
        gone = root.expired;
        pin_root_release(&root);
    }
    if (!gone) { /* a root alone may have come once more behind its deletion */
        struct pin_claim claim;
        rc = pin_claim_get(v->store, key, &v->pin, &claim, e);
        if (rc < 0 && rc != -ERR_NOT_FOUND)
            return rc;
        gone = rc == -ERR_NOT_FOUND;
    }
    return gone ? err_set(e, -ERR_SHUTDOWN, "the snapshot was deleted") : 0;
}

/* fiber. Are we still the one who may say what is in the store? */
static int check_current(struct volume *v, struct err *e) {
    return v->read_only ? check_pin(v, e) : volume_check_newest(v, e);
}

int read_explain_missing(struct volume *v, const char *what, struct err *e) {
    int rc = check_current(v, e);
    return rc < 0 ? rc : err_set(e, -ERR_CORRUPT, "missing from the store: %s", what);
}

int read_explain_damage(struct volume *v, const struct err *why, struct err *e) {
    struct err current;
    int rc = check_current(v, &current);
    return err_copy(e, rc == -ERR_FENCED || rc == -ERR_SHUTDOWN ? &current : why);
}

int lookup_runs(struct volume *v, struct pieces *p, struct err *e) {
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

/* --- BLOCK_STATUS --- */

void read_complete(struct volume *v, struct bd_request *req, int rc) {
    if (v->state == VOL_FENCED)
        rc = -ERR_FENCED;
    volume_complete(req, rc == -ERR_CANCELLED ? -ERR_SHUTDOWN : rc);
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
        read_op_start(v, &op, (req->off + done) / SECTOR_SIZE, len / SECTOR_SIZE);
        lookup_memory(v, op.sector, op.count, &p);
        rc = lookup_runs(v, &p, &e);
        read_op_end(v, &op);
        for (size_t i = 0; rc == 0 && room && i < p.count; i++)
            room = add_piece_status(req, &p.items[i]);
        free(p.items);
        done += len;
        if (rc == 0 && room && done < req->len)
            rc = fiber_yield(v->env);
    }
    if (rc < 0)
        volume_report_read_error(v, req, &e);
    read_complete(v, req, rc);
}

bool block_status_submit(struct volume *v, struct bd_request *req) {
    volume_fiber_start(v, block_status_fiber, req);
    return false;
}
