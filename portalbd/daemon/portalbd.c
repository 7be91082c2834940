/* portalbd: serves volumes as block devices.
 *
 * One loop, on the main thread, owns everything. The main fiber starts the front ends in a fiber of
 * its own (which a signal can cancel: the store may not answer), waits to be told to stop, and
 * takes everything down in the order that loses nothing:
 *
 *   front ends drained -> volumes closed (flush, checkpoint, manifest) -> volumes dropped -> front
 *   ends gone -> devices freed
 *
 * --stop-limit, or a second signal, cuts the first two short; what is not in the store is then
 * named, and the exit code says so. */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "common/service.h"
#include "portalbd/daemon/daemon.h"
#include "portalbd/daemon/run_pool.h"

#define SECONDS(n) (UINT64_C(1000000) * (n))

/* --- options --- */

static const char *const journal_names[] = {
    [JOURNAL_SHM] = "shm", [JOURNAL_MEMORY] = "memory", NULL};

static const struct option_spec options[] = {
    POOL_OPTION_SPECS(config),
    {"listen", OPTION_STRINGS, offsetof(struct config, listen), .letter = 'l', .arg = "ADDRESS",
     .group = "Serve", .commands = OPTION_FOR(COMMAND_SERVE),
     .help = "Where NBD clients connect: unix:/path, or tcp:host:port of a loopback interface. May "
             "be repeated. Without it: the sockets that systemd hands over."},
    {"list", OPTION_BOOL, offsetof(struct config, list), .def = "yes",
     .commands = OPTION_FOR(COMMAND_SERVE), .help = "Tell clients which volumes there are."},
    {"single", OPTION_BOOL, offsetof(struct config, single), .commands = OPTION_FOR(COMMAND_SERVE),
     .help = "Serve one client, on the socket that is standard input, and end."},
    {"steal", OPTION_BOOL, offsetof(struct config, steal),
     .help = "Take volumes that are published to another node: it is fenced and acknowledges "
             "nothing any more."},
    {"volume", OPTION_STRING, offsetof(struct config, volume), .arg = "ID", .group = "Attach",
     .commands = OPTION_FOR(COMMAND_ATTACH), .help = "The volume or snapshot, by id."},
    {"publish-epoch", OPTION_U64, offsetof(struct config, publish_epoch), .max = UINT32_MAX,
     .commands = OPTION_FOR(COMMAND_ATTACH),
     .help = "The epoch with which the volume was published to this node; without it the daemon "
             "publishes it itself."},
    {"read-only", OPTION_BOOL, offsetof(struct config, read_only),
     .commands = OPTION_FOR(COMMAND_ATTACH), .help = "Refuse writes."},
    {"resume", OPTION_BOOL, offsetof(struct config, resume), .commands = OPTION_FOR(COMMAND_ATTACH),
     .help = "An earlier daemon of this attachment owned the volume: if another writer has had it "
             "since, end with exit code 4. A --fuse-fd is one that it served."},
    {"fuse-fd", OPTION_U64, offsetof(struct config, fuse_fd), .max = INT_MAX,
     .commands = OPTION_FOR(COMMAND_ATTACH),
     .help =
         "Descriptor of a mounted /dev/fuse. Without this and --nbd-fd: upload what the journal "
         "holds, close the volume, and end."},
    {"nbd-fd", OPTION_U64, offsetof(struct config, nbd_fd), .max = INT_MAX,
     .commands = OPTION_FOR(COMMAND_ATTACH),
     .help = "Descriptor of a socket whose other end the kernel's NBD client has."},
    {"ready-fd", OPTION_U64, offsetof(struct config, ready_fd), .max = INT_MAX,
     .commands = OPTION_FOR(COMMAND_ATTACH),
     .help = "Descriptor that gets a line of JSON once the volume is ours, and one once it is "
             "served, or why it is not."},
    {"run-dir", OPTION_STRING, offsetof(struct config, run_dir), .def = RUN_DIR_DEFAULT,
     .arg = "DIR", .group = "Daemon",
     .help = "Locks and control sockets; one folder for all daemons of a node."},
    {"node-id", OPTION_STRING, offsetof(struct config, node_id), .env = "NODE_ID",
     .help = "Name of this node; the host's name without it."},
    {"journal", OPTION_ENUM, offsetof(struct config, journal), .def = "shm",
     .choices = journal_names,
     .help = "Where writes are kept until the store has them: shm, files that outlive this process "
             "(its death loses nothing); memory."},
    {"journal-dir", OPTION_STRING, offsetof(struct config, journal_dir), .arg = "DIR",
     .help = "Folder of the journals, on a tmpfs; without it journals/ in --run-dir."},
    {"state-dir", OPTION_STRING, offsetof(struct config, state_dir), .arg = "DIR",
     .def = "/var/lib/portalbd",
     .help = "Folder, on a disk, for journals that must not be replayed: another writer had the "
             "volume since, or they are damaged."},
    {"cache-size", OPTION_SIZE, offsetof(struct config, cache_size), .def = "64Mi", .min = 1 << 20,
     .max = UINT64_C(1) << 40, .help = "Bytes of RAM cache of each volume."},
    {"disk-cache", OPTION_STRING, offsetof(struct config, disk_cache), .arg = "DIR",
     .help =
         "Folder, on a disk of this node (not on one of our volumes), for a second cache behind "
         "the first; without it there is none. Nothing in it outlives the process."},
    {"disk-cache-size", OPTION_SIZE, offsetof(struct config, disk_cache_size), .def = "4Gi",
     .min = DISK_CACHE_SIZE_MIN, .max = UINT64_C(1) << 42,
     .help = "Bytes of disk cache of each volume."},
    {"journal-size", OPTION_SIZE, offsetof(struct config, journal_size), .def = "64Mi",
     .min = 4 << 20, .max = UINT64_C(1) << 40,
     .help =
         "Bytes of writes of each volume that may be acknowledged and not yet stored. A journal "
         "that is there already keeps its size."},
    {"flush-coalesce", OPTION_DURATION, offsetof(struct config, flush_coalesce_us), .def = "0us",
     .max = SECONDS(1),
     .help = "How long a flush waits for others to share its request: latency for requests."},
    {"stop-limit", OPTION_DURATION, offsetof(struct config, stop_limit_us), .def = "0us",
     .max = SECONDS(86400),
     .help = "How long the end may take, once asked for; 0: until everything is in the store."},
    {"workers", OPTION_U64, offsetof(struct config, workers), .def = "2", .min = 1,
     .max = LOOP_WORKERS_MAX, .help = "Threads that compress and check."},
    {"http-address", OPTION_STRING, offsetof(struct config, http_address), .group = "Observation",
     .arg = "ADDRESS", .help = "Serve /metrics and /healthz at this IP address; without it: not."},
    {"http-port", OPTION_U64, offsetof(struct config, http_port), .def = "9809", .max = 65535,
     .help = "... and this port; 0: the kernel chooses, and the log says which."},
    {"log-level", OPTION_ENUM, offsetof(struct config, log_level), .def = "info",
     .choices = log_level_names, .help = "The least important lines to print."},
    {"log-format", OPTION_ENUM, offsetof(struct config, log_format), .def = "logfmt",
     .choices = log_format_names, .help = "How lines of the log look."},
    {0}};

