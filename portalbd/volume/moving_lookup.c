/* What of some objects is live by the runs of one root alone: the sectors that they hold are looked
 * up, newest run first, and what points into one of them is kept. Memtables and newer runs say
 * nothing here: what they shadow is moved for nothing, but never wrongly. */
#include <stdlib.h>

#include "portalbd/volume/moving.h"

enum {
    RANGES_PER_SLICE = 32,
    DENSE = 16,             /* a run is read in large steps when it has fewer pages a range */
    READ_AHEAD_PAGES = 128, /* then */
};

struct lookup {
    struct gc *gc;
    const struct gc_snapshot *root;
    struct run_iter *iters; /* owned; of the root's runs */
    const struct object_name *victims;
    size_t victim_count;
    struct live_pieces *out;
};

static int compare_names(const void *a, const void *b) {
    return object_name_compare(a, b);
}

static void take(struct lookup *l, size_t run, const struct map_entry *m) {
    const struct run_index *x = run_reader_index(l->root->runs[run]);
    if (m->kind != EXTENT_DATA || !gc_is_own(l->gc, &x->volumes[m->ref.volume]))
        return;
    struct object_name n = object_name_of_ref(&m->ref);
    const struct object_name *victim =
        bsearch(&n, l->victims, l->victim_count, sizeof n, compare_names);
    if (!victim)
        return;
    struct live_pieces *out = l->out;
    CHECK(out->count == 0 ||
          out->items[out->count - 1].sector + out->items[out->count - 1].count <= m->sector);
    out->items = grown_array(out->items, out->count, sizeof *out->items);
    out->items[out->count++] = (struct live_piece){.sector = m->sector,
                                                   .count = (uint32_t)m->count,
                                                   .victim = (uint32_t)(victim - l->victims),
                                                   .off = m->off,
                                                   .stored_len = map_entry_stored_len(m),
                                                   .frames = m->len_count,
                                                   .skip = m->skip};
}

/* fiber. [sector, end) by the runs from `run` on. As deep as there are runs at most. */
static int find(struct lookup *l, size_t run, uint64_t sector, uint64_t end, struct err *e) {
    if (run == l->root->run_count)
        return 0;
    struct run_iter *it = &l->iters[run];
    int rc = run_iter_seek(it, sector, e);
    while (rc == 0 && sector < end) {
        int found = run_iter_next(it, e);
        if (found < 0)
            return found;
        uint64_t next = found ? MIN(MAX(it->entry.sector, sector), end) : end;
        if (next > sector)
            rc = find(l, run + 1, sector, next, e);
        if (rc < 0 || next == end)
            return rc;
        struct map_entry m = it->entry;
        uint64_t to = MIN(m.sector + m.count, end);
        map_entry_narrow(&m, next, to - next);
        take(l, run, &m);
        sector = to;
    }
    return rc;
}

static uint32_t read_ahead(const struct run_reader *r, size_t range_count) {
    const struct run_index *x = run_reader_index(r);
    uint64_t pages = 0;
    for (size_t i = 0; i < x->part_count; i++)
        pages += x->parts[i].page_count;
    return pages / DENSE <= range_count ? READ_AHEAD_PAGES : 1;
}

int moving_find_live(struct live_pieces *ret, struct gc *g, const struct gc_snapshot *root,
                     const struct sector_range *ranges, size_t range_count,
                     const struct object_name *victims, size_t victim_count, struct err *e) {
    CHECK(root->run_count <= ROOT_RUNS_MAX);
    struct lookup l = {.gc = g,
                       .root = root,
                       .iters = xcalloc(root->run_count + 1, sizeof *l.iters),
                       .victims = victims,
                       .victim_count = victim_count,
                       .out = ret};
    for (size_t i = 0; i < root->run_count; i++)
        run_iter_init(&l.iters[i], root->runs[i], read_ahead(root->runs[i], range_count));
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < range_count; i++) {
        CHECK(i == 0 || ranges[i - 1].end <= ranges[i].first);
        rc = find(&l, 0, ranges[i].first, ranges[i].end, e);
        if (rc == 0 && i % RANGES_PER_SLICE == RANGES_PER_SLICE - 1 && fiber_yield(g->v->env) < 0)
            rc = err_set(e, -ERR_CANCELLED, "moving was cancelled");
    }
    for (size_t i = 0; i < root->run_count; i++)
        run_iter_release(&l.iters[i]);
    free(l.iters);
    return rc;
}
