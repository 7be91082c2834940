/* portalctl: finds the pool, volumes and snapshots by name or id, and the daemons that serve them.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/mem.h"
#include "portalbd/control/client.h"
#include "portalbd/daemon/portalctl_internal.h"

/* --- finding things --- */

bool ctl_is_id(const char *text, enum id_kind kind) {
    struct parsed_id id;
    return id_parse(&id, text, NULL) == 0 && id.kind == kind;
}

bool ctl_is_named(const char *id, const char *name) {
    struct parsed_id parsed;
    char hash[33];
    if (id_parse(&parsed, id, NULL) < 0)
        return false;
    name_hash(hash, name);
    return strcmp(id, name) == 0 || strcmp(hash, parsed.name_hash) == 0;
}

/* A daemon waits for such a store; a person wants to know. */
static void on_trouble(void *arg, const struct err *why) {
    struct ctl *c = arg;
    if (!why || (why->code != -ERR_NO_BUCKET && why->code != -ERR_DENIED))
        return;
    c->refused = *why;
    fiber_cancel(c->fiber);
}

int ctl_open_pool(struct ctl *c, struct err *e) {
    struct pool_how how = {.wanted = c->wanted_pool[0] ? c->wanted_pool : NULL,
                           .give_up_us = c->config.timeout_us,
                           .make_folder = c->command == POOL_CREATE,
                           .on_trouble = on_trouble,
                           .arg = c};
    int rc = pool_open(c->loop, &c->config.pool, &how, &c->pool, e);
    if (rc < 0)
        return rc;
    c->catalog = &c->pool.catalog;
    return 0;
}

int ctl_need_pool(struct ctl *c, struct err *e) {
    if (c->catalog)
        return 0;
    int rc = ctl_open_pool(c, e);
    if (rc < 0 || c->command == POOL_CREATE)
        return rc;
    struct pool_record record;
    struct pool_create any = {.allow_other_cluster = true};
    rc = catalog_pool_check(c->catalog, &any, &record, e);
    if (rc == 0) {
        memcpy(c->run_pool.name, c->pool.name, sizeof c->run_pool.name);
        random_id_to_hex(&record.uuid, c->run_pool.uuid);
        c->run_pool.where = c->pool.where;
        pool_record_release(&record);
    }
    if (c->command != POOL_DELETE)
        return rc;
    if (rc == -ERR_NOT_FOUND)
        return err_set(e, rc, "there is no pool here: nothing was deleted");
    return rc == -ERR_CORRUPT || rc == -ERR_UNSUPPORTED ? 0 : rc; /* broken or newer: a pool */
}

int ctl_find_volume(struct ctl *c, const char *name, struct volume_info *ret, struct err *e) {
    int rc = ctl_need_pool(c, e);
    if (rc < 0)
        return rc;
    return ctl_is_id(name, ID_VOLUME) ? catalog_volume_get(c->catalog, name, ret, e)
                                      : catalog_volume_find(c->catalog, name, ret, e);
}

int ctl_find_snapshot(struct ctl *c, const char *name, struct snapshot_info *ret, struct err *e) {
    int rc = ctl_need_pool(c, e);
    if (rc < 0)
        return rc;
    return ctl_is_id(name, ID_SNAPSHOT) ? catalog_snapshot_get(c->catalog, name, ret, e)
                                        : catalog_snapshot_find(c->catalog, name, ret, e);
}

/* --- the run folder --- */

static int hold_run_dir(const struct ctl *c, int *ret_fd, struct err *e) {
    *ret_fd = -1;
    return c->run_pool.uuid[0] ? run_pool_hold(c->config.run_dir, &c->run_pool, ret_fd, e) : 0;
}

static void let_run_dir_go(int fd) {
    if (fd >= 0)
        close(fd);
}

bool ctl_run_dir_is_ours(const struct ctl *c) {
    int fd;
    int rc = hold_run_dir(c, &fd, NULL);
    let_run_dir_go(fd);
    return rc != -ERR_NOT_FOUND;
}

bool ctl_daemon_is_live(const struct ctl *c, const char *id) {
    return ctl_run_dir_is_ours(c) && control_is_live(c->config.run_dir, id);
}

int ctl_check_store_of(struct ctl *c, const char *id, struct err *e) {
    const struct pool_options *o = &c->config.pool;
    struct parsed_id parsed;
    if (!o->store || id_parse(&parsed, id, NULL) < 0)
        return 0;
    CLEANUP_FREE char *where = pool_where(o->store, o->endpoint);
    if (run_pool_is_at(c->config.run_dir, parsed.pool, where))
        return 0;
    memcpy(c->wanted_pool, parsed.pool, sizeof c->wanted_pool);
    int rc = ctl_need_pool(c, e);
    if (rc < 0)
        return rc;
    int fd;
    rc = hold_run_dir(c, &fd, e);
    let_run_dir_go(fd);
    if (rc == -ERR_NOT_FOUND)
        e->code = rc = -ERR_IN_USE;
    return rc;
}

int ctl_ask(struct ctl *c, const char *volume, const char *verb, json_t *args, json_t **ret,
            struct err *e) {
    int fd;
    int rc = hold_run_dir(c, &fd, e);
    if (rc == 0)
        rc = control_call(c->config.run_dir, volume, verb, args, c->config.timeout_us, ret, e);
    let_run_dir_go(fd);
    json_decref(args);
    return rc;
}

/* Which pool's volumes the options mean; NULL: any. */
static const char *pool_of_options(const struct ctl *c) {
    const struct pool_options *o = &c->config.pool;
    return o->pool ? o->pool : o->store ? POOL_NAME_DEFAULT : NULL;
}

static bool is_meant(const struct ctl *c, const char *id, const char *name) {
    struct parsed_id parsed;
    const char *pool = pool_of_options(c);
    if (!ctl_is_named(id, name))
        return false;
    return !pool || strcmp(id, name) == 0 ||
           (id_parse(&parsed, id, NULL) == 0 && strcmp(parsed.pool, pool) == 0);
}

bool ctl_find_daemon(struct ctl *c, const char *name, char ret_id[ID_MAX]) {
    char **ids = NULL;
    size_t count = 0;
    bool found = false;
    if (control_list(c->config.run_dir, &ids, &count, NULL) < 0)
        return false;
    for (size_t i = 0; i < count; i++) {
        if (!found && is_meant(c, ids[i], name) && control_is_live(c->config.run_dir, ids[i])) {
            memcpy(ret_id, ids[i], strlen(ids[i]) + 1);
            found = true;
        }
        free(ids[i]);
    }
    free(ids);
    return found;
}