static const struct option_command commands[] = {
    [COMMAND_SERVE] = {"serve", "[VOLUME[@SNAPSHOT]]...", 0, 256,
                       "serve volumes to NBD clients; without names every volume of the pool"},
    [COMMAND_ATTACH] = {"attach", NULL, 0, 0, "serve one volume to the kernel, for the node agent"},
    {0}};

static const struct option_program program = {
    .name = "portalbd",
    .summary = "block volumes on an object store",
    .description =
        "Serves volumes whose only durable home is an S3 bucket (or a folder) as block devices. "
        "The "
        "export's name is the volume's name; volume@snapshot is a snapshot, read-only.\n\nSIGTERM "
        "ends it cleanly: requests under way are finished, everything is stored. Exit codes: 0 all "
        "is in the store, 1 it could not start, 2 the command line, 3 not everything is in the "
        "store, 4 another writer has a volume, 5 its device was handed over to the next daemon.",
    .env_prefix = "PORTALBD_",
    .options = options,
    .commands = commands,
};

/* --- publishing --- */

int daemon_publish(struct daemon *d, const char *id, bool read_only, struct served_target *ret,
                   struct err *e) {
    struct catalog *c = &d->pool.catalog;
    struct volume_info info;
    int rc =
        d->node_registered ? 0 : catalog_node_register(c, d->config.node_id, PORTALBD_VERSION, e);
    if (rc < 0)
        return rc;
    d->node_registered = true;
    rc = catalog_volume_publish(c, id, d->config.node_id, read_only, d->config.steal, &info, e);
    if (rc == -ERR_IN_USE)
        return err_wrap(e, "--steal takes it all the same");
    if (rc < 0)
        return rc;
    *ret = (struct served_target){.key = info.record.key,
                                  .publish_epoch = (uint32_t)info.record.publish_epoch,
                                  .read_only = read_only};
    memcpy(ret->id, info.id, sizeof ret->id);
    snprintf(ret->name, sizeof ret->name, "%s", info.record.name);
    volume_info_release(&info);
    return 0;
}

