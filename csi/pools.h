/* The pools of the pool file, open: a catalog for each that is used, and for each set of
 * credentials that a call brings along.
 *
 * The file is looked at again whenever a pool is asked for; a pool whose lines changed is opened
 * anew, and the old store is closed when the last call that uses it ends. */
#pragma once

#include "common/loop.h"
#include "portalbd/catalog/catalog.h"
#include "portalbd/catalog/pool_file.h"

enum {
    POOLS_IDLE_MAX = 16, /* stores with credentials of calls that are kept open for the next one */
    POOLS_GIVE_UP_US = 20 * 1000 * 1000, /* a request to a store that does not answer ends then */
};

struct pools_config {
    struct loop *loop;       /* borrowed */
    const char *path;        /* of the pool file; borrowed */
    const char *cluster_id;  /* borrowed; NULL or "": none */
    uint64_t give_up_us;     /* 0: POOLS_GIVE_UP_US */
    struct metrics *metrics; /* borrowed; NULL: none */
};

struct pools;
/* Any thread, before the loop runs, or on its thread. */
struct pools *pools_new(const struct pools_config *config);
void pools_free(struct pools *p); /* on the loop's thread; no pool may be in use */

/* A pool in use. */
struct pool {
    struct catalog catalog;
};

/* fiber. The pool of this name with the file's credentials, or those in `secrets` (NULL or empty:
 * none): access_key_id, secret_access_key, session_token. The first use makes sure that the pool
 * exists, is of a format that we know, and is our cluster's.
 * -ERR_CONFIG: no pool has this name, or it cannot be used; -ERR_INVALID: secrets make no sense. */
int pools_get(struct pools *p, const char *name, const struct string_map *secrets,
              struct pool **ret, struct err *e);
void pools_put(struct pools *p, struct pool *pool);

/* fiber. Names of all pools, in the order of the file. */
int pools_names(struct pools *p, char (**ret)[POOL_NAME_MAX], size_t *ret_count, struct err *e);
