/* The mount table, by libmount. It reads /proc/self/mountinfo, which touches no filesystem; mounts
 * and unmounts run as jobs. libmount's own table in /run/mount is not written: kubelet and host may
 * have another view of it. */
#include "csi/mount/mounts.h"

#include <libmount/libmount.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/log.h"
#include "common/mem.h"
#include "csi/mount/job.h"

/* --- reading --- */

static void table_unref(struct libmnt_table **t) {
    mnt_unref_table(*t);
}

static void iter_free(struct libmnt_iter **i) {
    mnt_free_iter(*i);
}

static int table_read(struct libmnt_table **ret, struct err *e) {
    *ret = mnt_new_table_from_file("/proc/self/mountinfo");
    if (!*ret)
        return err_from_errno(e, errno ? errno : EIO, "read /proc/self/mountinfo");
    return 0;
}

static void copy_text(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from ? from : "");
}

static bool is_read_only(struct libmnt_fs *fs) {
    const char *vfs = mnt_fs_get_vfs_options(fs), *own = mnt_fs_get_fs_options(fs);
    return (vfs && mnt_optstr_get_option(vfs, "ro", NULL, NULL) == 0) ||
           (own && mnt_optstr_get_option(own, "ro", NULL, NULL) == 0);
}

/* A path without trailing slashes. */
static size_t path_len(const char *path) {
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        len--;
    return len;
}

static bool path_equal(const char *a, const char *b) {
    size_t len = path_len(a);
    return len == path_len(b) && memcmp(a, b, len) == 0;
}

int mount_find(const char *path, struct mount_entry *ret, struct err *e) {
    CLEANUP(table_unref) struct libmnt_table *table = NULL;
    int rc = table_read(&table, e);
    if (rc)
        return rc;
    CLEANUP(iter_free) struct libmnt_iter *iter = mnt_new_iter(MNT_ITER_BACKWARD);
    struct libmnt_fs *fs;
    while (mnt_table_next_fs(table, iter, &fs) == 0) {
        const char *target = mnt_fs_get_target(fs);
        if (!target || !path_equal(target, path))
            continue;
        ret->dev = mnt_fs_get_devno(fs);
        ret->read_only = is_read_only(fs);
        copy_text(ret->root, sizeof ret->root, mnt_fs_get_root(fs));
        copy_text(ret->fstype, sizeof ret->fstype, mnt_fs_get_fstype(fs));
        return 0;
    }
    return err_set(e, -ERR_NOT_FOUND, "nothing is mounted at '%s'", path);
}

int mount_for_each_of_device(dev_t device, const char *device_path,
                             bool (*fn)(void *arg, const char *target), void *arg, struct err *e) {
    CLEANUP(table_unref) struct libmnt_table *table = NULL;
    int rc = table_read(&table, e);
    if (rc)
        return rc;
    struct stat st = {0};
    const char *name = strrchr(device_path, '/');
    bool node = name && stat(device_path, &st) == 0;
    CLEANUP(iter_free) struct libmnt_iter *iter = mnt_new_iter(MNT_ITER_FORWARD);
    struct libmnt_fs *fs;
    while (mnt_table_next_fs(table, iter, &fs) == 0) {
        const char *root = mnt_fs_get_root(fs), *target = mnt_fs_get_target(fs);
        if (!root || !target)
            continue;
        /* A device node on a file: what is mounted is "/loop3" of devtmpfs. */
        const char *root_name = strrchr(root, '/');
        bool shows_node =
            node && mnt_fs_get_devno(fs) == st.st_dev && root_name && strcmp(root_name, name) == 0;
        if ((mnt_fs_get_devno(fs) == device || shows_node) && !fn(arg, target))
            return 0;
    }
    return 0;
}

/* --- mounting --- */

struct mount_job {
    char source[1024];
    char target[1024];
    char fstype[32];
    char options[MOUNT_OPTIONS_MAX + 64];
    bool bind;
    bool read_only;
};

static int context_error(struct libmnt_context *cxt, int rc, const struct mount_job *m,
                         struct err *e) {
    char text[200] = "";
    int eno = mnt_context_syscall_called(cxt) ? mnt_context_get_syscall_errno(cxt) : -rc;
    mnt_context_get_excode(cxt, rc, text, sizeof text);
    for (char *p = text; *p; p++)
        if (*p == '\n')
            *p = ' ';
    return err_from_errno(e, eno > 0 ? eno : EIO, "mount '%s' on '%s' (%s)", m->source, m->target,
                          text);
}

