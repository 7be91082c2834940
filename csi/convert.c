/* Between CSI's messages and plain values. */
#include "csi/convert.h"

#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "common/secret.h"
#include "csi/mount/filesystem.h"
#include "portalbd/catalog/catalog.h"

/* --- maps --- */

/* The shape of every generated ...Entry of a map<string, string>. */
struct csi_map_entry {
    ProtobufCMessage base;
    char *key;
    char *value;
};

/* One of them stands for all. */
_Static_assert(sizeof(struct csi_map_entry) ==
                   sizeof(Csi__V1__CreateVolumeRequest__ParametersEntry),
               "a map's entry");
_Static_assert(offsetof(struct csi_map_entry, key) ==
                   offsetof(Csi__V1__CreateVolumeRequest__ParametersEntry, key),
               "a map's entry");
_Static_assert(offsetof(struct csi_map_entry, value) ==
                   offsetof(Csi__V1__CreateVolumeRequest__ParametersEntry, value),
               "a map's entry");

int csi_map_copy_(struct string_map *to, const char *field, void *const *entries, size_t count,
                  struct err *e) {
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        const struct csi_map_entry *entry = entries[i];
        bytes += strlen(entry->key) + strlen(entry->value);
        if (bytes > CSI_MAP_MAX)
            return err_set(e, -ERR_INVALID, "%s is longer than %d bytes", field, CSI_MAP_MAX);
        if (entry->key[0] == '\0')
            return err_set(e, -ERR_INVALID, "%s holds an empty key", field);
    }
    for (size_t i = 0; i < count; i++) {
        const struct csi_map_entry *entry = entries[i];
        string_map_set(to, entry->key, entry->value);
    }
    return 0;
}

void csi_map_wipe(struct string_map *secrets) {
    for (size_t i = 0; i < secrets->count; i++)
        secret_wipe(secrets->items[i].value, strlen(secrets->items[i].value));
    string_map_release(secrets);
}

/* --- text --- */

/* csi.proto: U+0000-0008, 000B, 000C, 000E-001F, 007F-009F are banned. */
static bool has_banned_character(const char *s) {
    for (const unsigned char *p = (const unsigned char *)s; *p; p++) {
        if (*p < 0x20 && *p != '\t' && *p != '\n' && *p != '\r')
            return true;
        if (*p == 0x7f || (p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f))
            return true;
    }
    return false;
}

int csi_check_id(const char *value, const char *field, struct err *e) {
    if (value[0] == '\0')
        return err_set(e, -ERR_INVALID, "%s is missing", field);
    if (strlen(value) > CSI_NAME_MAX)
        return err_set(e, -ERR_INVALID, "%s is longer than %d bytes", field, CSI_NAME_MAX);
    return 0;
}

int csi_check_name(const char *value, const char *field, struct err *e) {
    int rc = csi_check_id(value, field, e);
    if (rc == 0 && has_banned_character(value))
        rc = err_set(e, -ERR_INVALID, "%s holds a control character", field);
    return rc;
}

int csi_check_path(const char *value, const char *field, struct err *e) {
    if (value[0] == '\0')
        return err_set(e, -ERR_INVALID, "%s is missing", field);
    if (value[0] != '/' || value[1] == '\0')
        return err_set(e, -ERR_INVALID, "%s '%s' is not an absolute path", field, value);
    if (strlen(value) > CSI_PATH_MAX)
        return err_set(e, -ERR_INVALID, "%s is longer than %d bytes", field, CSI_PATH_MAX);
    for (const char *p = value; (p = strstr(p, "/..")) != NULL; p += 3)
        if (p[3] == '/' || p[3] == '\0')
            return err_set(e, -ERR_INVALID, "%s '%s' leads upwards", field, value);
    return 0;
}

/* --- capabilities --- */

static int parse_mode(const Csi__V1__VolumeCapability__AccessMode *mode, struct csi_capability *ret,
                      struct err *e) {
    if (!mode || mode->mode == CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__UNKNOWN)
        return err_set(e, -ERR_INVALID, "volume_capability.access_mode is missing");
    ret->mode = mode->mode;
    switch (mode->mode) {
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_WRITER:
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_SINGLE_WRITER:
        ret->single_target = true;
        return 0;
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_MULTI_WRITER:
        return 0;
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_READER_ONLY:
        ret->read_only = true;
        return 0;
    default:
        return err_set(e, -ERR_INVALID,
                       "access mode %d is not supported: a volume is used on one node at a time",
                       (int)mode->mode);
    }
}

static int parse_mount(const Csi__V1__VolumeCapability__MountVolume *mount,
                       struct csi_capability *ret, struct err *e) {
    if (mount->fs_type[0] && !fs_supported(mount->fs_type))
        return err_set(e, -ERR_INVALID, "filesystem type '%.64s' is not supported: use ext4 or xfs",
                       mount->fs_type);
    if (mount->volume_mount_group[0])
        return err_set(e, -ERR_INVALID, "volume_mount_group is not supported");
    ret->fstype = mount->fs_type;
    size_t len = 0;
    for (size_t i = 0; i < mount->n_mount_flags; i++) {
        const char *flag = mount->mount_flags[i];
        size_t n = strlen(flag);
        if (n == 0)
            continue;
        if (has_banned_character(flag) || strpbrk(flag, "\n\r\t"))
            return err_set(e, -ERR_INVALID, "a mount flag holds a control character");
        if (len + n + 2 > sizeof ret->mount_flags)
            return err_set(e, -ERR_INVALID, "mount_flags is longer than %d bytes", CSI_MAP_MAX);
        if (len > 0)
            ret->mount_flags[len++] = ',';
        memcpy(ret->mount_flags + len, flag, n);
        len += n;
    }
    ret->mount_flags[len] = '\0';
    return 0;
}

