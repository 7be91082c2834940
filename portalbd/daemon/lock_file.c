/* Files that are locked for the life of a process. */
#include "portalbd/daemon/lock_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_owner(const char *path, const struct stat *st, struct err *e) {
    if (!S_ISREG(st->st_mode) || st->st_uid != geteuid())
        return err_set(e, -ERR_DENIED, "%s is not a file of ours: remove it", path);
    return 0;
}

/* 0, or -ERR_STALE: it was removed meanwhile. */
static int lock(const char *path, int fd, struct err *e) {
    struct stat ours, now;
    if (fstat(fd, &ours) < 0)
        return err_from_errno(e, errno, "lock file %s", path);
    int rc = check_owner(path, &ours, e);
    if (rc < 0)
        return rc;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK
                   ? err_set(e, -ERR_IN_USE, "another daemon of this node serves it (it holds %s)",
                             path)
                   : err_from_errno(e, errno, "lock file %s", path);
    if (stat(path, &now) < 0 || ours.st_ino != now.st_ino || ours.st_dev != now.st_dev)
        return err_set(e, -ERR_STALE, "%s was removed meanwhile", path);
    return 0;
}

int lock_file_take(const char *path, int *ret_fd, struct err *e) {
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return err_from_errno(e, errno, "lock file %s", path);
        int rc = lock(path, fd, e);
        if (rc == 0) {
            *ret_fd = fd;
            return 0;
        }
        close(fd);
        if (rc != -ERR_STALE)
            return rc;
    }
}
