/* csi.v1.Controller.CreateVolume: what a StorageClass, a capacity range, capabilities and a source
 * make of a volume. The catalog compares the outcome with what a volume of that name was created
 * from, so the same request always means the same volume, and another one is ALREADY_EXISTS. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/options.h"
#include "csi/controller_internal.h"
#include "csi/mount/filesystem.h"

bool parameter_is_extra(const char *key) {
    static const char prefix[] = "csi.storage.k8s.io/";
    return strncmp(key, prefix, sizeof prefix - 1) == 0;
}

/* What a StorageClass and the request's capabilities make of a volume. */
struct wish {
    struct string_map parameters; /* for the record */
    char pool[POOL_NAME_MAX];     /* "": not said */
    char fstype[FS_TYPE_MAX];     /* "" for a block volume */
};

static void wish_release(struct wish *w) {
    string_map_release(&w->parameters);
}

static int check_parameter(const char *key, const char *value, struct wish *w, struct err *e) {
    if (strcmp(key, PARAMETER_POOL) == 0) {
        if (value[0] == '\0' || strlen(value) >= sizeof w->pool)
            return err_set(e, -ERR_INVALID, "parameter pool: '%.64s' is not a pool's name", value);
        strcpy(w->pool, value);
        return 0;
    }
    if (strcmp(key, PARAMETER_FSTYPE) == 0) {
        if (!fs_supported(value))
            return err_set(e, -ERR_INVALID, "parameter %s: '%.64s' is neither ext4 nor xfs", key,
                           value);
        return 0;
    }
    if (strcmp(key, PARAMETER_MKFS_OPTIONS) == 0)
        return fs_check_options(value, e);
    if (strcmp(key, PARAMETER_CACHE_SIZE) == 0) {
        uint64_t bytes;
        int rc = option_parse_size(value, &bytes, e);
        return rc && e ? err_wrap(e, "parameter cacheSize") : rc;
    }
    if (strcmp(key, PARAMETER_DISK_CACHE) == 0) {
        uint64_t bytes;
        bool none;
        int rc = csi_disk_cache_parse(value, &bytes, &none, e);
        return rc && e ? err_wrap(e, "parameter diskCacheSize") : rc;
    }
    if (parameter_is_extra(key))
        return 0;
    return err_set(e, -ERR_INVALID,
                   "parameter '%.64s' is not known; a StorageClass may have pool, "
                   "csi.storage.k8s.io/fstype, mkfsOptions, cacheSize and diskCacheSize",
                   key);
}

/* Block and mount capabilities may stand side by side; the filesystem must be one. */
static int wish_of_capabilities(const Csi__V1__CreateVolumeRequest *request, struct wish *w,
                                struct err *e) {
    if (request->n_volume_capabilities == 0)
        return err_set(e, -ERR_INVALID, "volume_capabilities is missing");
    const char *asked = "";
    bool mount = false;
    for (size_t i = 0; i < request->n_volume_capabilities; i++) {
        struct csi_capability capability;
        int rc = csi_capability_parse(request->volume_capabilities[i], &capability, e);
        if (rc)
            return rc;
        mount = mount || !capability.block;
        if (asked[0] && capability.fstype[0] && strcmp(asked, capability.fstype) != 0)
            return err_set(e, -ERR_INVALID, "volume_capabilities ask for two filesystem types");
        if (capability.fstype[0])
            asked = capability.fstype;
    }
    const char *parameter = string_map_get(&w->parameters, PARAMETER_FSTYPE);
    if (mount)
        snprintf(w->fstype, sizeof w->fstype, "%s",
                 asked[0]    ? asked
                 : parameter ? parameter
                             : "ext4");
    return 0;
}

static int wish_parse(const Csi__V1__CreateVolumeRequest *request, struct wish *w, struct err *e) {
    int rc = csi_map_copy(&w->parameters, request, parameters, e);
    for (size_t i = 0; rc == 0 && i < w->parameters.count; i++)
        rc = check_parameter(w->parameters.items[i].key, w->parameters.items[i].value, w, e);
    if (rc == 0 && request->n_mutable_parameters > 0)
        rc = err_set(e, -ERR_INVALID, "mutable parameter '%.64s' is not known",
                     request->mutable_parameters[0]->key);
    if (rc == 0)
        rc = wish_of_capabilities(request, w, e);
    if (rc == 0 && w->fstype[0])
        string_map_set(&w->parameters, PARAMETER_FSTYPE, w->fstype);
    return rc;
}

