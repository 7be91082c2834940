/* Staging: from a volume's id to a mounted filesystem at a path.
 *
 *   attach, grow -> look -> [format | check, grow (ext4)] -> mount -> grow (xfs)
 *
 * Each step looks at what is there before it acts, so a repetition does what is still missing. Long
 * steps go on in a job when the call's time is over (ABORTED), and the next call waits for them.
 *
 * S1 A volume made from a source is never formatted.
 * S2 A device is formatted only if it is empty (csi/mount/filesystem.h), at its first staging.
 * S3 When staging succeeds, the mount table shows our device at the staging path. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"
#include "common/options.h"
#include "csi/mount/filesystem.h"
#include "csi/mount/mounts.h"
#include "csi/node_internal.h"

void staging_release(struct staging *s) {
    string_map_release(&s->context);
    csi_map_wipe(&s->secrets);
}

static const char *context_get(const struct staging *s, const char *key) {
    const char *value = string_map_get(&s->context, key);
    return value ? value : "";
}

static const char *wanted_fstype(const struct staging *s) {
    const char *context = context_get(s, CONTEXT_FSTYPE);
    return s->capability.fstype[0] ? s->capability.fstype : context[0] ? context : "ext4";
}

/* --- the device --- */

static int device_set(struct device *d, const char *path, uint64_t size_bytes, struct err *e) {
    struct stat st;
    if (path[0] != '/' || strlen(path) >= sizeof d->path)
        return err_set(e, -ERR_IO, "the node agent names a strange device '%.64s'", path);
    if (stat(path, &st) != 0)
        return err_from_errno(e, errno, "device '%s'", path);
    if (!S_ISBLK(st.st_mode))
        return err_set(e, -ERR_IO, "'%s' is not a block device", path);
    strcpy(d->path, path);
    d->dev = st.st_rdev;
    d->size_bytes = size_bytes;
    return 0;
}

static int parse_epoch(const struct staging *s, uint64_t *ret, struct err *e) {
    const char *text = context_get(s, CONTEXT_PUBLISH_EPOCH);
    if (option_parse_u64(text, ret, NULL) != 0 || *ret == 0 || *ret > UINT32_MAX)
        return err_set(e, -ERR_INVALID,
                       "publish_context." CONTEXT_PUBLISH_EPOCH
                       " is missing or no number: the volume has to be published to this node "
                       "first (CSIDriver.spec.attachRequired must be true)");
    return 0;
}

static int wish_disk_cache(const struct staging *s,
                           Portalbd__Agent__V1__AttachVolumeRequest *request, struct err *e) {
    const char *text = context_get(s, CONTEXT_DISK_CACHE);
    bool none = false;
    if (text[0] && csi_disk_cache_parse(text, &request->disk_cache_bytes, &none, e) != 0)
        return err_wrap(e, "publish_context." CONTEXT_DISK_CACHE);
    request->no_disk_cache = none;
    return 0;
}

static int attach(struct node *n, struct rpc_call *call, const struct staging *s,
                  struct device *ret, struct err *e) {
    Portalbd__Agent__V1__AttachVolumeRequest request =
        PORTALBD__AGENT__V1__ATTACH_VOLUME_REQUEST__INIT;
    Portalbd__Agent__V1__AttachVolumeResponse *response;
    const char *cache = context_get(s, CONTEXT_CACHE_SIZE);
    int rc = parse_epoch(s, &request.publish_epoch, e);
    if (rc == 0 && cache[0] && option_parse_size(cache, &request.cache_bytes, e) != 0)
        rc = err_wrap(e, "publish_context." CONTEXT_CACHE_SIZE);
    if (rc == 0)
        rc = wish_disk_cache(s, &request, e);
    if (rc)
        return rc;
    request.volume_id = (char *)s->volume_id;
    request.n_secrets = s->secrets.count;
    request.secrets = RPC_NEW_ARRAY(call, Portalbd__Agent__V1__AttachVolumeRequest__SecretsEntry *,
                                    s->secrets.count);
    for (size_t i = 0; i < s->secrets.count; i++) {
        Portalbd__Agent__V1__AttachVolumeRequest__SecretsEntry *entry =
            RPC_NEW(call, Portalbd__Agent__V1__AttachVolumeRequest__SecretsEntry,
                    portalbd__agent__v1__attach_volume_request__secrets_entry__init);
        if (!entry || !request.secrets)
            return err_set(e, -ERR_OVERLOAD, "secrets are too large");
        entry->key = s->secrets.items[i].key;
        entry->value = s->secrets.items[i].value;
        request.secrets[i] = entry;
    }
    rc = agent_attach_volume(
        &(struct rpc_client_call){.client = n->agent, .parent = call, .timeout_ms = NODE_ATTACH_MS},
        &request, &response, e);
    return rc ? rc : device_set(ret, response->device_path, response->size_bytes, e);
}

