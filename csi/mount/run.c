/* Runs a program from a process with many threads: posix_spawn (no fork handlers, no copy of the
 * address space), every descriptor above 2 closed, signals as a fresh process has them, a process
 * group of its own so that its children die with it. Waits on a pidfd: its output pipe may stay
 * open in a grandchild for ever. */
#include "csi/mount/run.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

extern char **environ;

/* An eventfd that becomes readable when everything is to stop. */
static int stop_fd = -1;
static pthread_once_t stop_once = PTHREAD_ONCE_INIT;

static void stop_init(void) {
    stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(stop_fd >= 0);
}

void run_stop_all(void) {
    pthread_once(&stop_once, stop_init);
    CHECK(eventfd_write(stop_fd, 1) == 0);
}

/* --- programs that did not die --- */

enum { ABANDONED_MAX = 64 };
static struct {
    pthread_mutex_t mutex;
    pid_t pids[ABANDONED_MAX]; /* guarded */
    unsigned count;            /* guarded */
} abandoned = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void reap_abandoned(void) {
    pthread_mutex_lock(&abandoned.mutex);
    for (unsigned i = abandoned.count; i-- > 0;)
        if (waitpid(abandoned.pids[i], NULL, WNOHANG) != 0)
            abandoned.pids[i] = abandoned.pids[--abandoned.count];
    pthread_mutex_unlock(&abandoned.mutex);
}

static void abandon(pid_t pid) {
    pthread_mutex_lock(&abandoned.mutex);
    if (abandoned.count < ABANDONED_MAX) /* beyond that they stay zombies when they die */
        abandoned.pids[abandoned.count++] = pid;
    pthread_mutex_unlock(&abandoned.mutex);
}

/* --- one program --- */

static int spawn(const char *const *argv, int output_fd, pid_t *ret_pid) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, output_fd, 1);
    posix_spawn_file_actions_adddup2(&files, output_fd, 2);
    posix_spawn_file_actions_addclosefrom_np(&files, 3);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                        POSIX_SPAWN_SETPGROUP);
    int eno = posix_spawnp(ret_pid, argv[0], &files, &attr, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    return eno;
}

/* Keeps the last RUN_OUTPUT_MAX bytes. */
static void keep_output(struct run_result *r, size_t *len, const char *bytes, size_t count) {
    if (count > RUN_OUTPUT_MAX) {
        bytes += count - RUN_OUTPUT_MAX;
        count = RUN_OUTPUT_MAX;
    }
    size_t over = *len + count > RUN_OUTPUT_MAX ? *len + count - RUN_OUTPUT_MAX : 0;
    memmove(r->output, r->output + over, *len - over);
    *len -= over;
    memcpy(r->output + *len, bytes, count);
    *len += count;
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Follows the program until it has ended (true) or must be killed (false). */
static bool follow(int pid_fd, int output_fd, int64_t end_ms, struct run_result *r, int *why) {
    size_t len = 0;
    bool open = true;
    for (;;) {
        int64_t left_ms = end_ms - now_ms();
        if (left_ms <= 0) {
            *why = -ERR_TIMEOUT;
            return false;
        }
        struct pollfd fds[] = {{.fd = pid_fd, .events = POLLIN},
                               {.fd = stop_fd, .events = POLLIN},
                               {.fd = open ? output_fd : -1, .events = POLLIN}};
        if (poll(fds, ARRAY_LEN(fds), (int)MIN(left_ms, 60000)) <= 0)
            continue;
        if (fds[2].revents) {
            char bytes[1024];
            ssize_t n = read(output_fd, bytes, sizeof bytes);
            if (n > 0) {
                keep_output(r, &len, bytes, (size_t)n);
                continue; /* what it printed before it ended is read first */
            }
            open = false;
        }
        if (fds[0].revents)
            return true;
        if (fds[1].revents) {
            *why = -ERR_CANCELLED;
            return false;
        }
    }
}

static void kill_group(pid_t pid, int pid_fd) {
    kill(-pid, SIGKILL);
    struct pollfd fd = {.fd = pid_fd, .events = POLLIN};
    if (poll(&fd, 1, RUN_KILL_MS) > 0) {
        waitpid(pid, NULL, 0);
        return;
    }
    log_warn("a killed program does not die, it is left behind", LOG_I64("pid", pid));
    abandon(pid);
}

int run_program(const char *const *argv, uint32_t timeout_ms, struct run_result *ret,
                struct err *e) {
    pthread_once(&stop_once, stop_init);
    reap_abandoned();
    *ret = (struct run_result){0};
    int output[2];
    if (pipe2(output, O_CLOEXEC) != 0)
        return err_from_errno(e, errno, "%s: pipe", argv[0]);
    pid_t pid;
    int eno = spawn(argv, output[1], &pid);
    close(output[1]);
    if (eno != 0) {
        close(output[0]);
        if (eno == ENOENT)
            return err_set(e, -ERR_CONFIG, "the program %s is not installed", argv[0]);
        return err_from_errno(e, eno, "start %s", argv[0]);
    }
    int pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
    CHECK(pid_fd >= 0); /* the child is not reaped yet */
    fcntl(output[0], F_SETFL, O_NONBLOCK);
    int why = 0, status = 0;
    int64_t end_ms = timeout_ms ? now_ms() + timeout_ms : INT64_MAX;
    bool ended = follow(pid_fd, output[0], end_ms, ret, &why);
    if (ended)
        waitpid(pid, &status, 0);
    else
        kill_group(pid, pid_fd);
    close(pid_fd);
    close(output[0]);
    if (why == -ERR_TIMEOUT)
        return err_set(e, why, "%s did not end within %u s and was killed", argv[0],
                       timeout_ms / 1000);
    if (why)
        return err_set(e, why, "%s was stopped because this process ends", argv[0]);
    ret->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    ret->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    return 0;
}

/* The end of the output on one line, without the blanks at its ends. */
static void one_line(char *text) {
    size_t len = strlen(text);
    while (len > 0 && (unsigned char)text[len - 1] <= ' ')
        text[--len] = '\0';
    for (char *p = text; *p; p++)
        if (*p == '\n' || *p == '\r' || *p == '\t')
            *p = ' ';
}

int run_checked(const char *const *argv, uint32_t timeout_ms, struct err *e) {
    enum { SHOWN_MAX = 240 };
    struct run_result result;
    int rc = run_program(argv, timeout_ms, &result, e);
    if (rc)
        return rc;
    if (result.exit_code == 0)
        return 0;
    one_line(result.output);
    size_t len = strlen(result.output);
    const char *shown = result.output + (len > SHOWN_MAX ? len - SHOWN_MAX : 0);
    if (result.signal)
        return err_set(e, -ERR_IO, "%s was ended by signal %d: %s", argv[0], result.signal, shown);
    return err_set(e, -ERR_IO, "%s ended with %d: %s", argv[0], result.exit_code, shown);
}
