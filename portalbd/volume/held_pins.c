/* Giving up the pins that a clone holds in its source, once nothing of the source is needed any
 * more (protocol I13; model chain).
 *
 * A clone holds one pin, in its direct source, for everything of others that its root names: what
 * lies behind the source is held by the source's own pins. So the question is only whether anything
 * foreign is named at all: by the newest stored root, or by a pin of our own (a snapshot of the
 * clone, a clone of it). Asked like a GC round asks:
 *
 *   nothing foreign in the root --> LIST our pins until two listings agree; nothing foreign in
 *   their roots, and no claim without a root --> is our manifest the newest? --> wait for reads
 * that began with an older root --> delete claim and root --> the next manifest holds no pin
 *
 * I1  Our roots come out of each other: what the newest does not name, no later one will; but a
 *     restore brings an older root back, which a pin of ours holds: that is why pins are asked.
 * I2  The manifest that still names the pin is there until the pin has gone: who dies in between is
 *     followed by somebody who does it again. */
#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/volume/flatten.h"

/* Does the root, or a run of it, name anything of another volume? Evacuated objects too: an entry
 * of theirs keeps a run from being read alone. */
bool gc_needs_others(const struct gc *g) {
    const struct volume *v = g->v;
    const struct root *root = &v->manifest.root;
    CHECK(v->run_count == root->run_count);
    for (size_t i = 0; i < root->tail_count; i++)
        if (root->tail[i].volume != 0)
            return true;
    for (size_t i = 0; i < root->evacuated_count; i++)
        if (root->evacuated[i].volume != 0)
            return true;
    for (size_t i = 0; i < v->run_count; i++) {
        const struct run_index *x = run_reader_index(v->runs[i]);
        if (root->runs[i].index.volume != 0)
            return true;
        for (size_t p = 0; p < x->part_count; p++)
            if (!gc_is_own(g, &x->volumes[x->parts[p].ref.volume]))
                return true;
        for (size_t u = 0; u < x->usage_count; u++)
            if (!run_usage_is_free(&x->usage[u]) &&
                !gc_is_own(g, &x->volumes[x->usage[u].ref.volume]))
                return true;
    }
    return false;
}

/* fiber. */
static int forget_pins(struct gc *g, struct err *e) {
    struct volume *v = g->v;
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "GC was cancelled");
    struct manifest m = manifest_next(&v->manifest);
    m.held_pin_count = 0;
    m.depth = 0;
    m.root.volume_count = 1; /* nothing names the others: gc_needs_others */
    int rc = manifest_advance(v, &m, e);
    fiber_mutex_unlock(&v->manifest_mutex);
    return rc;
}

int gc_release_held_pins(struct gc *g, struct err *e) {
    struct volume *v = g->v;
    const struct manifest *m = &v->manifest;
    if (m->held_pin_count == 0 || gc_needs_others(g))
        return 0;
    uint64_t serial = v->read_serial;
    bool blocked = false;
    int rc = gc_look_at_pins(g, &blocked, e);
    bool held = g->needs.foreign && !MUTANT("held-pin-ignores-pins");
    if (rc < 0 || held || (blocked && !MUTANT("held-pin-ignores-claims")))
        return rc;
    rc = gc_check_newest(g, e);
    if (rc == 0)
        rc = read_wait_older(v, serial, e);
    for (size_t i = 0; rc == 0 && i < m->held_pin_count && !gc_must_stop(g); i++) {
        struct held_pin h = m->held_pins[i]; /* the manifest changes while we wait */
        FAULT_POINT("before a held pin goes");
        rc = pin_release(v->store, &h.volume, &h.pin, e);
    }
    return rc == 0 && !gc_must_stop(g) ? forget_pins(g, e) : rc;
}
