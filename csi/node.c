/* csi.v1.Node: volumes at paths of this node.
 *
 * Keeps no state: what is there is read from the mount table and asked of the node agent, which
 * owns devices and daemons. So this program may restart, and be replaced, under mounted volumes. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "csi/mount/filesystem.h"
#include "csi/mount/mounts.h"
#include "csi/node_internal.h"

/* --- the agent --- */

/* "1.2.3" -> 1 */
static long major_version(const char *version) {
    return strtol(version, NULL, 10);
}

int agent_check(struct node *n, struct rpc_call *call, char **ret_node_id, struct err *e) {
    Portalbd__Agent__V1__GetInfoRequest request = PORTALBD__AGENT__V1__GET_INFO_REQUEST__INIT;
    Portalbd__Agent__V1__GetInfoResponse *response;
    int rc = agent_get_info(
        &(struct rpc_client_call){.client = n->agent, .parent = call, .timeout_ms = NODE_ASK_MS},
        &request, &response, e);
    if (rc == -ERR_TRANSIENT)
        return err_wrap(e, "the node agent does not answer; its pod on this node (kubectl describe "
                           "pod, kubectl logs) says why");
    if (rc)
        return err_wrap(e, "node agent");
    if (major_version(response->version) != major_version(n->version))
        return err_set(e, -ERR_CONFIG,
                       "the node agent has version %.32s and this is %s: they must have the same "
                       "first number; update the one that is older",
                       response->version, n->version);
    if (strcmp(response->version, n->version) != 0) {
        static struct log_limit limit = {.interval_ms = 3600 * 1000};
        log_info_limited(&limit, "the node agent has another version",
                         LOG_STR("agent", response->version), LOG_STR("csi", n->version));
    }
    if (ret_node_id)
        *ret_node_id = response->node_id;
    return 0;
}

/* --- stage --- */

static int node_stage_volume(struct rpc_call *call, const Csi__V1__NodeStageVolumeRequest *request,
                             Csi__V1__NodeStageVolumeResponse *response, struct err *e) {
    (void)response;
    struct node *n = rpc_call_user(call);
    CLEANUP(staging_release)
    struct staging s = {.volume_id = request->volume_id,
                        .staging_path = request->staging_target_path};
    struct device device;
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0)
        rc = csi_check_path(request->staging_target_path, "staging_target_path", e);
    if (rc == 0)
        rc = csi_capability_parse(request->volume_capability, &s.capability, e);
    if (rc == 0)
        rc = csi_map_copy(&s.context, request, publish_context, e);
    if (rc == 0)
        rc = csi_map_copy(&s.secrets, request, secrets, e);
    if (rc)
        return rc;
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    rc = oplock_acquire(n->locks, request->volume_id, call, &request->base, &lock, e);
    if (rc == 0)
        rc = agent_check(n, call, NULL, e);
    if (rc == 0)
        rc = stage(n, call, &s, &device, e);
    return rc;
}

/* --- unstage --- */

struct other_mount {
    const char *ignore[2]; /* paths; NULL: none */
    char found[256];       /* "" : there is none */
};

/* Kubelet's own binds of parts of a volume are no targets of ours. */
static bool note_other_mount(void *arg, const char *target) {
    struct other_mount *o = arg;
    for (size_t i = 0; i < ARRAY_LEN(o->ignore); i++)
        if (o->ignore[i] && strcmp(o->ignore[i], target) == 0)
            return true;
    if (strstr(target, "/volume-subpaths/"))
        return true;
    snprintf(o->found, sizeof o->found, "%s", target);
    return false;
}

/* Where else than at these two paths the device is mounted. */
static int find_other_mount(const struct device *d, const char *ignore, const char *ignore_too,
                            struct other_mount *ret, struct err *e) {
    *ret = (struct other_mount){.ignore = {ignore, ignore_too}};
    return mount_for_each_of_device(d->dev, d->path, note_other_mount, ret, e);
}

