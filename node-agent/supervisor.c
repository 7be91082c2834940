/* Starting and watching daemons (see supervisor.h).
 *
 * A process is known by its pidfd: no pid is ever signalled that could belong to somebody else by
 * now. A pid that comes out of an attach file counts only together with the start time of its
 * process. Only children can be waited for; of an adopted daemon we learn that it ended, not how.
 */
#include "node-agent/supervisor.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"

enum {
    CHILD_DEVICE_FD = 3,
    CHILD_READY_FD = 4,
    CHILD_FDS_END = 5,
    HIGH_FD = 16, /* above everything that the child's numbers are copied onto */
    ARGS_MAX = 32,
};

/* --- processes --- */

/* Field 22 of /proc/<pid>/stat; the name in field 2 may hold anything, so count from its end. */
static bool read_start_time(int64_t pid, uint64_t *ret) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = '\0';
    const char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (!at)
        return false;
    *ret = strtoull(at + 1, NULL, 10);
    return true;
}

static void on_ended(struct daemon *d) {
    loop_watch_stop(&d->pid_watch);
    siginfo_t info = {0};
    if (d->ours && waitid(P_PIDFD, (id_t)d->pidfd, &info, WEXITED | WNOHANG) == 0)
        d->exit_code = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
    d->exited = true;
    waitq_wake_all(d->changed);
}

static void on_pid(struct loop_watch *watch, int events) {
    (void)events;
    on_ended(container_of(watch, struct daemon, pid_watch));
}

void daemon_describe_end(const struct daemon *d, char *text, size_t size) {
    if (!d->ours)
        snprintf(text, size, "ended");
    else if (d->exit_code >= 128)
        snprintf(text, size, "was killed by signal %d", d->exit_code - 128);
    else
        snprintf(text, size, "exited with code %d", d->exit_code);
}

/* --- what it says --- */

