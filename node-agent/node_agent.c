/* node-agent: turns volumes into block devices of this node and keeps them. This file reads the
 * options and wires the agent, its gRPC server, its metrics and its registration together.
 *
 * Threads: the main thread runs the event loop that owns all state; gRPC's workers hand calls over
 * to it; jobs that block (mount, ioctl, files) run on the loop's workers; the http server has one
 * of its own. SIGTERM ends the agent alone: daemons and devices go on, and the next agent finds
 * them. */
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/http.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/options.h"
#include "common/service.h"
#include "node-agent/agent.h"
#include "node-agent/agent_control.h"
#include "node-agent/agent_rpc.h"
#include "node-agent/backends.h"
#include "node-agent/cgroup.h"
#include "node-agent/journal_space.h"
#include "node-agent/register.h"
#include "node-agent/scrape.h"
#include "node-agent/supervisor.h"

enum {
    WORKERS = 32,    /* jobs that block: one hanging device each at worst */
    GRACE_MS = 2000, /* for calls at the end */
    STUCK_MS = 5000,
    IDLE_S_MAX = 10, /* --exit-when-idle */
    SECOND_US = 1000 * 1000,
};

struct config {
    char *endpoint;
    char *node_id;
    char *pools;
    char *run_dir;
    char *daemon;
    struct option_strings backends;
    uint64_t nbd_dead_conn_timeout, nbd_io_timeout;
    uint64_t cache_size, journal_size;
    uint64_t journal_space;
    char *state_dir, *cgroup;
    char *disk_cache;
    uint64_t disk_cache_size;
    int upgrade;
    uint64_t call_wait;
    bool drain, exit_when_idle;
    uint64_t drain_limit;
    char *http_address;
    uint64_t http_port;
    int log_level, log_format;
};

static const char *const no_yes[] = {"no", "yes", NULL};

static const struct option_spec options[] = {
    {"endpoint", OPTION_STRING, offsetof(struct config, endpoint),
     .def = "unix:///run/portalbd/agent.sock", .group = "Agent",
     .help = "Where to serve proto/agent.proto."},
    {"node-id", OPTION_STRING, offsetof(struct config, node_id), .env = "NODE_ID",
     .help = "Name of this node; the host's name without it."},
    {"pools", OPTION_STRING, offsetof(struct config, pools), .def = "/etc/portalbd/pools.conf",
     .arg = "FILE", .help = "The pool file; read again when it changes."},
    {"run-dir", OPTION_STRING, offsetof(struct config, run_dir), .def = "/run/portalbd",
     .arg = "DIR",
     .help = "What must not outlive the machine: attach files, sockets, devices. A tmpfs."},
    {"daemon", OPTION_STRING, offsetof(struct config, daemon), .arg = "FILE",
     .help = "The program portalbd; without it the one beside this program."},
    {"backend", OPTION_STRINGS, offsetof(struct config, backends), .def = "nbd,fuse",
     .help = "Ways to make devices, the preferred one first: nbd, fuse. What a node cannot do is "
             "left out."},
    {"call-wait", OPTION_DURATION, offsetof(struct config, call_wait), .def = "50s",
     .min = 100 * 1000, .max = UINT64_C(3600) * 1000 * 1000,
     .help = "How long a call waits for its work before it answers ABORTED; the work goes on."},
    {"drain", OPTION_BOOL, offsetof(struct config, drain),
     .help = "At SIGTERM, detach what nobody uses before the end. Without it devices and daemons "
             "go on, and the next agent finds them."},
    {"drain-limit", OPTION_DURATION, offsetof(struct config, drain_limit), .def = "60s",
     .max = UINT64_C(86400) * 1000 * 1000,
     .help = "How long that may take; what is left then goes on."},
    {"exit-when-idle", OPTION_BOOL, offsetof(struct config, exit_when_idle),
     .help = "End when nothing has been attached for 10 seconds."},
    {"nbd-dead-conn-timeout", OPTION_DURATION, offsetof(struct config, nbd_dead_conn_timeout),
     .group = "Backend nbd", .def = "24h", .min = 1000 * 1000,
     .max = UINT64_C(30) * 86400 * 1000 * 1000,
     .help = "How long requests wait for a daemon, once theirs has died, before they fail."},
    {"nbd-io-timeout", OPTION_DURATION, offsetof(struct config, nbd_io_timeout), .def = "2s",
     .min = 100 * 1000, .max = UINT64_C(60) * 1000 * 1000,
     .help = "How soon the kernel sends again what a dead daemon had."},
    {"cache-size", OPTION_SIZE, offsetof(struct config, cache_size), .group = "Daemons",
     .help = "Bytes of RAM cache of each daemon, unless the volume says otherwise; 0: the daemon's "
             "default."},
    {"journal-size", OPTION_SIZE, offsetof(struct config, journal_size),
     .help = "Bytes of journal of each daemon; 0: the daemon's default."},
    {"journal-space", OPTION_SIZE, offsetof(struct config, journal_space), .max = UINT64_C(1) << 50,
     .help = "Mount a tmpfs of this size for all journals (journals/ in --run-dir), unless "
             "something is mounted there; it stays when the agent ends. 0: journals are in the "
             "file system of --run-dir."},
    {"disk-cache", OPTION_STRING, offsetof(struct config, disk_cache), .arg = "DIR",
     .help = "Folder, on a disk of this node (not on one of our volumes), for a second cache of "
             "each volume behind the one in RAM; without it there is none. What is in it goes with "
             "the daemon that made it."},
    {"disk-cache-size", OPTION_SIZE, offsetof(struct config, disk_cache_size), .def = "4Gi",
     .min = DAEMON_DISK_CACHE_MIN, .max = DAEMON_DISK_CACHE_MAX,
     .help = "Bytes of disk cache of each volume, unless the volume says otherwise."},
    {"cgroup", OPTION_STRING, offsetof(struct config, cgroup), .arg = "PATH",
     .help = "Give each daemon a cgroup of its own below this one, which is relative to the mounts "
             "of cgroups; without it daemons stay in the agent's."},
    {"state-dir", OPTION_STRING, offsetof(struct config, state_dir), .arg = "DIR",
     .help = "Where daemons keep journals that were set aside; without it: the daemon's default."},
    {"upgrade", OPTION_ENUM, offsetof(struct config, upgrade), .def = "yes", .choices = no_yes,
     .help = "At the start, put daemons of the agent's own version in the place of others, one "
             "after the other, while their devices go on."},
    {"http-address", OPTION_STRING, offsetof(struct config, http_address), .group = "Observation",
     .arg = "ADDRESS", .help = "Serve /metrics and /healthz at this IP address; without it: not."},
    {"http-port", OPTION_U64, offsetof(struct config, http_port), .def = "9810", .max = 65535,
     .help = "... and this port; 0: the kernel chooses, and the log says which."},
    {"log-level", OPTION_ENUM, offsetof(struct config, log_level), .def = "info",
     .choices = log_level_names, .help = "The least important lines to print."},
    {"log-format", OPTION_ENUM, offsetof(struct config, log_format), .def = "logfmt",
     .choices = log_format_names, .help = "How lines of the log look."},
    {0}};