static int do_mount(void *data, struct err *e) {
    struct mount_job *m = data;
    struct libmnt_context *cxt = mnt_new_context();
    CHECK(cxt);
    mnt_context_disable_mtab(cxt, 1);
    mnt_context_disable_helpers(cxt, 1);
    mnt_context_set_source(cxt, m->source);
    mnt_context_set_target(cxt, m->target);
    if (m->bind)
        mnt_context_set_mflags(cxt, MS_BIND);
    else
        mnt_context_set_fstype(cxt, m->fstype);
    if (m->options[0])
        mnt_context_set_options(cxt, m->options);
    int rc = mnt_context_mount(cxt);
    if (rc != 0)
        rc = context_error(cxt, rc, m, e);
    mnt_free_context(cxt);
    /* A read-only bind takes two steps; libmount hides them only where "ro" came in its options. */
    if (rc == 0 && m->bind && m->read_only &&
        mount(NULL, m->target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) != 0) {
        rc = err_from_errno(e, errno, "make '%s' read-only", m->target);
        umount2(m->target, MNT_DETACH);
    }
    return rc;
}

static int mount_job_run(const struct mount_job *m, struct err *e) {
    char key[JOB_KEY_MAX];
    struct mount_job job = *m;
    snprintf(key, sizeof key, "mount of %.200s on %.280s", m->source, m->target);
    int rc = job_run(key, do_mount, &job, sizeof job, MOUNT_TIMEOUT_MS, e);
    if (rc)
        return rc;
    struct mount_entry entry;
    if (mount_find(m->target, &entry, e) != 0)
        return err_wrap(e, "mount of '%s' seemed to succeed", m->source);
    return 0;
}

int mount_device(const char *device, const char *target, const char *fstype, const char *options,
                 bool read_only, struct err *e) {
    struct mount_job m = {.read_only = read_only};
    if (snprintf(m.source, sizeof m.source, "%s", device) >= (int)sizeof m.source ||
        snprintf(m.target, sizeof m.target, "%s", target) >= (int)sizeof m.target ||
        snprintf(m.fstype, sizeof m.fstype, "%s", fstype) >= (int)sizeof m.fstype ||
        snprintf(m.options, sizeof m.options, "%s%s%s", read_only ? "ro" : "rw",
                 options[0] ? "," : "", options) >= (int)sizeof m.options)
        return err_set(e, -ERR_INVALID, "device, path or mount options are too long");
    return mount_job_run(&m, e);
}

int mount_bind(const char *source, const char *target, bool read_only, struct err *e) {
    struct mount_job m = {.bind = true, .read_only = read_only};
    if (snprintf(m.source, sizeof m.source, "%s", source) >= (int)sizeof m.source ||
        snprintf(m.target, sizeof m.target, "%s", target) >= (int)sizeof m.target)
        return err_set(e, -ERR_INVALID, "the path '%s' is too long", target);
    return mount_job_run(&m, e);
}

/* --- unmounting --- */

struct umount_job {
    char path[1024];
};

static int do_umount(void *data, struct err *e) {
    const struct umount_job *u = data;
    if (umount2(u->path, UMOUNT_NOFOLLOW) == 0 || errno == EINVAL || errno == ENOENT)
        return 0; /* EINVAL: not a mount point (any more) */
    if (errno == EBUSY)
        return err_set(e, -ERR_IN_USE, "'%s' is in use and cannot be unmounted", u->path);
    return err_from_errno(e, errno, "unmount '%s'", u->path);
}

int mount_unmount(const char *path, bool force, uint32_t timeout_ms, struct err *e) {
    struct umount_job u;
    if (snprintf(u.path, sizeof u.path, "%s", path) >= (int)sizeof u.path)
        return err_set(e, -ERR_INVALID, "the path '%s' is too long", path);
    char key[JOB_KEY_MAX];
    snprintf(key, sizeof key, "unmount of %.480s", path);
    for (int i = 0; i < MOUNT_UMOUNT_LAYERS_MAX; i++) {
        struct mount_entry entry;
        int rc = mount_find(path, &entry, e);
        if (rc == -ERR_NOT_FOUND)
            return 0;
        if (rc == 0)
            rc = job_run(key, do_umount, &u, sizeof u, timeout_ms, e);
        if (rc == 0)
            continue;
        if (rc == -ERR_IN_USE) /* it answers, so waiting helps */
            return err_set(e, -ERR_BUSY, "'%s' is in use and cannot be unmounted", path);
        if (!force)
            return rc;
        log_warn("a mount does not go away, it is detached", LOG_STR("path", path), LOG_ERR(e));
        if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EINVAL)
            return err_from_errno(e, errno, "detach '%s'", path);
    }
    return err_set(e, -ERR_BUSY, "more than %d mounts lie on '%s'", MOUNT_UMOUNT_LAYERS_MAX, path);
}
