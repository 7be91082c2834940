/* The runs of an open volume: the list of them, and their merges.
 *
 *   a run is stored -> run_list_replace: manifest, then v->runs (checkpoint: in front; a merge: in
 *   place of its sources; moved entries: at their age)
 *   due --levels_maybe_start--> a fiber: sources -> run_merge -> run_list_replace -> what is due
 *   then
 *
 * A merge reads and writes in the background, without a mutex; only the exchange of its sources for
 * its result holds both. So checkpoints go on meanwhile, and so does a merge of younger runs beside
 * a long one into the bottom.
 *
 * I1  v->runs and v->manifest.root.runs say the same, newest first, and change together, under
 *     checkpoint_mutex.
 * I2  A run in a merge stays in the list until that merge has ended, and its neighbours in the
 *     merge stay its neighbours: nothing is inserted between them (the barrier).
 * I3  What a merge drops for good is covered by newer entries, is a hole at the bottom, or refers
 *     to an object that our newest stored manifest evacuates. */
#include <stdlib.h>

#include "common/log.h"
#include "portalbd/volume/flatten.h"
#include "portalbd/volume/levels_plan.h"
#include "portalbd/volume/run_merge.h"
#include "portalbd/volume/volume_internal.h"

enum {
    MERGES_MAX = 2,  /* at a time */
    RUNS_ABOVE = 4,  /* so many more than runs_max: checkpoints wait for a merge */
    COVER_MORE = 16, /* a merge that was too large is tried again when so much of it is covered */
    RUNS_SPARE = 16, /* of the format's limit, kept free for checkpoints and moves under way */
};

struct merge {
    struct list_node node;       /* on v->merges */
    struct run_reader **sources; /* owned, a reference each; newest first */
    size_t count;
    struct run_reader *result; /* owned; NULL: none yet, or no entries */
    bool stop;                 /* the volume is closing */
    bool own_only;             /* the result names no part of another volume */
};

/* --- the list --- */

int open_runs(struct volume *v, struct err *e) {
    const struct root *root = &v->manifest.root;
    v->runs = xcalloc(ROOT_RUNS_MAX, sizeof(struct run_reader *));
    for (size_t i = 0; i < root->run_count; i++) {
        int rc = run_reader_open(v->env, v->store, v->pages, &root->runs[i], root->volumes,
                                 root->volume_count, &v->runs[i], e);
        if (rc < 0)
            return rc;
        v->run_count++;
    }
    map_limit_update(v);
    return 0;
}

/* runs[pos, pos + removed) of a root become `run`, or nothing. */
static void replace_in_root(struct root *root, size_t pos, size_t removed,
                            const struct root_run *run) {
    size_t added = run ? 1 : 0, behind = root->run_count - pos - removed;
    root->runs = xrealloc(root->runs, (root->run_count + 1) * sizeof *root->runs);
    memmove(root->runs + pos + added, root->runs + pos + removed, behind * sizeof *root->runs);
    if (run)
        root->runs[pos] = *run;
    root->run_count = pos + added + behind;
    CHECK(root->run_count <= ROOT_RUNS_MAX);
}

static void replace_readers(struct volume *v, size_t pos, size_t removed,
                            struct run_reader *reader) {
    size_t added = reader ? 1 : 0, behind = v->run_count - pos - removed;
    for (size_t i = pos; i < pos + removed; i++) {
        if (v->merge_too_large.oldest == v->runs[i])
            v->merge_too_large.oldest = NULL;
        run_reader_unref(v->runs[i]);
    }
    memmove(v->runs + pos + added, v->runs + pos + removed, behind * sizeof *v->runs);
    if (reader)
        v->runs[pos] = reader;
    v->run_count = pos + added + behind;
}

