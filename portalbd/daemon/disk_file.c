/* The file behind a volume's disk cache: see the header. It grows as it fills; a full disk is an
 * error of the cache, which turns itself off, and of nothing else. */
#include "portalbd/daemon/disk_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/mem.h"

struct disk_file {
    struct disk_medium medium;
    int fd;
};

static int file_of(struct disk_medium *m) {
    return container_of(m, struct disk_file, medium)->fd;
}

static int op_read(struct disk_medium *m, uint64_t off, uint8_t *buf, size_t len, struct err *e) {
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(file_of(m), buf + done, len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_from_errno(e, errno, "read the disk cache");
        if (n == 0)
            return err_set(e, -ERR_IO, "the disk cache's file ends at byte %zu",
                           (size_t)off + done);
        done += (size_t)n;
    }
    return 0;
}

static int op_write(struct disk_medium *m, uint64_t off, struct view data, struct err *e) {
    for (size_t done = 0; done < data.len;) {
        ssize_t n = pwrite(file_of(m), data.data + done, data.len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_from_errno(e, errno, "write the disk cache");
        done += (size_t)n;
    }
    return 0;
}

/* Where a file system has no O_TMPFILE, the name is there for a moment. */
static int open_named(const char *dir) {
    CLEANUP_FREE char *path = xasprintf("%s/cache-XXXXXX", dir);
    int fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0)
        unlink(path);
    return fd;
}

int disk_file_open(const char *dir, uint64_t size, struct disk_file **ret, struct err *e) {
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "folder %s of the disk cache", dir);
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL))
        fd = open_named(dir);
    if (fd < 0)
        return err_from_errno(e, errno, "a file for the disk cache in %s", dir);
    struct disk_file *f = NEW(struct disk_file);
    *f = (struct disk_file){.medium = {.size = size, .read = op_read, .write = op_write}, .fd = fd};
    *ret = f;
    return 0;
}

struct disk_medium *disk_file_medium(struct disk_file *f) {
    return &f->medium;
}

void disk_file_close(struct disk_file *f) {
    if (!f)
        return;
    close(f->fd);
    free(f);
}
