/* What is known of a volume's own prefix, and what of it is garbage.
 *
 * Objects become known when this process stores them (segments), when a run that names them leaves
 * the root (parts, indexes), when a pass marks them, and by the scrub.
 *
 * I1  An object is garbage only if it was named by an earlier root of ours, or listed while no work
 *     in flight could have written it: what is being written is named by nobody yet.
 * I2  Garbage stays garbage (protocol I8): runs and moves name only what was named before, new
 *     segments have new numbers. */
#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/volume/moving.h"

enum {
    MARKS_PER_SLICE = 4096,
    OLD_MANIFESTS_MAX = 4096, /* that a scrub remembers; more wait for the next scrub */
};

void gc_note_segment(struct gc *g, uint64_t seq, uint64_t size, const struct segment_table *t) {
    CHECK(size <= SEGMENT_SIZE_MAX);
    struct object_name n = {.class = CLASS_CONTENT, .kind = OBJ_LOG, .number = seq};
    own_objects_add(&g->objects, &n, (uint32_t)size);
    g->noted_bytes += size;
    if (size < SMALL_SEGMENT_MAX)
        small_segments_note(&g->small, seq, t);
}

static bool is_live(void *arg, uint64_t seq) {
    struct gc *g = arg;
    struct object_name n = {.class = CLASS_CONTENT, .kind = OBJ_LOG, .number = seq};
    const struct own_object *o = own_objects_find(&g->objects, &n);
    return o && o->state == OBJECT_LIVE;
}

struct object_name object_name_of_ref(const struct obj_ref *ref) {
    return (struct object_name){
        .class = CLASS_CONTENT, .kind = ref->kind, .number = ref->seq, .id = ref->id};
}

bool gc_is_own(const struct gc *g, const struct volume_key *owner) {
    return volume_key_equal(owner, &g->v->config.key);
}

static bool has_run(const struct root *root, const struct random_id *index) {
    for (size_t i = 0; i < root->run_count; i++)
        if (random_id_equal(&root->runs[i].index.id, index))
            return true;
    return false;
}

/* Runs come and go between two passes: their objects become known when they go. */
static void note_leaving_runs(struct gc *g, const struct root *next) {
    const struct volume *v = g->v;
    const struct root *root = &v->manifest.root;
    CHECK(v->run_count == root->run_count);
    for (size_t i = 0; i < v->run_count; i++) {
        if (has_run(next, &root->runs[i].index.id))
            continue;
        const struct run_index *x = run_reader_index(v->runs[i]);
        for (size_t p = 0; p < x->part_count; p++) {
            struct object_name n = object_name_of_ref(&x->parts[p].ref);
            if (gc_is_own(g, &x->volumes[x->parts[p].ref.volume]))
                own_objects_add(&g->objects, &n, (uint32_t)run_part_size(&x->parts[p]));
        }
        struct object_name n = object_name_of_ref(&root->runs[i].index);
        if (gc_is_own(g, &root->volumes[root->runs[i].index.volume]))
            own_objects_add(&g->objects, &n, 0);
    }
}

static int compare_refs(const void *a, const void *b) {
    return obj_ref_compare(a, b);
}

/* Evacuated objects leave the list when no run names them. */
static void drop_evacuated(const struct gc *g, struct root *root) {
    size_t kept = 0;
    for (size_t i = 0; i < root->evacuated_count; i++)
        if (g->dropped_count == 0 || !bsearch(&root->evacuated[i], g->dropped, g->dropped_count,
                                              sizeof *g->dropped, compare_refs))
            root->evacuated[kept++] = root->evacuated[i];
    root->evacuated_count = kept;
}

void gc_fill_manifest(struct gc *g, struct manifest *m) {
    note_leaving_runs(g, &m->root);
    drop_evacuated(g, &m->root);
    if (!g->scrubbed)
        return; /* it carries on what an earlier writer condemned */
    struct condemned_list copy = {.count = g->condemned.count};
    if (copy.count > 0) {
        copy.items = xcalloc(copy.count, sizeof *copy.items);
        memcpy(copy.items, g->condemned.items, copy.count * sizeof *copy.items);
    }
    condemned_list_move(&copy, m);
}

/* --- scrub --- */

struct scrub {
    struct gc *gc;
    uint64_t newest; /* our newest manifest when it began */
};

