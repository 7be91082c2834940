/* What node.c and stage.c share. */
#pragma once

#include <sys/types.h>

#include "csi/convert.h"
#include "csi/driver.h"
#include "csi/rpc/agent_service.h"

enum {
    NODE_DEVICE_MAX = 128,       /* bytes of a device's path */
    NODE_ATTACH_MS = 100 * 1000, /* the agent's time to attach, kubelet's own limit is 2 min */
    NODE_DETACH_MS = 100 * 1000, /* ... to upload what is left and detach */
    NODE_ASK_MS = 10 * 1000,     /* ... to answer a question */
    NODE_UNMOUNT_MS = 30 * 1000, /* a healthy filesystem's */
    NODE_STAT_MS = 5 * 1000,
};

/* A volume's device on this node. */
struct device {
    char path[NODE_DEVICE_MAX]; /* "/dev/loop3" */
    dev_t dev;
    uint64_t size_bytes;
};

/* What a request to stage or publish says about a volume; text is borrowed from it. */
struct staging {
    const char *volume_id;
    const char *staging_path;
    struct csi_capability capability;
    struct string_map context; /* publish_context */
    struct string_map secrets;
};
void staging_release(struct staging *s);

/* Attaches the volume (or finds it attached), makes a filesystem where there is nothing, checks and
 * grows it, and mounts it at the staging path; of a block volume only the first. Does what is still
 * missing after an attempt that died half way. */
int stage(struct node *n, struct rpc_call *call, const struct staging *s, struct device *ret,
          struct err *e);

/* Looks the volume up among the agent's attachments. -ERR_NOT_FOUND: not attached here. */
int device_find(struct node *n, struct rpc_call *call, const char *volume_id, struct device *ret,
                struct err *e);

/* Makes the device at least so large; 0: as it is. */
int grow_device(struct node *n, struct rpc_call *call, const char *volume_id, uint64_t size,
                struct device *d, struct err *e);

/* Is the agent one that we can work with? Logs when its version changes. ret_node_id may be NULL.
 */
int agent_check(struct node *n, struct rpc_call *call, char **ret_node_id, struct err *e);
