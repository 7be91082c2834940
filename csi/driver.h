/* The three services of the driver. Each handler table goes to rpc_server_add_csi_...() with the
 * struct of its service as `user`. */
#pragma once

#include <stdatomic.h>

#include "csi/oplock.h"
#include "csi/pools.h"
#include "csi/rpc/csi_service.h"

#define CSI_DRIVER_NAME "csi.portalbd.dev" /* starts and ends with a letter, as CSI wants */

/* Keys of publish_context, which the controller hands to the node through Kubernetes. */
#define CONTEXT_PUBLISH_EPOCH "publishEpoch"
#define CONTEXT_FSTYPE        "fsType"
#define CONTEXT_MKFS_OPTIONS  "mkfsOptions"
#define CONTEXT_CACHE_SIZE    "cacheSize"
#define CONTEXT_DISK_CACHE    "diskCacheSize"
#define CONTEXT_SOURCE        "source"    /* id of the snapshot or volume it was made from */
#define CONTEXT_SIZE          "sizeBytes" /* at least so large it is to be */

/* Keys of a StorageClass's parameters; kept in the volume's record under the same names. */
#define PARAMETER_POOL         "pool"
#define PARAMETER_FSTYPE       "csi.storage.k8s.io/fstype"
#define PARAMETER_MKFS_OPTIONS "mkfsOptions"
#define PARAMETER_CACHE_SIZE   "cacheSize"
#define PARAMETER_DISK_CACHE   "diskCacheSize"

/* --- identity (identity.c) --- */

struct identity {
    const char *version; /* borrowed */
    /* Is this instance able to work at all? Must not block, nor ask the store. NULL: yes. */
    bool (*ready)(void *arg, struct err *e);
    void *arg;
};
extern const struct csi_identity_ops identity_ops;

/* --- controller (controller.c, snapshots.c) --- */

struct controller {
    struct loop *loop;     /* borrowed; runs on another thread */
    struct pools *pools;   /* borrowed */
    struct oplocks *locks; /* borrowed */
    atomic_bool stopping;  /* cancelled calls end at once from now on; any thread */
};
extern const struct csi_controller_ops controller_ops;

/* --- node (node.c, stage.c) --- */

struct node {
    struct rpc_client *agent; /* borrowed */
    struct oplocks *locks;    /* borrowed */
    const char *version;      /* of this program; borrowed */
    int64_t volumes_max;      /* on this node; 0: no limit */
};
extern const struct csi_node_ops node_ops;
