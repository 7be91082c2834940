/* The file behind a volume's journal.
 *
 * Invariants:
 *   I1  Only who holds the file's lock maps, resizes or removes it.
 *   I2  A page is reserved before the engine touches it: writes by reserve(), the first page (which
 *       it reads when it opens) here.
 *   I3  On a disk a file survives the node, but the order in which its pages got there does not:
 *       such a file carries the boot id, and one of an earlier boot is emptied, never replayed.
 *   I4  The process may have locked all its memory (mlockall, on fault): punching takes locked
 *       pages out of the mapping all the same, which madvise(2) would refuse. */
#include "portalbd/daemon/journal_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "common/mutant.h"
#include "portalbd/daemon/lock_file.h"
#include "portalbd/volume/journal.h"

enum {
    PAGE = 4096,
    SIZE_MIN = 4 * 1024 * 1024, /* bytes; the engine's own least */
    COPY_SIZE = 256 * 1024,     /* bytes at a time, when it is set aside */
    BOOT_ID_MAX = 64,
};

#define BOOT_XATTR "user.portalbd.boot"

struct journal_file {
    struct journal_memory memory;
    int fd;
    char *path;
    char *state_dir;
    char *id;
    bool is_new;
    bool full;      /* said already */
    bool allocated; /* no fallocate here: every page was made when it was opened */
    bool punches;   /* the file system gives pages back */
};

static struct journal_file *of_memory(struct journal_memory *m) {
    return container_of(m, struct journal_file, memory);
}

/* --- pages --- */

static int allocate(int fd, int mode, uint64_t off, uint64_t len) {
    int rc;
    do
        rc = fallocate(fd, mode, (off_t)off, (off_t)len);
    while (rc < 0 && errno == EINTR);
    return rc;
}

static bool reserve(struct journal_memory *m, uint64_t off, uint64_t len) {
    struct journal_file *f = of_memory(m);
    CHECK(off <= m->size && len <= m->size - off);
    if (f->allocated || allocate(f->fd, 0, off, len) == 0) {
        if (f->full)
            log_info("there is room for the journal again", LOG_STR("volume", f->id));
        f->full = false;
        return true;
    }
    if (!f->full)
        log_warn(
            "no room for the journal: writes wait until the store has taken earlier ones. Make "
            "the file system of --journal-dir larger, or --journal-size smaller",
            LOG_STR("volume", f->id), LOG_STR("journal", f->path), LOG_ERRNO(errno));
    f->full = true;
    return false;
}

/* Whole pages only: their neighbours may hold what is still needed. */
static void punch(struct journal_memory *m, uint64_t off, uint64_t len) {
    struct journal_file *f = of_memory(m);
    CHECK(off <= m->size && len <= m->size - off);
    uint64_t first = ALIGN_UP(off, (uint64_t)PAGE), end = (off + len) / PAGE * PAGE;
    if (!f->punches || first >= end)
        return;
    if (allocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first, end - first) < 0) {
        f->punches = false;
        log_warn("the journal's file system does not take pages back: it keeps its whole size",
                 LOG_STR("volume", f->id), LOG_STR("journal", f->path), LOG_ERRNO(errno));
    }
}

/* Where there is no fallocate every page is written once, with what it holds. */
static int write_every_page(struct journal_file *f, struct err *e) {
    for (uint64_t off = 0; off < f->memory.size; off += PAGE) {
        uint8_t byte = 0;
        if (pread(f->fd, &byte, 1, (off_t)off) != 1 || pwrite(f->fd, &byte, 1, (off_t)off) != 1)
            return err_from_errno(e, errno, "room for %llu bytes in %s",
                                  (unsigned long long)f->memory.size, f->path);
    }
    f->allocated = true;
    f->punches = false;
    return 0;
}

static int reserve_first_page(struct journal_file *f, struct err *e) {
    if (allocate(f->fd, 0, 0, PAGE) == 0)
        return 0;
    if (errno == EOPNOTSUPP || errno == ENOSYS)
        return write_every_page(f, e);
    return err_from_errno(e, errno,
                          "room for a journal in %s (make the file system of --journal-dir larger)",
                          f->path);
}

/* --- set aside --- */

