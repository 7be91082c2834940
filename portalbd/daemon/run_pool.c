/* Whose a run folder is.
 *
 * Invariants:
 *   I1  pool-<name> changes by rename only, and only while the folder itself is locked (flock).
 *   I2  Who replaces another pool's file has that file locked alone: no daemon holds it.
 *   I3  A lock counts only while its file is the one at the path.
 *
 * The folder's lock is not portalctl.lock: portalctl holds that one while an agent starts, which
 * starts daemons, which come here. */
#include "portalbd/daemon/run_pool.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/mem.h"
#include "portalbd/control/client.h"
#include "portalbd/daemon/journal_file.h"

enum {
    LOCK_POLL_US = 10 * 1000,
    LOCK_US_MAX = 10 * 1000 * 1000,
    HOLD_ATTEMPTS_MAX = 50, /* of LOCK_POLL_US: who looks at a file has it no longer */
    WHERE_MAX = 2100,       /* a URL and an endpoint */
};

/* --- the file --- */

struct owner {
    char uuid[RANDOM_ID_HEX]; /* "" in both: the file is damaged */
    char where[WHERE_MAX];
};

static char *file_path(const char *dir, const char *pool_name) {
    return xasprintf("%s/pool-%s", dir, pool_name);
}

static void read_owner(int fd, struct owner *ret) {
    const char *uuid = "", *where = "";
    json_t *j = json_loadfd(fd, 0, NULL);
    if (j)
        (void)json_unpack(j, "{s?:s,s?:s}", "uuid", &uuid, "store", &where);
    snprintf(ret->uuid, sizeof ret->uuid, "%s", uuid);
    snprintf(ret->where, sizeof ret->where, "%s", where);
    json_decref(j);
}

/* *ret_fd -1: there is none. */
static int open_owner(const char *path, int *ret_fd, struct owner *ret, struct err *e) {
    *ret = (struct owner){0};
    *ret_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (*ret_fd >= 0)
        read_owner(*ret_fd, ret);
    else if (errno != ENOENT)
        return err_from_errno(e, errno, "%s", path);
    return 0;
}

static int write_all(int fd, const char *text) {
    size_t len = strlen(text);
    ssize_t n = write(fd, text, len);
    if (n < 0)
        return errno;
    return n == (ssize_t)len ? 0 : ENOSPC;
}