int csi_capability_parse(const Csi__V1__VolumeCapability *capability, struct csi_capability *ret,
                         struct err *e) {
    if (!capability)
        return err_set(e, -ERR_INVALID, "volume_capability is missing");
    ret->block = ret->read_only = ret->single_target = false;
    ret->fstype = "";
    ret->mount_flags[0] = '\0';
    int rc = parse_mode(capability->access_mode, ret, e);
    if (rc)
        return rc;
    switch (capability->access_type_case) {
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_BLOCK:
        ret->block = true;
        return 0;
    case CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_MOUNT:
        return parse_mount(capability->mount, ret, e);
    default:
        return err_set(e, -ERR_INVALID, "volume_capability says neither block nor mount");
    }
}

Csi__V1__VolumeCapability *csi_capability_copy(struct rpc_call *call,
                                               const Csi__V1__VolumeCapability *from) {
    Csi__V1__VolumeCapability *to =
        RPC_NEW(call, Csi__V1__VolumeCapability, csi__v1__volume_capability__init);
    if (!to)
        return NULL;
    to->access_mode = RPC_NEW(call, Csi__V1__VolumeCapability__AccessMode,
                              csi__v1__volume_capability__access_mode__init);
    if (to->access_mode && from->access_mode)
        to->access_mode->mode = from->access_mode->mode;
    to->access_type_case = from->access_type_case;
    if (from->access_type_case == CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_BLOCK) {
        to->block = RPC_NEW(call, Csi__V1__VolumeCapability__BlockVolume,
                            csi__v1__volume_capability__block_volume__init);
        return to;
    }
    to->mount = RPC_NEW(call, Csi__V1__VolumeCapability__MountVolume,
                        csi__v1__volume_capability__mount_volume__init);
    if (to->mount) {
        to->mount->fs_type = from->mount->fs_type;
        to->mount->n_mount_flags = from->mount->n_mount_flags;
        to->mount->mount_flags = from->mount->mount_flags;
    }
    return to;
}

/* --- sizes --- */

uint64_t csi_size_round(uint64_t size, uint64_t limit) {
    uint64_t rounded = ALIGN_UP(size, (uint64_t)CSI_SIZE_STEP);
    return limit && rounded > limit ? ALIGN_UP(size, (uint64_t)VOLUME_BLOCK_SIZE) : rounded;
}

int csi_capacity_parse(const Csi__V1__CapacityRange *range, uint64_t missing, uint64_t min,
                       uint64_t *ret_size, uint64_t *ret_limit, struct err *e) {
    int64_t required = range ? range->required_bytes : 0, limit = range ? range->limit_bytes : 0;
    if (required < 0 || limit < 0)
        return err_set(e, -ERR_INVALID, "capacity_range holds a negative size");
    if (limit > 0 && limit < required)
        return err_set(e, -ERR_INVALID, "capacity_range.limit_bytes is below required_bytes");
    if ((uint64_t)required > VOLUME_SIZE_MAX)
        return err_set(e, -ERR_NO_SPACE, "%lld bytes are more than a volume can have",
                       (long long)required);
    uint64_t size = (uint64_t)required;
    if (size == 0) {
        size = missing;
        if (limit > 0 && size > (uint64_t)limit)
            size = (uint64_t)limit / VOLUME_BLOCK_SIZE * VOLUME_BLOCK_SIZE;
    }
    if (size > 0 || missing > 0)
        size = csi_size_round(MAX(size, min), (uint64_t)limit);
    if (limit > 0 && size > (uint64_t)limit)
        return err_set(e, -ERR_NO_SPACE,
                       "no size fits: at least %llu bytes are needed, the limit is %lld",
                       (unsigned long long)size, (long long)limit);
    *ret_size = size;
    *ret_limit = (uint64_t)limit;
    return 0;
}

/* --- disk cache --- */

int csi_disk_cache_parse(const char *text, uint64_t *ret_bytes, bool *ret_none, struct err *e) {
    /* What a daemon takes: the node would refuse another size, and the volume would never be used
     */
    const uint64_t min = UINT64_C(64) << 20, max = UINT64_C(1) << 42;
    uint64_t bytes = 0;
    bool none = strcmp(text, "none") == 0;
    if (!none && (option_parse_size(text, &bytes, NULL) != 0 || bytes < min || bytes > max))
        return err_set(e, -ERR_INVALID, "'%.64s' is neither none nor a size from 64Mi to 4Ti",
                       text);
    *ret_bytes = bytes;
    *ret_none = none;
    return 0;
}