void daemon_close_volume(struct daemon *d, struct served *s, bool published) {
    struct err e;
    if (served_close(s, &e) < 0) {
        char unsaved[200];
        served_describe_unsaved(s, unsaved, sizeof unsaved);
        log_error(
            "the volume was not closed", LOG_STR("volume", s->target.id), LOG_ERR(&e),
            LOG_STR("unsaved", unsaved[0] ? unsaved : "nothing, but it is not marked closed"));
        d->exit_code = MAX(d->exit_code, e.code == -ERR_FENCED ? EXIT_FENCED : EXIT_UNSAVED);
    } else if (published && catalog_volume_unpublish(&d->pool.catalog, s->target.id,
                                                     d->config.node_id, &e) < 0) {
        log_warn("the volume stays published to this node", LOG_STR("volume", s->target.id),
                 LOG_ERR(&e));
    }
}

/* --- start --- */

static int listen_at(struct daemon *d, const char *address, struct err *e) {
    uint16_t port = 0;
    int rc;
    if (strncmp(address, "unix:", 5) == 0)
        rc = nbd_server_listen_unix(d->nbd, address + 5, e);
    else if (address[0] == '/')
        rc = nbd_server_listen_unix(d->nbd, address, e);
    else
        rc = nbd_server_listen_tcp(d->nbd, strncmp(address, "tcp:", 4) == 0 ? address + 4 : address,
                                   &port, e);
    if (rc == 0)
        log_info("listening for NBD clients", LOG_STR("address", address), LOG_U64("port", port));
    return rc;
}

/* Sockets that systemd hands over: sd_listen_fds(3). */
static int listen_at_inherited(struct daemon *d, size_t *ret_count, struct err *e) {
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    uint64_t value, count;
    *ret_count = 0;
    if (!pid || !fds || option_parse_u64(pid, &value, NULL) < 0 || value != (uint64_t)getpid() ||
        option_parse_u64(fds, &count, NULL) < 0 || count > 64)
        return 0;
    for (int fd = 3; fd < 3 + (int)count; fd++) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        int rc = nbd_server_listen_fd(d->nbd, fd, e);
        if (rc < 0)
            return rc;
    }
    *ret_count = count;
    return 0;
}

static void on_single_ended(void *arg) {
    daemon_stop(arg);
}