static int code_of_name(const char *name) {
#define ERR_CODE(code, eno, retryable, nbd, grpc)                                                  \
    if (strcasecmp(name, err_code_name(-ERR_##code)) == 0)                                         \
        return -ERR_##code;
#include "common/err_codes.def"
#undef ERR_CODE
    return -ERR_IO;
}

/* True: nothing more will be said. */
static bool take_line(struct daemon *d, const char *line, size_t len) {
    json_t *j = json_loadb(line, len, 0, NULL);
    int opened = 0, ready = 0, flags = 0;
    json_int_t size = 0;
    const char *text = NULL, *code = "io", *journal = "memory", *waits = NULL;
    if (!j ||
        json_unpack(j, "{s?:b, s?:b, s?:I, s?:i, s?:s, s?:s, s?:s, s?:s}", "opened", &opened,
                    "ready", &ready, "size_bytes", &size, "nbd_flags", &flags, "journal", &journal,
                    "error", &text, "code", &code, "waits", &waits) < 0 ||
        !(opened || ready || text || waits)) {
        err_set_text(&d->said, -ERR_IO, "what the daemon says of itself makes no sense");
    } else if (text) {
        err_set_text(&d->said, code_of_name(code), "%s", text);
    } else if (waits) {
        snprintf(d->waits, sizeof d->waits, "%s", waits);
    } else {
        d->opened = true;
        d->ready = ready;
        d->size_bytes = size > 0 ? (uint64_t)size : 0;
        d->nbd_flags = (uint16_t)flags;
        d->journal_memory = strcmp(journal, "memory") == 0;
    }
    json_decref(j);
    return d->ready || d->said.code < 0;
}

static void on_ready(struct loop_watch *watch, int events) {
    struct daemon *d = container_of(watch, struct daemon, ready_watch);
    (void)events;
    ssize_t n = read(d->ready_fd, d->line + d->line_len, sizeof d->line - d->line_len);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    bool over = n <= 0;
    d->line_len += n > 0 ? (size_t)n : 0;
    for (char *end; !over && (end = memchr(d->line, '\n', d->line_len));) {
        size_t len = (size_t)(end - d->line) + 1;
        over = take_line(d, d->line, len - 1);
        memmove(d->line, end + 1, d->line_len - len);
        d->line_len -= len;
    }
    if (!over && d->line_len == sizeof d->line)
        over = take_line(d, d->line, d->line_len);
    if (over) {
        loop_watch_stop(&d->ready_watch);
        close(d->ready_fd);
        d->ready_fd = -1;
    }
    waitq_wake_all(d->changed);
}

/* --- spawn and adopt --- */

struct args {
    char *items[ARGS_MAX + 1]; /* owned */
    size_t count;
};

static void args_release(struct args *a) {
    for (size_t i = 0; i < a->count; i++)
        free(a->items[i]);
}

static void args_add(struct args *a, const char *text) {
    CHECK(a->count < ARGS_MAX);
    a->items[a->count++] = xstrdup(text);
}

static void args_add_text(struct args *a, const char *flag, const char *value) {
    args_add(a, flag);
    args_add(a, value);
}

static void args_add_u64(struct args *a, const char *flag, uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    args_add_text(a, flag, text);
}

static void build_args(struct args *a, const struct daemon_spec *spec) {
    args_add(a, spec->program);
    args_add(a, "attach");
    args_add_text(a, "--volume", spec->volume);
    args_add_text(a, "--pools", spec->pool_file);
    args_add_u64(a, "--publish-epoch", spec->publish_epoch);
    args_add_text(a, "--node-id", spec->node_id);
    args_add_text(a, "--run-dir", spec->run_dir);
    if (spec->device_flag)
        args_add_u64(a, spec->device_flag, CHILD_DEVICE_FD);
    args_add_u64(a, "--ready-fd", CHILD_READY_FD);
    if (spec->resume)
        args_add(a, "--resume");
    if (spec->state_dir && spec->state_dir[0])
        args_add_text(a, "--state-dir", spec->state_dir);
    if (spec->read_only)
        args_add(a, "--read-only");
    if (spec->cache_bytes)
        args_add_u64(a, "--cache-size", spec->cache_bytes);
    if (spec->journal_bytes)
        args_add_u64(a, "--journal-size", spec->journal_bytes);
    if (spec->disk_cache) {
        args_add_text(a, "--disk-cache", spec->disk_cache);
        args_add_u64(a, "--disk-cache-size", spec->disk_cache_bytes);
    }
}

/* Both descriptors were lifted above HIGH_FD, so no copy overwrites another's source. Without a
 * device its number is taken by /dev/null: nothing of ours may have it. */
static int spawn(const struct daemon_spec *spec, int device_fd, int ready_fd, pid_t *ret_pid) {
    CLEANUP(args_release) struct args args = {0};
    build_args(&args, spec);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    CHECK(posix_spawn_file_actions_init(&actions) == 0);
    CHECK(posix_spawnattr_init(&attr) == 0);
    CHECK(posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0) == 0);
    if (device_fd >= 0)
        CHECK(posix_spawn_file_actions_adddup2(&actions, device_fd, CHILD_DEVICE_FD) == 0);
    else
        CHECK(posix_spawn_file_actions_addopen(&actions, CHILD_DEVICE_FD, "/dev/null", O_RDONLY,
                                               0) == 0);
    CHECK(posix_spawn_file_actions_adddup2(&actions, ready_fd, CHILD_READY_FD) == 0);
    CHECK(posix_spawn_file_actions_addclosefrom_np(&actions, CHILD_FDS_END) == 0);
    CHECK(posix_spawnattr_setpgroup(&attr, 0) == 0);
    CHECK(posix_spawnattr_setsigmask(&attr, &none) == 0);
    CHECK(posix_spawnattr_setsigdefault(&attr, &all) == 0);
    CHECK(posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                              POSIX_SPAWN_SETSIGDEF) == 0);
    int eno = posix_spawnp(ret_pid, spec->program, &actions, &attr, args.items, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    return eno;
}

static int watch_pid(struct loop *loop, struct daemon *d, struct err *e) {
    d->pidfd = (int)syscall(SYS_pidfd_open, (pid_t)d->pid, 0);
    if (d->pidfd < 0)
        return errno == ESRCH
                   ? err_set(e, -ERR_NOT_FOUND, "process %lld has ended", (long long)d->pid)
                   : err_from_errno(e, errno, "watch process %lld", (long long)d->pid);
    fcntl(d->pidfd, F_SETFD, FD_CLOEXEC);
    d->pid_watch.fn = on_pid;
    return loop_watch_start(loop, &d->pid_watch, d->pidfd, LOOP_READABLE, e);
}

static struct daemon *daemon_new(struct loop *loop, struct waitq *changed) {
    struct daemon *d = NEW(struct daemon);
    d->env = loop_env(loop);
    d->pidfd = d->ready_fd = -1;
    d->changed = changed;
    return d;
}

static void close_pair(int fds[2]) {
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

int daemon_spawn(struct loop *loop, const struct daemon_spec *spec, struct waitq *changed,
                 struct daemon **ret, struct err *e) {
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return err_from_errno(e, errno, "make a pipe");
    int high[2] = {spec->device_flag ? fcntl(spec->device_fd, F_DUPFD_CLOEXEC, HIGH_FD) : -1,
                   fcntl(pipe_fds[1], F_DUPFD_CLOEXEC, HIGH_FD)};
    pid_t pid = 0;
    bool all = (high[0] >= 0 || !spec->device_flag) && high[1] >= 0;
    int eno = all ? spawn(spec, high[0], high[1], &pid) : errno;
    close_pair(high);
    close(pipe_fds[1]);
    if (eno) {
        close(pipe_fds[0]);
        return err_set(e, -ERR_CONFIG, "cannot run %s: %s", spec->program, strerror(eno));
    }
    struct daemon *d = daemon_new(loop, changed);
    d->pid = pid;
    d->ours = true;
    d->ready_fd = pipe_fds[0];
    d->ready_watch.fn = on_ready;
    CHECK(
        read_start_time(pid, &d->pid_start)); /* ours: it cannot go before we have waited for it */
    int rc = watch_pid(loop, d, e);
    if (rc == 0)
        rc = loop_watch_start(loop, &d->ready_watch, d->ready_fd, LOOP_READABLE, e);
    if (rc < 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        daemon_free(d);
        return rc;
    }
    *ret = d;
    return 0;
}

int daemon_adopt(struct loop *loop, int64_t pid, uint64_t pid_start, struct waitq *changed,
                 struct daemon **ret, struct err *e) {
    struct daemon *d = daemon_new(loop, changed);
    d->pid = pid;
    uint64_t start = 0;
    int rc = pid > 0 ? watch_pid(loop, d, e) : err_set(e, -ERR_NOT_FOUND, "no process");
    /* The pidfd is held now: what /proc shows is this process, or nothing. */
    struct pollfd ended = {.fd = d->pidfd, .events = POLLIN}; /* a zombie is no daemon */
    if (rc == 0 && poll(&ended, 1, 0) > 0)
        rc = err_set(e, -ERR_NOT_FOUND, "process %lld has ended", (long long)pid);
    if (rc == 0 && (!read_start_time(pid, &start) || (pid_start && start != pid_start)))
        rc = err_set(e, -ERR_NOT_FOUND, "process %lld is another one", (long long)pid);
    if (rc < 0) {
        daemon_free(d);
        return rc;
    }
    d->pid_start = start;
    d->opened = d->ready = true; /* the caller knows from the attach file whether it was */
    *ret = d;
    return 0;
}

void daemon_free(struct daemon *d) {
    if (!d)
        return;
    loop_watch_stop(&d->pid_watch);
    loop_watch_stop(&d->ready_watch);
    if (d->pidfd >= 0)
        close(d->pidfd);
    if (d->ready_fd >= 0)
        close(d->ready_fd);
    free(d);
}

/* --- waiting --- */

/* Time that is left of a limit that began at start_us. */
static uint64_t left_us(struct env *env, uint64_t start_us, uint64_t limit_us) {
    uint64_t passed = env_now_us(env) - start_us;
    return passed < limit_us ? limit_us - passed : 0;
}

int daemon_is_ready(const struct daemon *d, struct err *e) {
    if (d->said.code < 0)
        return err_copy(e, &d->said);
    if (d->exited && d->ready_fd < 0) { /* its last words were heard */
        char how[64];
        daemon_describe_end(d, how, sizeof how);
        return err_set(e, -ERR_IO, "the daemon %s before it served; its log says why", how);
    }
    return d->ready ? 0 : err_set(e, -ERR_BUSY, "the daemon does not serve yet");
}

bool daemon_is_fenced(const struct daemon *d) {
    return d->said.code == -ERR_FENCED ||
           (d->exited && d->ours && d->exit_code == DAEMON_EXIT_FENCED);
}

int daemon_wait_exit(struct daemon *d, uint64_t limit_us) {
    uint64_t start = env_now_us(d->env);
    while (!d->exited) {
        uint64_t left = left_us(d->env, start, limit_us);
        if (left == 0)
            return -ERR_TIMEOUT;
        if (waitq_wait_for(d->env, d->changed, left) == -ERR_CANCELLED)
            return -ERR_CANCELLED;
    }
    return 0;
}

void daemon_signal(struct daemon *d, int signum) {
    if (d->exited || d->pidfd < 0)
        return;
    if (syscall(SYS_pidfd_send_signal, d->pidfd, signum, NULL, 0) < 0 && errno != ESRCH)
        log_warn("a daemon cannot be signalled", LOG_I64("pid", d->pid), LOG_ERRNO(errno));
}
