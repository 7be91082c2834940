/* Merging runs: a walk over the sectors, in which at each place the newest source that has an entry
 * there wins until that entry ends or a newer source begins.
 *
 *      newest   ....[ a ].........[ b ]..
 *      older    ..[    c     ]..[   d ]..
 *      result   ..[c[ a ] c  ]..[d[ b ]
 *
 * Sources are few (at most ROOT_RUNS_MAX), so the walk looks at all of them at each step. What is
 * shadowed is skipped by a seek where it is more than a page, so that pages and parts that are
 * covered as a whole are not read.
 *
 * I1  What is emitted is in order, does not overlap, and covers exactly what the sources cover
 *     (HOLE entries apart, at the bottom). */
#include "portalbd/volume/run_merge.h"

#include <stdlib.h>

enum {
    ENTRIES_PER_SLICE = 256,
    READ_AHEAD_BYTES = 8 * 1024 * 1024, /* of all sources together */
    READ_AHEAD_MIN = 8,                 /* pages of each */
};

struct source {
    struct run_iter iter;
    const struct run_index *index; /* borrowed from the reader */
    struct map_entry entry;        /* what is left of the present one; lens are the iterator's */
    bool ended;
};

struct merge {
    struct env *env;
    struct source *sources; /* owned; newest first */
    size_t count;
    struct run_writer *writer; /* owned */
    bool bottom;
};

static void merge_release(struct merge *m) {
    for (size_t i = 0; i < m->count; i++)
        run_iter_release(&m->sources[i].iter);
    free(m->sources);
    if (m->writer)
        run_writer_free(m->writer);
}

/* fiber. */
static int source_next(struct source *s, struct err *e) {
    int rc = run_iter_next(&s->iter, e);
    if (rc < 0)
        return rc;
    s->ended = rc == 0;
    if (!s->ended)
        s->entry = s->iter.entry;
    return 0;
}

/* fiber. The source goes on at `sector`: what lies before it is done with. */
static int source_skip_to(struct source *s, uint64_t sector, struct err *e) {
    if (s->ended || s->entry.sector >= sector)
        return 0;
    uint64_t end = s->entry.sector + s->entry.count;
    int rc = 0;
    if (end <= sector) {
        if (end < sector)
            rc = run_iter_seek(&s->iter, sector, e);
        if (rc == 0)
            rc = source_next(s, e);
        if (rc < 0 || s->ended || s->entry.sector >= sector)
            return rc;
        end = s->entry.sector + s->entry.count;
        CHECK(end > sector);
    }
    map_entry_narrow(&s->entry, sector, end - sector);
    return rc;
}

/* The source whose entry begins first, the newest of those; NULL when all have ended. */
static struct source *first_source(const struct merge *m) {
    struct source *first = NULL;
    for (size_t i = 0; i < m->count; i++) {
        struct source *s = &m->sources[i];
        if (!s->ended && (!first || s->entry.sector < first->entry.sector))
            first = s;
    }
    return first;
}

/* Where the winner's entry ends: at its own end, or where a newer source begins. */
static uint64_t winner_end(const struct merge *m, const struct source *winner) {
    uint64_t end = winner->entry.sector + winner->entry.count;
    for (const struct source *s = m->sources; s < winner; s++) {
        if (s->ended)
            continue;
        CHECK(s->entry.sector > winner->entry.sector);
        end = MIN(end, s->entry.sector);
    }
    return end;
}

/* fiber. */
static int emit(struct merge *m, const struct source *s, uint64_t end, struct err *e) {
    struct map_entry entry = s->entry;
    if (entry.kind == EXTENT_HOLE && m->bottom)
        return 0;
    map_entry_narrow(&entry, entry.sector, end - entry.sector);
    const struct volume_key *owner =
        entry.kind == EXTENT_DATA ? &s->index->volumes[entry.ref.volume] : NULL;
    return run_writer_add(m->writer, &entry, owner, e);
}

/* fiber. */
static int walk(struct merge *m, struct err *e) {
    struct source *s;
    for (size_t n = 1; (s = first_source(m)) != NULL; n++) {
        uint64_t end = winner_end(m, s);
        CHECK(end > s->entry.sector);
        int rc = emit(m, s, end, e);
        for (size_t i = 0; rc == 0 && i < m->count; i++)
            rc = source_skip_to(&m->sources[i], end, e);
        if (rc < 0)
            return rc;
        if (n % ENTRIES_PER_SLICE == 0 && fiber_yield(m->env) < 0)
            return err_set(e, -ERR_CANCELLED, "the merge was cancelled");
    }
    return 0;
}

int run_merge(struct env *env, struct objstore *store, const struct volume_key *own,
              struct run_reader *const *sources, size_t source_count, bool bottom,
              struct root_run *ret_run, struct err *e) {
    CHECK(source_count >= 1);
    CHECK(source_count <= ROOT_RUNS_MAX);
    size_t pages = READ_AHEAD_BYTES / RUN_PAGE_SIZE / source_count;
    uint32_t read_ahead = (uint32_t)MIN(MAX(pages, READ_AHEAD_MIN), RUN_READ_AHEAD_MAX);
    CLEANUP(merge_release)
    struct merge m = {
        .env = env,
        .sources = xcalloc(source_count, sizeof *m.sources),
        .count = source_count,
        .writer = run_writer_new(env, store, own),
        .bottom = bottom,
    };
    int rc = 0;
    for (size_t i = 0; i < source_count; i++) {
        m.sources[i].index = run_reader_index(sources[i]);
        run_iter_init(&m.sources[i].iter, sources[i], read_ahead);
    }
    for (size_t i = 0; rc == 0 && i < source_count; i++)
        rc = source_next(&m.sources[i], e);
    if (rc == 0)
        rc = walk(&m, e);
    return rc < 0 ? rc : run_writer_finish(m.writer, ret_run, e);
}