static int start_serve(struct daemon *d, struct err *e) {
    d->exports = exports_new(d);
    d->nbd = nbd_server_new(
        &(struct nbd_server_config){.loop = d->loop,
                                    .exports = exports_interface(d->exports),
                                    .metrics = d->metrics,
                                    .list_denied = !d->config.list,
                                    .on_idle = d->config.single ? on_single_ended : NULL,
                                    .arg = d});
    if (d->config.single)
        return nbd_server_serve(d->nbd, fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3), e);
    size_t inherited;
    int rc = listen_at_inherited(d, &inherited, e);
    if (rc == 0 && inherited == 0 && d->config.listen.count == 0)
        rc = err_set(e, -ERR_INVALID, "say where to listen: --listen unix:/path");
    for (size_t i = 0; rc == 0 && i < d->config.listen.count; i++)
        rc = listen_at(d, d->config.listen.items[i], e);
    return rc;
}

static void on_trouble(void *arg, const struct err *why) {
    struct daemon *d = arg;
    d->trouble = why != NULL;
    if (why)
        log_warn("the store does not answer, trying again", LOG_STR("pool", d->pool.name),
                 LOG_ERR(why));
    else
        log_info("the store answers again", LOG_STR("pool", d->pool.name));
    if (d->command == COMMAND_ATTACH)
        attach_waits(d, why);
}

static int check_pool(struct daemon *d, struct run_pool *ret, struct err *e) {
    struct pool_record record;
    struct pool_create any = {.allow_other_cluster = true};
    int rc = catalog_pool_check(&d->pool.catalog, &any, &record, e);
    if (rc < 0)
        return rc;
    memcpy(ret->name, d->pool.name, sizeof ret->name);
    random_id_to_hex(&record.uuid, ret->uuid);
    ret->where = d->pool.where;
    pool_record_release(&record);
    return 0;
}

/* Sockets, locks and journals must not meet those of another pool of our name. Journals in the run
 * folder are covered by that one's file. */
static int take_folders(struct daemon *d, const struct run_pool *p, struct err *e) {
    const struct config *c = &d->config;
    int rc = run_pool_take(d->env, c->run_dir, p, &d->run_pool_fds[0], e);
    if (rc == 0 && d->own_journal_dir && c->journal == JOURNAL_SHM)
        rc = run_pool_take(d->env, c->journal_dir, p, &d->run_pool_fds[1], e);
    return rc;
}

/* A device waits for us: no request to the store for what our predecessor has seen to. */
static void follow_in_folders(struct daemon *d) {
    run_pool_follow(d->config.run_dir, d->pool.name, &d->run_pool_fds[0]);
    if (d->own_journal_dir && d->config.journal == JOURNAL_SHM)
        run_pool_follow(d->config.journal_dir, d->pool.name, &d->run_pool_fds[1]);
}

static int open_pool(struct daemon *d, struct err *e) {
    struct parsed_id id;
    bool named = d->command == COMMAND_ATTACH;
    struct run_pool owner = {0};
    int rc = named ? id_parse(&id, d->config.volume, e) : 0;
    struct pool_how how = {.wanted = named ? id.pool : NULL,
                           .metrics = d->metrics,
                           .on_trouble = on_trouble,
                           .arg = d};
    if (rc == 0)
        rc = pool_open(d->loop, &d->config.pool, &how, &d->pool, e);
    if (rc == 0 && named && d->config.resume) {
        follow_in_folders(d);
        return 0;
    }
    if (rc == 0)
        rc = check_pool(d, &owner, e);
    return rc < 0 ? rc : take_folders(d, &owner, e);
}

static void start_fiber(void *arg) {
    struct daemon *d = arg;
    struct err e;
    int rc = d->command == COMMAND_SERVE ? served_check_folders(&d->served_config, &e) : 0;
    if (rc == 0 && d->command == COMMAND_SERVE && !d->config.single)
        d->recovery = recovery_new(d); /* a single client asks for what it left */
    if (rc == 0)
        rc = open_pool(d, &e);
    if (rc == 0)
        rc = d->command == COMMAND_SERVE ? start_serve(d, &e) : attach_start(d, &e);
    if (rc == 0)
        service_ready();
    else
        d->start_err = e; /* only then: what went well may have met errors on its way */
    CHECK(d->start_err.code == rc);
    d->started = true;
    waitq_wake_all(&d->events);
}

