/* Merging runs: a walk over the sectors, in which at each place the newest source that has an entry
 * there wins until that entry ends or a newer source begins.
 *
 *      newest   ....[ a ].........[ b ]..
 *      older    ..[    c     ]..[   d ]..
 *      result   ..[c[ a ] c  ]..[d[ b ]
 *
 * The walk is a job on a worker, as long as it has pages and room; the fiber brings pages and
 * stores parts:
 *
 *      walk --NEEDS_PAGES--> run_iter_load --> walk    --NEEDS_ROOM--> run_writer_store --> walk
 *           --NEEDS_PART--> run_writer_reuse --> walk  --AGAIN: a slice is over--> walk  --DONE-->
 *
 * While the walk is at some pages of a source, the next are on their way.
 *
 * The bottom, when it is large, is not a source like the others: it is looked at only in the gaps
 * between their entries. A part of it that lies in a gap as a whole becomes a part of the result
 * unread; one that they cover as a whole is never read. Sources are few (at most ROOT_RUNS_MAX), so
 * the walk looks at all of them at each step, and skips by a seek what is shadowed.
 *
 * I1  What is put is in order, does not overlap, and covers exactly what the sources cover: but for
 *     holes at the bottom, and for entries of evacuated objects. */
#include "portalbd/volume/run_merge.h"

#include <stdlib.h>

#include "common/mutant.h"

enum {
    STEPS_PER_JOB = 4096,
    READ_AHEAD_BYTES = 4 * 1024 * 1024, /* of all sources together; as much is on its way */
    READ_AHEAD_MIN = 8,                 /* pages of each */
    PARTS_LARGE = 2,                    /* a bottom of fewer parts is a source like the others */
    FREE_INLINE_MAX = 8 * 1024 * 1024,  /* bytes of pages; the memory of larger ones: a job */
};

enum walk_result { AGAIN, DONE, NEEDS_PAGES, NEEDS_ROOM, NEEDS_PART };

enum {
    NUMBER_UNKNOWN = UINT32_MAX,
    NUMBER_EVACUATED = UINT32_MAX - 1,
    NUMBER_FREE = UINT32_MAX - 2 /* no entry has it */
};

/* Pages of a source that will be wanted next, on their way or here. */
struct ahead {
    struct env *env;
    struct run_reader *reader; /* borrowed */
    size_t part;
    uint32_t first, count;
    uint8_t *pages; /* owned; NULL: none */
    int rc;
    struct err err;
    struct fiber_done done;
    bool started; /* and not waited for */
};

struct source {
    struct run_iter iter;
    struct ahead ahead;
    const struct run_index *index; /* borrowed from the reader */
    uint32_t *numbers;             /* owned: of its objects, what the writer calls them */
    struct map_entry entry;        /* what is left of the present one; lens are the iterator's */
    uint32_t object;               /* DATA: number of its object in the index */
    bool present;                  /* there is one */
    bool behind;                   /* the iterator is to be sought to where the walk is */
    bool ended;
};

struct merge {
    struct source *sources; /* owned; newest first */
    size_t count;
    struct source *bottom; /* of the same array, behind the first `count`; NULL: none is special */
    struct run_writer *writer; /* owned */
    struct env *env;
    uint64_t bytes; /* of the sources' pages */
    struct fiber_group loading;
    bool drops_holes;
    uint64_t at;           /* everything before this sector is merged */
    size_t part;           /* of the bottom: the first that ends at or behind `at` */
    struct source *wanted; /* NEEDS_PAGES: its iterator wants them */
    uint64_t entries_read;
    struct err err;
    int rc; /* of the job: walk_result or an error */
};

static void free_all(void *arg) {
    struct merge *m = arg;
    for (size_t i = 0; i < m->count + (m->bottom ? 1 : 0); i++) {
        run_iter_release(&m->sources[i].iter);
        free(m->sources[i].ahead.pages);
        free(m->sources[i].numbers);
    }
    free(m->sources);
    if (m->writer)
        run_writer_free(m->writer);
}

/* fiber. To give large arrays back to the system takes a while. */
static void merge_release(struct merge *m) {
    fiber_run_job_if(m->env, m->bytes > FREE_INLINE_MAX, free_all, m);
}

/* --- the walk, on a worker --- */

/* The source's entry becomes the first that ends behind m->at, cut to begin there. 0 or
 * NEEDS_PAGES. */
