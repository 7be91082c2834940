/* portalctl's parts: what the commands share.
 *
 * portalctl.c has the table of options and commands; portalctl_find.c finds pools, volumes and
 * daemons; portalctl_volumes.c works on the store, portalctl_daemons.c asks daemons,
 * portalctl_devices.c the node agent, which portalctl_agent.c starts where there is none;
 * portalctl_output.c prints. */
#pragma once

#include <jansson.h>

#include "common/loop.h"
#include "common/options.h"
#include "portalbd/catalog/catalog.h"
#include "portalbd/daemon/pool.h"

struct ctl_config {
    struct pool_options pool;
    char *run_dir;
    uint64_t timeout_us;
    int output;
    uint64_t size;
    char *source;
    char *cluster_id;
    bool any_cluster;
    bool force;
    bool yes;
    int log_level;
};

enum ctl_command {
    POOL_CREATE,
    POOL_CHECK,
    POOL_DELETE,
    VOLUME_CREATE,
    VOLUME_LIST,
    VOLUME_SHOW,
    VOLUME_GROW,
    VOLUME_CLONE,
    VOLUME_DELETE,
    SNAPSHOT_CREATE,
    SNAPSHOT_LIST,
    SNAPSHOT_SHOW,
    SNAPSHOT_DELETE,
    STATUS,
    STATS,
    FLUSH,
    GC,
};

enum { OUTPUT_TABLE, OUTPUT_JSON };

struct ctl {
    struct ctl_config config;
    enum ctl_command command;
    char **argv;
    struct loop *loop;
    struct env *env;
    struct fiber *fiber;
    struct err refused; /* by the store, in a way that waiting does not heal */
    struct pool pool;
    struct catalog *catalog; /* of pool */
    json_t *result;          /* an object, or an array of them */
    int rc;
    struct err e;
};

/* The commands, by their name; fibers. */
int ctl_pool_create_or_check(struct ctl *c, struct err *e);
int ctl_pool_delete(struct ctl *c, struct err *e);
int ctl_volume_create(struct ctl *c, struct err *e);
int ctl_volume_list(struct ctl *c, struct err *e);
int ctl_volume_show(struct ctl *c, struct err *e);
int ctl_volume_grow(struct ctl *c, struct err *e);
int ctl_volume_clone(struct ctl *c, struct err *e);
int ctl_volume_delete(struct ctl *c, struct err *e);
int ctl_snapshot_create(struct ctl *c, struct err *e);
int ctl_snapshot_list(struct ctl *c, struct err *e);
int ctl_snapshot_show(struct ctl *c, struct err *e);
int ctl_snapshot_delete(struct ctl *c, struct err *e);
int ctl_status(struct ctl *c, struct err *e);
int ctl_stats(struct ctl *c, struct err *e);
int ctl_flush(struct ctl *c, struct err *e);
int ctl_gc(struct ctl *c, struct err *e);

/* --- finding things --- */

bool ctl_is_id(const char *text, enum id_kind kind);
/* fiber. Opens the pool that the options name, and checks that there is one. */
int ctl_need_pool(struct ctl *c, struct err *e);
/* fiber. By name or id. */
int ctl_find_volume(struct ctl *c, const char *name, struct volume_info *ret, struct err *e);
int ctl_find_snapshot(struct ctl *c, const char *name, struct snapshot_info *ret, struct err *e);
/* fiber. The daemon's volume when there is one (also one that was attached by id alone). */
bool ctl_find_daemon(struct ctl *c, const char *name, char ret_id[ID_MAX]);
/* Asks the daemon of a volume; releases args, which may be NULL. */
int ctl_ask(struct ctl *c, const char *volume, const char *verb, json_t *args, json_t **ret,
            struct err *e);

/* --- results --- */

void ctl_print_result(const struct ctl *c);