/* I1. */
static int write_owner(const char *path, const struct run_pool *p, struct err *e) {
    CLEANUP_FREE char *temporary = xasprintf("%s.new", path);
    json_t *j = json_pack("{s:s,s:s}", "uuid", p->uuid, "store", p->where);
    char *json = j ? json_dumps(j, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
    json_decref(j);
    if (!json)
        return err_set(e, -ERR_INVALID, "the store's URL is not a text in UTF-8");
    CLEANUP_FREE char *line = xasprintf("%s\n", json);
    free(json);
    (void)unlink(temporary); /* of somebody who was killed; we have the folder's lock */
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return err_from_errno(e, errno, "%s", temporary);
    int eno = write_all(fd, line);
    if (eno == 0 && (fchmod(fd, 0644) < 0 || rename(temporary, path) < 0))
        eno = errno;
    close(fd);
    if (eno == 0)
        return 0;
    (void)unlink(temporary);
    return err_from_errno(e, eno, "%s", path);
}

/* --- is anything of a pool alive? --- */

/* Who looks at a folder: what of the former owner is looked for. */
struct search {
    const char *pool_name;
    char *found; /* owned; a clause */
};

static bool is_of_pool(const char *id, const char *pool_name) {
    struct parsed_id parsed;
    return id_parse(&parsed, id, NULL) == 0 && strcmp(parsed.pool, pool_name) == 0;
}

/* Calls fn for the files <id><suffix> of the pool until something is found. */
static void for_each_id(struct search *s, const char *dir, const char *suffix,
                        void (*fn)(struct search *s, const char *dir, const char *path,
                                   const char *id)) {
    DIR *d = opendir(dir);
    for (const struct dirent *entry; d && !s->found && (entry = readdir(d));) {
        size_t len = strlen(entry->d_name), cut = strlen(suffix);
        if (len <= cut || strcmp(entry->d_name + len - cut, suffix) != 0)
            continue;
        CLEANUP_FREE char *id = xstrndup(entry->d_name, len - cut);
        CLEANUP_FREE char *path = xasprintf("%s/%s", dir, entry->d_name);
        if (is_of_pool(id, s->pool_name))
            fn(s, dir, path, id);
    }
    if (d)
        closedir(d);
}

static void look_at_socket(struct search *s, const char *dir, const char *path, const char *id) {
    (void)path;
    if (control_is_live(dir, id))
        s->found = xasprintf("its volume %s is served here", id);
}

/* One that is about to be attached for the first time is nothing yet: it may be ours. */
static void look_at_attachment(struct search *s, const char *dir, const char *path,
                               const char *id) {
    (void)dir;
    json_t *j = json_load_file(path, 0, NULL);
    if (json_is_true(json_object_get(j, "opened")))
        s->found = xasprintf("its volume %s is attached here", id);
    json_decref(j);
}

static void look_at_journal(struct search *s, const char *dir, const char *path, const char *id) {
    (void)dir;
    if (journal_file_holds_writes(path, id))
        s->found =
            xasprintf("%s holds writes for it: serve that volume once, or remove the file", path);
}

static char *find_alive(const char *dir, const char *pool_name, bool journals) {
    CLEANUP_FREE char *attachments = xasprintf("%s/attachments", dir);
    CLEANUP_FREE char *default_journals = xasprintf("%s/journals", dir);
    struct search s = {.pool_name = pool_name};
    for_each_id(&s, dir, ".sock", look_at_socket);
    for_each_id(&s, attachments, ".json", look_at_attachment);
    if (journals) {
        for_each_id(&s, default_journals, ".journal", look_at_journal);
        for_each_id(&s, dir, ".journal", look_at_journal);
    }
    return s.found;
}

/* I2, for the descriptor of another pool's file. What journals hold for a pool that has been
 * deleted, so that another one stands in its very place, nobody can store any more. */
static int check_dead(const char *dir, int fd, const struct owner *was, const struct run_pool *p,
                      struct err *e) {
    char *alive = flock(fd, LOCK_EX | LOCK_NB) < 0
                      ? xstrdup("a daemon of it runs")
                      : find_alive(dir, p->name, strcmp(was->where, p->where) != 0);
    int rc = 0;
    if (alive)
        rc = err_set(e, -ERR_IN_USE,
                     "folder %s belongs to the pool '%s' at %.100s, not to the one of that name at "
                     "%.100s: use another --pool name or --run-dir (%s)",
                     dir, p->name, was->where[0] ? was->where : "a store that is not known",
                     p->where, alive);
    free(alive);
    return rc;
}

/* --- taking --- */

static int lock_folder(struct env *env, const char *dir, int *ret_fd, struct err *e) {
    uint64_t deadline = env_now_us(env) + LOCK_US_MAX;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(e, errno, "run folder %s", dir);
    int rc = 0;
    while (rc == 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (env_now_us(env) > deadline)
            rc = err_set(e, -ERR_TIMEOUT, "another process has %s locked for too long", dir);
        else if (fiber_sleep_us(env, LOCK_POLL_US) < 0)
            rc = err_set(e, -ERR_CANCELLED, "cancelled");
    }
    if (rc < 0)
        close(fd);
    else
        *ret_fd = fd;
    return rc;
}

static int take_locked(const char *dir, const char *path, const struct run_pool *p, int *ret_fd,
                       struct err *e) {
    for (;;) {
        struct owner owner;
        int fd;
        int rc = open_owner(path, &fd, &owner, e);
        if (rc == 0 && fd >= 0 && strcmp(owner.uuid, p->uuid) == 0) {
            *ret_fd = fd;
            if (flock(fd, LOCK_SH) < 0)
                rc = err_from_errno(e, errno, "lock %s", path);
            if (rc < 0)
                close(fd);
            return rc;
        }
        if (rc == 0 && fd >= 0)
            rc = check_dead(dir, fd, &owner, p, e);
        if (rc == 0)
            rc = write_owner(path, p, e);
        if (fd >= 0)
            close(fd);
        if (rc < 0)
            return rc;
    }
}

int run_pool_take(struct env *env, const char *dir, const struct run_pool *p, int *ret_fd,
                  struct err *e) {
    CLEANUP_FREE char *path = file_path(dir, p->name);
    int lock = -1;
    CHECK(p->uuid[0] && p->where);
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "run folder %s", dir);
    int rc = lock_folder(env, dir, &lock, e);
    if (rc < 0)
        return rc;
    rc = take_locked(dir, path, p, ret_fd, e);
    close(lock);
    return rc;
}

