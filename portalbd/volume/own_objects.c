/* A hash table with linear probing. Removing moves the entries behind the hole up, so there are no
 * tombstones and a search ends at the first free slot. */
#include "portalbd/volume/own_objects.h"

#include <stdlib.h>

enum { SLOTS_MIN = 64 };

void own_objects_init(struct own_objects *t) {
    *t = (struct own_objects){.slot_count = SLOTS_MIN};
    t->slots = xcalloc(t->slot_count, sizeof *t->slots);
}

void own_objects_release(struct own_objects *t) {
    free(t->slots);
    *t = (struct own_objects){0};
}

static struct random_id id_of(const struct object_name *n) {
    struct random_id id = n->id;
    if (n->kind == OBJ_LOG) {
        id = (struct random_id){0};
        memcpy(id.bytes, &n->number, sizeof n->number);
    }
    return id;
}

struct object_name own_object_name(const struct own_object *o) {
    CHECK(o->state != OBJECT_NONE);
    struct object_name n = {.class = CLASS_CONTENT, .kind = o->kind};
    if (o->kind == OBJ_LOG)
        memcpy(&n.number, o->id.bytes, sizeof n.number);
    else
        n.id = o->id;
    return n;
}

static size_t home(const struct own_objects *t, uint8_t kind, const struct random_id *id) {
    uint64_t a;
    memcpy(&a, id->bytes, sizeof a);
    a = (a ^ kind) * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(a >> 32) & (t->slot_count - 1);
}

/* Where it is, or the free slot where it would go. */
static size_t probe(const struct own_objects *t, uint8_t kind, const struct random_id *id) {
    size_t i = home(t, kind, id);
    while (t->slots[i].state != OBJECT_NONE &&
           (t->slots[i].kind != kind || !random_id_equal(&t->slots[i].id, id)))
        i = (i + 1) & (t->slot_count - 1);
    return i;
}

struct own_object *own_objects_find(struct own_objects *t, const struct object_name *n) {
    CHECK(n->class == CLASS_CONTENT);
    struct random_id id = id_of(n);
    struct own_object *o = &t->slots[probe(t, n->kind, &id)];
    return o->state == OBJECT_NONE ? NULL : o;
}

static void grow(struct own_objects *t) {
    struct own_objects bigger = *t;
    bigger.slot_count *= 2;
    bigger.slots = xcalloc(bigger.slot_count, sizeof *bigger.slots);
    for (size_t i = 0; i < t->slot_count; i++) {
        const struct own_object *o = &t->slots[i];
        if (o->state != OBJECT_NONE)
            bigger.slots[probe(&bigger, o->kind, &o->id)] = *o;
    }
    free(t->slots);
    *t = bigger;
}

struct own_object *own_objects_add(struct own_objects *t, const struct object_name *n,
                                   uint32_t size) {
    CHECK(n->class == CLASS_CONTENT);
    struct random_id id = id_of(n);
    size_t i = probe(t, n->kind, &id);
    if (t->slots[i].state == OBJECT_NONE) {
        if ((t->count + 1) * 4 > t->slot_count * 3) {
            grow(t);
            i = probe(t, n->kind, &id);
        }
        t->slots[i] = (struct own_object){.id = id, .kind = n->kind, .state = OBJECT_LIVE};
        t->count++;
    }
    struct own_object *o = &t->slots[i];
    if (o->size == 0 && size > 0) {
        o->size = size;
        t->bytes += size;
    }
    CHECK(t->count < t->slot_count);
    return o;
}

void own_objects_remove(struct own_objects *t, const struct object_name *n) {
    CHECK(n->class == CLASS_CONTENT);
    struct random_id id = id_of(n);
    size_t mask = t->slot_count - 1, hole = probe(t, n->kind, &id);
    if (t->slots[hole].state == OBJECT_NONE)
        return;
    CHECK(t->bytes >= t->slots[hole].size);
    t->bytes -= t->slots[hole].size;
    t->count--;
    for (size_t i = (hole + 1) & mask; t->slots[i].state != OBJECT_NONE; i = (i + 1) & mask) {
        size_t want = home(t, t->slots[i].kind, &t->slots[i].id);
        if (((i - want) & mask) >= ((i - hole) & mask)) { /* the hole lies on its way */
            t->slots[hole] = t->slots[i];
            hole = i;
        }
    }
    t->slots[hole] = (struct own_object){0};
}
