/* portalctl: volumes as block devices of this node, without Kubernetes.
 *
 * attach publishes the volume to this node in the catalog, as Kubernetes' controller would, and has
 * the node agent make the device; detach goes the same way back. Each may be cut off at any point:
 * the same command goes on where the last one ended.
 *
 * A detach that is forced leaves the volume published to this node unless it is closed: taking it
 * away would fence it, and the journal that is kept here could not be replayed any more. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/control/client.h"
#include "portalbd/daemon/portalctl_internal.h"

enum {
    UNDO_US = 5 * 1000 * 1000,   /* what takes longer is left to the next command */
    STATUS_US = 2 * 1000 * 1000, /* a daemon that hangs is not waited for */
    FORCED_US = 5 * 1000 * 1000, /* for each request to the store after --force */
    UPGRADE_US = 60 * 1000 * 1000,
    UNSAVED = 3, /* exit code: not everything is in the store yet */
};

const char *const ctl_backend_names[] = {"auto", "nbd", "fuse", NULL};

/* --- what is meant --- */

struct target {
    char id[ID_MAX];
    char name[ENTITY_NAME_MAX + 1];
    char node[CATALOG_NODE_ID_MAX + 1]; /* that has it; "": none */
    bool snapshot;
};

static int find_snapshot_target(struct ctl *c, const char *name, struct target *ret,
                                struct err *e) {
    struct snapshot_info info;
    int rc = ctl_find_snapshot(c, name, &info, e);
    if (rc < 0)
        return rc;
    *ret = (struct target){.snapshot = true};
    memcpy(ret->id, info.id, sizeof ret->id);
    snprintf(ret->name, sizeof ret->name, "%s", info.record.name);
    snapshot_info_release(&info);
    return 0;
}

static int find_target(struct ctl *c, const char *name, struct target *ret, struct err *e) {
    struct volume_info info;
    if (ctl_is_id(name, ID_SNAPSHOT) || strchr(name, '@'))
        return find_snapshot_target(c, name, ret, e);
    int rc = ctl_find_volume(c, name, &info, e);
    if (rc < 0)
        return rc;
    *ret = (struct target){.snapshot = false};
    memcpy(ret->id, info.id, sizeof ret->id);
    snprintf(ret->name, sizeof ret->name, "%s", info.record.name);
    snprintf(ret->node, sizeof ret->node, "%s", info.record.node);
    volume_info_release(&info);
    return 0;
}

/* The pool of an id is the one to open, wherever it is described. */
static void choose_pool(struct ctl *c, const char *id) {
    struct parsed_id parsed;
    bool named = id_parse(&parsed, id, NULL) == 0;
    if (named)
        memcpy(c->wanted_pool, parsed.pool, sizeof c->wanted_pool);
    ctl_use_run_pools(c, named ? c->wanted_pool : NULL);
}

/* --- attach --- */

static int publish(struct ctl *c, const struct target *t, const char *node, uint64_t *ret_epoch,
                   struct err *e) {
    struct volume_info info;
    *ret_epoch = 0;
    if (t->snapshot) /* read-only, and nobody's */
        return 0;
    int rc = catalog_node_register(c->catalog, node, PORTALBD_VERSION, e);
    if (rc < 0)
        return rc;
    rc = catalog_volume_publish(c->catalog, t->id, node, c->config.read_only, false, &info, e);
    if (rc == -ERR_IN_USE && c->config.steal)
        rc = catalog_volume_publish(c->catalog, t->id, node, c->config.read_only, true, &info, e);
    else if (rc == -ERR_IN_USE)
        return err_wrap(e, "--steal takes it all the same");
    if (rc < 0)
        return rc;
    *ret_epoch = info.record.publish_epoch;
    volume_info_release(&info);
    return 0;
}

