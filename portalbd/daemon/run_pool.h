/* Whose a run folder is.
 *
 * Control sockets, locks and journals are named by the id of their volume, and ids of two pools of
 * one name are equal. So a folder that daemons share belongs, for each name of a pool, to one pool:
 * the file pool-<name> in it (0644, a line of JSON) says which, and every daemon of that pool holds
 * a shared lock (flock) on it for its life. The file stays when they end; another pool takes its
 * place only when nothing of the former is alive there. */
#pragma once

#include "common/env.h"
#include "common/err.h"
#include "portalbd/format/ids.h"

struct run_pool {
    char name[POOL_NAME_MAX];
    char uuid[RANDOM_ID_HEX]; /* of the pool's record; "": not known */
    const char *where;        /* borrowed; the store, for people: no credentials in it */
};

/* fiber. Makes the folder, and makes it this pool's. *ret_fd holds it until it is closed.
 * -ERR_IN_USE: it is another pool's of this name, of which something is alive. */
int run_pool_take(struct env *env, const char *dir, const struct run_pool *p, int *ret_fd,
                  struct err *e);
/* The same for a daemon that follows one which had taken it: whose it is has been seen. *ret_fd: -1
 * when there is no file. */
void run_pool_follow(const char *dir, const char *pool_name, int *ret_fd);

/* Is it this pool's, or nobody's? It stays so until *ret_fd (or -1) is closed. -ERR_NOT_FOUND: it
 * is another's, so that no daemon of this pool is there. Blocks for some milliseconds at most. */
int run_pool_hold(const char *dir, const struct run_pool *p, int *ret_fd, struct err *e);
/* Would run_pool_take work now? */
int run_pool_check(const char *dir, const struct run_pool *p, struct err *e);
/* Does the file say this very text of the pool's store? Also when there is no file. */
bool run_pool_is_at(const char *dir, const char *pool_name, const char *where);
