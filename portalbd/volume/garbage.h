/* What GC rounds are made of: names of the objects under a volume's prefix, lists of what a
 * manifest condemns, and what the pins of a volume need of it. For the writer of a live volume
 * (gc.c) and for whoever empties a deleted one (destroy.c). Owner thread; fibers where it says so.
 */
#pragma once

#include "portalbd/volume/pins.h"

enum {
    PREFIX_PAGE = 1000, /* keys that are listed, or deleted, at a time */
};

/* --- what a volume's prefix holds --- */

enum object_class {
    CLASS_KEEP,     /* fence, pin, or a key that is not ours */
    CLASS_CONTENT,  /* segment, moved segment, part or index of a run */
    CLASS_MANIFEST, /* number is set */
};

struct object_name {
    enum object_class class;
    uint8_t kind;        /* obj_kind of CONTENT */
    uint64_t number;     /* OBJ_LOG, MANIFEST */
    struct random_id id; /* OBJ_MOVED, OBJ_MAP; zero otherwise */
};

/* prefix_len: of "volumes/<id>/", which the key starts with. */
struct object_name object_classify(const struct obj_entry *o, size_t prefix_len);
/* A total order of CONTENT: kind, number, id. */
int object_name_compare(const struct object_name *a, const struct object_name *b);
/* The key of CONTENT. */
void object_key(char key[KEY_MAX], const struct volume_key *v, const struct object_name *n);

/* fiber. Calls fn for a page of the volume's objects at a time until it fails. */
int prefix_for_each_page(struct objstore *s, const struct volume_key *v,
                         int (*fn)(void *arg, const struct obj_list *page, size_t prefix_len,
                                   struct err *e),
                         void *arg, struct err *e);

/* --- condemned ranges --- */

struct condemned_list {
    struct condemned_range *items; /* owned; room for ROOT_LIST_MAX */
    size_t count;
};
void condemned_list_release(struct condemned_list *l);
/* False: the list is full, and this is not in it. */
bool condemned_list_add(struct condemned_list *l, const struct object_name *n);
/* Replaces what the manifest condemns. The list is empty afterwards. */
void condemned_list_move(struct condemned_list *l, struct manifest *m);
bool manifest_condemns(const struct manifest *m, const struct object_name *n);

/* --- what pins need of this volume's own prefix --- */

struct needed_range {
    uint64_t first, count;
};
struct pinned_run {
    struct volume_key owner;
    struct obj_ref index;
    uint64_t entry_count;
    struct volume_key *volumes; /* owned; the table of a root that names it */
    size_t volume_count;
    struct object_name *evacuated; /* owned; by all roots that name it; own objects, sorted */
    size_t evacuated_count;
};
struct pin_needs {
    struct needed_range *log; /* owned */
    size_t log_count;
    struct random_id *ids; /* owned; of map/ and moved/ */
    size_t id_count;
    struct pinned_run *runs; /* owned; that their roots name, each once */
    size_t run_count;
    bool foreign; /* something of another volume is needed, too */
    /* May be NULL: told of each own object that a tail or a run of a pin needs, and how many bytes
     * of it that run names (UINT64_MAX: all). The same object may come again. */
    void (*note)(void *arg, const struct object_name *n, uint64_t bytes);
    void *note_arg;
};
void pin_needs_release(struct pin_needs *n);

/* fiber. Adds what the pins of the list hold. *ret_blocked: a claim has no root, or what a root
 * names went while we looked (its pin is being released): nothing may be deleted now. *ret_real:
 * pins that hold something or may come to. Costs 1 for each pin that has a root, and 1 for each run
 * that their roots name. */
int pin_needs_load(struct pin_needs *n, struct objstore *s, const struct volume_key *v,
                   const struct pin_list *pins, bool *ret_blocked, size_t *ret_real, struct err *e);
/* After pin_needs_load. */
bool pin_needs_object(const struct pin_needs *n, const struct object_name *o);

/* Room for one more item in an array that grows at powers of two. */
void *grown_array(void *items, size_t count, size_t size);
