/* Daemons' cgroups. Best effort: a daemon without one serves as well. */
#include "node-agent/cgroup.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/log.h"
#include "common/mem.h"
#include "node-agent/attach/mountinfo.h"

enum { MOUNTINFO_MAX = 4 * 1024 * 1024 };

struct cgroups {
    char *dir; /* <mount>/<path> */
    bool said; /* that it was refused; atomic: workers say it */
};

static bool take_mount(void *arg, const struct mountinfo_entry *m) {
    char **point = arg;
    if (strcmp(m->type, "cgroup2") != 0)
        return true;
    *point = xstrdup(m->point);
    return false;
}

/* Owned by the caller; NULL: none. */
static char *find_mount(void) {
    CLEANUP_BUF struct buf text = {0};
    char *point = NULL;
    int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : 1;
    while (n > 0 && text.len < MOUNTINFO_MAX) {
        buf_reserve(&text, 16384);
        n = read(fd, text.data + text.len, 16384);
        text.len += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0)
        close(fd);
    mountinfo_each(buf_view(&text), take_mount, &point);
    return point;
}

/* "a/b": each part of it. */
static int make_path(char *dir) {
    for (char *p = dir + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        int rc = mkdir(dir, 0755);
        *p = '/';
        if (rc < 0 && errno != EEXIST)
            return -1;
    }
    return mkdir(dir, 0755) < 0 && errno != EEXIST ? -1 : 0;
}

void cgroups_open(const char *path, struct cgroups **ret) {
    *ret = NULL;
    if (!path || !path[0])
        return;
    CLEANUP_FREE char *mount = find_mount();
    CLEANUP_FREE char *dir = mount ? xasprintf("%s/%s", mount, path + strspn(path, "/")) : NULL;
    if (!dir || strstr(dir, "..") || make_path(dir) < 0) {
        log_warn("daemons stay in the agent's cgroup: theirs cannot be made",
                 LOG_STR("path", dir ? dir : path),
                 LOG_STR("error", !dir ? "cgroup2 is not mounted" : strerror(errno)));
        return;
    }
    struct cgroups *c = NEW(struct cgroups);
    c->dir = TAKE_PTR(dir);
    *ret = c;
}

void cgroups_close(struct cgroups *c) {
    if (!c)
        return;
    free(c->dir);
    free(c);
}

static int move(const char *dir, int64_t pid) {
    CLEANUP_FREE char *path = xasprintf("%s/cgroup.procs", dir);
    char text[32];
    int len = snprintf(text, sizeof text, "%lld\n", (long long)pid);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, text, (size_t)len);
    int eno = errno;
    close(fd);
    errno = eno;
    return n == len ? 0 : -1;
}

void cgroups_enter(struct cgroups *c, const char *volume, int64_t pid) {
    if (!c)
        return;
    CLEANUP_FREE char *dir = xasprintf("%s/%s", c->dir, volume);
    if ((mkdir(dir, 0755) == 0 || errno == EEXIST) && move(dir, pid) == 0)
        return;
    int eno = errno;
    if (!__atomic_exchange_n(&c->said, true, __ATOMIC_RELAXED))
        log_warn("daemons stay in the agent's cgroup", LOG_STR("path", dir), LOG_ERRNO(eno));
}

void cgroups_leave(struct cgroups *c, const char *volume) {
    if (!c)
        return;
    CLEANUP_FREE char *dir = xasprintf("%s/%s", c->dir, volume);
    (void)rmdir(dir); /* one that is in use stays: its next daemon has it */
}
