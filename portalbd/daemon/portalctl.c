/* portalctl: pools, volumes and snapshots from the command line.
 *
 * A command runs in a fiber of a loop on the main thread and blocks it; nothing else happens there.
 * Where a daemon of this node has the volume open, its control socket is asked (docs/control.md);
 * otherwise the store alone (the catalog) is enough.
 *
 * Results go to stdout, as a table or as JSON; everything else to stderr. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/log.h"
#include "portalbd/daemon/portalctl_internal.h"

#define SECONDS(n) (UINT64_C(1000000) * (n))

/* --- options --- */

static const char *const output_names[] = {"table", "json", NULL};

static const struct option_spec options[] = {
    POOL_OPTION_SPECS(ctl_config),
    {"run-dir", OPTION_STRING, offsetof(struct ctl_config, run_dir), .def = RUN_DIR_DEFAULT,
     .arg = "DIR", .group = "General",
     .help = "Where the daemons of this node have their control "
             "sockets."},
    {"timeout", OPTION_DURATION, offsetof(struct ctl_config, timeout_us), .def = "60s",
     .min = 1000 * 1000, .max = SECONDS(86400),
     .help = "How long to wait for the store, or for a daemon."},
    {"output", OPTION_ENUM, offsetof(struct ctl_config, output), .letter = 'o', .def = "table",
     .choices = output_names, .help = "How results look."},
    {"json", OPTION_BOOL, offsetof(struct ctl_config, json), .help = "The same as --output json."},
    {"log-level", OPTION_ENUM, offsetof(struct ctl_config, log_level), .def = "warn",
     .choices = log_level_names, .help = "The least important lines to print."},
    {"size", OPTION_SIZE, offsetof(struct ctl_config, size), .letter = 's', .group = "Commands",
     .commands = OPTION_FOR(VOLUME_CREATE) | OPTION_FOR(VOLUME_CLONE),
     .help = "Size of the volume: 100G and 100Gi are both multiples of 1024; rounded up to 4096."},
    {"source", OPTION_STRING, offsetof(struct ctl_config, source), .arg = "ID",
     .commands = OPTION_FOR(VOLUME_CREATE), .help = "Snapshot or volume to clone, by id."},
    {"cluster-id", OPTION_STRING, offsetof(struct ctl_config, cluster_id),
     .commands = OPTION_FOR(POOL_CREATE) | OPTION_FOR(POOL_CHECK),
     .help = "The cluster that the pool is for."},
    {"any-cluster", OPTION_BOOL, offsetof(struct ctl_config, any_cluster),
     .commands = OPTION_FOR(POOL_CREATE) | OPTION_FOR(POOL_CHECK),
     .help = "Use a pool although it is another cluster's."},
    {"force", OPTION_BOOL, offsetof(struct ctl_config, force), .letter = 'f',
     .commands = OPTION_FOR(POOL_DELETE) | OPTION_FOR(VOLUME_DELETE) | OPTION_FOR(DETACH),
     .help =
         "pool delete: also when a node has a volume of it; never make a pool at the same place "
         "while a writer of the old one may still run, for ids begin anew. volume delete: also "
         "a volume that is published to a node. detach: also a device that "
         "is in use, and without waiting for the store; what is not stored yet stays in the "
         "journal of this node, until the volume is attached here again."},
    {"yes", OPTION_BOOL, offsetof(struct ctl_config, yes), .letter = 'y',
     .commands = OPTION_FOR(POOL_DELETE) | OPTION_FOR(SNAPSHOT_RESTORE),
     .help = "Really: do not ask. Without a terminal there is nobody to ask, and nothing is done."},
    {"backend", OPTION_ENUM, offsetof(struct ctl_config, backend), .letter = 'b',
     .group = "Devices", .def = "auto", .choices = ctl_backend_names,
     .commands = OPTION_FOR(ATTACH),
     .help = "What makes the device: the kernel's NBD client, or FUSE and a loop device. auto: the "
             "first that works here."},
    {"read-only", OPTION_BOOL, offsetof(struct ctl_config, read_only), .letter = 'r',
     .commands = OPTION_FOR(ATTACH), .help = "A device that refuses writes; snapshots always are."},
    {"steal", OPTION_BOOL, offsetof(struct ctl_config, steal), .commands = OPTION_FOR(ATTACH),
     .help = "Take a volume that is published to another node: that one is fenced and acknowledges "
             "nothing any more."},
    {"cache-size", OPTION_SIZE, offsetof(struct ctl_config, cache_size),
     .commands = OPTION_FOR(ATTACH), .help = "Bytes of RAM cache; 0: the agent's default."},
    {"journal-size", OPTION_SIZE, offsetof(struct ctl_config, journal_size),
     .commands = OPTION_FOR(ATTACH),
     .help = "Bytes of writes that may be acknowledged and not yet stored; 0: the agent's "
             "default."},
    {"disk-cache-size", OPTION_SIZE, offsetof(struct ctl_config, disk_cache_size),
     .commands = OPTION_FOR(ATTACH),
     .help = "Bytes of disk cache, from 64Mi to 4Ti, where the agent has a folder for one; 0: the "
             "agent's default."},
    {"no-disk-cache", OPTION_BOOL, offsetof(struct ctl_config, no_disk_cache),
     .commands = OPTION_FOR(ATTACH), .help = "No disk cache for this volume."},
    {"limit", OPTION_DURATION, offsetof(struct ctl_config, limit_us), .def = "60s",
     .min = 100 * 1000, .max = SECONDS(7 * 86400), .commands = OPTION_FOR(DETACH),
     .help = "How long to wait until everything is in the store."},
    {"start-agent", OPTION_BOOL, offsetof(struct ctl_config, start_agent), .def = "yes",
     .commands =
         OPTION_FOR(ATTACH) | OPTION_FOR(DETACH) | OPTION_FOR(DEVICES) | OPTION_FOR(UPGRADE),
     .help = "Start a node agent where none listens; no: wait for one."},
    {"all", OPTION_BOOL, offsetof(struct ctl_config, all), .letter = 'a',
     .commands = OPTION_FOR(UPGRADE), .help = "Every device of this node."},
    {"quick", OPTION_BOOL, offsetof(struct ctl_config, quick), .letter = 'q',
     .group = "Looking after a pool", .commands = OPTION_FOR(FSCK),
     .help = "Read no data: what is referenced is there and large enough, and all that describes "
             "it is good."},
    {"garbage", OPTION_BOOL, offsetof(struct ctl_config, garbage), .letter = 'g',
     .commands = OPTION_FOR(FSCK),
     .help = "Name what nothing needs any more in volumes that nobody has, too, and exit with 8 "
             "when there is any. It is not wrong to have some; portalctl gc frees it."},
    {0}};