static int scrub_page(void *arg, const struct obj_list *page, size_t prefix_len, struct err *e) {
    struct scrub *s = arg;
    struct gc *g = s->gc;
    if (gc_must_stop(g))
        return err_set(e, -ERR_CANCELLED, "the scrub was stopped");
    for (size_t i = 0; i < page->count; i++) {
        struct object_name n = object_classify(&page->entries[i], prefix_len);
        if (n.class == CLASS_MANIFEST && n.number > 1 && n.number < s->newest &&
            g->old_manifest_count < OLD_MANIFESTS_MAX)
            g->old_manifests[g->old_manifest_count++] = n.number;
        if (n.class != CLASS_CONTENT)
            continue;
        if (n.kind == OBJ_MAP) {
            g->suspects = grown_array(g->suspects, g->suspect_count, sizeof *g->suspects);
            g->suspects[g->suspect_count++] = n;
        } else {
            own_objects_add(&g->objects, &n, (uint32_t)MIN(page->entries[i].size, UINT32_MAX));
        }
    }
    return 0;
}

/* I1: a part that was listed may be of a run that was being written. Once nothing of that kind is
 * under way, that run is named by our root, or will never be. */
static void judge_suspects(struct gc *g) {
    const struct volume *v = g->v;
    bool writing = v->checkpoint_mutex.held || !list_empty(&v->merges);
    if (writing && !MUTANT("scrub-blind"))
        return;
    for (size_t i = 0; i < g->suspect_count; i++)
        own_objects_add(&g->objects, &g->suspects[i], 0);
    free(g->suspects);
    g->suspects = NULL;
    g->suspect_count = 0;
}

int gc_scrub(struct gc *g, struct err *e) {
    struct scrub s = {.gc = g, .newest = g->v->manifest.number};
    free(g->old_manifests);
    g->old_manifests = xcalloc(OLD_MANIFESTS_MAX, sizeof *g->old_manifests);
    g->old_manifest_count = 0;
    g->suspect_count = 0;
    int rc = prefix_for_each_page(g->v->store, &g->v->config.key, scrub_page, &s, e);
    if (rc < 0)
        return rc;
    g->manifests_from = MAX(s.newest, 2);
    g->scrubbed = true;
    g->v->stats.gc_scrubs++;
    return 0;
}

/* --- mark and sweep --- */

void gc_snapshot_take(struct gc_snapshot *s, const struct volume *v) {
    CHECK(v->run_count <= ROOT_RUNS_MAX);
    CHECK(v->run_count == v->manifest.root.run_count);
    *s = (struct gc_snapshot){.run_count = v->run_count};
    root_copy(&s->root, &v->manifest.root);
    if (s->root.evacuated_count > 0)
        qsort(s->root.evacuated, s->root.evacuated_count, sizeof *s->root.evacuated, compare_refs);
    s->named = xcalloc(s->root.evacuated_count + 1, sizeof *s->named);
    for (size_t i = 0; i < v->run_count; i++) {
        s->runs[i] = v->runs[i];
        run_reader_ref(s->runs[i]);
    }
}

void gc_snapshot_release(struct gc_snapshot *s) {
    for (size_t i = 0; i < s->run_count; i++)
        run_reader_unref(s->runs[i]);
    root_release(&s->root);
    free(s->named);
}

/* A run's reference as one of the root's. False: the root does not know the volume. */
static bool root_ref(const struct root *root, const struct run_index *x, const struct obj_ref *ref,
                     struct obj_ref *ret) {
    *ret = *ref;
    for (size_t i = 0; i < root->volume_count; i++) {
        if (!volume_key_equal(&root->volumes[i], &x->volumes[ref->volume]))
            continue;
        ret->volume = (uint16_t)i;
        return true;
    }
    return false;
}

/* Has it been moved away? Older runs still name it, and nobody reads that. */
static bool is_evacuated(struct gc_snapshot *s, const struct run_index *x,
                         const struct obj_ref *ref) {
    struct obj_ref r;
    if (s->root.evacuated_count == 0 || !root_ref(&s->root, x, ref, &r))
        return false;
    const struct obj_ref *found = bsearch(&r, s->root.evacuated, s->root.evacuated_count,
                                          sizeof *s->root.evacuated, compare_refs);
    if (found)
        s->named[found - s->root.evacuated] = true;
    return found != NULL;
}

/* Runs change, but none comes that names what none names now: its sources are in the root. */
static void note_dropped(struct gc *g, const struct gc_snapshot *s) {
    free(g->dropped);
    g->dropped = xcalloc(s->root.evacuated_count + 1, sizeof *g->dropped);
    g->dropped_count = 0;
    for (size_t i = 0; i < s->root.evacuated_count; i++)
        if (!s->named[i] || MUTANT("evacuated-dropped-early"))
            g->dropped[g->dropped_count++] = s->root.evacuated[i];
}

static void mark_object(struct gc *g, const struct object_name *n, uint32_t size, uint64_t live) {
    struct own_object *o = own_objects_add(&g->objects, n, size);
    if (o->mark != g->mark)
        o->live = 0;
    o->mark = g->mark;
    o->live = (uint32_t)MIN(o->live + live, (uint64_t)UINT32_MAX);
    CHECK(o->state == OBJECT_LIVE); /* I2 */
}

