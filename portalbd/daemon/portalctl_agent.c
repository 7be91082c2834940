/* portalctl: the node agent of this run folder, asked on its control socket; and started where none
 * listens.
 *
 * One command at a time starts an agent (a lock in the run folder); the others then find its
 * socket. It is started like a service: a session of its own, nothing of our terminal, its output
 * in <run folder>/node-agent.log. It ends by itself when nothing is attached any more. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/mem.h"
#include "portalbd/control/client.h"
#include "portalbd/daemon/portalctl_internal.h"

#define AGENT     "node-agent"
#define LOG_FILE  "node-agent.log"
#define LOCK_FILE "portalctl.lock"

enum {
    POLL_US = 20 * 1000,
    START_US_MAX = 30 * 1000 * 1000, /* adopting what is attached is part of it */
    AGAIN_US = 500 * 1000,           /* the agent before may be on its way out: */
    STARTS_MAX = 4,                  /* its run folder is free only when it has ended */
    ANSWER_US = 10 * 1000 * 1000,    /* beyond the time that it was told to wait */
    TAIL_MAX = 4096,                 /* bytes of the log that are searched for its last line */
    LINE_SHOWN_MAX = 240,
};

/* --- asking --- */

bool ctl_agent_is_live(const struct ctl *c) {
    return control_is_live(c->config.run_dir, CONTROL_AGENT_NAME);
}

int ctl_agent_ask(struct ctl *c, const char *verb, json_t *args, uint64_t wait_us, json_t **ret,
                  struct err *e) {
    if (wait_us)
        json_object_set_new(args, "wait_ms", json_integer((json_int_t)(wait_us / 1000)));
    int rc = control_call(c->config.run_dir, CONTROL_AGENT_NAME, verb, args, wait_us + ANSWER_US,
                          ret, e);
    json_decref(args);
    if (rc == -ERR_NOT_FOUND && !ctl_agent_is_live(c))
        return err_set(e, -ERR_TRANSIENT, "no node agent listens in %s", c->config.run_dir);
    return rc == -ERR_TIMEOUT ? err_wrap(e, "the node agent in %s", c->config.run_dir) : rc;
}

/* --- attach files: what an agent would know --- */

static bool any_attach_file(const struct ctl *c, const char *pool) {
    CLEANUP_FREE char *path = xasprintf("%s/attachments", c->config.run_dir);
    DIR *dir = opendir(path);
    bool found = false;
    for (const struct dirent *entry; dir && !found && (entry = readdir(dir));) {
        struct parsed_id id;
        size_t len = strlen(entry->d_name), suffix = strlen(".json");
        if (len <= suffix || strcmp(entry->d_name + len - suffix, ".json") != 0)
            continue;
        CLEANUP_FREE char *name = xstrndup(entry->d_name, len - suffix);
        found = !pool || (id_parse(&id, name, NULL) == 0 && strcmp(id.pool, pool) == 0);
    }
    if (dir)
        closedir(dir);
    return found;
}

bool ctl_pool_is_attached(const struct ctl *c, const char *pool) {
    return any_attach_file(c, pool);
}

bool ctl_agent_has_work(const struct ctl *c) {
    return ctl_agent_is_live(c) || any_attach_file(c, NULL);
}

/* --- starting --- */

struct starting {
    struct ctl *c;
    char *program, *pools, *log, *endpoint; /* owned */
    off_t log_start;                        /* what it says begins here */
    pid_t pid;                              /* 0: not running */
    unsigned starts;
};

static char *find_program(void) {
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) {
        self[n] = '\0';
        *strrchr(self, '/') = '\0';
        char *beside = xasprintf("%s/" AGENT, self);
        if (access(beside, X_OK) == 0)
            return beside;
        free(beside);
    }
    return xstrdup(AGENT);
}

/* The pool file that it gets: the run folder's own, when there is one or is to be one. */
static char *find_pools(const struct ctl *c) {
    char *run_pools = ctl_run_pools(c);
    if (c->config.pool.store || access(run_pools, F_OK) == 0)
        return run_pools;
    char *real = realpath(c->config.pool.pools, NULL);
    if (!real)
        return run_pools;
    free(run_pools);
    return real;
}

int ctl_make_run_dir(struct ctl *c, struct err *e) {
    const char *path = c->config.run_dir;
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "create the run folder %s%s", path,
                              geteuid() ? " (devices need root)" : "");
    char *real = realpath(path, NULL); /* the agent does not have our working directory */
    if (!real)
        return err_from_errno(e, errno, "run folder %s", path);
    free(c->config.run_dir);
    c->config.run_dir = real;
    return 0;
}

