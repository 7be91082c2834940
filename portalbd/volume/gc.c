/* GC rounds and the scrub of a live volume.
 *
 *   scrub (once an open)   LIST the prefix: objects that this process did not write become known
 *   mark                   what the newest stored root needs: its runs with their parts and the
 *                          objects that they name, less the evacuated ones, and its tail
 *   sweep                  what is known and not marked, and of segments lies below next_seq, is
 *                          garbage: nothing of ours will ever name it again (protocol I8)
 *   round                  a manifest condemns it -> LIST pins until two agree -> is that manifest
 *                          still the newest? -> reads that began before have ended -> DELETE
 *
 * What pins need stays known as HELD, and is looked at again when the pins have changed. A list of
 * condemned ranges is bounded; what does not fit waits for the next round. Nothing of all this is
 * needed after a crash: the next open's scrub finds it again.
 *
 * Invariants:
 *   I1  (protocol I7) DELETE only what our newest manifest condemns, after two equal listings of
 *       the pins behind that manifest, and a look behind them that it is the newest; nothing while
 *       a claim has no root; no fence, nor the first or the newest manifest.
 *   I2  An object is garbage only if it was named by an earlier root of ours, or listed while no
 *       work in flight could have written it: what is being written is named by nobody yet.
 *   I3  A read may use what it looked up: deleting waits for all reads that began before the root
 *       that does not need the object any more was the newest. */
#include "portalbd/volume/gc.h"

#include <stdlib.h>

#include "common/log.h"
#include "common/mutant.h"
#include "portalbd/volume/own_objects.h"

enum {
    MARKS_PER_SLICE = 4096,
    ROUND_OBJECTS_MAX = 16 * 1024, /* deleted in one round; more wait for the next */
    OLD_MANIFESTS_MAX = 4096,      /* that a scrub remembers; more wait for the next scrub */
    MANIFESTS_SPARED = 32,         /* old ones that are no reason for a round */
    ROUNDS_MAX = 1024,             /* of one pass */
};

struct gc {
    struct volume *v;
    struct fiber_mutex mutex; /* one pass at a time */
    struct env_timer timer;
    bool running; /* the background fiber */
    bool again;   /* ... has more to do */
    bool stopped;
    bool condemning; /* our own manifest is no reason to wake us */
    bool scrubbed;
    struct own_objects objects;
    uint16_t mark;
    size_t garbage, held; /* objects, as of the last sweep */
    uint64_t garbage_bytes, held_bytes;
    struct condemned_list condemned; /* of the round under way */
    struct pin_list pins;            /* whose needs these are: */
    struct pin_needs needs;
    bool needs_known;
    struct object_name *suspects; /* owned: parts and indexes that the scrub found */
    size_t suspect_count;
    uint64_t *old_manifests; /* owned: numbers that the scrub found */
    size_t old_manifest_count;
    uint64_t manifests_from; /* from here on all below the newest are ours to delete */
};

static void on_timer(struct env_timer *timer);

struct gc *gc_new(struct volume *v) {
    struct gc *g = NEW(struct gc);
    g->v = v;
    g->timer.fn = on_timer;
    fiber_mutex_init(&g->mutex);
    own_objects_init(&g->objects);
    return g;
}

void gc_free(struct gc *g) {
    if (!g)
        return;
    CHECK(!env_timer_running(&g->timer));
    own_objects_release(&g->objects);
    condemned_list_release(&g->condemned);
    pin_list_release(&g->pins);
    pin_needs_release(&g->needs);
    free(g->old_manifests);
    free(g->suspects);
    free(g);
}

void gc_note_segment(struct gc *g, uint64_t seq, uint64_t size) {
    CHECK(size <= SEGMENT_SIZE_MAX);
    struct object_name n = {.class = CLASS_CONTENT, .kind = OBJ_LOG, .number = seq};
    own_objects_add(&g->objects, &n, (uint32_t)size);
}