/* --- stop --- */

void daemon_stop(struct daemon *d) {
    d->stop = true;
    waitq_wake_all(&d->events);
}

static void on_signal(struct daemon *d, int signum) {
    if (d->stop) {
        log_warn("a second signal: waiting no more", LOG_I64("signal", signum));
        d->give_up = true;
    } else {
        log_info("ending", LOG_I64("signal", signum));
        /* Nobody took the device away: whoever published the volume starts a successor. */
        if (d->attached && d->config.publish_epoch && (d->fuse || d->nbd))
            d->attached->keep_journal = true;
    }
    daemon_stop(d);
}

static void on_term(struct loop_signal *sig, int signum) {
    on_signal(container_of(sig, struct daemon, term), signum);
}

static void on_interrupt(struct loop_signal *sig, int signum) {
    on_signal(container_of(sig, struct daemon, interrupt), signum);
}

/* fiber. Runs fn in a fiber of its own and waits for it; that one is cancelled when there is no
 * more time. */
struct bounded {
    struct daemon *daemon;
    void (*fn)(struct daemon *d);
    bool ended;
};

static void bounded_fiber(void *arg) {
    struct bounded *b = arg;
    b->fn(b->daemon);
    b->ended = true;
    waitq_wake_all(&b->daemon->events);
}

static void wait_event(struct daemon *d) {
    int rc = waitq_wait(d->env, &d->events);
    CHECK(rc == 0); /* nobody cancels the main fiber */
}

static void run_bounded(struct daemon *d, void (*fn)(struct daemon *d)) {
    struct bounded b = {.daemon = d, .fn = fn};
    struct fiber *fiber = fiber_start(d->env, bounded_fiber, &b);
    bool cancelled = false;
    while (!b.ended) {
        if (d->give_up && !cancelled) {
            fiber_cancel(fiber);
            cancelled = true;
        }
        wait_event(d);
    }
}

struct stop_timer {
    struct env_timer timer;
    struct daemon *daemon;
};

static void on_stop_limit(struct env_timer *timer) {
    struct daemon *d = container_of(timer, struct stop_timer, timer)->daemon;
    log_warn("--stop-limit is over: waiting no more");
    d->give_up = true;
    waitq_wake_all(&d->events);
}

static void close_volumes(struct daemon *d) {
    if (d->exports && d->recovery && d->start_err.code == 0)
        recovery_run(d->recovery); /* what it has not come to yet */
    if (d->exports)
        exports_close_all(d->exports);
    if (d->attached)
        daemon_close_volume(d, d->attached,
                            !d->config.publish_epoch && !d->attached->target.is_snapshot);
}

static void drop_volumes(struct daemon *d) {
    if (d->exports)
        exports_drop_all(d->exports);
    if (d->attached)
        served_drop(d->attached);
}

static void nbd_closed(void *arg) {
    fiber_done_set(arg);
}

static void free_front_ends(struct daemon *d) {
    if (d->nbd) {
        struct fiber_done closed;
        fiber_done_init(&closed);
        nbd_server_close(TAKE_PTR(d->nbd), nbd_closed, &closed);
        fiber_done_wait_always(d->env, &closed);
    }
    if (d->fuse)
        fuse_server_free(TAKE_PTR(d->fuse));
    if (d->exports)
        exports_free(TAKE_PTR(d->exports));
    if (d->attached)
        served_free(TAKE_PTR(d->attached));
}