int run_list_replace(struct volume *v, struct manifest *m, size_t pos, size_t removed,
                     const struct root_run *run, struct run_reader *reader, struct err *e) {
    CHECK(v->checkpoint_mutex.held && v->manifest_mutex.held);
    CHECK(m->root.run_count == v->run_count && pos + removed <= v->run_count);
    CHECK((run->entry_count > 0) == (reader != NULL));
    replace_in_root(&m->root, pos, removed, reader ? run : NULL);
    for (size_t i = 1; i < m->root.run_count; i++)
        CHECK(m->root.runs[i - 1].age >= m->root.runs[i].age);
    int rc = manifest_advance(v, m, e);
    if (rc < 0) {
        if (reader)
            run_reader_unref(reader);
        return rc;
    }
    replace_readers(v, pos, removed, reader);
    CHECK(v->run_count == v->manifest.root.run_count);
    map_limit_update(v);
    waitq_wake_all(&v->levels_changed);
    return 0;
}

int run_list_insert(struct volume *v, struct manifest *m, const struct root_run *run,
                    struct run_reader *reader, struct err *e) {
    size_t pos = 0;
    while (pos < m->root.run_count && m->root.runs[pos].age > run->age)
        pos++;
    return run_list_replace(v, m, pos, 0, run, reader, e);
}

bool run_list_full(const struct volume *v) {
    return v->run_count >= ROOT_RUNS_MAX - RUNS_SPARE;
}

/* --- what is due --- */

static bool is_busy(const struct volume *v, const struct run_reader *r) {
    list_for_each (&v->merges, node) {
        const struct merge *m = list_entry(node, struct merge, node);
        for (size_t i = 0; i < m->count; i++)
            if (m->sources[i] == r)
                return true;
    }
    return false;
}

static size_t merges_running(const struct volume *v) {
    size_t n = 0;
    list_for_each (&v->merges, node)
        n++;
    return n;
}

/* Of the sectors of a part, those that entries of another part cover, if both are spread evenly. */
static double overlap(const struct run_part *p, const struct run_part *q) {
    uint64_t first = MAX(p->first_sector, q->first_sector);
    uint64_t last = MIN(p->last_sector, q->last_sector);
    if (first > last)
        return 0;
    double p_span = (double)(p->last_sector - p->first_sector + 1);
    double q_span = (double)(q->last_sector - q->first_sector + 1);
    double both = (double)(last - first + 1);
    return both * ((double)p->sectors / p_span) * ((double)q->sectors / q_span);
}

/* The same of two runs: a walk along both lists of parts. */
static double overlap_of_runs(const struct run_index *x, const struct run_index *newer) {
    double sum = 0;
    for (size_t i = 0, j = 0; i < x->part_count && j < newer->part_count;) {
        const struct run_part *p = &x->parts[i], *q = &newer->parts[j];
        sum += overlap(p, q);
        if (p->last_sector <= q->last_sector)
            i++;
        else
            j++;
    }
    return sum;
}

static void measure_cover(const struct volume *v, size_t i, struct level_run *run) {
    const struct run_index *x = run_reader_index(v->runs[i]);
    for (size_t p = 0; p < x->part_count; p++)
        run->sectors += x->parts[p].sectors;
    double covered = 0;
    for (size_t newer = 0; newer < i; newer++)
        covered += overlap_of_runs(x, run_reader_index(v->runs[newer]));
    run->covered = MIN((uint64_t)covered, run->sectors);
}

/* A merge of it and newer ones was too large, and they cover hardly more of it now. */
static bool is_too_large(const struct volume *v, const struct run_reader *r,
                         const struct level_run *run) {
    return v->merge_too_large.oldest == r &&
           run->covered < v->merge_too_large.covered + DIV_UP(run->sectors, COVER_MORE);
}

static bool plan(const struct volume *v, bool only_fewer, struct level_plan *ret) {
    struct level_run runs[ROOT_RUNS_MAX];
    const struct root *root = &v->manifest.root;
    struct level_limits limits = {.runs_max = v->config.runs_max,
                                  .barrier_age = v->merge_barrier_age};
    CHECK(v->run_count == root->run_count);
    for (size_t i = 0; i < v->run_count; i++) {
        runs[i] = (struct level_run){.age = root->runs[i].age,
                                     .entries = root->runs[i].entry_count,
                                     .busy = is_busy(v, v->runs[i])};
        measure_cover(v, i, &runs[i]);
        runs[i].busy |= is_too_large(v, v->runs[i], &runs[i]);
    }
    return only_fewer ? levels_plan_fewer(runs, v->run_count, &limits, ret)
                      : levels_plan(runs, v->run_count, &limits, ret);
}