/* Nothing came of it: the volume is nobody's again, if it was nobody's before. */
static void undo_attach(struct ctl *c, const struct target *t, const char *node) {
    json_t *answer = NULL;
    if (t->snapshot || strcmp(t->node, node) == 0)
        return;
    int rc =
        ctl_agent_ask(c, "detach", json_pack("{s:s}", "volume", t->id), UNDO_US, &answer, NULL);
    json_decref(answer);
    if (rc < 0 || catalog_volume_unpublish(c->catalog, t->id, node, NULL) < 0)
        ctl_say("the volume stays published to this node: portalctl detach gives it back");
}

static int attach_published(struct ctl *c, const struct target *t, const char *node, uint64_t epoch,
                            struct err *e) {
    const struct ctl_config *k = &c->config;
    json_t *args = json_pack("{s:s,s:I,s:b}", "volume", t->id, "publish_epoch", (json_int_t)epoch,
                             "read_only", k->read_only || t->snapshot);
    if (k->backend > 0)
        json_object_set_new(args, "backend", json_string(ctl_backend_names[k->backend]));
    if (k->cache_size)
        json_object_set_new(args, "cache_bytes", json_integer((json_int_t)k->cache_size));
    if (k->journal_size)
        json_object_set_new(args, "journal_bytes", json_integer((json_int_t)k->journal_size));
    if (k->disk_cache_size)
        json_object_set_new(args, "disk_cache_bytes", json_integer((json_int_t)k->disk_cache_size));
    if (k->no_disk_cache)
        json_object_set_new(args, "no_disk_cache", json_true());
    json_t *answer = NULL;
    int rc = ctl_ask_patiently(c, "attach", t->id, args, k->timeout_us, &answer, e);
    json_decref(args);
    if (rc == -ERR_BUSY)
        return err_wrap(e, "attaching goes on, and the same command waits for it");
    if (rc < 0) {
        undo_attach(c, t, node);
        return rc;
    }
    ctl_link_make(c, t->name, ctl_text_of(answer, "device"));
    json_object_set_new(answer, "volume", json_string(t->id));
    json_object_set_new(answer, "name", json_string(t->name));
    c->result = answer;
    c->only = "device";
    return 0;
}

/* The pool is open. An agent that is to be started finds the store in the run folder's pool file.
 */
static int prepare_agent(struct ctl *c, struct ctl_agent_info *ret, struct err *e) {
    int rc = ctl_make_run_dir(c, e);
    if (rc == 0)
        rc = run_pool_check(c->config.run_dir, &c->run_pool, e);
    if (rc == 0 && c->config.pool.store && !ctl_agent_is_live(c)) {
        CLEANUP_FREE char *pools = ctl_run_pools(c);
        rc = ctl_agree_on_pool(c, pools, e);
    }
    if (rc == 0)
        rc = ctl_agent_need(c, e);
    if (rc == 0)
        rc = ctl_ask_info(c, ret, e);
    return rc < 0 ? rc : ctl_agree_on_pool(c, ret->pools, e);
}

int ctl_attach(struct ctl *c, struct err *e) {
    struct target target;
    CLEANUP(ctl_agent_info_release) struct ctl_agent_info agent = {0};
    uint64_t epoch;
    choose_pool(c, c->argv[0]);
    int rc = find_target(c, c->argv[0], &target, e);
    if (rc == 0)
        rc = prepare_agent(c, &agent, e);
    if (rc == 0)
        rc = publish(c, &target, agent.node_id, &epoch, e);
    return rc < 0 ? rc : attach_published(c, &target, agent.node_id, epoch, e);
}

/* --- detach --- */

/* What only this node has of a volume, before it is let go by force. */
static uint64_t ask_unflushed(struct ctl *c, const char *id) {
    json_t *status = NULL;
    if (control_call(c->config.run_dir, id, "status", NULL, STATUS_US, &status, NULL) < 0)
        return 0;
    uint64_t bytes = (uint64_t)json_integer_value(json_object_get(status, "unflushed_bytes"));
    json_decref(status);
    return bytes;
}