int device_find(struct node *n, struct rpc_call *call, const char *volume_id, struct device *ret,
                struct err *e) {
    Portalbd__Agent__V1__ListAttachmentsRequest request =
        PORTALBD__AGENT__V1__LIST_ATTACHMENTS_REQUEST__INIT;
    Portalbd__Agent__V1__ListAttachmentsResponse *response;
    int rc = agent_list_attachments(
        &(struct rpc_client_call){.client = n->agent, .parent = call, .timeout_ms = NODE_ASK_MS},
        &request, &response, e);
    if (rc)
        return rc;
    for (size_t i = 0; i < response->n_attachments; i++) {
        const Portalbd__Agent__V1__Attachment *a = response->attachments[i];
        if (strcmp(a->volume_id, volume_id) == 0 && a->device_path[0])
            return device_set(ret, a->device_path, a->size_bytes, e);
    }
    return err_set(e, -ERR_NOT_FOUND, "volume '%.128s' has no device on this node", volume_id);
}

int grow_device(struct node *n, struct rpc_call *call, const char *volume_id, uint64_t size,
                struct device *d, struct err *e) {
    if (size <= d->size_bytes)
        return 0;
    Portalbd__Agent__V1__GrowVolumeRequest request = PORTALBD__AGENT__V1__GROW_VOLUME_REQUEST__INIT;
    Portalbd__Agent__V1__GrowVolumeResponse *response;
    request.volume_id = (char *)volume_id;
    request.size_bytes = size;
    int rc = agent_grow_volume(
        &(struct rpc_client_call){.client = n->agent, .parent = call, .timeout_ms = NODE_ATTACH_MS},
        &request, &response, e);
    if (rc == 0)
        d->size_bytes = response->size_bytes;
    return rc;
}

/* A growth that the controller promised while the volume was in use, and that nobody brought to the
 * node before it was detached. */
static int grow_to_promise(struct node *n, struct rpc_call *call, const struct staging *s,
                           struct device *d, struct err *e) {
    const char *text = context_get(s, CONTEXT_SIZE);
    uint64_t size;
    if (text[0] == '\0')
        return 0;
    if (option_parse_u64(text, &size, e) != 0)
        return err_wrap(e, "publish_context." CONTEXT_SIZE);
    return grow_device(n, call, s->volume_id, size, d, e);
}

/* --- the filesystem --- */

static int format_empty(const struct staging *s, const struct device *d,
                        const struct fs_probe *probe, struct err *e) {
    const char *source = context_get(s, CONTEXT_SOURCE);
    const char *fstype = wanted_fstype(s);
    if (source[0])
        return err_set(e, -ERR_IN_USE,
                       "there is no filesystem on it, and it is not given one because it is a copy "
                       "of '%.64s'",
                       source);
    if (probe->content == FS_INTERRUPTED)
        log_warn("an interrupted format is begun again", LOG_STR("volume", s->volume_id),
                 LOG_STR("device", d->path));
    int rc = fs_format(d->path, fstype, context_get(s, CONTEXT_MKFS_OPTIONS), e);
    if (rc == 0)
        log_info("formatted", LOG_STR("volume", s->volume_id), LOG_STR("device", d->path),
                 LOG_STR("fstype", fstype));
    return rc;
}