/* --- merging --- */

static struct merge *merge_start(struct volume *v, const struct level_plan *p) {
    CHECK(p->count >= 1 && p->first + p->count <= v->run_count);
    struct merge *m = NEW(struct merge);
    m->sources = xcalloc(p->count, sizeof(struct run_reader *));
    m->count = p->count;
    for (size_t i = 0; i < p->count; i++) {
        m->sources[i] = v->runs[p->first + i];
        run_reader_ref(m->sources[i]);
    }
    list_push_back(&v->merges, &m->node);
    return m;
}

static void merge_end(struct volume *v, struct merge *m) {
    list_remove(&m->node);
    for (size_t i = 0; i < m->count; i++)
        run_reader_unref(m->sources[i]);
    if (m->result)
        run_reader_unref(m->result);
    free(m->sources);
    free(m);
    waitq_wake_all(&v->levels_changed);
}

/* Where its sources stand now. */
static size_t merge_position(const struct volume *v, const struct merge *m) {
    size_t pos = 0;
    while (pos < v->run_count && v->runs[pos] != m->sources[0])
        pos++;
    CHECK(pos + m->count <= v->run_count);
    for (size_t i = 0; i < m->count; i++)
        CHECK(v->runs[pos + i] == m->sources[i]); /* I2 */
    return pos;
}

/* fiber; both mutexes held. */
static int merge_install(struct volume *v, struct merge *m, struct root_run *run, struct err *e) {
    if (m->stop)
        return err_set(e, -ERR_CANCELLED, "the merge was cancelled");
    size_t pos = merge_position(v, m);
    struct manifest next = manifest_next(&v->manifest);
    run->age = next.root.runs[pos].age;
    struct run_reader *result = m->result;
    m->result = NULL;
    int rc = run_list_replace(v, &next, pos, m->count, run, result, e);
    if (rc == 0)
        v->stats.merges++;
    return rc;
}

/* fiber. */
static int merge_run(struct volume *v, struct merge *m, struct err *e) {
    struct root_run run = {0};
    struct run_merge_stats stats;
    struct run_merge_options o = {.env = v->env,
                                  .store = v->store,
                                  .pages = v->pages,
                                  .own = v->config.key,
                                  .shape = merge_shape(v),
                                  .bottom = m->sources[m->count - 1] == v->runs[v->run_count - 1],
                                  .own_parts_only = m->own_only,
                                  .evacuates = &v->manifest.root,
                                  .stop = &m->stop};
    int rc = run_merge(&o, m->sources, m->count, &run, &m->result, &stats, e);
    if (rc < 0)
        return rc;
    v->stats.map_parts_reused += stats.parts_reused;
    if (fiber_mutex_lock(v->env, &v->checkpoint_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "the merge was cancelled");
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0) {
        fiber_mutex_unlock(&v->checkpoint_mutex);
        return err_set(e, -ERR_CANCELLED, "the merge was cancelled");
    }
    rc = merge_install(v, m, &run, e);
    fiber_mutex_unlock(&v->manifest_mutex);
    fiber_mutex_unlock(&v->checkpoint_mutex);
    return rc;
}

/* Its sources stay as they are. Writes are refused long before (map_limit.c). */
static void merge_give_up(struct volume *v, const struct merge *m, const struct err *why) {
    struct level_run run = {0};
    measure_cover(v, merge_position(v, m) + m->count - 1, &run);
    v->merge_too_large.oldest = m->sources[m->count - 1];
    v->merge_too_large.covered = run.covered;
    log_warn("a merge of the map is too large: runs stay as they are until blocks are trimmed",
             LOG_STR("volume", v->config.key.text), LOG_STR("why", why->text));
}

/* fiber. Takes the merge over. */
static int merge_finish(struct volume *v, struct merge *m, struct err *e) {
    int rc = merge_run(v, m, e);
    if (rc == -ERR_OVERLOAD) {
        merge_give_up(v, m, e);
        rc = 0;
    }
    merge_end(v, m);
    if (rc == -ERR_NOT_FOUND || rc == -ERR_STALE) { /* a part: whoever deleted it, not us */
        struct err missing = *e;
        rc = read_explain_missing(v, missing.text, e);
    }
    return rc;
}