static void say_what_force_cost(struct ctl *c, const char *id, uint64_t unflushed) {
    CLEANUP_FREE char *journal = xasprintf("%s/journals/%s.journal", c->config.run_dir, id);
    char size[32];
    ctl_format_bytes(unflushed, size, sizeof size);
    if (access(journal, F_OK) == 0)
        ctl_say("forced: what was not stored yet (%s as far as is known) is kept in %s, and is "
                "stored when the volume is attached here again; a reboot, or attaching it "
                "elsewhere with --steal, loses it",
                size, journal);
    else if (unflushed)
        ctl_say("forced: %s of writes that were not stored yet are lost", size);
}

/* The device goes, and with it the daemon. */
static int let_go(struct ctl *c, const char *id, struct err *e) {
    const struct ctl_config *k = &c->config;
    uint64_t unflushed = k->force ? ask_unflushed(c, id) : 0;
    json_t *args = json_pack("{s:s,s:b}", "volume", id, "force", k->force), *answer = NULL;
    int rc = ctl_ask_patiently(c, "detach", id, args, k->limit_us, &answer, e);
    json_decref(args);
    json_decref(answer);
    if (rc == 0 && k->force)
        say_what_force_cost(c, id, unflushed);
    if (rc != -ERR_BUSY)
        return rc;
    struct err why = *e;
    c->exit_code = UNSAVED;
    return err_set(e, rc,
                   "%.250s; nothing is lost, and the same command goes on (--force gives up)",
                   why.text);
}

/* Only this keeps the journal good: see above. */
static int give_back_forced(struct ctl *c, const char *id, const char *node, struct err *e) {
    struct volume_info info;
    bool closed = false;
    c->config.timeout_us = MIN(c->config.timeout_us, (uint64_t)FORCED_US);
    if (ctl_find_volume(c, id, &info, e) == 0) {
        closed = info.closed;
        volume_info_release(&info);
    }
    if (closed && catalog_volume_unpublish(c->catalog, id, node, e) == 0)
        return 0;
    ctl_say("the volume stays published to this node");
    c->refused = (struct err){0}; /* a store that does not answer is why one forces */
    return 0;
}

static int give_back(struct ctl *c, const char *id, const char *node, struct err *e) {
    if (ctl_is_id(id, ID_SNAPSHOT))
        return 0;
    if (!c->catalog)
        choose_pool(c, id);
    if (c->config.force)
        return give_back_forced(c, id, node, e);
    int rc = ctl_need_pool(c, e);
    if (rc == 0)
        rc = catalog_volume_unpublish(c->catalog, id, node, e);
    return rc < 0 ? err_wrap(e, "the device is gone and everything is stored, but the volume is "
                                "still published to this node; the same command goes on")
                  : 0;
}

/* No device of it is here: perhaps an earlier detach got only so far. */
static int find_detached(struct ctl *c, char ret_id[ID_MAX], struct err *e) {
    struct target target;
    choose_pool(c, c->argv[0]);
    int rc = find_target(c, c->argv[0], &target, e);
    if (rc == -ERR_NOT_FOUND)
        c->exit_code = 1; /* 3 says something else here */
    if (rc < 0)
        return rc;
    if (ctl_daemon_is_live(c, target.id))
        return err_set(e, -ERR_IN_USE,
                       "'%s' is no device of this node, but portalbd serve has it open here",
                       c->argv[0]);
    memcpy(ret_id, target.id, ID_MAX);
    return 0;
}

static char *own_node_id(void) {
    char host[256];
    const char *given = getenv("NODE_ID"); /* as the agent finds it */
    if (given && given[0])
        return xstrdup(given);
    CHECK(gethostname(host, sizeof host) == 0);
    host[sizeof host - 1] = '\0';
    return xstrdup(host);
}

int ctl_detach(struct ctl *c, struct err *e) {
    CLEANUP(ctl_agent_info_release) struct ctl_agent_info agent = {0};
    char id[ID_MAX];
    int rc = -ERR_NOT_FOUND;
    if (ctl_agent_has_work(c)) {
        rc = ctl_agent_need(c, e);
        if (rc == 0)
            rc = ctl_ask_info(c, &agent, e);
        if (rc == 0)
            rc = ctl_find_attached(c, c->argv[0], id, e);
        if (rc == 0)
            rc = ctl_check_store_of(c, id, e);
        if (rc == 0)
            rc = let_go(c, id, e);
    } else {
        agent.node_id = own_node_id();
    }
    if (rc == -ERR_NOT_FOUND)
        rc = find_detached(c, id, e);
    if (rc < 0)
        return rc;
    ctl_link_remove(c, id);
    return give_back(c, id, agent.node_id, e);
}