static int detach(struct node *n, struct rpc_call *call, const char *volume_id, struct err *e) {
    Portalbd__Agent__V1__DetachVolumeRequest request =
        PORTALBD__AGENT__V1__DETACH_VOLUME_REQUEST__INIT;
    Portalbd__Agent__V1__DetachVolumeResponse *response;
    request.volume_id = (char *)volume_id;
    return agent_detach_volume(
        &(struct rpc_client_call){.client = n->agent, .parent = call, .timeout_ms = NODE_DETACH_MS},
        &request, &response, e);
}

static int unstage(struct node *n, struct rpc_call *call, const char *volume_id,
                   const char *staging_path, struct err *e) {
    struct device device;
    struct other_mount other = {0};
    int rc = mount_unmount(staging_path, true, NODE_UNMOUNT_MS, e);
    if (rc)
        return rc;
    rc = device_find(n, call, volume_id, &device, e);
    if (rc == 0)
        rc = find_other_mount(&device, NULL, NULL, &other, e);
    if (rc && rc != -ERR_NOT_FOUND)
        return rc;
    if (other.found[0])
        return err_set(e, -ERR_BUSY, "it is still mounted at '%s'", other.found);
    rc = detach(n, call, volume_id, e);
    return rc == -ERR_NOT_FOUND || rc == -ERR_INVALID ? 0 : rc; /* the agent knows no such volume */
}

static int node_unstage_volume(struct rpc_call *call,
                               const Csi__V1__NodeUnstageVolumeRequest *request,
                               Csi__V1__NodeUnstageVolumeResponse *response, struct err *e) {
    (void)response;
    struct node *n = rpc_call_user(call);
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0)
        rc = csi_check_path(request->staging_target_path, "staging_target_path", e);
    if (rc)
        return rc;
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    rc = oplock_acquire(n->locks, request->volume_id, call, &request->base, &lock, e);
    if (rc == 0)
        rc = unstage(n, call, request->volume_id, request->staging_target_path, e);
    return rc && e ? err_wrap(e, "volume '%.64s'", request->volume_id) : rc;
}

/* --- publish --- */

