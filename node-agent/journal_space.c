/* Mounting the journals' tmpfs. Its size is the limit: a tmpfs that is full makes writers wait. */
#include "node-agent/journal_space.h"

#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "common/log.h"
#include "common/mem.h"

static int is_mount_point(const char *dir, const char *parent, bool *ret, struct err *e) {
    struct stat here, above;
    if (stat(dir, &here) < 0)
        return err_from_errno(e, errno, "look at %s", dir);
    if (stat(parent, &above) < 0)
        return err_from_errno(e, errno, "look at %s", parent);
    *ret = here.st_dev != above.st_dev;
    return 0;
}

int journal_space_mount(const char *run_dir, uint64_t size_bytes, struct err *e) {
    CLEANUP_FREE char *dir = xasprintf("%s/journals", run_dir);
    char options[64];
    bool mounted = false;
    if (size_bytes == 0)
        return 0;
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "create %s", dir);
    int rc = is_mount_point(dir, run_dir, &mounted, e);
    if (rc < 0)
        return rc;
    if (mounted) {
        log_info("the journals' file system is there already", LOG_STR("dir", dir));
        return 0;
    }
    snprintf(options, sizeof options, "size=%llu,mode=0700", (unsigned long long)size_bytes);
    if (mount("portalbd-journals", dir, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options) < 0)
        return err_from_errno(e, errno, "mount a tmpfs on %s", dir);
    log_info("journals have a tmpfs of their own", LOG_STR("dir", dir),
             LOG_U64("size_bytes", size_bytes));
    return 0;
}