static int spawn(struct starting *s, struct err *e) {
    extern char **environ;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;
    struct stat st;
    char *argv[] = {AGENT,     "--exit-when-idle", "--run-dir",  s->c->config.run_dir,
                    "--pools", s->pools,           "--endpoint", s->endpoint,
                    NULL};
    sigemptyset(&none);
    sigfillset(&all);
    s->log_start = stat(s->log, &st) == 0 ? st.st_size : 0;
    CHECK(posix_spawn_file_actions_init(&actions) == 0);
    CHECK(posix_spawnattr_init(&attr) == 0);
    CHECK(posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0) == 0);
    CHECK(posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, s->log,
                                           O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0600) == 0);
    CHECK(posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO) == 0);
    CHECK(posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1) == 0);
    CHECK(posix_spawn_file_actions_addchdir_np(&actions, "/") == 0);
    CHECK(posix_spawnattr_setsigmask(&attr, &none) == 0);
    CHECK(posix_spawnattr_setsigdefault(&attr, &all) == 0);
    CHECK(posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
                                              POSIX_SPAWN_SETSIGDEF) == 0);
    int eno = posix_spawnp(&s->pid, s->program, &actions, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    s->starts++;
    if (eno == 0)
        return 0;
    s->pid = 0;
    if (eno == ENOENT)
        return err_set(e, -ERR_CONFIG,
                       "no node agent listens in %s, and there is no program " AGENT
                       " beside portalctl or in PATH to start",
                       s->c->config.run_dir);
    return err_from_errno(e, eno, "start %s with its log in %s", s->program, s->log);
}

/* The last line that the agent wrote since it was started. */
static void last_line(const struct starting *s, char *ret, size_t size) {
    char tail[TAIL_MAX + 1];
    ret[0] = '\0';
    int fd = open(s->log, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t end = lseek(fd, 0, SEEK_END);
    ssize_t n = pread(fd, tail, TAIL_MAX, MAX(s->log_start, end - TAIL_MAX));
    close(fd);
    while (n > 0 && tail[n - 1] == '\n')
        n--;
    if (n <= 0)
        return;
    tail[n] = '\0';
    const char *newline = strrchr(tail, '\n');
    snprintf(ret, size, "%.*s", (int)size - 1, newline ? newline + 1 : tail);
}

static int gave_up(const struct starting *s, const char *how, struct err *e) {
    char line[LINE_SHOWN_MAX];
    last_line(s, line, sizeof line);
    return err_set(e, -ERR_CONFIG, "the node agent %s: %s (%s)", how,
                   line[0] ? line : "it said nothing", s->log);
}

/* Until it listens. One that ends at once may have met the agent before it on its way out. */
static int await_agent(struct starting *s, struct err *e) {
    struct env *env = s->c->env;
    uint64_t start = env_now_us(env), again = start;
    bool said = false;
    int rc = 0;
    while (rc == 0 && !ctl_agent_is_live(s->c)) {
        uint64_t now = env_now_us(env);
        if (s->pid && waitpid(s->pid, NULL, WNOHANG) == s->pid) {
            s->pid = 0;
            again = now + AGAIN_US;
        }
        if (now - start > START_US_MAX)
            return gave_up(s, "does not answer", e);
        if (!s->pid && s->starts == STARTS_MAX)
            return gave_up(s, "did not start", e);
        if (!s->pid && now >= again)
            rc = spawn(s, e);
        if (now - start > CTL_QUIET_US && !said) {
            fprintf(stderr, "portalctl: the node agent is starting, its log is %s\n", s->log);
            said = true;
        }
        if (rc == 0)
            rc = fiber_sleep_us(env, POLL_US) < 0 ? err_set(e, -ERR_CANCELLED, "cancelled") : 0;
    }
    return rc;
}

int ctl_lock_run_dir(const struct ctl *c, int *ret_fd, struct err *e) {
    CLEANUP_FREE char *path = xasprintf("%s/" LOCK_FILE, c->config.run_dir);
    uint64_t deadline = env_now_us(c->env) + START_US_MAX;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_from_errno(e, errno, "open %s%s", path, geteuid() ? " (devices need root)" : "");
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (env_now_us(c->env) > deadline || fiber_sleep_us(c->env, POLL_US) < 0) {
            close(fd);
            return err_set(e, -ERR_TIMEOUT, "another portalctl has %s for too long", path);
        }
    }
    *ret_fd = fd;
    return 0;
}

/* Somebody else starts it. */
static int await_another(struct ctl *c, struct err *e) {
    uint64_t start = env_now_us(c->env);
    while (!ctl_agent_is_live(c)) {
        if (env_now_us(c->env) - start > START_US_MAX)
            return err_set(e, -ERR_TIMEOUT, "no node agent listens in %s", c->config.run_dir);
        if (fiber_sleep_us(c->env, POLL_US) < 0)
            return err_set(e, -ERR_CANCELLED, "cancelled");
    }
    return 0;
}

int ctl_agent_need(struct ctl *c, struct err *e) {
    int lock;
    int rc = ctl_make_run_dir(c, e);
    if (rc < 0 || ctl_agent_is_live(c))
        return rc;
    if (!c->config.start_agent)
        return await_another(c, e);
    rc = ctl_lock_run_dir(c, &lock, e);
    if (rc < 0)
        return rc;
    struct starting s = {.c = c,
                         .program = find_program(),
                         .pools = find_pools(c),
                         .log = xasprintf("%s/" LOG_FILE, c->config.run_dir),
                         .endpoint = xasprintf("unix://%s/agent.sock", c->config.run_dir)};
    rc = await_agent(&s, e);
    free(s.program);
    free(s.pools);
    free(s.log);
    free(s.endpoint);
    close(lock);
    return rc;
}