/* Is the target a mount of our device? For a block volume: of its node. */
static bool target_is_ours(const char *target, const struct mount_entry *entry,
                           const struct device *d, bool block) {
    if (!block)
        return entry->dev == d->dev;
    struct stat st;
    return stat(target, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == d->dev;
}

/* What is at the target already: 0 it is published as asked, -ERR_NOT_FOUND nothing (any more). */
static int look_at_target(const char *target, const struct device *d, bool block, bool read_only,
                          struct err *e) {
    struct mount_entry entry;
    int rc = mount_find(target, &entry, e);
    if (rc)
        return rc;
    if (!target_is_ours(target, &entry, d, block)) {
        log_warn("the target path shows another device, it is unmounted", LOG_STR("path", target));
        rc = mount_unmount(target, true, NODE_UNMOUNT_MS, e);
        return rc ? rc : err_set(e, -ERR_NOT_FOUND, "unmounted");
    }
    if (entry.read_only != read_only)
        return err_set(e, -ERR_EXISTS, "it is published %s at '%s' already",
                       entry.read_only ? "read-only" : "writable", target);
    return 0;
}

static int make_target(const char *target, bool block, bool *ret_made, struct err *e) {
    *ret_made = false;
    if (!block) {
        *ret_made = mkdir(target, 0750) == 0;
        if (!*ret_made && errno != EEXIST)
            return err_from_errno(e, errno, "target path '%s'", target);
        return 0;
    }
    int fd = open(target, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (fd >= 0) {
        close(fd);
        *ret_made = true;
    } else if (errno != EEXIST) {
        return err_from_errno(e, errno, "target path '%s'", target);
    }
    return 0;
}

/* Removes what make_target made: an empty folder or an empty file, and nothing else. */
static int remove_target(const char *target, struct err *e) {
    struct stat st;
    if (lstat(target, &st) != 0)
        return errno == ENOENT ? 0 : err_from_errno(e, errno, "target path '%s'", target);
    if (S_ISREG(st.st_mode) && st.st_size > 0)
        return err_set(e, -ERR_IN_USE, "'%s' is a file with something in it, it is not removed",
                       target);
    int rc = S_ISDIR(st.st_mode) ? rmdir(target) : unlink(target);
    return rc == 0 || errno == ENOENT ? 0 : err_from_errno(e, errno, "remove '%s'", target);
}

static int publish(const struct staging *s, const struct device *d, const char *target,
                   bool read_only, struct err *e) {
    bool block = s->capability.block, made;
    struct other_mount other;
    int rc = look_at_target(target, d, block, read_only, e);
    if (rc != -ERR_NOT_FOUND)
        return rc;
    rc = find_other_mount(d, s->staging_path, target, &other, e);
    if (rc)
        return rc;
    if (other.found[0] && s->capability.single_target)
        return err_set(e, -ERR_IN_USE, "its access mode allows one target, and it is at '%s'",
                       other.found);
    rc = make_target(target, block, &made, e);
    if (rc)
        return rc;
    rc = mount_bind(block ? d->path : s->staging_path, target, read_only, e);
    if (rc && made) {
        struct err ignored;
        remove_target(target, &ignored);
    }
    return rc;
}

static int node_publish_volume(struct rpc_call *call,
                               const Csi__V1__NodePublishVolumeRequest *request,
                               Csi__V1__NodePublishVolumeResponse *response, struct err *e) {
    (void)response;
    struct node *n = rpc_call_user(call);
    CLEANUP(staging_release)
    struct staging s = {.volume_id = request->volume_id,
                        .staging_path = request->staging_target_path};
    struct device device;
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0)
        rc = csi_check_path(request->target_path, "target_path", e);
    if (rc == 0)
        rc = csi_capability_parse(request->volume_capability, &s.capability, e);
    if (rc == 0 && request->staging_target_path[0] == '\0')
        rc = err_set(e, -ERR_IN_USE, "staging_target_path is missing");
    if (rc == 0)
        rc = csi_check_path(request->staging_target_path, "staging_target_path", e);
    if (rc == 0)
        rc = csi_map_copy(&s.context, request, publish_context, e);
    if (rc == 0)
        rc = csi_map_copy(&s.secrets, request, secrets, e);
    if (rc)
        return rc;
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    rc = oplock_acquire(n->locks, request->volume_id, call, &request->base, &lock, e);
    if (rc)
        return rc;
    /* After a reboot, or when the device was lost, kubelet may publish without staging again. */
    rc = stage(n, call, &s, &device, e);
    if (rc)
        return rc;
    rc = publish(&s, &device, request->target_path, request->readonly || s.capability.read_only, e);
    return rc && e ? err_wrap(e, "volume '%.64s'", request->volume_id) : rc;
}

static int node_unpublish_volume(struct rpc_call *call,
                                 const Csi__V1__NodeUnpublishVolumeRequest *request,
                                 Csi__V1__NodeUnpublishVolumeResponse *response, struct err *e) {
    (void)response;
    struct node *n = rpc_call_user(call);
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0)
        rc = csi_check_path(request->target_path, "target_path", e);
    if (rc)
        return rc;
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    rc = oplock_acquire(n->locks, request->volume_id, call, &request->base, &lock, e);
    if (rc == 0)
        rc = mount_unmount(request->target_path, true, NODE_UNMOUNT_MS, e);
    if (rc == 0)
        rc = remove_target(request->target_path, e);
    return rc;
}

/* --- stats --- */

