/* The kernel's NBD client by generic netlink: one message at a time, each on a socket of its own.
 * CAP_SYS_ADMIN in the first user namespace; before Linux 6.4 the family is there only in the first
 * network namespace. The kernel does what is asked before the call returns; what it sends to a
 * daemon meanwhile (DISCONNECT) may block on it. Any thread. See linux/nbd-netlink.h. */
#pragma once

#include "common/err.h"

/* -ERR_NOT_FOUND: no such family (the module is not there, or we are in another network namespace).
 */
int nbd_netlink_probe(struct err *e);

struct nbd_connect {
    uint64_t size_bytes;
    uint64_t block_size_bytes;
    uint64_t server_flags; /* transmission flags */
    uint64_t dead_conn_timeout_s;
    const char *backend; /* borrowed */
    int socket;          /* the kernel takes a reference */
};
/* The kernel picks a device, and makes one if none is free. */
int nbd_netlink_connect(const struct nbd_connect *c, uint32_t *ret_index, struct err *e);

struct nbd_reconfigure {
    uint32_t index;
    const char *backend;          /* borrowed; must be what it was connected with */
    int socket;                   /* replaces a dead one; -1: none */
    uint64_t size_bytes;          /* 0: stays */
    uint64_t dead_conn_timeout_s; /* 0: stays */
};
/* Nothing but index and backend: 0 says that the device is connected. A socket while the old one is
 * alive is dropped, with 0 all the same. */
int nbd_netlink_reconfigure(const struct nbd_reconfigure *r, struct err *e);

/* Every request that waits or comes later fails; the device is free when nobody has it open. Not
 * connected is success. */
int nbd_netlink_disconnect(uint32_t index, struct err *e);