static int source_ready(struct merge *m, struct source *s) {
    while (!s->ended) {
        if (s->present) {
            uint64_t end = s->entry.sector + s->entry.count;
            if (end > m->at) {
                if (s->entry.sector < m->at)
                    map_entry_narrow(&s->entry, m->at, end - m->at);
                return 0;
            }
            s->present = false;
        }
        int rc = s->behind ? run_iter_try_seek(&s->iter, m->at, &m->err) : 0;
        if (rc == 0) {
            s->behind = false;
            rc = run_iter_try_next(&s->iter, &m->err);
        }
        if (rc == RUN_ITER_WANTS_LOAD) {
            m->wanted = s;
            return NEEDS_PAGES;
        }
        if (rc < 0)
            return rc;
        s->ended = rc == 0;
        if (s->ended)
            break;
        m->entries_read++;
        s->entry = s->iter.entry;
        s->object = s->iter.cursor.last_ref;
        s->present = s->entry.sector + s->entry.count > m->at;
        s->behind = !s->present; /* the next one may be as far behind: do not step, jump */
    }
    return 0;
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

/* What the writer calls the object of the source's entry. */
static int find_number(struct merge *m, const struct source *s, uint32_t *ret) {
    const struct run_usage *u = &s->index->usage[s->object];
    if (*ret == NUMBER_FREE)
        return err_set(&m->err, -ERR_CORRUPT,
                       "map run: its entry at sector %llu is of object %u, which it does not name",
                       (unsigned long long)s->entry.sector, s->object);
    return run_writer_number(m->writer, &u->ref, &s->index->volumes[u->ref.volume], ret, &m->err);
}

/* Puts what the source says of [m->at, end). */
static int put(struct merge *m, struct source *s, uint64_t end) {
    struct map_entry entry = s->entry;
    CHECK(entry.sector >= m->at && end > entry.sector);
    m->at = end;
    if (entry.kind == EXTENT_HOLE && m->drops_holes)
        return AGAIN;
    uint32_t number = 0;
    if (entry.kind == EXTENT_DATA) {
        uint32_t *known = &s->numbers[s->object];
        if (*known == NUMBER_EVACUATED)
            return AGAIN;
        int rc = *known >= NUMBER_FREE ? find_number(m, s, known) : 0;
        if (rc < 0)
            return rc;
        number = *known;
    }
    map_entry_narrow(&entry, entry.sector, end - entry.sector);
    run_writer_put(m->writer, &entry, number);
    return AGAIN;
}

/* One step in a gap between the others' entries, which ends at `end`. */
static int step_in_gap(struct merge *m, uint64_t end) {
    struct source *s = m->bottom;
    const struct run_part *p = NULL;
    while (s && m->part < s->index->part_count) {
        p = &s->index->parts[m->part];
        if (p->last_sector >= m->at)
            break;
        m->part++;
        p = NULL;
    }
    if (!p || p->first_sector >= end) {
        m->at = end;
        return end == UINT64_MAX ? DONE : AGAIN;
    }
    m->at = MAX(m->at, p->first_sector);
    bool untouched =
        m->at == p->first_sector && (p->last_sector < end || MUTANT("merge-reuses-touched"));
    if (untouched && run_writer_may_reuse(m->writer, m->part))
        return NEEDS_PART;
    if (s->iter.part != m->part) { /* parts were covered, or taken over */
        s->present = false;
        s->behind = true;
    }
    int rc = source_ready(m, s);
    if (rc != 0)
        return rc;
    if (s->ended || s->entry.sector >= end) {
        m->at = s->ended ? MIN(end, p->last_sector + 1) : end;
        return AGAIN;
    }
    m->at = s->entry.sector;
    return put(m, s, MIN(s->entry.sector + s->entry.count, end));
}

static int step(struct merge *m) {
    struct source *first = NULL;
    if (run_writer_full(m->writer))
        return NEEDS_ROOM;
    for (size_t i = 0; i < m->count; i++) {
        struct source *s = &m->sources[i];
        int rc = source_ready(m, s);
        if (rc != 0)
            return rc;
        if (!s->ended && (!first || s->entry.sector < first->entry.sector))
            first = s;
    }
    uint64_t next = first ? first->entry.sector : UINT64_MAX;
    if (!first || next > m->at)
        return step_in_gap(m, next);
    return put(m, first, winner_end(m, first));
}

static void walk(void *arg) {
    struct merge *m = arg;
    m->rc = AGAIN;
    for (size_t n = 0; m->rc == AGAIN && n < STEPS_PER_JOB; n++)
        m->rc = step(m);
}

/* --- the fiber --- */

static void load_ahead(void *arg) {
    struct ahead *a = arg;
    a->rc = run_reader_pages(a->reader, a->part, a->first, a->count, &a->pages, &a->err);
    fiber_done_set(&a->done);
}

/* What comes behind the pages that the source has begins to be loaded. In the bottom that is one
 * part at most: perhaps nobody touches the next. */
static void start_ahead(struct merge *m, struct source *s) {
    const struct run_iter *it = &s->iter;
    struct ahead *a = &s->ahead;
    size_t part = it->buf_part;
    uint32_t first = it->buf_first + it->buf_count;
    if (first == s->index->parts[part].page_count) {
        part++;
        first = 0;
    }
    if (part == s->index->part_count || (s == m->bottom && first == 0))
        return;
    CHECK(!a->started && !a->pages);
    a->env = m->loading.env;
    a->reader = it->reader;
    a->part = part;
    a->first = first;
    a->count = MIN(it->read_ahead, s->index->parts[part].page_count - first);
    a->started = true;
    fiber_done_init(&a->done);
    fiber_group_start(&m->loading, load_ahead, a);
}

/* fiber. The pages that the source wants: those that were on their way, if it walks straight on. */
static int load(struct merge *m, struct source *s, struct err *e) {
    struct run_iter *it = &s->iter;
    struct ahead *a = &s->ahead;
    bool straight = it->page == 0 || (it->buf_count > 0 && it->part == it->buf_part &&
                                      it->page == it->buf_first + it->buf_count);
    if (a->started && fiber_done_wait(a->env, &a->done) < 0)
        return err_set(e, -ERR_CANCELLED, "the merge was cancelled");
    bool has = a->started && a->part == it->part && a->first == it->page;
    a->started = false;
    int rc;
    if (!has) {
        free(a->pages);
        rc = run_iter_load(it, e);
    } else if ((rc = a->rc) == 0) {
        run_iter_take(it, a->pages, a->count);
    } else {
        err_copy(e, &a->err);
    }
    a->pages = NULL;
    if (rc == 0 && (has || straight))
        start_ahead(m, s);
    return rc;
}

/* fiber. What the walk asked for. */
static int serve(struct merge *m, struct run_merge_stats *stats, struct err *e) {
    switch (m->rc) {
    case NEEDS_PAGES:
        return load(m, m->wanted, e);
    case NEEDS_ROOM:
        return run_writer_store(m->writer, e);
    case NEEDS_PART:
        m->at = m->bottom->index->parts[m->part].last_sector + 1;
        stats->parts_reused++;
        return run_writer_reuse(m->writer, m->part, e);
    default:
        return m->rc < 0 ? err_copy(e, &m->err) : 0;
    }
}

static int drive(struct merge *m, const struct run_merge_options *o, struct run_merge_stats *stats,
                 struct err *e) {
    int rc = 0;
    do {
        fiber_run_job(o->env, walk, m);
        if (fiber_cancelled(o->env) || (o->stop && *o->stop))
            return err_set(e, -ERR_CANCELLED, "the merge was cancelled");
        rc = serve(m, stats, e);
    } while (rc == 0 && m->rc != DONE);
    return rc;
}

static int compare_refs(const void *a, const void *b) {
    return obj_ref_compare(a, b);
}

/* What the sources need before the walk, made on a worker. */
struct preparation {
    struct merge *merge;
    struct run_reader *const *sources;
    size_t count;
    bool may_reuse;   /* parts of the last source */
    struct root root; /* volumes and evacuated objects, sorted; owned */
};

static void preparation_release(struct preparation *p) {
    root_release(&p->root);
}

static void keep_evacuated(struct preparation *p, const struct root *root) {
    if (!root || root->evacuated_count == 0)
        return;
    p->root.volumes = xcalloc(root->volume_count, sizeof *root->volumes);
    memcpy(p->root.volumes, root->volumes, root->volume_count * sizeof *root->volumes);
    p->root.volume_count = root->volume_count;
    p->root.evacuated = xcalloc(root->evacuated_count, sizeof *root->evacuated);
    memcpy(p->root.evacuated, root->evacuated, root->evacuated_count * sizeof *root->evacuated);
    p->root.evacuated_count = root->evacuated_count;
}

/* Of a source's objects: are they known to be evacuated? */
static uint32_t *make_numbers(const struct run_index *x, const struct root *root) {
    uint32_t *numbers = xcalloc(MAX(x->usage_count, 1), sizeof *numbers);
    int volumes[RUN_VOLUMES_MAX];
    for (size_t i = 0; i < x->volume_count; i++) {
        volumes[i] = -1;
        for (size_t j = 0; j < root->volume_count; j++)
            if (volume_key_equal(&root->volumes[j], &x->volumes[i]))
                volumes[i] = (int)j;
    }
    for (size_t i = 0; i < x->usage_count; i++) {
        struct obj_ref ref = x->usage[i].ref;
        numbers[i] = run_usage_is_free(&x->usage[i]) ? NUMBER_FREE : NUMBER_UNKNOWN;
        if (numbers[i] == NUMBER_FREE || volumes[ref.volume] < 0)
            continue;
        ref.volume = (uint16_t)volumes[ref.volume];
        if (bsearch(&ref, root->evacuated, root->evacuated_count, sizeof ref, compare_refs))
            numbers[i] = NUMBER_EVACUATED;
    }
    return numbers;
}

/* Are parts of it worth being named again? Not when most numbers of its objects are free. */
static bool is_large(const struct run_index *x) {
    size_t taken = 0;
    for (size_t i = 0; i < x->usage_count; i++)
        taken += !run_usage_is_free(&x->usage[i]);
    return x->part_count >= PARTS_LARGE && taken >= x->usage_count / 2;
}

static void prepare(void *arg) {
    struct preparation *p = arg;
    struct merge *m = p->merge;
    if (p->may_reuse && is_large(run_reader_index(p->sources[p->count - 1]))) {
        m->bottom = &m->sources[--m->count];
        m->bottom->behind = true;
    }
    if (p->root.evacuated_count > 0)
        qsort(p->root.evacuated, p->root.evacuated_count, sizeof *p->root.evacuated, compare_refs);
    size_t pages = READ_AHEAD_BYTES / RUN_PAGE_SIZE / p->count;
    uint32_t read_ahead = (uint32_t)MIN(MAX(pages, READ_AHEAD_MIN), RUN_READ_AHEAD_MAX);
    for (size_t i = 0; i < p->count; i++) {
        m->sources[i].index = run_reader_index(p->sources[i]);
        m->sources[i].numbers = make_numbers(m->sources[i].index, &p->root);
        run_iter_init(&m->sources[i].iter, p->sources[i], read_ahead);
        m->sources[i].iter.numbers_only = true;
    }
    if (m->bottom)
        run_writer_inherit(m->writer, p->sources[p->count - 1]);
}

static uint64_t pages_bytes(struct run_reader *const *sources, size_t count) {
    uint64_t pages = 0;
    for (size_t i = 0; i < count; i++) {
        const struct run_index *x = run_reader_index(sources[i]);
        for (size_t p = 0; p < x->part_count; p++)
            pages += x->parts[p].page_count;
    }
    return pages * RUN_PAGE_SIZE;
}

int run_merge(const struct run_merge_options *o, struct run_reader *const *sources,
              size_t source_count, struct root_run *ret_run, struct run_reader **ret_reader,
              struct run_merge_stats *stats, struct err *e) {
    CHECK(source_count >= 1);
    CHECK(source_count <= ROOT_RUNS_MAX);
    struct run_merge_stats none;
    stats = stats ? stats : &none;
    *stats = (struct run_merge_stats){0};
    CLEANUP(merge_release)
    struct merge m = {
        .sources = xcalloc(source_count, sizeof *m.sources),
        .count = source_count,
        .writer = run_writer_new(o->env, o->store, &o->own, o->shape),
        .env = o->env,
        .bytes = pages_bytes(sources, source_count),
        .drops_holes = o->bottom || MUTANT("merge-drops-holes"),
    };
    CLEANUP(preparation_release)
    struct preparation p = {.merge = &m,
                            .sources = sources,
                            .count = source_count,
                            .may_reuse = o->bottom && !o->own_parts_only && source_count > 1};
    keep_evacuated(&p, o->evacuates);
    run_writer_expect(m.writer, m.bytes);
    fiber_run_job(o->env, prepare, &p);
    fiber_group_init(&m.loading, o->env);
    int rc = drive(&m, o, stats, e);
    int waited = fiber_group_wait(&m.loading);
    if (rc == 0 && waited < 0)
        rc = err_set(e, waited, "the merge was cancelled");
    if (rc == 0)
        rc = run_writer_finish(m.writer, ret_run, e);
    if (rc == 0 && ret_reader)
        *ret_reader = run_writer_reader(m.writer, o->pages);
    stats->entries_read = m.entries_read;
    return rc;
}
