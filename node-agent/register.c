/* The node's registration: one fiber that looks at the pool file every LOOK_US and registers where
 * it is not registered yet. A pool that does not answer is tried again at the next look; it does
 * not keep the others waiting for longer than GIVE_UP_US. */
#include "node-agent/register.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/catalog/catalog.h"
#include "portalbd/catalog/pool_file.h"
#include "portalbd/objstore/url.h"

enum {
    LOOK_US = 10 * 1000 * 1000,
    GIVE_UP_US = 15 * 1000 * 1000, /* for one request to one pool */
};

struct registrar {
    struct registrar_config config;
    struct env *env;
    struct fiber *fiber; /* NULL once it has ended */
    struct waitq ended;
    struct pool_file file;
    bool have_file;
    bool registered[POOL_FILE_POOLS_MAX]; /* by index in the file */
    struct log_limit file_trouble;
    struct log_limit pool_trouble;
    struct metrics_group *metrics;
    struct metrics_gauge missing;
};

struct read_work {
    struct registrar *r;
    bool changed;
    struct pool_file file;
    int rc;
    struct err e;
};

static void read_work(void *arg) {
    struct read_work *w = arg;
    struct registrar *r = w->r;
    if (r->have_file && !pool_file_changed(r->config.pools_path, &r->file))
        return;
    w->rc = pool_file_read(r->config.pools_path, &w->file, &w->e);
    w->changed = w->rc == 0;
}

static bool was_registered(const struct registrar *r, const struct pool_config *pool) {
    for (size_t i = 0; r->have_file && i < r->file.count; i++)
        if (pool_config_equal(&r->file.pools[i], pool))
            return r->registered[i];
    return false;
}

static void look_at_file(struct registrar *r) {
    struct read_work w = {.r = r};
    fiber_run_job(r->env, read_work, &w);
    if (w.rc < 0)
        log_warn_limited(&r->file_trouble, "the pool file is not read; pools stay as they were",
                         LOG_ERR(&w.e));
    if (!w.changed)
        return;
    bool registered[POOL_FILE_POOLS_MAX] = {0};
    for (size_t i = 0; i < w.file.count; i++)
        registered[i] = was_registered(r, &w.file.pools[i]);
    memcpy(r->registered, registered, sizeof registered);
    if (r->have_file)
        pool_file_release(&r->file);
    r->file = w.file;
    r->have_file = true;
    log_info("pool file read", LOG_STR("file", r->config.pools_path),
             LOG_U64("pools", r->file.count));
    if (r->config.on_pools)
        r->config.on_pools(r->config.arg);
}

static enum objstore_addressing addressing_of(const char *word) {
    if (strcmp(word, "path") == 0)
        return OBJ_ADDRESSING_PATH;
    return strcmp(word, "virtual") == 0 ? OBJ_ADDRESSING_VIRTUAL : OBJ_ADDRESSING_AUTO;
}

static const char *or_null(const char *text) {
    return text && text[0] ? text : NULL;
}

static int register_in(struct registrar *r, const struct pool_config *pool, struct err *e) {
    const struct objstore_config config = {
        .url = pool->url,
        .endpoint = or_null(pool->endpoint),
        .region = or_null(pool->region),
        .access_key_id = or_null(pool->access_key_id),
        .secret_access_key = &pool->secret_access_key,
        .session_token = &pool->session_token,
        .addressing = addressing_of(pool->addressing),
        .ca_file = or_null(pool->ca_file),
        .give_up_us = GIVE_UP_US,
        .pool = pool->name,
    };
    struct objstore *store;
    int rc = objstore_open(r->config.loop, &config, &store, e);
    if (rc < 0)
        return rc;
    struct catalog catalog;
    catalog_init(&catalog, r->env, store, pool->name);
    rc = catalog_node_register(&catalog, r->config.node_id, r->config.version, e);
    objstore_close(store);
    return rc;
}

static void register_missing(struct registrar *r) {
    int64_t missing = 0;
    for (size_t i = 0; r->have_file && i < r->file.count; i++) {
        struct err e;
        const struct pool_config *pool = &r->file.pools[i];
        if (r->registered[i])
            continue;
        int rc = register_in(r, pool, &e);
        if (rc == -ERR_CANCELLED)
            return;
        r->registered[i] = rc == 0;
        missing += rc < 0;
        if (rc == 0)
            log_info("node registered", LOG_STR("pool", pool->name),
                     LOG_STR("node_id", r->config.node_id));
        else
            log_warn_limited(&r->pool_trouble, "the node is not registered; tried again soon",
                             LOG_STR("pool", pool->name), LOG_ERR(&e));
    }
    metrics_gauge_set(&r->missing, missing);
}

static void registrar_main(void *arg) {
    struct registrar *r = arg;
    do {
        look_at_file(r);
        register_missing(r);
    } while (fiber_sleep_us(r->env, LOOK_US) == 0);
    r->fiber = NULL;
    waitq_wake_all(&r->ended);
}

struct registrar *registrar_start(const struct registrar_config *config) {
    struct registrar *r = NEW(struct registrar);
    r->config = *config;
    r->env = loop_env(config->loop);
    waitq_init(&r->ended);
    r->metrics = metrics_group_new(config->metrics, NULL);
    metrics_gauge_register(r->metrics, &r->missing, "portalbd_agent_pools_not_registered",
                           "Pools of the pool file in which this node is not registered.", NULL);
    r->fiber = fiber_start(r->env, registrar_main, r);
    return r;
}

void registrar_stop(struct registrar *r) {
    if (r->fiber)
        fiber_cancel(r->fiber);
    while (r->fiber)
        if (waitq_wait(r->env, &r->ended) < 0)
            return;
    if (r->have_file)
        pool_file_release(&r->file);
    metrics_group_free(r->metrics);
    free(r);
}