static struct object_name name_of_ref(const struct obj_ref *ref) {
    return (struct object_name){
        .class = CLASS_CONTENT, .kind = ref->kind, .number = ref->seq, .id = ref->id};
}

static bool is_own(const struct gc *g, const struct volume_key *owner) {
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
            struct object_name n = name_of_ref(&x->parts[p].ref);
            if (is_own(g, &x->volumes[x->parts[p].ref.volume]))
                own_objects_add(&g->objects, &n, x->parts[p].page_count * RUN_PAGE_SIZE);
        }
        struct object_name n = name_of_ref(&root->runs[i].index);
        if (is_own(g, &root->volumes[root->runs[i].index.volume]))
            own_objects_add(&g->objects, &n, 0);
    }
}

void gc_fill_manifest(struct gc *g, struct manifest *m) {
    note_leaving_runs(g, &m->root);
    if (!g->scrubbed)
        return; /* it carries on what an earlier writer condemned */
    struct condemned_list copy = {.count = g->condemned.count};
    if (copy.count > 0) {
        copy.items = xcalloc(copy.count, sizeof *copy.items);
        memcpy(copy.items, g->condemned.items, copy.count * sizeof *copy.items);
    }
    condemned_list_move(&copy, m);
}

static bool must_stop(const struct gc *g) {
    return g->stopped || (g->v->state != VOL_OPEN && g->v->state != VOL_CLOSING);
}

/* --- scrub --- */

struct scrub {
    struct gc *gc;
    uint64_t newest; /* our newest manifest when it began */
};