/* --- in the background --- */

static void merge_fiber(struct volume *v, void *arg) {
    struct err e = {0};
    int rc = merge_finish(v, arg, &e);
    if (rc < 0 && rc != -ERR_CANCELLED && v->state == VOL_OPEN)
        volume_break(v, VOL_ERROR, &e);
    if (rc == 0)
        levels_maybe_start(v);
    waitq_wake_all(&v->levels_changed);
}

void levels_maybe_start(struct volume *v) {
    struct level_plan p;
    while (v->state == VOL_OPEN && merges_running(v) < MERGES_MAX && plan(v, false, &p))
        volume_fiber_start(v, merge_fiber, merge_start(v, &p));
}

/* fiber. Until the list or the merges change. */
static int wait_for_change(struct volume *v, struct err *e) {
    if (v->state == VOL_FENCED || v->state == VOL_ERROR)
        return err_copy(e, &v->why);
    if (waitq_wait(v->env, &v->levels_changed) < 0)
        return err_set(e, -ERR_CANCELLED, "a merge was cancelled");
    return 0;
}

int levels_wait_room(struct volume *v, struct err *e) {
    int rc = 0;
    while (rc == 0 && v->run_count >= v->config.runs_max + RUNS_ABOVE) {
        levels_maybe_start(v);
        if (list_empty(&v->merges) && !run_list_full(v))
            return 0; /* the barrier holds them back: reads look at some more runs for a while */
        rc = wait_for_change(v, e);
    }
    return rc;
}

int levels_settle(struct volume *v, bool only_fewer, struct err *e) {
    struct level_plan p;
    int rc = 0;
    while (rc == 0) {
        if (merges_running(v) < MERGES_MAX && plan(v, only_fewer, &p))
            rc = merge_finish(v, merge_start(v, &p), e);
        else if (!list_empty(&v->merges))
            rc = wait_for_change(v, e);
        else
            break;
    }
    return rc;
}

/* Has it been tried in vain? */
static bool cannot_become_one(const struct volume *v) {
    struct level_run run = {0};
    size_t last = v->run_count - 1;
    CHECK(v->run_count > 0);
    measure_cover(v, last, &run);
    return is_too_large(v, v->runs[last], &run);
}

int levels_collapse(struct volume *v, struct err *e) {
    CHECK(v->merge_barrier_age == 0);
    int rc = levels_settle(v, false, e);
    if (rc < 0 || v->run_count < 2 || !list_empty(&v->merges) || cannot_become_one(v))
        return rc;
    struct level_plan all = {0, v->run_count};
    return merge_finish(v, merge_start(v, &all), e);
}

int levels_rewrite(struct volume *v, struct err *e) {
    CHECK(v->merge_barrier_age == 0);
    int rc = levels_settle(v, false, e);
    if (rc < 0 || v->run_count == 0 || !list_empty(&v->merges) || cannot_become_one(v))
        return rc;
    struct level_plan all = {0, v->run_count};
    struct merge *m = merge_start(v, &all);
    m->own_only = true;
    return merge_finish(v, m, e);
}

int levels_stop(struct volume *v, struct err *e) {
    CHECK(v->state != VOL_OPEN); /* nothing starts again */
    list_for_each (&v->merges, node)
        list_entry(node, struct merge, node)->stop = true;
    int rc = 0;
    while (rc == 0 && !list_empty(&v->merges))
        rc = wait_for_change(v, e);
    return rc;
}

/* --- the barrier --- */

void levels_hold(struct volume *v, uint64_t age) {
    CHECK(v->merge_barrier_age == 0);
    CHECK(age > 0);
    list_for_each (&v->merges, node) { /* of none may the sources lie on both sides */
        const struct merge *m = list_entry(node, struct merge, node);
        const struct root_run *runs = &v->manifest.root.runs[merge_position(v, m)];
        CHECK((runs[0].age <= age) == (runs[m->count - 1].age <= age));
    }
    v->merge_barrier_age = age;
}

void levels_release(struct volume *v) {
    CHECK(v->merge_barrier_age != 0);
    v->merge_barrier_age = 0;
    levels_maybe_start(v);
    waitq_wake_all(&v->levels_changed);
}
