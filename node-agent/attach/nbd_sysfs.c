/* Reads sysfs (see nbd_sysfs.h). Every attribute may vanish between two looks: that reads as "not
 * there". */
#include "node-agent/attach/nbd_sysfs.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/mem.h"

#define BACKEND_PREFIX "portalbd:"

enum {
    TEXT_MAX = 256,           /* bytes of an attribute that we look at */
    INDEX_MAX = (1 << 20) - 1 /* minor numbers have 20 bits */
};

/* --- the identifier --- */

void nbd_backend_print(char ret[NBD_BACKEND_MAX], const char *volume, uint64_t publish_epoch) {
    int n = snprintf(ret, NBD_BACKEND_MAX, BACKEND_PREFIX "%s:%llu", volume,
                     (unsigned long long)publish_epoch);
    CHECK(n > 0 && n < NBD_BACKEND_MAX);
}

static bool parse_number(const char *text, uint64_t max, uint64_t *ret) {
    if (!isdigit((unsigned char)text[0]))
        return false; /* strtoull takes signs and spaces */
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno != 0 || *end || v > max)
        return false;
    *ret = v;
    return true;
}

bool nbd_backend_parse(const char *backend, char ret_volume[ATTACH_VOLUME_MAX],
                       uint64_t *ret_publish_epoch) {
    if (strncmp(backend, BACKEND_PREFIX, strlen(BACKEND_PREFIX)) != 0)
        return false;
    const char *volume = backend + strlen(BACKEND_PREFIX);
    size_t len =
        strspn(volume, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    uint64_t epoch;
    if (len == 0 || len >= ATTACH_VOLUME_MAX || volume[len] != ':' ||
        !parse_number(volume + len + 1, UINT64_MAX, &epoch))
        return false;
    memcpy(ret_volume, volume, len);
    ret_volume[len] = '\0';
    *ret_publish_epoch = epoch;
    return true;
}

bool nbd_release_at_least(const char *release, unsigned major_wanted, unsigned minor_wanted) {
    unsigned major_number, minor_number;
    if (sscanf(release, "%u.%u", &major_number, &minor_number) != 2)
        return false;
    return major_number > major_wanted ||
           (major_number == major_wanted && minor_number >= minor_wanted);
}

/* --- attributes --- */

/* The first line of <root>/block/nbd<index>/<attribute>; false when it is not there or too long. */
static bool read_attribute(const char *root, uint32_t index, const char *attribute,
                           char text[TEXT_MAX]) {
    CLEANUP_FREE char *path = xasprintf("%s/block/nbd%u/%s", root, index, attribute);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, TEXT_MAX - 1);
    close(fd);
    if (n < 0 || n == TEXT_MAX - 1)
        return false;
    text[n] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return true;
}

bool nbd_sysfs_is_connected(const char *root, uint32_t index, const char *backend) {
    char text[TEXT_MAX];
    return read_attribute(root, index, "backend", text) && strcmp(text, backend) == 0;
}

uint64_t nbd_sysfs_size_bytes(const char *root, uint32_t index) {
    char text[TEXT_MAX];
    uint64_t sectors;
    if (!read_attribute(root, index, "size", text) ||
        !parse_number(text, UINT64_MAX / SECTOR_SIZE, &sectors))
        return 0;
    return sectors * SECTOR_SIZE;
}

dev_t nbd_sysfs_number(const char *root, uint32_t index) {
    char text[TEXT_MAX];
    unsigned major_number, minor_number;
    if (!read_attribute(root, index, "dev", text) ||
        sscanf(text, "%u:%u", &major_number, &minor_number) != 2)
        return 0;
    return makedev(major_number, minor_number);
}

bool nbd_sysfs_is_held(const char *root, uint32_t index) {
    CLEANUP_FREE char *path = xasprintf("%s/block/nbd%u/holders", root, index);
    DIR *dir = opendir(path);
    if (!dir)
        return false;
    bool held = false;
    for (const struct dirent *d; !held && (d = readdir(dir));)
        held = d->d_name[0] != '.';
    closedir(dir);
    return held;
}

int nbd_sysfs_set_io_timeout(const char *root, uint32_t index, uint64_t ms, struct err *e) {
    CLEANUP_FREE char *path = xasprintf("%s/block/nbd%u/queue/io_timeout", root, index);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(e, errno, "open %s", path);
    char text[32];
    int len = snprintf(text, sizeof text, "%llu", (unsigned long long)ms);
    int rc = write(fd, text, (size_t)len) == len ? 0 : err_from_errno(e, errno, "write %s", path);
    close(fd);
    return rc;
}

/* --- the list --- */

static int by_index(const void *a, const void *b) {
    const struct nbd_device *x = a, *y = b;
    return x->index < y->index ? -1 : x->index > y->index;
}

static bool read_device(const char *root, const char *name, struct nbd_device *ret) {
    uint64_t index;
    char text[TEXT_MAX];
    if (strncmp(name, "nbd", 3) != 0 || !parse_number(name + 3, INDEX_MAX, &index))
        return false;
    struct nbd_device d = {.index = (uint32_t)index};
    if (!read_attribute(root, d.index, "backend", text) || strlen(text) >= sizeof d.backend ||
        !nbd_backend_parse(text, d.device.volume, &d.device.publish_epoch))
        return false;
    memcpy(d.backend, text, strlen(text) + 1);
    snprintf(d.device.path, sizeof d.device.path, "/dev/nbd%u", d.index);
    d.device.size_bytes = nbd_sysfs_size_bytes(root, d.index);
    *ret = d;
    return true;
}

int nbd_sysfs_list(const char *root, struct nbd_device **ret, size_t *ret_count, struct err *e) {
    CLEANUP_FREE char *path = xasprintf("%s/block", root);
    DIR *dir = opendir(path);
    if (!dir && errno != ENOENT)
        return err_from_errno(e, errno, "read %s", path);
    CLEANUP_FREE struct nbd_device *all = xcalloc(ATTACH_DEVICES_MAX, sizeof *all);
    size_t count = 0;
    for (const struct dirent *d; dir && count < ATTACH_DEVICES_MAX && (d = readdir(dir));)
        if (read_device(root, d->d_name, &all[count]))
            count++;
    if (dir)
        closedir(dir);
    qsort(all, count, sizeof *all, by_index);
    *ret = TAKE_PTR(all);
    *ret_count = count;
    return 0;
}
