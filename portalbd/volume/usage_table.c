/* The tables of a run that is being made: which volumes and objects it names, under which numbers,
 * and how many bytes of them.
 *
 * Pages name objects by their number. A run that takes over parts of the one before it therefore
 * inherits that run's numbers; what became free of them is given to new objects, so that the table
 * does not grow with time.
 *
 * I1  An object has one number as long as the table lives, and a number one object. */
#include "portalbd/volume/usage_table.h"

#include <stdlib.h>

enum { SLOTS_MIN = 64 };

void usage_table_init(struct usage_table *t, struct run_index *index) {
    CHECK(index->volume_count == 0 && index->usage_count == 0);
    *t = (struct usage_table){.index = index, .slot_count = SLOTS_MIN};
    t->slots = xcalloc(t->slot_count, sizeof *t->slots);
    index->volumes = xcalloc(RUN_VOLUMES_MAX, sizeof *index->volumes);
}

void usage_table_release(struct usage_table *t) {
    free(t->slots);
    *t = (struct usage_table){0};
}

static bool is_taken(const struct run_usage *u) {
    return u->ref.seq != 0 || u->ref.kind != OBJ_LOG;
}

static size_t slot_of(const struct usage_table *t, const struct obj_ref *ref) {
    uint64_t id;
    memcpy(&id, ref->id.bytes, sizeof id);
    uint64_t h = (ref->seq ^ id) * UINT64_C(0x9e3779b97f4a7c15);
    h = (h ^ ((uint64_t)ref->volume << 8 | ref->kind)) * UINT64_C(0xff51afd7ed558ccd);
    return (size_t)(h >> 32) & (t->slot_count - 1);
}

/* The slot where the reference is, or would go. */
static uint32_t *find_slot(struct usage_table *t, const struct obj_ref *ref) {
    size_t i = slot_of(t, ref);
    while (t->slots[i] != 0 && !obj_ref_equal(&t->index->usage[t->slots[i] - 1].ref, ref))
        i = (i + 1) & (t->slot_count - 1);
    return &t->slots[i];
}

/* Makes the slots anew, so that at most half of them are used. */
static void make_slots(struct usage_table *t) {
    while (t->slots_used * 2 > t->slot_count)
        t->slot_count *= 2;
    free(t->slots);
    t->slots = xcalloc(t->slot_count, sizeof *t->slots);
    for (size_t i = 0; i < t->index->usage_count; i++)
        if (is_taken(&t->index->usage[i]))
            *find_slot(t, &t->index->usage[i].ref) = (uint32_t)i + 1;
}

void usage_table_inherit(struct usage_table *t, const struct run_index *base) {
    struct run_index *x = t->index;
    CHECK(x->volume_count == 0 && x->usage_count == 0);
    CHECK(base->volume_count <= RUN_VOLUMES_MAX && base->usage_count <= RUN_USAGE_MAX);
    memcpy(x->volumes, base->volumes, base->volume_count * sizeof *base->volumes);
    x->volume_count = base->volume_count;
    t->usage_cap = base->usage_count;
    x->usage = xcalloc(MAX(base->usage_count, 1), sizeof *x->usage);
    memcpy(x->usage, base->usage, base->usage_count * sizeof *base->usage);
    x->usage_count = base->usage_count;
    for (size_t i = 0; i < x->usage_count; i++)
        t->slots_used += is_taken(&x->usage[i]);
    make_slots(t);
}

int usage_table_volume(struct usage_table *t, const struct volume_key *v, uint16_t *ret,
                       struct err *e) {
    struct run_index *x = t->index;
    for (size_t i = 0; i < x->volume_count; i++) {
        if (volume_key_equal(&x->volumes[i], v)) {
            *ret = (uint16_t)i;
            return 0;
        }
    }
    if (x->volume_count == RUN_VOLUMES_MAX)
        return err_set(e, -ERR_OVERLOAD, "a map run of more than %d volumes", RUN_VOLUMES_MAX);
    *ret = (uint16_t)x->volume_count;
    x->volumes[x->volume_count++] = *v;
    return 0;
}

/* A free number: the first one, else a new one. */
static int take_number(struct usage_table *t, uint32_t *ret, struct err *e) {
    struct run_index *x = t->index;
    while (t->free_from < x->usage_count && is_taken(&x->usage[t->free_from]))
        t->free_from++;
    if (t->free_from == RUN_USAGE_MAX)
        return err_set(e, -ERR_OVERLOAD, "a map run of more than %d objects", RUN_USAGE_MAX);
    if (t->free_from == x->usage_count) {
        if (x->usage_count == t->usage_cap) {
            t->usage_cap = MAX(t->usage_cap + t->usage_cap / 2, 16);
            x->usage = xrealloc(x->usage, t->usage_cap * sizeof *x->usage);
        }
        x->usage_count++;
    }
    *ret = (uint32_t)t->free_from;
    return 0;
}

int usage_table_number(struct usage_table *t, const struct obj_ref *ref, uint32_t *ret,
                       struct err *e) {
    CHECK(ref->volume < t->index->volume_count);
    uint32_t *slot = find_slot(t, ref);
    if (*slot == 0) {
        uint32_t number;
        int rc = take_number(t, &number, e);
        if (rc < 0)
            return rc;
        t->index->usage[number] = (struct run_usage){.ref = *ref};
        CHECK(is_taken(&t->index->usage[number]));
        *slot = number + 1;
        *ret = number;
        if (++t->slots_used * 2 > t->slot_count)
            make_slots(t);
        return 0;
    }
    *ret = *slot - 1;
    return 0;
}

void usage_table_finish(struct usage_table *t) {
    struct run_index *x = t->index;
    bool named[RUN_VOLUMES_MAX] = {false};
    uint16_t now[RUN_VOLUMES_MAX] = {0};
    for (size_t i = 0; i < x->usage_count; i++) {
        if (run_usage_is_free(&x->usage[i]))
            x->usage[i] = (struct run_usage){0};
        else
            named[x->usage[i].ref.volume] = true;
    }
    while (x->usage_count > 0 && run_usage_is_free(&x->usage[x->usage_count - 1]))
        x->usage_count--;
    for (size_t i = 0; i < x->part_count; i++)
        named[x->parts[i].ref.volume] = true;
    size_t kept = 0;
    for (size_t i = 0; i < x->volume_count; i++) {
        if (!named[i])
            continue;
        now[i] = (uint16_t)kept;
        x->volumes[kept++] = x->volumes[i];
    }
    x->volume_count = kept;
    for (size_t i = 0; i < x->usage_count; i++)
        if (!run_usage_is_free(&x->usage[i]))
            x->usage[i].ref.volume = now[x->usage[i].ref.volume];
    for (size_t i = 0; i < x->part_count; i++)
        x->parts[i].ref.volume = now[x->parts[i].ref.volume];
}
