/* The objects under a volume's own prefix, as far as its writer knows them: what GC looks through
 * for garbage. A hash table of about 40 bytes an object. Owner thread. */
#pragma once

#include "portalbd/volume/garbage.h"

enum object_state {
    OBJECT_NONE,    /* a free slot */
    OBJECT_LIVE,    /* or not known to be dead */
    OBJECT_GARBAGE, /* no root of ours needs it, nor ever will */
    OBJECT_HELD,    /* the same, but a pin needs it */
};

struct own_object {
    struct random_id id; /* OBJ_LOG: its number in the first eight bytes */
    uint32_t size;       /* bytes; 0: not known */
    uint32_t live;       /* bytes that runs of the marked root name */
    uint32_t pinned;     /* the most that one run or tail of a pin names, as of the last look */
    uint16_t mark;       /* of the last round that found it named */
    uint8_t kind;        /* obj_kind */
    uint8_t state;       /* object_state */
};

struct own_objects {
    struct own_object *slots; /* owned; open addressing, a power of two */
    size_t slot_count;
    size_t count;
    uint64_t bytes; /* of all sizes that are known */
};

void own_objects_init(struct own_objects *t);
void own_objects_release(struct own_objects *t);
struct own_object *own_objects_find(struct own_objects *t, const struct object_name *n);
/* Finds it or adds it as LIVE. Borrowed until the next change of the table. */
struct own_object *own_objects_add(struct own_objects *t, const struct object_name *n,
                                   uint32_t size);
/* Nothing when it is not there. */
void own_objects_remove(struct own_objects *t, const struct object_name *n);

struct object_name own_object_name(const struct own_object *o);