/* --- looking --- */

/* I3. */
static bool share(const char *path, int fd) {
    struct stat ours, now;
    return flock(fd, LOCK_SH | LOCK_NB) == 0 && fstat(fd, &ours) == 0 && stat(path, &now) == 0 &&
           ours.st_ino == now.st_ino && ours.st_dev == now.st_dev;
}

static int hold(const char *dir, const char *path, const struct run_pool *p, int *ret_fd,
                struct err *e) {
    for (int i = 0; i < HOLD_ATTEMPTS_MAX; i++) {
        struct owner owner;
        int rc = open_owner(path, ret_fd, &owner, e);
        if (rc < 0 || *ret_fd < 0)
            return rc;
        if (p->uuid[0] && strcmp(owner.uuid, p->uuid) != 0) {
            close(*ret_fd);
            return err_set(e, -ERR_NOT_FOUND,
                           "daemons in folder %s serve the pool '%s' at %.100s, not the one of "
                           "that name at %.100s: use another --pool name or --run-dir",
                           dir, p->name, owner.where, p->where);
        }
        if (share(path, *ret_fd))
            return 0;
        close(*ret_fd);
        poll(NULL, 0, LOCK_POLL_US / 1000);
    }
    return err_set(e, -ERR_BUSY, "another process has %s locked for too long", path);
}

int run_pool_hold(const char *dir, const struct run_pool *p, int *ret_fd, struct err *e) {
    CLEANUP_FREE char *path = file_path(dir, p->name);
    int rc = hold(dir, path, p, ret_fd, e);
    if (rc < 0)
        *ret_fd = -1;
    return rc;
}

void run_pool_follow(const char *dir, const char *pool_name, int *ret_fd) {
    struct run_pool any = {.where = ""};
    snprintf(any.name, sizeof any.name, "%s", pool_name);
    (void)run_pool_hold(dir, &any, ret_fd, NULL); /* without it the journal's id still decides */
}

int run_pool_check(const char *dir, const struct run_pool *p, struct err *e) {
    CLEANUP_FREE char *path = file_path(dir, p->name);
    struct owner owner;
    int fd;
    int rc = open_owner(path, &fd, &owner, e);
    if (rc < 0 || fd < 0)
        return rc;
    if (strcmp(owner.uuid, p->uuid) != 0)
        rc = check_dead(dir, fd, &owner, p, e);
    close(fd);
    return rc;
}

bool run_pool_is_at(const char *dir, const char *pool_name, const char *where) {
    CLEANUP_FREE char *path = file_path(dir, pool_name);
    struct owner owner;
    int fd;
    if (open_owner(path, &fd, &owner, NULL) < 0 || fd < 0)
        return true;
    close(fd);
    return strcmp(owner.where, where) == 0;
}
