/* Daemons' cgroups. Best effort: a daemon without one serves as well.
 *
 * With version 1, or both (systemd's "hybrid" and others), there are several hierarchies, and what
 * ends a container looks for its processes in any of them: a daemon leaves the agent's cgroup in
 * all. There, a new cgroup of cpuset takes no process before it was told its CPUs and memories. */
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

enum {
    MOUNTINFO_MAX = 4 * 1024 * 1024,
    HIERARCHIES_MAX = 32,  /* the kernel has a dozen controllers */
    CPUSET_TEXT_MAX = 4096 /* a list of CPUs */
};

struct cgroups {
    char *dirs[HIERARCHIES_MAX]; /* <mount>/<path> */
    size_t count;
    bool said; /* that it was refused; atomic: workers say it */
};

struct points {
    char *at[HIERARCHIES_MAX];
    size_t count;
};

/* A mount may lie under another one at the same point, or be hidden: what is seen there counts. */
static bool take_mount(void *arg, const struct mountinfo_entry *m) {
    struct points *points = arg;
    if (strcmp(m->type, "cgroup2") != 0 && strcmp(m->type, "cgroup") != 0)
        return true;
    for (size_t i = 0; i < points->count; i++)
        if (strcmp(points->at[i], m->point) == 0)
            return true;
    CLEANUP_FREE char *procs = xasprintf("%s/cgroup.procs", m->point);
    if (access(procs, F_OK) == 0)
        points->at[points->count++] = xstrdup(m->point);
    return points->count < HIERARCHIES_MAX;
}

/* The points are the caller's. */
static void find_mounts(struct points *ret) {
    CLEANUP_BUF struct buf text = {0};
    int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : 1;
    while (n > 0 && text.len < MOUNTINFO_MAX) {
        buf_reserve(&text, 16384);
        n = read(fd, text.data + text.len, 16384);
        text.len += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0)
        close(fd);
    mountinfo_each(buf_view(&text), take_mount, ret);
}

/* Writes to an attribute at once, as cgroups want it. */
static int write_attribute(const char *dir, const char *name, const char *text, size_t len) {
    CLEANUP_FREE char *path = xasprintf("%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, text, len);
    int eno = errno;
    close(fd);
    errno = eno;
    return n == (ssize_t)len ? 0 : -1;
}

/* Of version 1's cpuset: what the cgroup above has. Elsewhere, and where it is set, nothing. */
static void inherit(const char *dir, const char *name) {
    CLEANUP_FREE char *own = xasprintf("%s/%s", dir, name);
    CLEANUP_FREE char *above = xasprintf("%s/../%s", dir, name);
    char text[CPUSET_TEXT_MAX];
    int fd = open(own, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (fd >= 0)
        close(fd);
    if (n < 0 || n > 1)
        return;
    fd = open(above, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (fd >= 0)
        close(fd);
    if (n > 1)
        (void)write_attribute(dir, name, text, (size_t)n);
}

static int make_group(const char *dir) {
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return -1;
    inherit(dir, "cpuset.cpus");
    inherit(dir, "cpuset.mems");
    return 0;
}

/* "a/b" below a mount: each part of it. */
static int make_path(char *dir, size_t mount_len) {
    for (char *p = dir + mount_len + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        int rc = make_group(dir);
        *p = '/';
        if (rc < 0)
            return -1;
    }
    return make_group(dir);
}

void cgroups_open(const char *path, struct cgroups **ret) {
    *ret = NULL;
    if (!path || !path[0])
        return;
    path += strspn(path, "/");
    struct points points = {0};
    find_mounts(&points);
    struct cgroups *c = NEW(struct cgroups);
    int eno = points.count > 0 ? 0 : ENOENT;
    for (size_t i = 0; i < points.count; i++) {
        CLEANUP_FREE char *mount = points.at[i];
        CLEANUP_FREE char *dir = xasprintf("%s/%s", mount, path);
        if (eno == 0 && (strstr(path, "..") || make_path(dir, strlen(mount)) < 0))
            eno = strstr(path, "..") ? EINVAL : errno;
        else
            c->dirs[c->count++] = TAKE_PTR(dir);
    }
    if (eno != 0) {
        log_warn("daemons stay in the agent's cgroup: theirs cannot be made", LOG_STR("path", path),
                 LOG_ERRNO(eno));
        cgroups_close(c);
        return;
    }
    *ret = c;
}

void cgroups_close(struct cgroups *c) {
    if (!c)
        return;
    for (size_t i = 0; i < c->count; i++)
        free(c->dirs[i]);
    free(c);
}

void cgroups_enter(struct cgroups *c, const char *volume, int64_t pid) {
    char text[32];
    int len = snprintf(text, sizeof text, "%lld\n", (long long)pid);
    for (size_t i = 0; c && i < c->count; i++) {
        CLEANUP_FREE char *dir = xasprintf("%s/%s", c->dirs[i], volume);
        if (make_group(dir) == 0 && write_attribute(dir, "cgroup.procs", text, (size_t)len) == 0)
            continue;
        int eno = errno;
        if (!__atomic_exchange_n(&c->said, true, __ATOMIC_RELAXED))
            log_warn("daemons stay in the agent's cgroup", LOG_STR("path", dir), LOG_ERRNO(eno));
    }
}

void cgroups_leave(struct cgroups *c, const char *volume) {
    for (size_t i = 0; c && i < c->count; i++) {
        CLEANUP_FREE char *dir = xasprintf("%s/%s", c->dirs[i], volume);
        (void)rmdir(dir); /* one that is in use stays: its next daemon has it */
    }
}