static const struct option_program program = {
    .name = "node-agent",
    .summary = "turns portalbd volumes into block devices of this node",
    .description = "Serves AttachVolume and its like to the CSI node service over a unix socket, "
                   "runs one portalbd daemon for each attached volume, and registers the node in "
                   "every pool.",
    .env_prefix = "PORTALBD_AGENT_",
    .options = options,
};

struct node_agent {
    struct config config;
    struct loop *loop;
    struct metrics *metrics;
    struct agent_backend backends[AGENT_BACKENDS_MAX];
    size_t backend_count;
    struct agent *agent;
    struct agent_control *control;
    struct cgroups *cgroups;
    struct agent_rpc rpc;
    struct rpc_server *server;
    struct http_server *http;
    struct registrar *registrar;
    struct loop_signal term, interrupt;
    bool stop;
    struct waitq stopped;
    int exit_code;
};

/* --- the node --- */

static char *default_node_id(void) {
    char name[256];
    CHECK(gethostname(name, sizeof name) == 0);
    name[sizeof name - 1] = '\0';
    return xstrdup(name);
}

static char *default_daemon(void) {
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return xstrdup("portalbd");
    self[n] = '\0';
    *strrchr(self, '/') = '\0';
    char *path = xasprintf("%s/portalbd", self);
    if (access(path, X_OK) == 0)
        return path;
    free(path);
    return xstrdup("portalbd");
}