static const struct option_command commands[] = {
    [POOL_CREATE] = {"pool create", NULL, 0, 0,
                     "make the pool; prove first that the store keeps what it promises"},
    [POOL_CHECK] = {"pool check", NULL, 0, 0, "is there a pool, and can it be used?"},
    [POOL_DELETE] =
        {"pool delete", NULL, 0, 0,
         "delete the pool, all its volumes and snapshots; nothing else under its prefix"},
    [VOLUME_CREATE] = {"volume create", "NAME", 1, 1, "create a volume of --size"},
    [VOLUME_LIST] = {"volume list", NULL, 0, 0, "the volumes of the pool"},
    [VOLUME_SHOW] = {"volume show", "VOLUME", 1, 1, "one volume"},
    [VOLUME_GROW] = {"volume grow", "VOLUME SIZE", 2, 2,
                     "make it larger; it may be in use on this node, or closed"},
    [VOLUME_CLONE] = {"volume clone", "SOURCE NAME", 2, 2,
                      "a new volume with the content of a volume or of volume@snapshot"},
    [VOLUME_DELETE] = {"volume delete", "VOLUME", 1, 1, "delete it; its snapshots and clones stay"},
    [SNAPSHOT_CREATE] = {"snapshot create", "VOLUME NAME", 2, 2,
                         "what the volume holds now, as volume@name"},
    [SNAPSHOT_LIST] = {"snapshot list", "[VOLUME]", 0, 1,
                       "the snapshots of the pool, or of one "
                       "volume"},
    [SNAPSHOT_SHOW] = {"snapshot show", "SNAPSHOT", 1, 1, "one snapshot"},
    [SNAPSHOT_DELETE] = {"snapshot delete", "SNAPSHOT", 1, 1, "delete it"},
    [SNAPSHOT_RESTORE] = {"snapshot restore", "SNAPSHOT", 1, 1,
                          "its volume, which nobody may have, goes back to it; later snapshots "
                          "stay"},
    [STATUS] = {"status", "[VOLUME]", 0, 1, "how volumes that this node serves are"},
    [STATS] = {"stats", "VOLUME", 1, 1, "counters of the daemon that serves the volume here"},
    [FLUSH] = {"flush", "VOLUME", 1, 1, "wait until everything written is in the store"},
    [ATTACH] = {"attach", "VOLUME|SNAPSHOT", 1, 1,
                "make it a block device of this node; prints its path"},
    [DETACH] = {"detach", "VOLUME|SNAPSHOT", 1, 1,
                "take the device away, once everything is in the store"},
    [DEVICES] = {"devices", NULL, 0, 0, "the volumes that are block devices of this node"},
    [UPGRADE] = {"upgrade", "[VOLUME]", 0, 1,
                 "go on with the daemon program that is installed now; the device stays"},
    [GC] = {"gc", "[VOLUME]", 0, 1,
            "free what nothing needs any more, finish deletions that died half way"},
    [FSCK] = {"fsck", "[VOLUME]", 0, 1,
              "read the pool, or one volume: checksums, references, lost and leaked objects; "
              "changes nothing"},
    [INSPECT] = {"inspect", "KEY|FILE", 1, 1, "any object of the pool, readable"},
    {0}};

