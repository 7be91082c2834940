/* A GC round.
 *
 *   1. a manifest condemns what is to go
 *   2. LIST pins until two listings agree; what do they need?
 *   3. LIST the newest manifest: is it ours?
 *   4. wait for the reads that may still use it; DELETE
 *
 * I1  (protocol I7) DELETE only what our newest manifest condemns, after two equal listings of the
 *     pins behind that manifest, and a look behind them that it is the newest; nothing while a
 *     claim has no root; no fence, nor the first or the newest manifest.
 * I2  A read may use what it looked up: deleting waits for all reads that began before the root
 *     that does not need the object any more was the newest. */
#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/volume/gc_internal.h"

enum {
    ROUND_OBJECTS_MAX = 16 * 1024, /* deleted in one round; more wait for the next */
};

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
    if (MUTANT("gc-condemns-nothing"))
        return 0;
    /* Before the look: a manifest that is on its way was filled before this round chose. */
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "GC was cancelled");
    int rc = 0;
    if (!already_condemned(g)) {
        struct manifest m = manifest_next(&v->manifest);
        g->condemning = true;
        rc = manifest_advance(v, &m, e); /* calls gc_fill_manifest */
        g->condemning = false;
    }
    fiber_mutex_unlock(&v->manifest_mutex);
    CHECK(rc < 0 || already_condemned(g));
    return rc;
}

static void note_pinned(void *arg, const struct object_name *n, uint64_t bytes) {
    struct gc *g = arg;
    struct own_object *o = own_objects_find(&g->objects, n);
    if (o)
        o->pinned = (uint32_t)MAX((uint64_t)o->pinned, MIN(bytes, (uint64_t)UINT32_MAX));
}

/* Step 2. A list that we know already needs no more requests. */
int gc_look_at_pins(struct gc *g, bool *ret_blocked, struct err *e) {
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
    for (size_t i = 0; i < g->objects.slot_count; i++)
        g->objects.slots[i].pinned = 0;
    g->needs.note = note_pinned;
    g->needs.note_arg = g;
    size_t real;
    rc = pin_needs_load(&g->needs, v->store, &v->config.key, &pins, ret_blocked, &real, e);
    if (rc == 0 && !*ret_blocked)
        g->needs_known = true;
    g->pins = pins;
    return rc;
}

/* fiber. Step 3. */
int gc_check_newest(struct gc *g, struct err *e) {
    return MUTANT("gc-no-manifest-check") ? 0 : volume_check_newest(g->v, e);
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
    if (count > 0)
        gc_paid(g);
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

uint64_t gc_old_manifests(const struct gc *g) {
    uint64_t newest = g->v->manifest.number;
    return g->old_manifest_count + (newest > g->manifests_from ? newest - g->manifests_from : 0);
}

/* fiber. Steps 2 to 4. *ret_progress: another round may find more to do. */
static int round_delete(struct gc *g, struct round *r, bool *ret_progress, struct err *e) {
    struct volume *v = g->v;
    bool blocked = false;
    int rc = 0;
    if (r->count > 0 && !MUTANT("gc-deletes-before-pins"))
        rc = gc_look_at_pins(g, &blocked, e);
    if (rc < 0 || gc_must_stop(g))
        return rc;
    if (blocked && !MUTANT("gc-ignores-claims"))
        r->count = 0;
    uint64_t newest = v->manifest.number;
    rc = gc_check_newest(g, e);
    if (rc == 0 && r->count > 0 && !MUTANT("gc-no-wait-for-reads"))
        rc = read_wait_older(v, r->read_serial, e);
    *ret_progress = r->count > 0;
    for (size_t at = 0; rc == 0 && at < r->count && !gc_must_stop(g);)
        rc = delete_some(g, r, &at, e);
    if (rc == 0 && MUTANT("gc-deletes-before-pins"))
        rc = gc_look_at_pins(g, &blocked, e);
    if (rc == 0)
        rc = delete_manifests(g, newest, e);
    return rc;
}

int gc_round(struct gc *g, bool *ret_progress, struct err *e) {
    struct round r = {0};
    round_choose(g, &r);
    int rc = r.count > 0 ? put_condemning(g, e) : 0;
    r.read_serial = g->v->read_serial;
    if (rc == 0 && !gc_must_stop(g))
        rc = round_delete(g, &r, ret_progress, e);
    free(r.items);
    condemned_list_release(&g->condemned);
    g->v->stats.gc_rounds++;
    return rc;
}

int gc_reconsider_held(struct gc *g, struct err *e) {
    if (g->held == 0 && g->pins.count == 0)
        return 0;
    struct pin_list pins;
    int rc = pin_list_once(g->v->store, &g->v->config.key, &pins, e);
    if (rc < 0)
        return rc;
    bool same = g->needs_known && pin_list_equal(&pins, &g->pins);
    pin_list_release(&pins);
    if (same)
        return 0;
    g->needs_known = false; /* moving asks what they need */
    for (size_t i = 0; i < g->objects.slot_count; i++)
        if (g->objects.slots[i].state == OBJECT_HELD)
            g->objects.slots[i].state = OBJECT_GARBAGE;
    g->garbage += g->held;
    g->garbage_bytes += g->held_bytes;
    g->held = 0;
    g->held_bytes = 0;
    return 0;
}