/* fiber. */
static int mark_run(struct gc *g, struct gc_snapshot *s, size_t i, struct err *e) {
    const struct root_run *run = &s->root.runs[i];
    const struct run_index *x = run_reader_index(s->runs[i]);
    uint64_t index_size = run->size;
    for (size_t p = 0; p < x->part_count; p++) {
        uint64_t size = run_part_size(&x->parts[p]);
        index_size -= MIN(size, index_size);
        if (!gc_is_own(g, &x->volumes[x->parts[p].ref.volume]))
            continue;
        struct object_name n = object_name_of_ref(&x->parts[p].ref);
        mark_object(g, &n, (uint32_t)size, size);
    }
    if (gc_is_own(g, &s->root.volumes[run->index.volume])) {
        struct object_name n = object_name_of_ref(&run->index);
        mark_object(g, &n, (uint32_t)index_size, index_size);
    }
    for (size_t u = 0; u < x->usage_count; u++) {
        if (u % MARKS_PER_SLICE == MARKS_PER_SLICE - 1 && fiber_yield(g->v->env) < 0)
            return err_set(e, -ERR_CANCELLED, "GC was cancelled");
        if (run_usage_is_free(&x->usage[u]) || is_evacuated(s, x, &x->usage[u].ref) ||
            !gc_is_own(g, &x->volumes[x->usage[u].ref.volume]))
            continue;
        struct object_name n = object_name_of_ref(&x->usage[u].ref);
        mark_object(g, &n, 0, x->usage[u].bytes);
    }
    return 0;
}

static void mark_tail(struct gc *g, const struct root *root) {
    for (size_t i = 0; i < root->tail_count; i++) {
        const struct root_tail *t = &root->tail[i];
        if (t->volume != 0 || MUTANT("gc-forgets-tail"))
            continue;
        for (uint64_t k = 0; k < t->count; k++) {
            struct object_name n = {
                .class = CLASS_CONTENT, .kind = OBJ_LOG, .number = t->first + k};
            mark_object(g, &n, 0, 0);
        }
    }
}

/* How much of what is written makes as much dead elsewhere? The runs say so only with some delay,
 * up and down, so several sweeps count. */
static void note_growth(struct gc *g, uint64_t unjudged_before, uint64_t live_before) {
    double judged = (double)unjudged_before + (double)g->noted_bytes - (double)g->unjudged_bytes;
    g->stored_lately = g->stored_lately * 3 / 4 + judged;
    g->live_lately = g->live_lately * 3 / 4 + (double)g->live_bytes - (double)live_before;
    g->noted_bytes = 0;
}

static void sweep(struct gc *g, const struct gc_snapshot *s) {
    uint64_t unjudged_before = g->unjudged_bytes, live_before = g->live_bytes;
    uint64_t next_seq = MUTANT("gc-above-next-seq") ? g->v->frontier : s->root.next_seq;
    g->garbage = g->held = 0;
    g->garbage_bytes = g->held_bytes = g->live_bytes = g->debt_bytes = g->unjudged_bytes = 0;
    for (size_t i = 0; i < g->objects.slot_count; i++) {
        struct own_object *o = &g->objects.slots[i];
        if (o->state == OBJECT_NONE)
            continue;
        struct object_name n = own_object_name(o);
        bool judged = o->kind != OBJ_LOG || n.number < next_seq;
        if (o->state == OBJECT_LIVE && judged && o->mark != g->mark)
            o->state = OBJECT_GARBAGE;
        if (o->state == OBJECT_LIVE) {
            g->live_bytes += o->live;
            g->unjudged_bytes += judged ? 0 : o->size;
            g->debt_bytes += gc_move_gain(g, o);
            continue;
        }
        *(o->state == OBJECT_HELD ? &g->held : &g->garbage) += 1;
        *(o->state == OBJECT_HELD ? &g->held_bytes : &g->garbage_bytes) += o->size;
    }
    note_growth(g, unjudged_before, live_before);
}

int gc_find_garbage(struct gc *g, struct err *e) {
    struct gc_snapshot s;
    judge_suspects(g);
    gc_snapshot_take(&s, g->v);
    g->mark = (uint16_t)(g->mark == UINT16_MAX ? 1 : g->mark + 1);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < s.run_count; i++)
        rc = mark_run(g, &s, i, e);
    if (rc == 0) {
        mark_tail(g, &s.root);
        note_dropped(g, &s);
        sweep(g, &s);
        small_segments_prune(&g->small, is_live, g);
    }
    gc_snapshot_release(&s);
    return rc;
}
