/* What sysfs shows of the kernel's NBD clients: which devices there are, and whose. Blocking; any
 * thread. root is "/sys", or a folder of a test. See drivers/block/nbd.c: a device that is
 * connected has the attributes "backend" (Linux 5.14, our identifier) and "pid". */
#pragma once

#include "node-agent/attach/attach.h"

enum {
    NBD_BACKEND_MAX = sizeof "portalbd:" + ATTACH_VOLUME_MAX + 20, /* bytes, the NUL included */
};

struct nbd_device {
    uint32_t index;
    char backend[NBD_BACKEND_MAX]; /* as the kernel has it: RECONFIGURE must repeat it */
    struct attach_device device;
};

void nbd_backend_print(char ret[NBD_BACKEND_MAX], const char *volume, uint64_t publish_epoch);
/* False: not one of ours. */
bool nbd_backend_parse(const char *backend, char ret_volume[ATTACH_VOLUME_MAX],
                       uint64_t *ret_publish_epoch);

/* "6.1.0-50-amd64" is at least 5.14. What is no release is not. */
bool nbd_release_at_least(const char *release, unsigned major_wanted, unsigned minor_wanted);

/* Our devices, by rising index, at most ATTACH_DEVICES_MAX; the array is the caller's. Those that
 * were disconnected and that somebody has open still are among them. No sysfs: none. */
int nbd_sysfs_list(const char *root, struct nbd_device **ret, size_t *ret_count, struct err *e);

/* Is "backend" of this device still there, and this one? */
bool nbd_sysfs_is_connected(const char *root, uint32_t index, const char *backend);
uint64_t nbd_sysfs_size_bytes(const char *root, uint32_t index);
/* Does another block device (device mapper, …) stand on it? */
bool nbd_sysfs_is_held(const char *root, uint32_t index);
/* The device number in sysfs; 0: not there. */
dev_t nbd_sysfs_number(const char *root, uint32_t index);
int nbd_sysfs_set_io_timeout(const char *root, uint32_t index, uint64_t ms, struct err *e);
