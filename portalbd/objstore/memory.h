/* A store in memory: for tests, the simulator and `memory:` pools. What it keeps may be shared by
 * several handles, each with an env of its own, also on different threads. */
#pragma once

#include "portalbd/objstore/objstore.h"

struct memory_store;

struct memory_store *memory_store_new(void);
/* After every handle is closed. */
void memory_store_free(struct memory_store *m);

/* A handle; `m` is borrowed. A request takes effect in a later turn of env, then it is answered;
 * one that is cancelled before has no effect. */
struct objstore *objstore_memory_open(struct env *env, struct memory_store *m);

/* A handle on a store of its own, which goes with it. */
struct objstore *objstore_memory_new(struct env *env);

/* For tests and the simulator: at once, without a request. Any thread. A view of what is stored is
 * borrowed until that object is deleted or replaced. */
size_t memory_store_count(struct memory_store *m);
bool memory_store_at(struct memory_store *m, size_t index, const char **ret_key, struct view *ret);
bool memory_store_find(struct memory_store *m, const char *key, struct view *ret);
void memory_store_replace(struct memory_store *m, const char *key, struct view body);
bool memory_store_remove(struct memory_store *m, const char *key);