/* Is the volume at this path? A path that is not absolute is just not found. */
static int find_at_path(const char *path, const struct device *d, bool *ret_block, struct err *e) {
    struct mount_entry entry;
    struct stat st;
    int rc = mount_find(path, &entry, e);
    if (rc)
        return rc;
    if (entry.dev == d->dev) {
        *ret_block = false;
        return 0;
    }
    /* Of a mount that is no filesystem of ours, stat is safe: it is a device node on devtmpfs. */
    if (stat(path, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == d->dev) {
        *ret_block = true;
        return 0;
    }
    return err_set(e, -ERR_NOT_FOUND, "'%.200s' does not show the volume", path);
}

static Csi__V1__VolumeUsage *usage_new(struct rpc_call *call, Csi__V1__VolumeUsage__Unit unit,
                                       uint64_t total, uint64_t used, uint64_t available) {
    Csi__V1__VolumeUsage *u = RPC_NEW(call, Csi__V1__VolumeUsage, csi__v1__volume_usage__init);
    if (!u)
        return NULL;
    u->unit = unit;
    u->total = (int64_t)total;
    u->used = (int64_t)used;
    u->available = (int64_t)available;
    return u;
}

/* How the agent says that the volume is; its silence is a condition, too. */
static Csi__V1__VolumeCondition *condition_new(struct node *n, struct rpc_call *call,
                                               const char *volume_id) {
    Csi__V1__VolumeCondition *c =
        RPC_NEW(call, Csi__V1__VolumeCondition, csi__v1__volume_condition__init);
    Portalbd__Agent__V1__GetVolumeHealthRequest request =
        PORTALBD__AGENT__V1__GET_VOLUME_HEALTH_REQUEST__INIT;
    Portalbd__Agent__V1__GetVolumeHealthResponse *response;
    struct err e;
    if (!c)
        return NULL;
    request.volume_id = (char *)volume_id;
    int rc = agent_get_volume_health(
        &(struct rpc_client_call){.client = n->agent, .parent = call, .timeout_ms = NODE_ASK_MS},
        &request, &response, &e);
    c->abnormal = rc != 0 || response->abnormal;
    c->message = rc ? rpc_strdup(call, e.text) : response->message;
    return c;
}

static void set_usage(struct rpc_call *call, const struct fs_stats *stats,
                      Csi__V1__NodeGetVolumeStatsResponse *response) {
    response->usage = RPC_NEW_ARRAY(call, Csi__V1__VolumeUsage *, 2);
    if (!response->usage)
        return;
    response->usage[0] = usage_new(call, CSI__V1__VOLUME_USAGE__UNIT__BYTES, stats->bytes_total,
                                   stats->bytes_used, stats->bytes_available);
    response->n_usage = 1;
    if (stats->inodes_total == 0)
        return;
    response->usage[1] = usage_new(call, CSI__V1__VOLUME_USAGE__UNIT__INODES, stats->inodes_total,
                                   stats->inodes_used, stats->inodes_available);
    response->n_usage = 2;
}

static int node_get_volume_stats(struct rpc_call *call,
                                 const Csi__V1__NodeGetVolumeStatsRequest *request,
                                 Csi__V1__NodeGetVolumeStatsResponse *response, struct err *e) {
    struct node *n = rpc_call_user(call);
    struct device device;
    bool block;
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0 && request->volume_path[0] == '\0')
        rc = err_set(e, -ERR_INVALID, "volume_path is missing");
    if (rc == 0)
        rc = device_find(n, call, request->volume_id, &device, e);
    if (rc == 0)
        rc = find_at_path(request->volume_path, &device, &block, e);
    if (rc)
        return rc;
    struct fs_stats stats = {.bytes_total = device.size_bytes};
    response->volume_condition = condition_new(n, call, request->volume_id);
    if (!block && fs_stat(request->volume_path, NODE_STAT_MS, &stats, e) != 0 &&
        response->volume_condition) {
        response->volume_condition->abnormal = 1;
        response->volume_condition->message = rpc_strdup(call, e->text);
    }
    set_usage(call, &stats, response);
    return 0;
}

/* --- expand --- */

