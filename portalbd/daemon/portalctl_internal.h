/* portalctl's parts: what the commands share.
 *
 * portalctl.c has the table of options and commands; portalctl_find.c finds pools, volumes and
 * daemons; portalctl_pool.c and portalctl_volumes.c work on the store, portalctl_daemons.c asks
 * daemons, portalctl_devices.c attaches and detaches through the node agent (portalctl_agent.c
 * starts it, portalctl_attached.c asks it, portalctl_pools.c sees to its pool file);
 * portalctl_output.c prints.
 */
#pragma once

#include <jansson.h>

#include "common/loop.h"
#include "common/options.h"
#include "portalbd/catalog/catalog.h"
#include "portalbd/daemon/pool.h"
#include "portalbd/daemon/run_pool.h"

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
    int backend;
    bool read_only;
    bool steal;
    uint64_t cache_size, journal_size;
    uint64_t disk_cache_size;
    bool no_disk_cache;
    uint64_t limit_us;
    bool start_agent;
    bool all;
    bool json;
    bool quick;
    bool garbage;
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
    SNAPSHOT_RESTORE,
    STATUS,
    STATS,
    FLUSH,
    ATTACH,
    DETACH,
    DEVICES,
    UPGRADE,
    GC,
    FSCK,
    INSPECT,
};

enum { OUTPUT_TABLE, OUTPUT_JSON };

enum { CTL_EXIT_DAMAGED = 7, CTL_EXIT_LEAKED = 8 }; /* the others: portalctl.c */

struct ctl {
    struct ctl_config config;
    enum ctl_command command;
    char **argv;
    struct loop *loop;
    struct env *env;
    struct fiber *fiber;
    struct err refused; /* by the store, in a way that waiting does not heal */
    struct pool pool;
    struct catalog *catalog;         /* of pool */
    struct run_pool run_pool;        /* the same, for run folders; uuid "": it is not open */
    char wanted_pool[POOL_NAME_MAX]; /* that an id names; "": the options alone say */
    json_t *result;                  /* an object, or an array of them */
    const char *only;                /* the member of result that a table consists of; NULL: all */
    int rc;
    int exit_code; /* if not 0: instead of what rc says */
    struct err e;
};

extern const char *const ctl_backend_names[];

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
int ctl_snapshot_restore(struct ctl *c, struct err *e);
int ctl_status(struct ctl *c, struct err *e);
int ctl_stats(struct ctl *c, struct err *e);
int ctl_flush(struct ctl *c, struct err *e);
int ctl_attach(struct ctl *c, struct err *e);
int ctl_detach(struct ctl *c, struct err *e);
int ctl_devices(struct ctl *c, struct err *e);
int ctl_upgrade(struct ctl *c, struct err *e);
int ctl_gc(struct ctl *c, struct err *e);
int ctl_fsck(struct ctl *c, struct err *e);
int ctl_inspect(struct ctl *c, struct err *e);

/* --- finding things --- */

bool ctl_is_id(const char *text, enum id_kind kind);
/* Is this the name, or the id, of the volume or snapshot with this id? An id holds the hash of the
 * name. */
bool ctl_is_named(const char *id, const char *name);
/* fiber. Opens the pool that the options name. */
int ctl_open_pool(struct ctl *c, struct err *e);
/* fiber. The same, and checks that there is one; to pool delete, one that is damaged is one. */
int ctl_need_pool(struct ctl *c, struct err *e);
/* fiber. By name or id. */
int ctl_find_volume(struct ctl *c, const char *name, struct volume_info *ret, struct err *e);
int ctl_find_snapshot(struct ctl *c, const char *name, struct snapshot_info *ret, struct err *e);
/* The id of what a daemon of this node serves, by id or name: works without the store. */
bool ctl_find_daemon(struct ctl *c, const char *name, char ret_id[ID_MAX]);
/* Our pool is open: does a daemon of the run folder serve this volume of it? Never when the run
 * folder is that of another pool of this name, whose ids may be the same. */
bool ctl_daemon_is_live(const struct ctl *c, const char *id);
/* Is the run folder that of our open pool, or nobody's? */
bool ctl_run_dir_is_ours(const struct ctl *c);
/* fiber. Something of the run folder was found by name, without the store. Is it what --store says,
 * if that is given? Asks the store only when it is called otherwise there. -ERR_IN_USE. */