/* One agent for a run folder; the lock ends with the process. */
static int take_run_dir(struct config *c, struct err *e) {
    if (mkdir(c->run_dir, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "create the run folder %s", c->run_dir);
    char *dir = realpath(c->run_dir, NULL); /* daemons and the kernel get it as it really is */
    if (!dir)
        return err_from_errno(e, errno, "resolve %s", c->run_dir);
    free(c->run_dir);
    c->run_dir = dir;
    CLEANUP_FREE char *lock = xasprintf("%s/agent.lock", dir);
    int fd = open(lock, O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_from_errno(e, errno, "open %s", lock);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(e, -ERR_IN_USE, "another agent has the run folder %s", dir);
    struct statfs fs;
    if (statfs(dir, &fs) == 0 && fs.f_type != TMPFS_MAGIC)
        log_warn(
            "the run folder is not a tmpfs; attach files of an earlier boot are told by its id",
            LOG_STR("dir", dir));
    return 0;
}

/* A disk that is not there today is no reason to serve nothing; each daemon looks again. */
static int check_disk_cache(struct config *c, struct err *e) {
    struct statfs fs;
    if (!c->disk_cache || !c->disk_cache[0]) {
        free(TAKE_PTR(c->disk_cache));
        return 0;
    }
    if (c->disk_cache[0] != '/')
        return err_set(e, -ERR_CONFIG, "--disk-cache: '%s' is not an absolute path", c->disk_cache);
    (void)mkdir(c->disk_cache, 0700); /* if it did not work, the next call says so */
    int fd = open(c->disk_cache, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        log_warn("volumes have no disk cache until its folder is there",
                 LOG_STR("dir", c->disk_cache), LOG_ERRNO(errno));
        return 0;
    }
    if (fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC)
        log_warn("the folder of the disk cache is a tmpfs: what is in it takes memory",
                 LOG_STR("dir", c->disk_cache));
    close(fd);
    return 0;
}

static int open_backends(struct node_agent *n, struct err *e) {
    const struct config *c = &n->config;
    const struct backends_config config = {
        .names = (const char *const *)c->backends.items,
        .count = c->backends.count,
        .run_dir = c->run_dir,
        .nbd = {.dead_conn_timeout_s = c->nbd_dead_conn_timeout / 1000000,
                .io_timeout_ms = c->nbd_io_timeout / 1000},
    };
    return backends_open(&config, n->backends, &n->backend_count, e);
}

/* --- life --- */

static int start_server(struct node_agent *n, struct err *e) {
    const struct rpc_server_config config = {
        .endpoint = n->config.endpoint, .metrics = n->metrics, .hooks = rpc_log_hooks};
    n->rpc = (struct agent_rpc){.agent = n->agent,
                                .loop = n->loop,
                                .wait_us_max = n->config.call_wait,
                                .version = PORTALBD_VERSION};
    struct rpc_server *server = rpc_server_new(&config);
    rpc_server_add_agent(server, &agent_rpc_ops, &n->rpc);
    int rc = rpc_server_start(server, e);
    if (rc < 0)
        rpc_server_free(server);
    else
        n->server = server;
    return rc;
}

static void scrape(void *arg, struct buf *text) {
    struct node_agent *n = arg;
    scrape_daemons(n->config.run_dir, text);
}

static int start_http(struct node_agent *n, struct err *e) {
    if (!n->config.http_address || !n->config.http_address[0])
        return 0;
    const struct http_config config = {.addr = n->config.http_address,
                                       .port = (uint16_t)n->config.http_port,
                                       .metrics = n->metrics,
                                       .more_metrics = scrape,
                                       .arg = n};
    int rc = http_server_start(&config, &n->http, e);
    if (rc == 0)
        log_info("metrics are served", LOG_STR("address", config.addr),
                 LOG_U64("port", http_server_port(n->http)));
    return rc;
}

static void on_pools(void *arg) {
    agent_renew_credentials(arg);
}

static int start(struct node_agent *n, struct err *e) {
    const struct config *c = &n->config;
    struct agent_config config = {
        .loop = n->loop,
        .metrics = n->metrics,
        .run_dir = c->run_dir,
        .node_id = c->node_id,
        .pools_path = c->pools,
        .daemon_program = c->daemon,
        .state_dir = c->state_dir,
        .cgroups = n->cgroups,
        .version = PORTALBD_VERSION,
        .upgrade = c->upgrade,
        .cache_bytes = c->cache_size,
        .journal_bytes = c->journal_size,
        .disk_cache = c->disk_cache,
        .disk_cache_bytes = c->disk_cache_size,
        .backend_count = n->backend_count,
    };
    memcpy(config.backends, n->backends, sizeof config.backends);
    int rc = agent_start(&config, &n->agent, e);
    if (rc == 0)
        rc = start_http(n, e);
    if (rc == 0)
        rc = agent_control_start(n->agent, c->call_wait, &n->control, e);
    if (rc == 0)
        rc = start_server(n, e);
    if (rc < 0)
        return rc;
    n->registrar = registrar_start(&(struct registrar_config){.loop = n->loop,
                                                              .metrics = n->metrics,
                                                              .pools_path = c->pools,
                                                              .node_id = c->node_id,
                                                              .version = PORTALBD_VERSION,
                                                              .on_pools = on_pools,
                                                              .arg = n->agent});
    log_info("the agent serves", LOG_STR("endpoint", c->endpoint), LOG_STR("node_id", c->node_id),
             LOG_STR("version", PORTALBD_VERSION));
    service_ready();
    return 0;
}

static void stop_server_job(void *arg) {
    struct node_agent *n = arg;
    struct err e;
    if (rpc_server_stop(n->server, GRACE_MS, STUCK_MS, &e) < 0) {
        log_error("calls hang; the agent ends without them", LOG_ERR(&e));
        _exit(1); /* devices and daemons are as they were: the next agent finds them */
    }
}

/* In the order that lets calls end before what they use. */
static void stop(struct node_agent *n) {
    if (n->agent)
        agent_interrupt(n->agent);
    if (n->server)
        fiber_run_job(loop_env(n->loop), stop_server_job, n);
    rpc_server_free(n->server);
    if (n->registrar)
        registrar_stop(n->registrar);
    http_server_stop(n->http);
    agent_control_stop(n->control);
    struct err e;
    if (n->agent && agent_stop(n->agent, &e) < 0) {
        log_error("the agent ends without waiting for its devices", LOG_ERR(&e));
        _exit(n->exit_code); /* they are as they were, as above */
    }
}

/* Until a signal comes, or the agent has been idle for long enough. */
static void wait_for_end(struct node_agent *n) {
    unsigned idle_s = 0;
    while (!n->stop) {
        int rc = n->config.exit_when_idle
                     ? waitq_wait_for(loop_env(n->loop), &n->stopped, SECOND_US)
                     : waitq_wait(loop_env(n->loop), &n->stopped);
        if (rc == -ERR_CANCELLED)
            return;
        idle_s = agent_count(n->agent) ? 0 : idle_s + 1;
        if (n->config.exit_when_idle && idle_s >= IDLE_S_MAX) {
            log_info("nothing is attached any more; the agent ends");
            return;
        }
    }
    if (n->config.drain)
        agent_drain(n->agent, n->config.drain_limit);
}

static void main_fiber(void *arg) {
    struct node_agent *n = arg;
    struct err e;
    int rc = start(n, &e);
    if (rc < 0) {
        log_error("the agent cannot start", LOG_ERR(&e));
        n->exit_code = 1;
    }
    if (rc == 0)
        wait_for_end(n);
    stop(n);
    loop_stop(n->loop);
}

static void on_signal(struct node_agent *n, int signum) {
    log_info("the agent ends", LOG_I64("signal", signum), LOG_BOOL("drain", n->config.drain));
    n->stop = true;
    waitq_wake_all(&n->stopped);
}

static void on_term(struct loop_signal *sig, int signum) {
    on_signal(container_of(sig, struct node_agent, term), signum);
}

static void on_interrupt(struct loop_signal *sig, int signum) {
    on_signal(container_of(sig, struct node_agent, interrupt), signum);
}

static int set_up(struct node_agent *n, struct err *e) {
    if (!n->config.node_id || !n->config.node_id[0]) {
        free(n->config.node_id);
        n->config.node_id = default_node_id();
    }
    if (!n->config.daemon)
        n->config.daemon = default_daemon();
    int rc = take_run_dir(&n->config, e);
    if (rc == 0)
        rc = check_disk_cache(&n->config, e);
    if (rc == 0)
        rc = journal_space_mount(n->config.run_dir, n->config.journal_space, e);
    if (rc == 0)
        rc = open_backends(n, e);
    cgroups_open(n->config.cgroup, &n->cgroups);
    n->term.fn = on_term;
    n->interrupt.fn = on_interrupt;
    if (rc == 0)
        rc = loop_signal_start(n->loop, &n->term, SIGTERM, e);
    if (rc == 0)
        rc = loop_signal_start(n->loop, &n->interrupt, SIGINT, e);
    return rc;
}

int main(int argc, char **argv) {
    struct node_agent n = {0};
    struct option_args args;
    struct err e;
    options_parse_or_exit(&program, argc, argv, &n.config, &args);
    signal(SIGPIPE, SIG_IGN);
    log_init(&(struct log_config){.program = "node-agent",
                                  .level = (enum log_level)n.config.log_level,
                                  .format = (enum log_format)n.config.log_format});
    n.metrics = metrics_new();
    n.loop = loop_new(WORKERS);
    waitq_init(&n.stopped);
    if (set_up(&n, &e) < 0) {
        log_error("the agent cannot start", LOG_ERR(&e));
        n.exit_code = 1;
    } else {
        fiber_start(loop_env(n.loop), main_fiber, &n);
        loop_run(n.loop);
    }
    loop_signal_stop(&n.term);
    loop_signal_stop(&n.interrupt);
    cgroups_close(n.cgroups);
    backends_close(n.backends, n.backend_count);
    loop_free(n.loop);
    metrics_free(n.metrics);
    options_release(&program, &n.config);
    return n.exit_code;
}