/* A volume that is out of use cannot be saved: dropping it ends its requests with ESHUTDOWN. */
static void take_down(struct daemon *d) {
    struct stop_timer limit = {.timer.fn = on_stop_limit, .daemon = d};
    if (d->config.stop_limit_us)
        env_timer_start(d->env, &limit.timer, d->config.stop_limit_us);
    if (d->exports)
        exports_cancel_opening(d->exports);
    drain_start(d);
    if (!d->out_of_use) {
        while (d->drains_left && !d->give_up && !d->out_of_use)
            wait_event(d);
        run_bounded(d, close_volumes);
    }
    env_timer_stop(d->env, &limit.timer);
    drop_volumes(d);
    while (d->drains_left)
        wait_event(d);
    free_front_ends(d);
    if (d->recovery && d->exit_code != EXIT_FAILED && !recovery_report(d->recovery))
        d->exit_code = MAX(d->exit_code, EXIT_UNSAVED);
    recovery_free(TAKE_PTR(d->recovery));
    pool_close(&d->pool);
    for (size_t i = 0; i < ARRAY_LEN(d->run_pool_fds); i++)
        if (d->run_pool_fds[i] >= 0)
            close(d->run_pool_fds[i]);
}

/* --- main --- */

static void main_fiber(void *arg) {
    struct daemon *d = arg;
    struct fiber *start = fiber_start(d->env, start_fiber, d);
    bool cancelled = false;
    while (!d->started) {
        if (d->stop && !cancelled) {
            fiber_cancel(start);
            cancelled = true;
        }
        wait_event(d);
    }
    if (d->start_err.code < 0 && !d->stop) {
        log_error("portalbd does not start", LOG_ERR(&d->start_err));
        d->exit_code = d->start_err.code == -ERR_FENCED ? EXIT_FENCED : EXIT_FAILED;
    }
    attach_report(d, d->start_err.code < 0 ? &d->start_err : NULL);
    if (d->command == COMMAND_ATTACH && !d->fuse && !d->nbd)
        d->stop = true; /* upload only */
    while (!d->stop && d->start_err.code == 0)
        wait_event(d);
    if (d->handed_over) /* the device waits: nothing that could take its time, as if killed */
        _exit(EXIT_HANDED_OVER);
    take_down(d);
    loop_stop(d->loop);
}

static bool healthy(void *arg, struct buf *text) {
    struct daemon *d = arg;
    int64_t broken = metrics_gauge_get(&d->broken);
    if (broken == 0)
        buf_append_str(text, "ok\n");
    else
        buf_printf(text, "%lld volumes are out of use\n", (long long)broken);
    return broken == 0;
}

static int start_http(struct daemon *d, struct err *e) {
    if (!d->config.http_address)
        return 0;
    struct http_config config = {.addr = d->config.http_address,
                                 .port = (uint16_t)d->config.http_port,
                                 .metrics = d->metrics,
                                 .healthy = healthy,
                                 .arg = d};
    int rc = http_server_start(&config, &d->http, e);
    if (rc == 0)
        log_info("serving /metrics and /healthz", LOG_STR("address", d->config.http_address),
                 LOG_U64("port", http_server_port(d->http)));
    return rc;
}

static int check_attach(const struct config *c, struct err *e) {
    if (!c->volume)
        return err_set(e, -ERR_INVALID, "attach: --volume is missing");
    if (c->fuse_fd && c->nbd_fd)
        return err_set(e, -ERR_INVALID, "attach: only one of --fuse-fd and --nbd-fd");
    return 0;
}

static void on_grown(void *arg) {
    struct daemon *d = arg;
    if (d->fuse)
        fuse_server_grew(d->fuse);
}

static void on_shutdown(void *arg) {
    log_info("ending, as the control socket asks");
    daemon_stop(arg);
}

static void on_owned(void *arg) {
    attach_owned(arg);
}

/* Whoever attached it takes the device down; `serve` has other volumes, and may open it again. */
static void on_out_of_use(void *arg, struct served *s, const struct err *why) {
    struct daemon *d = arg;
    if (d->exports)
        exports_out_of_use(d->exports, s);
    if (d->command != COMMAND_ATTACH || d->out_of_use)
        return;
    d->out_of_use = true;
    d->exit_code = why->code == -ERR_FENCED ? EXIT_FENCED : EXIT_UNSAVED;
    daemon_stop(d);
}

