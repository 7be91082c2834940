/* Object store calls for fibers: submit, wait, return. In a cancelled fiber they return
 * -ERR_CANCELLED without any effect; a fiber that is cancelled during one cancels the request and
 * gets -ERR_CANCELLED (the effect is then unknown). */
#pragma once

#include "common/fiber.h"
#include "portalbd/objstore/objstore.h"

/* fiber. The whole object into *ret (appended to an empty buf; the caller releases it). */
int objstore_get(struct objstore *s, const char *key, size_t size_max, struct buf *ret,
                 struct err *e);
/* fiber. [off, off + len) of it. Shorter than len only where the object ends. */
int objstore_get_range(struct objstore *s, const char *key, uint64_t off, size_t len,
                       struct buf *ret, struct err *e);
/* fiber. The last len bytes, or all of a shorter one. */
int objstore_get_suffix(struct objstore *s, const char *key, size_t len, struct buf *ret,
                        uint64_t *ret_object_size, struct err *e);
/* fiber. Put if absent. `ret_existing` (may be NULL) is filled when -ERR_EXISTS. */
int objstore_put(struct objstore *s, const char *key, struct view body, struct buf *ret_existing,
                 struct err *e);
int objstore_put_parts(struct objstore *s, const char *key, const struct view *parts,
                       size_t part_count, struct err *e);
/* fiber. Any number of keys, in requests of OBJ_LIST_MAX. */
int objstore_delete(struct objstore *s, const char *const *keys, size_t key_count, struct err *e);
int objstore_delete_one(struct objstore *s, const char *key, struct err *e);

struct obj_list {
    struct obj_entry *entries; /* owned, keys too */
    size_t count;
    bool more; /* cut at keys_max */
};
void obj_list_release(struct obj_list *list);
/* fiber. Up to keys_max keys with this prefix behind start_after (may be NULL), in as many pages as
 * that takes. */
int objstore_list(struct objstore *s, const char *prefix, const char *start_after, size_t keys_max,
                  struct obj_list *ret, struct err *e);