/* The id in volume_content_source, "" for none; what is no id of ours is NOT_FOUND. */
static int parse_source(const Csi__V1__VolumeContentSource *source, const char **ret_id,
                        char pool[POOL_NAME_MAX], struct err *e) {
    *ret_id = "";
    pool[0] = '\0';
    if (!source)
        return 0;
    enum id_kind kind = ID_VOLUME;
    switch (source->type_case) {
    case CSI__V1__VOLUME_CONTENT_SOURCE__TYPE_SNAPSHOT:
        *ret_id = source->snapshot->snapshot_id;
        kind = ID_SNAPSHOT;
        break;
    case CSI__V1__VOLUME_CONTENT_SOURCE__TYPE_VOLUME:
        *ret_id = source->volume->volume_id;
        break;
    default:
        return err_set(e, -ERR_INVALID, "volume_content_source names no source");
    }
    int rc = csi_check_id(*ret_id, "the id in volume_content_source", e);
    return rc ? rc : pool_of_id(*ret_id, kind, pool, e);
}

/* The pool to create in: the parameter's, the source's, or the only one there is. */
static int choose_pool(struct controller *c, struct wish *w, const char *source_pool,
                       struct err *e) {
    if (w->pool[0] && source_pool[0] && strcmp(w->pool, source_pool) != 0)
        return err_set(e, -ERR_INVALID,
                       "the source is in pool '%s', the volume would be in pool '%s': both must be "
                       "the same",
                       source_pool, w->pool);
    if (w->pool[0])
        return 0;
    if (source_pool[0]) {
        strcpy(w->pool, source_pool);
        return 0;
    }
    CLEANUP(pool_names_release) struct pool_names pools = {0};
    int rc = pool_names_read(c, &pools, e);
    if (rc)
        return rc;
    if (pools.count != 1)
        return err_set(e, -ERR_INVALID,
                       "there are %zu pools: the StorageClass has to name one in parameter pool",
                       pools.count);
    strcpy(w->pool, pools.names[0]);
    return 0;
}

struct create_arg {
    struct volume_create create;
    struct volume_info info;
};

static int create_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct create_arg *a = arg;
    return catalog_volume_create(catalog, &a->create, &a->info, e);
}

int create_volume(struct rpc_call *call, const Csi__V1__CreateVolumeRequest *request,
                  Csi__V1__CreateVolumeResponse *response, struct err *e) {
    struct controller *c = rpc_call_user(call);
    CLEANUP(wish_release) struct wish wish = {0};
    CLEANUP(csi_map_wipe) struct string_map secrets = {0};
    struct create_arg arg = {.create = {.name = request->name, .parameters = &wish.parameters}};
    char source_pool[POOL_NAME_MAX];

    int rc = csi_check_name(request->name, "name", e);
    if (rc == 0)
        rc = wish_parse(request, &wish, e);
    if (rc == 0)
        rc = parse_source(request->volume_content_source, &arg.create.source, source_pool, e);
    if (rc == 0)
        rc = csi_capacity_parse(
            request->capacity_range, arg.create.source[0] ? 0 : CSI_SIZE_DEFAULT,
            fs_size_min(wish.fstype), &arg.create.size_bytes, &arg.create.limit_bytes, e);
    if (rc == 0)
        rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc == 0)
        rc = choose_pool(c, &wish, source_pool, e);
    if (rc)
        return rc;
    CLEANUP_FREE char *key = xasprintf("volume-name:%s", request->name);
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    rc = oplock_acquire(c->locks, key, call, &request->base, &lock, e);
    if (rc)
        return rc;
    rc = pool_work_run(&(struct pool_work){.call = call,
                                           .pool = wish.pool,
                                           .secrets = &secrets,
                                           .fn = create_fn,
                                           .arg = &arg,
                                           .e = e});
    if (rc)
        return rc;
    response->volume = volume_new(call, &arg.info);
    volume_info_release(&arg.info);
    return 0;
}