static int write_at(int fd, const uint8_t *data, size_t len, off_t off) {
    while (len > 0) {
        ssize_t n = pwrite(fd, data, len, off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        len -= (size_t)n;
        off += n;
    }
    return 0;
}

/* Only what is data: a hole that is read through the mapping would become a page. */
static int copy_sparse(const struct journal_file *f, int to) {
    CLEANUP_FREE uint8_t *bytes = xmalloc(COPY_SIZE);
    off_t off = 0, size = (off_t)f->memory.size;
    if (ftruncate(to, size) < 0)
        return -1;
    while (off < size) {
        off_t data = lseek(f->fd, off, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0; /* nothing but a hole follows */
        if (data < 0)
            return -1;
        off_t end = lseek(f->fd, data, SEEK_HOLE);
        if (end < 0)
            return -1;
        for (off = data; off < end;) {
            ssize_t n = pread(f->fd, bytes, (size_t)MIN(end - off, (off_t)COPY_SIZE), off);
            if (n <= 0 || write_at(to, bytes, (size_t)n, off) < 0)
                return -1;
            off += n;
        }
    }
    return 0;
}

static int make_folder(const char *path, struct err *e) {
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "folder %s", path);
    return 0;
}

static int sync_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 ? -1 : fsync(fd);
    if (fd >= 0)
        close(fd);
    return rc;
}

static int copy_to(const struct journal_file *f, const char *folder, const char *path,
                   struct err *e) {
    CLEANUP_FREE char *tmp = xasprintf("%s.tmp", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_from_errno(e, errno, "%s", tmp);
    int rc = copy_sparse(f, fd);
    if (rc == 0)
        rc = fsync(fd);
    if (rc == 0)
        rc = rename(tmp, path);
    if (rc == 0)
        rc = sync_folder(folder);
    if (rc < 0) {
        rc = err_from_errno(e, errno, "copy of the journal in %s", path);
        unlink(tmp);
    }
    close(fd);
    return rc;
}

static int set_aside(struct journal_memory *m, uint64_t writes, uint64_t bytes, struct err *e) {
    struct journal_file *f = of_memory(m);
    CLEANUP_FREE char *folder = xasprintf("%s/set-aside", f->state_dir);
    CLEANUP_FREE char *path = xasprintf("%s/%s.journal", folder, f->id);
    int rc = make_folder(f->state_dir, e);
    if (rc == 0)
        rc = make_folder(folder, e);
    if (rc == 0)
        rc = copy_to(f, folder, path, e);
    if (rc < 0)
        return err_wrap(e, "a journal was not set aside (see --state-dir)");
    if (writes)
        log_error(
            "another writer had the volume: writes that were acknowledged here and not flushed "
            "are lost; a copy of their journal is kept",
            LOG_STR("volume", f->id), LOG_U64("writes", writes), LOG_U64("bytes", bytes),
            LOG_STR("copy", path));
    else
        log_warn("a copy of the damaged journal is kept", LOG_STR("volume", f->id),
                 LOG_STR("copy", path));
    return 0;
}

/* --- open --- */

static int read_boot_id(char id[BOOT_ID_MAX], struct err *e) {
    static const char path[] = "/proc/sys/kernel/random/boot_id";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, id, BOOT_ID_MAX - 1);
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return err_from_errno(e, errno, "%s", path);
    id[n] = '\0';
    id[strcspn(id, "\n")] = '\0';
    return 0;
}

/* I3. */
static int tie_to_boot(struct journal_file *f, uint64_t *size, struct err *e) {
    char now[BOOT_ID_MAX], then[BOOT_ID_MAX] = "";
    int rc = read_boot_id(now, e);
    if (rc < 0)
        return rc;
    ssize_t n = fgetxattr(f->fd, BOOT_XATTR, then, sizeof then - 1);
    if (n < 0 && errno != ENODATA)
        return err_from_errno(e, errno,
                              "%s is on a file system that is neither a tmpfs nor has extended "
                              "attributes: say --journal-dir",
                              f->path);
    if (*size && strcmp(now, then) != 0) {
        log_warn(
            "the journal is of an earlier start of this node and not on a tmpfs: it is emptied",
            LOG_STR("volume", f->id), LOG_STR("journal", f->path));
        *size = 0;
        if (ftruncate(f->fd, 0) < 0)
            return err_from_errno(e, errno, "%s", f->path);
    }
    if (*size == 0 && fsetxattr(f->fd, BOOT_XATTR, now, strlen(now), 0) < 0)
        return err_from_errno(e, errno, "%s", f->path);
    return 0;
}