static int grow_at_path(const char *path, const struct device *d, struct err *e) {
    struct mount_entry entry;
    int rc = mount_find(path, &entry, e);
    return rc ? rc : fs_grow(d->path, entry.fstype, path, e);
}

static int node_expand_volume(struct rpc_call *call,
                              const Csi__V1__NodeExpandVolumeRequest *request,
                              Csi__V1__NodeExpandVolumeResponse *response, struct err *e) {
    struct node *n = rpc_call_user(call);
    struct device device;
    uint64_t size, limit;
    bool block;
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0 && request->volume_path[0] == '\0')
        rc = err_set(e, -ERR_INVALID, "volume_path is missing");
    if (rc == 0)
        rc = csi_capacity_parse(request->capacity_range, 0, 0, &size, &limit, e);
    if (rc)
        return rc;
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    rc = oplock_acquire(n->locks, request->volume_id, call, &request->base, &lock, e);
    if (rc == 0)
        rc = device_find(n, call, request->volume_id, &device, e);
    if (rc == 0)
        rc = find_at_path(request->volume_path, &device, &block, e);
    if (rc == 0)
        rc = grow_device(n, call, request->volume_id, size, &device, e);
    if (rc == 0 && !block)
        rc = grow_at_path(request->volume_path, &device, e);
    if (rc == 0)
        response->capacity_bytes = (int64_t)device.size_bytes;
    return rc;
}

/* --- capabilities and info --- */

static int node_get_capabilities(struct rpc_call *call,
                                 const Csi__V1__NodeGetCapabilitiesRequest *request,
                                 Csi__V1__NodeGetCapabilitiesResponse *response, struct err *e) {
#define CAPABILITY(x) CSI__V1__NODE_SERVICE_CAPABILITY__RPC__TYPE__##x
    static const Csi__V1__NodeServiceCapability__RPC__Type types[] = {
        CAPABILITY(STAGE_UNSTAGE_VOLUME),
        CAPABILITY(GET_VOLUME_STATS),
        CAPABILITY(EXPAND_VOLUME),
        CAPABILITY(VOLUME_CONDITION),
        CAPABILITY(SINGLE_NODE_MULTI_WRITER),
    };
#undef CAPABILITY
    (void)request;
    (void)e;
    response->capabilities =
        RPC_NEW_ARRAY(call, Csi__V1__NodeServiceCapability *, ARRAY_LEN(types));
    for (size_t i = 0; response->capabilities && i < ARRAY_LEN(types); i++) {
        Csi__V1__NodeServiceCapability *capability =
            RPC_NEW(call, Csi__V1__NodeServiceCapability, csi__v1__node_service_capability__init);
        Csi__V1__NodeServiceCapability__RPC *rpc = RPC_NEW(
            call, Csi__V1__NodeServiceCapability__RPC, csi__v1__node_service_capability__rpc__init);
        if (!capability || !rpc)
            return 0;
        rpc->type = types[i];
        capability->type_case = CSI__V1__NODE_SERVICE_CAPABILITY__TYPE_RPC;
        capability->rpc = rpc;
        response->capabilities[response->n_capabilities++] = capability;
    }
    return 0;
}

static int node_get_info(struct rpc_call *call, const Csi__V1__NodeGetInfoRequest *request,
                         Csi__V1__NodeGetInfoResponse *response, struct err *e) {
    (void)request;
    struct node *n = rpc_call_user(call);
    response->max_volumes_per_node = n->volumes_max;
    return agent_check(n, call, &response->node_id, e);
}

const struct csi_node_ops node_ops = {
    .node_stage_volume = node_stage_volume,
    .node_unstage_volume = node_unstage_volume,
    .node_publish_volume = node_publish_volume,
    .node_unpublish_volume = node_unpublish_volume,
    .node_get_volume_stats = node_get_volume_stats,
    .node_expand_volume = node_expand_volume,
    .node_get_capabilities = node_get_capabilities,
    .node_get_info = node_get_info,
};