/* Leaves the device, which is not mounted, with the wanted filesystem on it, ready to mount. */
static int prepare(const struct staging *s, const struct device *d, struct err *e) {
    struct fs_probe probe = {0};
    const char *fstype = wanted_fstype(s);
    int rc = fs_probe(d->path, &probe, e);
    if (rc)
        return rc;
    switch (probe.content) {
    case FS_EMPTY:
    case FS_INTERRUPTED:
        return format_empty(s, d, &probe, e);
    case FS_FOREIGN:
        return err_set(e, -ERR_IN_USE, "it holds something else than a filesystem (%s)",
                       probe.fstype);
    case FS_FOUND:
        break;
    }
    if (strcmp(probe.fstype, fstype) != 0)
        return err_set(e, -ERR_IN_USE, "it holds %s, but %s is asked for", probe.fstype, fstype);
    rc = fs_check(d->path, fstype, e);
    return rc ? rc : fs_grow(d->path, fstype, NULL, e);
}

static int mount_staging(const struct staging *s, const struct device *d, struct err *e) {
    char options[CSI_MAP_MAX + 16];
    const char *fstype = wanted_fstype(s);
    /* Clones and restores have the filesystem id of what they were made from. */
    const char *own = strcmp(fstype, "xfs") == 0 ? "nouuid" : "";
    snprintf(options, sizeof options, "%s%s%s", own,
             own[0] && s->capability.mount_flags[0] ? "," : "", s->capability.mount_flags);
    if (mkdir(s->staging_path, 0750) != 0 && errno != EEXIST)
        return err_from_errno(e, errno, "staging path '%s'", s->staging_path);
    return mount_device(d->path, s->staging_path, fstype, options, s->capability.read_only, e);
}

/* An ext4 that is mounted may be impossible to grow here; it grows when it is staged anew. */
static void grow_mounted(const struct staging *s, const struct device *d) {
    struct err e;
    if (s->capability.read_only)
        return;
    if (fs_grow(d->path, wanted_fstype(s), s->staging_path, &e) != 0)
        log_warn("the filesystem is smaller than its device and stays so for now",
                 LOG_STR("volume", s->volume_id), LOG_ERR(&e));
}

/* What is mounted at the staging path: 0 ours, -ERR_NOT_FOUND nothing (any more). */
static int look_at_staging(const struct staging *s, const struct device *d, struct err *e) {
    struct mount_entry entry;
    int rc = mount_find(s->staging_path, &entry, e);
    if (rc)
        return rc;
    if (entry.dev != d->dev) {
        log_warn("the staging path shows another device, it is unmounted",
                 LOG_STR("volume", s->volume_id), LOG_STR("path", s->staging_path));
        rc = mount_unmount(s->staging_path, true, NODE_UNMOUNT_MS, e);
        return rc ? rc : err_set(e, -ERR_NOT_FOUND, "unmounted");
    }
    if (strcmp(entry.fstype, wanted_fstype(s)) != 0)
        return err_set(e, -ERR_EXISTS, "it is staged as %s, but %s is asked for", entry.fstype,
                       wanted_fstype(s));
    if (entry.read_only && !s->capability.read_only)
        return err_set(e, -ERR_EXISTS,
                       "it is staged read-only, or its filesystem became read-only after errors");
    return 0;
}

static int stage_filesystem(const struct staging *s, const struct device *d, struct err *e) {
    int rc = look_at_staging(s, d, e);
    if (rc == 0) {
        grow_mounted(s, d);
        return 0;
    }
    if (rc != -ERR_NOT_FOUND)
        return rc;
    rc = prepare(s, d, e);
    if (rc == 0)
        rc = mount_staging(s, d, e);
    if (rc == 0)
        grow_mounted(s, d);
    return rc;
}

int stage(struct node *n, struct rpc_call *call, const struct staging *s, struct device *ret,
          struct err *e) {
    int rc = attach(n, call, s, ret, e);
    if (rc == 0)
        rc = grow_to_promise(n, call, s, ret, e);
    if (rc == 0 && !s->capability.block)
        rc = stage_filesystem(s, ret, e);
    return rc && e ? err_wrap(e, "volume '%.64s'", s->volume_id) : rc;
}
