/* How the controller's handlers, which block on worker threads, use catalogs, which are fibers on
 * the loop's thread; and lists that go over all pools. */
#include <stdlib.h>
#include <string.h>

#include "common/fiber.h"
#include "common/mem.h"
#include "csi/controller_internal.h"

enum { STOP_CHECK_US = 200 * 1000 };

static struct env *work_env(const struct pool_work *w) {
    const struct controller *c = rpc_call_user(w->call);
    return loop_env(c->loop);
}

static void check_stop(struct env_timer *timer) {
    struct pool_work *w = container_of(timer, struct pool_work, timer);
    const struct controller *c = rpc_call_user(w->call);
    if (atomic_load(&c->stopping) && rpc_call_cancelled(w->call))
        fiber_cancel(w->fiber);
    else
        env_timer_start(work_env(w), timer, STOP_CHECK_US);
}

static void work_fiber(void *arg) {
    struct pool_work *w = arg;
    struct controller *c = rpc_call_user(w->call);
    struct env *env = work_env(w);
    struct pool *pool;
    w->fiber = fiber_self(env);
    w->timer.fn = check_stop;
    env_timer_start(env, &w->timer, STOP_CHECK_US);
    w->rc = pools_get(c->pools, w->pool, w->secrets, &pool, w->e);
    if (w->rc == 0) {
        w->rc = w->fn(&pool->catalog, w->arg, w->e);
        pools_put(c->pools, pool);
    }
    env_timer_stop(env, &w->timer);
}

int pool_work_run(struct pool_work *work) {
    const struct controller *c = rpc_call_user(work->call);
    loop_call(c->loop, work_fiber, work);
    return work->rc;
}

int pool_of_id(const char *id, enum id_kind kind, char pool[POOL_NAME_MAX], struct err *e) {
    struct parsed_id parsed;
    int rc = id_parse(&parsed, id, e);
    if (rc == 0 && parsed.kind != kind)
        rc = -ERR_NOT_FOUND;
    if (rc)
        return err_set(e, -ERR_NOT_FOUND, "there is no %s '%.64s'",
                       kind == ID_VOLUME ? "volume" : "snapshot", id);
    memcpy(pool, parsed.pool, POOL_NAME_MAX);
    return 0;
}

/* --- lists --- */

struct names_work {
    struct controller *controller;
    struct pool_names *ret;
    struct err *e;
    int rc;
};

static void names_fiber(void *arg) {
    struct names_work *w = arg;
    w->rc = pools_names(w->controller->pools, &w->ret->names, &w->ret->count, w->e);
}

int pool_names_read(struct controller *c, struct pool_names *ret, struct err *e) {
    struct names_work w = {.controller = c, .ret = ret, .e = e};
    loop_call(c->loop, names_fiber, &w);
    return w.rc;
}

void pool_names_release(struct pool_names *n) {
    free(n->names);
    *n = (struct pool_names){0};
}

static int bad_token(struct err *e) {
    return err_set(e, -ERR_STALE, "starting_token is not one of ours; start again without one");
}

int list_walk_begin(struct list_walk *w, struct controller *c, const char *starting_token,
                    int32_t max_entries, const char *only, struct err *e) {
    *w = (struct list_walk){0};
    if (max_entries < 0)
        return err_set(e, -ERR_INVALID, "max_entries is negative");
    w->left = LIST_ENTRIES_MAX;
    if (max_entries > 0)
        w->left = MIN((size_t)max_entries, w->left);
    int rc = pool_names_read(c, &w->pools, e);
    if (rc)
        return rc;
    if (only) {
        size_t kept = 0;
        for (size_t i = 0; i < w->pools.count; i++)
            if (strcmp(w->pools.names[i], only) == 0)
                memcpy(w->pools.names[kept++], only, strlen(only) + 1);
        w->pools.count = kept;
    }
    if (starting_token[0] == '\0')
        return 0;
    const char *slash = strchr(starting_token, '/');
    if (!slash || strlen(slash + 1) >= sizeof w->token)
        return bad_token(e);
    size_t len = (size_t)(slash - starting_token);
    for (w->pool = 0; w->pool < w->pools.count; w->pool++) {
        const char *name = w->pools.names[w->pool];
        if (strlen(name) == len && memcmp(name, starting_token, len) == 0) {
            strcpy(w->token, slash + 1);
            return 0;
        }
    }
    return bad_token(e);
}

const char *list_walk_pool(const struct list_walk *w) {
    return w->left > 0 && w->pool < w->pools.count ? w->pools.names[w->pool] : NULL;
}

void list_walk_advance(struct list_walk *w, size_t count, const char *next_token) {
    CHECK(count <= w->left);
    w->left -= count;
    strcpy(w->token, next_token);
    if (next_token[0] == '\0')
        w->pool++;
}

char *list_walk_token(const struct list_walk *w, struct rpc_call *call) {
    if (w->pool >= w->pools.count)
        return (char *)"";
    return rpc_printf(call, "%s/%s", w->pools.names[w->pool], w->token);
}