static const struct option_program program = {
    .name = "portalctl",
    .summary = "manages pools, volumes, snapshots and devices",
    .description =
        "A VOLUME is a name or an id; a SNAPSHOT is volume@name, another name, or an id. Exit "
        "codes: 0 done, 1 failed, 2 the command line, 3 there is no such thing (of detach: not "
        "everything is in the store yet), 4 it exists already and differs, 5 it is in use, 6 the "
        "store or the daemon did not answer in time, 7 something is damaged, 8 (fsck) nothing is "
        "damaged, but there are objects that nothing needs.\n\nattach, detach, devices and upgrade "
        "work "
        "through the node agent of the run folder, and need root. Where none listens they start "
        "one; it ends by itself when nothing is attached any more, and its log is node-agent.log "
        "in the run folder. /run/portalbd/by-name/<volume> leads to a volume's device.",
    .env_prefix = "PORTALBD_",
    .options = options,
    .commands = commands,
};

static int exit_code_of(int rc) {
    switch (-rc) {
    case 0:
        return 0;
    case ERR_INVALID:
    case ERR_NO_SPACE:
        return 2;
    case ERR_NOT_FOUND:
        return 3;
    case ERR_EXISTS:
        return 4;
    case ERR_IN_USE:
    case ERR_FENCED:
        return 5;
    case ERR_CORRUPT:
        return CTL_EXIT_DAMAGED;
    case ERR_TIMEOUT:
    case ERR_TRANSIENT:
    case ERR_BUSY:
    case ERR_STALE:
    case ERR_CANCELLED:
        return 6;
    default:
        return 1;
    }
}

/* --- main --- */

static int (*const handlers[])(struct ctl *c, struct err *e) = {
    [POOL_CREATE] = ctl_pool_create_or_check,
    [POOL_CHECK] = ctl_pool_create_or_check,
    [POOL_DELETE] = ctl_pool_delete,
    [VOLUME_CREATE] = ctl_volume_create,
    [VOLUME_LIST] = ctl_volume_list,
    [VOLUME_SHOW] = ctl_volume_show,
    [VOLUME_GROW] = ctl_volume_grow,
    [VOLUME_CLONE] = ctl_volume_clone,
    [VOLUME_DELETE] = ctl_volume_delete,
    [SNAPSHOT_CREATE] = ctl_snapshot_create,
    [SNAPSHOT_LIST] = ctl_snapshot_list,
    [SNAPSHOT_SHOW] = ctl_snapshot_show,
    [SNAPSHOT_DELETE] = ctl_snapshot_delete,
    [SNAPSHOT_RESTORE] = ctl_snapshot_restore,
    [STATUS] = ctl_status,
    [STATS] = ctl_stats,
    [FLUSH] = ctl_flush,
    [ATTACH] = ctl_attach,
    [DETACH] = ctl_detach,
    [DEVICES] = ctl_devices,
    [UPGRADE] = ctl_upgrade,
    [GC] = ctl_gc,
    [FSCK] = ctl_fsck,
    [INSPECT] = ctl_inspect,
};

static void command_fiber(void *arg) {
    struct ctl *c = arg;
    c->rc = handlers[c->command](c, &c->e);
    if (c->rc < 0 && c->refused.code)
        c->rc = err_copy(&c->e, &c->refused);
    pool_close(&c->pool);
    loop_stop(c->loop);
}

/* What is opened later must not become one of the three. Writing to what was closed fails. */
static void have_stdio(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            (void)open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY);
}

int main(int argc, char **argv) {
    struct ctl c = {0};
    struct option_args args;
    have_stdio();
    options_parse_or_exit(&program, argc, argv, &c.config, &args);
    log_init(
        &(struct log_config){.program = "portalctl", .level = (enum log_level)c.config.log_level});
    signal(SIGPIPE, SIG_IGN);
    if (c.config.json)
        c.config.output = OUTPUT_JSON;
    c.command = (enum ctl_command)args.command;
    c.argv = args.argv; /* like argv, NULL at its end */
    c.loop = loop_new(2);
    c.env = loop_env(c.loop);
    c.fiber = fiber_start(c.env, command_fiber, &c);
    loop_run(c.loop);
    loop_free(c.loop);
    ctl_print_result(&c);
    if (c.rc == 0)
        c.rc = ctl_check_output(&c.e);
    if (c.rc < 0)
        fprintf(stderr, "portalctl: %s\n", c.e.text);
    json_decref(c.result);
    options_release(&program, &c.config);
    return c.exit_code ? c.exit_code : exit_code_of(c.rc);
}