static const struct served_hooks served_hooks = {.owned = on_owned,
                                                 .out_of_use = on_out_of_use,
                                                 .shutdown = on_shutdown,
                                                 .grown = on_grown,
                                                 .device = handover_device,
                                                 .handover = handover};

static void set_served_config(struct daemon *d) {
    d->own_journal_dir = d->config.journal_dir != NULL;
    if (!d->own_journal_dir)
        d->config.journal_dir = xasprintf("%s/journals", d->config.run_dir);
    d->served_config = (struct served_config){
        .loop = d->loop,
        .pool = &d->pool,
        .run_dir = d->config.run_dir,
        .command = commands[d->command].name,
        .journal_dir = d->config.journal == JOURNAL_SHM ? d->config.journal_dir : NULL,
        .state_dir = d->config.state_dir,
        .resume = d->config.resume,
        .metrics = d->metrics,
        .scraped = d->config.http_address != NULL,
        .journal_size = d->config.journal_size,
        .cache_size = d->config.cache_size,
        .disk_cache = d->config.disk_cache,
        .disk_cache_size = d->config.disk_cache_size,
        .flush_coalesce_us = d->config.flush_coalesce_us,
        .broken = &d->broken,
        .hooks = &served_hooks,
        .arg = d};
}

static int run(struct daemon *d, struct err *e) {
    process_tune_memory();
    if (d->command == COMMAND_ATTACH)
        process_harden();
    d->loop = loop_new((unsigned)d->config.workers);
    d->env = loop_env(d->loop);
    d->metrics = metrics_new();
    d->metrics_group = metrics_group_new(d->metrics, NULL);
    metrics_gauge_register(d->metrics_group, &d->broken, "portalbd_volumes_broken",
                           "Volumes that are fenced or whose last durable step failed.", NULL);
    waitq_init(&d->events);
    set_served_config(d);
    d->term.fn = on_term;
    d->interrupt.fn = on_interrupt;
    int rc = loop_signal_start(d->loop, &d->term, SIGTERM, e);
    if (rc == 0)
        rc = loop_signal_start(d->loop, &d->interrupt, SIGINT, e);
    if (rc == 0)
        rc = start_http(d, e);
    if (rc == 0) {
        fiber_start(d->env, main_fiber, d);
        loop_run(d->loop);
    }
    loop_signal_stop(&d->term);
    loop_signal_stop(&d->interrupt);
    http_server_stop(d->http);
    loop_free(d->loop);
    metrics_group_free(d->metrics_group);
    metrics_free(d->metrics);
    return rc;
}

static void set_node_id(struct config *c) {
    char host[HOST_NAME_MAX + 1] = "";
    gethostname(host, sizeof host - 1);
    if (!c->node_id)
        c->node_id = xstrdup(host);
}

int main(int argc, char **argv) {
    struct daemon d = {.device_fd = -1, .run_pool_fds = {-1, -1}};
    struct option_args args;
    struct err e;
    options_parse_or_exit(&program, argc, argv, &d.config, &args);
    d.command = (enum command)args.command;
    d.volumes = args.argv;
    d.volume_count = (size_t)args.argc;
    log_init(&(struct log_config){.program = "portalbd",
                                  .level = (enum log_level)d.config.log_level,
                                  .format = (enum log_format)d.config.log_format});
    signal(SIGPIPE, SIG_IGN);
    set_node_id(&d.config);
    if (d.command == COMMAND_ATTACH && check_attach(&d.config, &e) < 0) {
        fprintf(stderr, "portalbd: %s\n", e.text);
        d.exit_code = EXIT_USAGE;
    } else if (run(&d, &e) < 0) {
        log_error("portalbd does not start", LOG_ERR(&e));
        d.exit_code = EXIT_FAILED;
    }
    options_release(&program, &d.config);
    return d.exit_code;
}