static int scrub_page(void *arg, const struct obj_list *page, size_t prefix_len, struct err *e) {
    struct scrub *s = arg;
    struct gc *g = s->gc;
    if (must_stop(g))
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

/* I2: a part that was listed may be of a run that was being written. Once nothing of that kind is
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

/* fiber. */
static int scrub(struct gc *g, struct err *e) {
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

/* The newest stored root, as it is at one moment. */
struct snapshot {
    struct run_reader *runs[ROOT_RUNS_MAX]; /* a reference of each */
    size_t run_count;
    struct root root; /* a copy */
    uint16_t mark;
};

static void snapshot_take(struct snapshot *s, struct gc *g) {
    const struct volume *v = g->v;
    CHECK(v->run_count <= ROOT_RUNS_MAX);
    CHECK(v->run_count == v->manifest.root.run_count);
    *s = (struct snapshot){.run_count = v->run_count};
    root_copy(&s->root, &v->manifest.root);
    for (size_t i = 0; i < v->run_count; i++) {
        s->runs[i] = v->runs[i];
        run_reader_ref(s->runs[i]);
    }
    g->mark = (uint16_t)(g->mark == UINT16_MAX ? 1 : g->mark + 1);
    s->mark = g->mark;
}

static void snapshot_release(struct snapshot *s) {
    for (size_t i = 0; i < s->run_count; i++)
        run_reader_unref(s->runs[i]);
    root_release(&s->root);
}

static void mark_object(struct gc *g, const struct object_name *n, uint32_t size, uint64_t live) {
    struct own_object *o = own_objects_add(&g->objects, n, size);
    if (o->mark != g->mark)
        o->live = 0;
    o->mark = g->mark;
    o->live = (uint32_t)MIN(o->live + live, (uint64_t)UINT32_MAX);
    CHECK(o->state == OBJECT_LIVE); /* I8 */
}

/* fiber. */
static int mark_run(struct gc *g, const struct snapshot *s, size_t i, struct err *e) {
    const struct root_run *run = &s->root.runs[i];
    const struct run_index *x = run_reader_index(s->runs[i]);
    uint64_t index_size = run->size;
    for (size_t p = 0; p < x->part_count; p++) {
        uint64_t size = (uint64_t)x->parts[p].page_count * RUN_PAGE_SIZE;
        index_size -= MIN(size, index_size);
        if (!is_own(g, &x->volumes[x->parts[p].ref.volume]))
            continue;
        struct object_name n = name_of_ref(&x->parts[p].ref);
        mark_object(g, &n, (uint32_t)size, size);
    }
    if (is_own(g, &s->root.volumes[run->index.volume])) {
        struct object_name n = name_of_ref(&run->index);
        mark_object(g, &n, (uint32_t)index_size, index_size);
    }
    for (size_t u = 0; u < x->usage_count; u++) {
        if (u % MARKS_PER_SLICE == MARKS_PER_SLICE - 1 && fiber_yield(g->v->env) < 0)
            return err_set(e, -ERR_CANCELLED, "GC was cancelled");
        if (!is_own(g, &x->volumes[x->usage[u].ref.volume]))
            continue;
        struct object_name n = name_of_ref(&x->usage[u].ref);
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

/* What has been moved away: older runs still name it, and nobody reads that. */
static void unmark_evacuated(struct gc *g, const struct root *root) {
    for (size_t i = 0; i < root->evacuated_count; i++) {
        if (!is_own(g, &root->volumes[root->evacuated[i].volume]))
            continue;
        struct object_name n = name_of_ref(&root->evacuated[i]);
        struct own_object *o = own_objects_find(&g->objects, &n);
        if (!o)
            continue;
        o->mark = 0;
        o->live = 0;
    }
}

static void sweep(struct gc *g, const struct snapshot *s) {
    uint64_t next_seq = MUTANT("gc-above-next-seq") ? g->v->frontier : s->root.next_seq;
    g->garbage = g->held = 0;
    g->garbage_bytes = g->held_bytes = 0;
    for (size_t i = 0; i < g->objects.slot_count; i++) {
        struct own_object *o = &g->objects.slots[i];
        if (o->state == OBJECT_NONE)
            continue;
        struct object_name n = own_object_name(o);
        bool judged = o->kind != OBJ_LOG || n.number < next_seq;
        if (o->state == OBJECT_LIVE && judged && o->mark != s->mark)
            o->state = OBJECT_GARBAGE;
        if (o->state == OBJECT_LIVE)
            continue;
        *(o->state == OBJECT_HELD ? &g->held : &g->garbage) += 1;
        *(o->state == OBJECT_HELD ? &g->held_bytes : &g->garbage_bytes) += o->size;
    }
}

/* fiber. */
static int find_garbage(struct gc *g, struct err *e) {
    struct snapshot s;
    judge_suspects(g);
    snapshot_take(&s, g);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < s.run_count; i++)
        rc = mark_run(g, &s, i, e);
    if (rc == 0) {
        mark_tail(g, &s.root);
        unmark_evacuated(g, &s.root);
        sweep(g, &s);
    }
    snapshot_release(&s);
    return rc;
}

/* --- rounds --- */

/* What one round wants to delete. */
struct round {
    struct object_name *items; /* owned; sorted */
    size_t count;
    uint64_t read_serial; /* reads that began before this may still use it */
};

static int compare_names(const void *a, const void *b) {
    return object_name_compare(a, b);
}

/* Fills g->condemned with as many as fit. */
static void round_choose(struct gc *g, struct round *r) {
    r->items = xcalloc(MIN(g->garbage, (size_t)ROUND_OBJECTS_MAX) + 1, sizeof *r->items);
    for (size_t i = 0; i < g->objects.slot_count && r->count < ROUND_OBJECTS_MAX; i++)
        if (g->objects.slots[i].state == OBJECT_GARBAGE)
            r->items[r->count++] = own_object_name(&g->objects.slots[i]);
    CHECK(r->count == MIN(g->garbage, (size_t)ROUND_OBJECTS_MAX));
    qsort(r->items, r->count, sizeof *r->items, compare_names);
    condemned_list_release(&g->condemned);
    size_t fit = 0;
    while (fit < r->count && condemned_list_add(&g->condemned, &r->items[fit]))
        fit++;
    r->count = fit;
}

static bool already_condemned(const struct gc *g) {
    const struct manifest *m = &g->v->manifest;
    if (m->condemned_count != g->condemned.count)
        return false;
    for (size_t i = 0; i < g->condemned.count; i++) {
        const struct condemned_range *a = &m->condemned[i], *b = &g->condemned.items[i];
        if (a->kind != b->kind || a->first != b->first || a->count != b->count ||
            !random_id_equal(&a->id, &b->id))
            return false;
    }
    return true;
}

/* fiber. Step 1. */
static int put_condemning(struct gc *g, struct err *e) {
    struct volume *v = g->v;
    if (already_condemned(g) || MUTANT("gc-condemns-nothing"))
        return 0;
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "GC was cancelled");
    struct manifest m;
    manifest_copy(&m, &v->manifest);
    m.number++;
    g->condemning = true;
    int rc = manifest_advance(v, &m, e); /* calls gc_fill_manifest */
    g->condemning = false;
    fiber_mutex_unlock(&v->manifest_mutex);
    CHECK(rc < 0 || already_condemned(g));
    return rc;
}

/* fiber. Step 2, and what these pins need. A list that we know already needs no more requests. */
static int look_at_pins(struct gc *g, bool *ret_blocked, struct err *e) {
    struct volume *v = g->v;
    struct pin_list pins;
    *ret_blocked = false;
    int rc = MUTANT("gc-one-pin-listing") ? pin_list_once(v->store, &v->config.key, &pins, e)
                                          : pin_list_stable(v->store, &v->config.key, &pins, e);
    if (rc < 0)
        return rc;
    if (g->needs_known && pin_list_equal(&pins, &g->pins)) {
        pin_list_release(&pins);
        return 0;
    }
    g->needs_known = false;
    pin_list_release(&g->pins);
    pin_needs_release(&g->needs);
    size_t real;
    rc = pin_needs_load(&g->needs, v->store, &v->config.key, &pins, ret_blocked, &real, e);
    if (rc == 0 && !*ret_blocked)
        g->needs_known = true;
    g->pins = pins;
    return rc;
}

/* fiber. Step 3. The mutex: a manifest of our own that is put meanwhile would look like another's.
 */
static int check_newest(struct gc *g, struct err *e) {
    struct volume *v = g->v;
    if (MUTANT("gc-no-manifest-check"))
        return 0;
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "GC was cancelled");
    int rc = manifest_check_newest(v->store, &v->config.key, v->manifest.number, e);
    fiber_mutex_unlock(&v->manifest_mutex);
    if (rc == -ERR_FENCED)
        volume_break(v, VOL_FENCED, e);
    return rc;
}

static void set_held(struct gc *g, const struct object_name *n) {
    struct own_object *o = own_objects_find(&g->objects, n);
    CHECK(o && o->state == OBJECT_GARBAGE);
    o->state = OBJECT_HELD;
}

/* fiber. Step 4: up to PREFIX_PAGE objects from *at on. */
static int delete_some(struct gc *g, const struct round *r, size_t *at, struct err *e) {
    struct volume *v = g->v;
    char(*keys)[KEY_MAX] = xcalloc(PREFIX_PAGE, KEY_MAX);
    const char *doomed[PREFIX_PAGE];
    size_t count = 0, first = *at;
    for (; *at < r->count && count < PREFIX_PAGE; ++*at) {
        const struct object_name *n = &r->items[*at];
        CHECK(manifest_condemns(&v->manifest, n) || MUTANT("gc-condemns-nothing"));
        if (pin_needs_object(&g->needs, n) && !MUTANT("gc-ignores-pins"))
            continue;
        object_key(keys[count], &v->config.key, n);
        doomed[count] = keys[count];
        count++;
    }
    int rc = count > 0 ? objstore_delete(v->store, doomed, count, e) : 0;
    free(keys);
    if (rc < 0)
        return rc;
    for (size_t i = first; i < *at; i++) {
        if (pin_needs_object(&g->needs, &r->items[i]) && !MUTANT("gc-ignores-pins")) {
            set_held(g, &r->items[i]);
            continue;
        }
        v->stats.gc_bytes_deleted += own_objects_find(&g->objects, &r->items[i])->size;
        own_objects_remove(&g->objects, &r->items[i]);
    }
    v->stats.gc_objects_deleted += count;
    return 0;
}

/* fiber. The manifests between the first and our newest, after a look that it is the newest. */
static int delete_manifests(struct gc *g, uint64_t newest, struct err *e) {
    struct volume *v = g->v;
    CHECK(newest <= v->manifest.number);
    while (g->old_manifest_count > 0 || g->manifests_from < newest) {
        char keys[64][KEY_MAX];
        const char *doomed[ARRAY_LEN(keys)];
        size_t count = 0;
        while (count < ARRAY_LEN(keys) && g->old_manifest_count > 0)
            key_manifest(keys[count++], &v->config.key, g->old_manifests[--g->old_manifest_count]);
        while (count < ARRAY_LEN(keys) && g->manifests_from < newest)
            key_manifest(keys[count++], &v->config.key, g->manifests_from++);
        for (size_t i = 0; i < count; i++)
            doomed[i] = keys[i];
        int rc = objstore_delete(v->store, doomed, count, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static uint64_t old_manifests(const struct gc *g) {
    uint64_t newest = g->v->manifest.number;
    return g->old_manifest_count + (newest > g->manifests_from ? newest - g->manifests_from : 0);
}

/* fiber. Steps 2 to 4. *ret_progress: another round may find more to do. */
static int round_delete(struct gc *g, struct round *r, bool *ret_progress, struct err *e) {
    struct volume *v = g->v;
    bool blocked = false;
    int rc = 0;
    if (r->count > 0 && !MUTANT("gc-deletes-before-pins"))
        rc = look_at_pins(g, &blocked, e);
    if (rc < 0 || must_stop(g))
        return rc;
    if (blocked && !MUTANT("gc-ignores-claims"))
        r->count = 0;
    uint64_t newest = v->manifest.number;
    rc = check_newest(g, e);
    if (rc == 0 && r->count > 0 && !MUTANT("gc-no-wait-for-reads"))
        rc = read_wait_older(v, r->read_serial, e);
    *ret_progress = r->count > 0;
    for (size_t at = 0; rc == 0 && at < r->count && !must_stop(g);)
        rc = delete_some(g, r, &at, e);
    if (rc == 0 && MUTANT("gc-deletes-before-pins"))
        rc = look_at_pins(g, &blocked, e);
    if (rc == 0)
        rc = delete_manifests(g, newest, e);
    return rc;
}

/* fiber. */
static int run_round(struct gc *g, bool *ret_progress, struct err *e) {
    struct round r = {0};
    round_choose(g, &r);
    int rc = r.count > 0 ? put_condemning(g, e) : 0;
    r.read_serial = g->v->read_serial;
    if (rc == 0 && !must_stop(g))
        rc = round_delete(g, &r, ret_progress, e);
    free(r.items);
    condemned_list_release(&g->condemned);
    g->v->stats.gc_rounds++;
    return rc;
}

/* fiber. Have the pins changed since these objects were found to be held? */
static int reconsider_held(struct gc *g, struct err *e) {
    if (g->held == 0)
        return 0;
    struct pin_list pins;
    int rc = pin_list_once(g->v->store, &g->v->config.key, &pins, e);
    if (rc < 0)
        return rc;
    bool same = g->needs_known && pin_list_equal(&pins, &g->pins);
    pin_list_release(&pins);
    if (same)
        return 0;
    for (size_t i = 0; i < g->objects.slot_count; i++)
        if (g->objects.slots[i].state == OBJECT_HELD)
            g->objects.slots[i].state = OBJECT_GARBAGE;
    g->garbage += g->held;
    g->garbage_bytes += g->held_bytes;
    g->held = 0;
    g->held_bytes = 0;
    return 0;
}

/* --- passes --- */

/* fiber; g->mutex held. thorough: also for what alone is no reason for a round. */
static int pass(struct gc *g, bool thorough, struct err *e) {
    bool progress = true;
    int rc = find_garbage(g, e);
    if (rc == 0)
        rc = reconsider_held(g, e);
    for (int i = 0; rc == 0 && progress && i < ROUNDS_MAX && !must_stop(g); i++) {
        bool due = g->garbage > 0 || old_manifests(g) > (thorough ? 0 : MANIFESTS_SPARED);
        progress = false;
        if (due)
            rc = run_round(g, &progress, e);
        if (rc == 0 && progress)
            rc = find_garbage(g, e);
    }
    return rc;
}

static int scrub_and_pass(struct gc *g, bool thorough, struct err *e) {
    int rc = g->scrubbed ? 0 : scrub(g, e);
    return rc == 0 && !must_stop(g) ? pass(g, thorough, e) : rc;
}

static void gc_fiber(struct volume *v, void *arg) {
    struct gc *g = arg;
    struct err e = {0};
    int rc = fiber_mutex_lock(v->env, &g->mutex);
    if (rc == 0) {
        if (!must_stop(g))
            rc = scrub_and_pass(g, false, &e);
        fiber_mutex_unlock(&g->mutex);
    }
    g->running = false;
    if (rc < 0 && !must_stop(g) && rc != -ERR_CANCELLED && rc != -ERR_FENCED)
        log_warn("garbage stays until the next checkpoint", LOG_STR("volume", v->config.key.text),
                 LOG_ERR(&e));
    if (g->again)
        gc_wake(g);
}

static void on_timer(struct env_timer *timer) {
    struct gc *g = container_of(timer, struct gc, timer);
    if (must_stop(g))
        return;
    g->again = g->running;
    if (g->running)
        return;
    g->running = true;
    volume_fiber_start(g->v, gc_fiber, g);
}

void gc_wake(struct gc *g) {
    g->again = false;
    if (!must_stop(g) && !g->condemning && !g->v->config.gc_off && !env_timer_running(&g->timer))
        env_timer_start(g->v->env, &g->timer, g->v->config.gc_delay_us);
}

void gc_stop(struct gc *g) {
    g->stopped = true;
    env_timer_stop(g->v->env, &g->timer);
}

void gc_at_close(struct gc *g) {
    struct err e = {0};
    gc_stop(g);
    if (fiber_mutex_lock(g->v->env, &g->mutex) < 0)
        return;
    g->stopped = false;
    int rc = g->scrubbed && !g->v->config.gc_off ? pass(g, false, &e) : 0;
    gc_stop(g);
    fiber_mutex_unlock(&g->mutex);
    if (rc < 0 && g->v->state == VOL_CLOSING && rc != -ERR_CANCELLED)
        log_warn("garbage stays until the next open", LOG_STR("volume", g->v->config.key.text),
                 LOG_ERR(&e));
}

int gc_collect(struct gc *g, struct err *e) {
    if (fiber_mutex_lock(g->v->env, &g->mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "GC was cancelled");
    int rc = scrub_and_pass(g, true, e);
    fiber_mutex_unlock(&g->mutex);
    return rc;
}

void gc_status(const struct gc *g, struct volume_status *ret) {
    ret->gc_objects = g->objects.count;
    ret->gc_bytes = g->objects.bytes;
    ret->gc_garbage = g->garbage;
    ret->gc_garbage_bytes = g->garbage_bytes;
    ret->gc_held = g->held;
    ret->gc_held_bytes = g->held_bytes;
}