static int look_at_file_system(struct journal_file *f, uint64_t *size, struct err *e) {
    struct statfs fs;
    if (fstatfs(f->fd, &fs) < 0)
        return err_from_errno(e, errno, "%s", f->path);
    if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
        return 0;
    static bool said;
    if (!said)
        log_warn("--journal-dir is not a tmpfs: every write goes to its disk, too",
                 LOG_STR("journal", f->path));
    said = true;
    return tie_to_boot(f, size, e);
}

static int set_size(struct journal_file *f, uint64_t wanted, struct err *e) {
    struct stat st;
    if (fstat(f->fd, &st) < 0)
        return err_from_errno(e, errno, "%s", f->path);
    uint64_t size = (uint64_t)st.st_size;
    int rc = look_at_file_system(f, &size, e);
    if (rc < 0)
        return rc;
    FAULT_POINT("before the journal's file has its size");
    if (size == 0) { /* new, or its maker died before this step */
        f->is_new = true;
        size = ALIGN_UP(MAX(wanted, (uint64_t)SIZE_MIN), (uint64_t)PAGE);
        if (ftruncate(f->fd, (off_t)size) < 0)
            return err_from_errno(e, errno, "%llu bytes for %s", (unsigned long long)size, f->path);
    }
    if (size < SIZE_MIN || size % PAGE != 0)
        return err_set(e, -ERR_CORRUPT, "%s has %llu bytes, which no journal has: move it away",
                       f->path, (unsigned long long)size);
    f->memory.size = size;
    return 0;
}

static int map(struct journal_file *f, struct err *e) {
    void *p = mmap(NULL, f->memory.size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    if (p == MAP_FAILED)
        return err_from_errno(e, errno, "%llu bytes of memory for %s",
                              (unsigned long long)f->memory.size, f->path);
    f->memory.base = p;
    return 0;
}

static struct journal_file *new_file(const struct journal_file_config *config) {
    struct journal_file *f = NEW(struct journal_file);
    f->memory.reserve = reserve;
    f->memory.punch = punch;
    f->memory.set_aside = set_aside;
    f->fd = -1;
    f->path = xasprintf("%s/%s.journal", config->dir, config->id);
    f->state_dir = xstrdup(config->state_dir);
    f->id = xstrdup(config->id);
    f->punches = true;
    return f;
}

int journal_file_open(const struct journal_file_config *config, struct journal_file **ret,
                      struct err *e) {
    int rc = make_folder(config->dir, e);
    if (rc < 0)
        return rc;
    struct journal_file *f = new_file(config);
    rc = lock_file_take(f->path, &f->fd, e);
    if (rc == 0)
        rc = set_size(f, config->size, e);
    if (rc == 0)
        rc = reserve_first_page(f, e);
    if (rc == 0)
        rc = map(f, e);
    if (rc < 0) {
        journal_file_close(f, false);
        return err_wrap(e, "journal");
    }
    *ret = f;
    return 0;
}

struct journal_memory *journal_file_memory(struct journal_file *f) {
    return &f->memory;
}

bool journal_file_is_new(const struct journal_file *f) {
    return f->is_new;
}

void journal_file_close(struct journal_file *f, bool remove) {
    if (f->memory.base)
        munmap(f->memory.base, f->memory.size);
    if (remove)
        unlink(f->path);
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    free(f->state_dir);
    free(f->id);
    free(f);
}

/* --- what one holds that is not ours --- */

static bool reserve_nothing(struct journal_memory *m, uint64_t off, uint64_t len) {
    (void)m, (void)off, (void)len;
    return true; /* the header is there, and nothing is written */
}

static void punch_nothing(struct journal_memory *m, uint64_t off, uint64_t len) {
    (void)m, (void)off, (void)len;
}

static bool holds_writes(struct journal_memory *m, const char *id) {
    struct parsed_id parsed;
    struct journal *j;
    struct err e;
    if (id_parse(&parsed, id, &e) < 0 || journal_open(m, m->size, &parsed.key, &j, &e) < 0)
        return true;
    bool holds = journal_damage(j) || journal_head(j) != journal_tail(j);
    journal_free(j);
    return holds;
}

bool journal_file_holds_writes(const char *path, const char *id) {
    struct journal_memory m = {.reserve = reserve_nothing, .punch = punch_nothing};
    struct stat st = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno != ENOENT;
    bool holds = fstat(fd, &st) < 0 || st.st_size > 0; /* else its maker died very early */
    if (holds) {
        m.size = (uint64_t)st.st_size;
        m.base = mmap(NULL, m.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        if (m.base != MAP_FAILED) {
            holds = holds_writes(&m, id);
            munmap(m.base, m.size);
        }
    }
    close(fd);
    return holds;
}