/* --- devices, upgrade --- */

static int all_devices(struct ctl *c, json_t **ret, struct err *e) {
    if (!ctl_agent_has_work(c)) {
        *ret = json_array();
        return 0;
    }
    int rc = ctl_agent_need(c, e);
    return rc < 0 ? rc : ctl_ask_devices(c, ret, e);
}

/* What a table has room for. */
static json_t *table_row(const json_t *row, const char *name) {
    static const char *const columns[] = {"device", "size_bytes", "backend",
                                          "state",  "restarts",   "message"};
    json_t *ret = json_pack("{s:s}", "volume", name[0] ? name : ctl_text_of(row, "volume"));
    for (size_t i = 0; i < ARRAY_LEN(columns); i++) {
        json_t *value = json_object_get(row, columns[i]);
        json_object_set(ret, columns[i], value ? value : json_null());
    }
    return ret;
}

int ctl_devices(struct ctl *c, struct err *e) {
    json_t *rows = NULL, *row;
    size_t i;
    int rc = all_devices(c, &rows, e);
    if (rc < 0)
        return rc;
    if (c->config.json)
        c->config.output = OUTPUT_JSON;
    c->result = json_array();
    json_array_foreach(rows, i, row) {
        CLEANUP_FREE char *name = ctl_name_of_attached(c, ctl_text_of(row, "volume"));
        json_object_set_new(row, "name", json_string(name));
        json_array_append_new(c->result, c->config.output == OUTPUT_JSON ? json_incref(row)
                                                                         : table_row(row, name));
    }
    json_decref(rows);
    return 0;
}

static int upgrade_one(struct ctl *c, const char *id, struct err *e) {
    CLEANUP_FREE char *name = ctl_name_of_attached(c, id);
    json_t *answer = NULL;
    int rc = ctl_agent_ask(c, "upgrade", json_pack("{s:s}", "volume", id), UPGRADE_US, &answer, e);
    if (rc == 0)
        json_array_append_new(c->result,
                              json_pack("{s:s,s:O?}", "volume", name[0] ? name : id, "pause_ms",
                                        json_object_get(answer, "pause_ms")));
    json_decref(answer);
    return rc < 0 ? err_wrap(e, "volume %s", name[0] ? name : id) : 0;
}

/* One that fails does not keep the others from it. */
static int upgrade_all(struct ctl *c, struct err *e) {
    json_t *rows = NULL, *row;
    size_t i;
    int rc = all_devices(c, &rows, e);
    if (rc < 0)
        return rc;
    json_array_foreach(rows, i, row) {
        struct err why;
        if (strcasecmp(ctl_text_of(row, "state"), "attached") != 0)
            continue;
        if (upgrade_one(c, ctl_text_of(row, "volume"), &why) < 0) {
            ctl_say("%s", why.text);
            rc = rc < 0 ? rc : err_copy(e, &why);
        }
    }
    json_decref(rows);
    return rc;
}

int ctl_upgrade(struct ctl *c, struct err *e) {
    char id[ID_MAX];
    if (c->config.all == (c->argv[0] != NULL))
        return err_set(e, -ERR_INVALID, "upgrade: say a volume, or --all");
    c->result = json_array();
    if (c->config.all)
        return upgrade_all(c, e);
    if (!ctl_agent_has_work(c))
        return err_set(e, -ERR_NOT_FOUND, "'%s' is not attached on this node", c->argv[0]);
    int rc = ctl_agent_need(c, e);
    if (rc == 0)
        rc = ctl_find_attached(c, c->argv[0], id, e);
    return rc < 0 ? rc : upgrade_one(c, id, e);
}