int ctl_check_store_of(struct ctl *c, const char *id, struct err *e);
/* Asks the daemon of a volume; releases args, which may be NULL. -ERR_NOT_FOUND also when the run
 * folder is that of another pool of this name. */
int ctl_ask(struct ctl *c, const char *volume, const char *verb, json_t *args, json_t **ret,
            struct err *e);

/* --- the node agent of the run folder (portalctl_agent.c) --- */

enum { CTL_QUIET_US = 1000 * 1000 }; /* what takes no longer needs no words */

/* Makes the run folder, and its path in the options absolute. */
int ctl_make_run_dir(struct ctl *c, struct err *e);
/* fiber. One portalctl at a time, until *ret_fd is closed. */
int ctl_lock_run_dir(const struct ctl *c, int *ret_fd, struct err *e);
bool ctl_agent_is_live(const struct ctl *c);
/* Is there anything that an agent would know: one that listens, or attach files of one? */
bool ctl_agent_has_work(const struct ctl *c);
bool ctl_pool_is_attached(const struct ctl *c, const char *pool);
/* fiber. Starts one if none listens (unless told not to), and waits until it does. */
int ctl_agent_need(struct ctl *c, struct err *e);
/* Releases args. wait_us: how long the agent may take (its wait_ms); 0: no such argument.
 * -ERR_BUSY: not done in this time; what was asked goes on. -ERR_TRANSIENT: none listens. */
int ctl_agent_ask(struct ctl *c, const char *verb, json_t *args, uint64_t wait_us, json_t **ret,
                  struct err *e);

/* --- what is attached (portalctl_attached.c) --- */

/* A line for people, on stderr. */
void ctl_say(const char *format, ...) PRINTF_LIKE(1, 2);
/* A member that is a text; "" if it is not. Borrowed from the object. */
const char *ctl_text_of(const json_t *object, const char *name);

/* <run folder>/by-name/<name>. Says what fails: a device without a link is a device. */
void ctl_link_make(const struct ctl *c, const char *name, const char *device);
void ctl_link_remove(const struct ctl *c, const char *id);
/* Owned by the caller; "" if it is not known. */
char *ctl_name_of_attached(const struct ctl *c, const char *id);

struct ctl_agent_info {
    char *node_id, *pools; /* owned */
};
void ctl_agent_info_release(struct ctl_agent_info *i);
int ctl_ask_info(struct ctl *c, struct ctl_agent_info *ret, struct err *e);
/* The agent's rows of all devices, owned by the caller. */
int ctl_ask_devices(struct ctl *c, json_t **ret, struct err *e);
/* The id of what is attached by this name or id. -ERR_NOT_FOUND; -ERR_INVALID: two of that name. */
int ctl_find_attached(struct ctl *c, const char *name, char ret_id[ID_MAX], struct err *e);
/* fiber. Asks for attach or detach until it is done, and says meanwhile how it goes. -ERR_BUSY: the
 * limit is over, and the text says what is still to do. -ERR_IN_USE: the device is mounted or open.
 * An agent that ends meanwhile is started again. */
int ctl_ask_patiently(struct ctl *c, const char *verb, const char *id, const json_t *args,
                      uint64_t limit_us, json_t **ret, struct err *e);

/* --- pool files and the agent (portalctl_pools.c) --- */

char *ctl_run_pools(const struct ctl *c); /* of the run folder; owned by the caller */
/* fiber. Our pool is open. Do we and the agent that reads this pool file mean the same store by its
 * name? The run folder's file is made to say so. */
int ctl_agree_on_pool(const struct ctl *c, const char *agent_pools, struct err *e);
/* Without --store: from now on the run folder's pool file instead of --pools, if that one has this
 * pool (NULL: if the other one is not there). */
void ctl_use_run_pools(struct ctl *c, const char *pool);

/* --- results --- */

void ctl_print_result(const struct ctl *c);
/* Has all that was printed arrived? Half a result must not look like a whole one. */
int ctl_check_output(struct err *e);
void ctl_format_bytes(uint64_t bytes, char *text, size_t size);
void ctl_format_time(uint64_t unix_ms, char *text, size_t size); /* UTC */
/* What is about to be lost: asks on a terminal; elsewhere -ERR_INVALID unless --yes is there.
 * Blocks.
 */
int ctl_confirm(const struct ctl *c, struct err *e, const char *format, ...) PRINTF_LIKE(3, 4);
