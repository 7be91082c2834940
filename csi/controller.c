/* csi.v1.Controller: volumes. Every fact lives in the pool's records (portalbd/catalog); this
 * program keeps none, may be restarted at any time, and may run several times at once.
 *
 * Every call is idempotent, as the catalog's are. While anything may still come of a call it ends
 * with ABORTED, UNAVAILABLE or DEADLINE_EXCEEDED, so that the sidecars ask again; INTERNAL would
 * tell the provisioner to forget a volume. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/options.h"
#include "csi/controller_internal.h"
#include "csi/mount/filesystem.h"

#define CLEANUP_SECRETS CLEANUP(csi_map_wipe)

/* --- answers ------------------------------------------------------------------------------------
 */

static Csi__V1__VolumeContentSource *source_new(struct rpc_call *call,
                                                const struct volume_record *r) {
    if (r->source_kind == SOURCE_NONE)
        return NULL;
    Csi__V1__VolumeContentSource *source =
        RPC_NEW(call, Csi__V1__VolumeContentSource, csi__v1__volume_content_source__init);
    if (!source)
        return NULL;
    if (r->source_kind == SOURCE_SNAPSHOT) {
        source->type_case = CSI__V1__VOLUME_CONTENT_SOURCE__TYPE_SNAPSHOT;
        source->snapshot = RPC_NEW(call, Csi__V1__VolumeContentSource__SnapshotSource,
                                   csi__v1__volume_content_source__snapshot_source__init);
        if (source->snapshot)
            source->snapshot->snapshot_id = rpc_strdup(call, r->source);
    } else {
        source->type_case = CSI__V1__VOLUME_CONTENT_SOURCE__TYPE_VOLUME;
        source->volume = RPC_NEW(call, Csi__V1__VolumeContentSource__VolumeSource,
                                 csi__v1__volume_content_source__volume_source__init);
        if (source->volume)
            source->volume->volume_id = rpc_strdup(call, r->source);
    }
    return source;
}

static Csi__V1__Volume *volume_new(struct rpc_call *call, const struct volume_info *info) {
    Csi__V1__Volume *v = RPC_NEW(call, Csi__V1__Volume, csi__v1__volume__init);
    Csi__V1__Volume__VolumeContextEntry *entry = RPC_NEW(
        call, Csi__V1__Volume__VolumeContextEntry, csi__v1__volume__volume_context_entry__init);
    struct parsed_id id;
    CHECK(id_parse(&id, info->id, NULL) == 0);
    if (!v || !entry)
        return v;
    v->volume_id = rpc_strdup(call, info->id);
    v->capacity_bytes = (int64_t)MAX(info->size_bytes, info->record.size_bytes);
    v->content_source = source_new(call, &info->record);
    entry->key = (char *)PARAMETER_POOL;
    entry->value = rpc_strdup(call, id.pool);
    v->volume_context = RPC_NEW_ARRAY(call, Csi__V1__Volume__VolumeContextEntry *, 1);
    if (v->volume_context) {
        v->volume_context[0] = entry;
        v->n_volume_context = 1;
    }
    return v;
}

/* --- CreateVolume -------------------------------------------------------------------------------
 */

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
    if (parameter_is_extra(key))
        return 0;
    return err_set(e, -ERR_INVALID,
                   "parameter '%.64s' is not known; a StorageClass may have pool, "
                   "csi.storage.k8s.io/fstype, mkfsOptions and cacheSize",
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

static int create_volume(struct rpc_call *call, const Csi__V1__CreateVolumeRequest *request,
                         Csi__V1__CreateVolumeResponse *response, struct err *e) {
    struct controller *c = rpc_call_user(call);
    CLEANUP(wish_release) struct wish wish = {0};
    CLEANUP_SECRETS struct string_map secrets = {0};
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
    rc = pool_work_run(&(struct pool_work){.controller = c,
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

/* --- calls on one volume ------------------------------------------------------------------------
 */

/* The frame of every call that names a volume: its pool, its lock, its credentials. */
struct volume_call {
    struct controller *controller;
    struct rpc_call *call;
    const ProtobufCMessage *request;
    const char *volume_id;
    const struct string_map *secrets;
    bool shared; /* only reads: no lock */
    int (*fn)(struct catalog *catalog, void *arg, struct err *e);
    void *arg;
};

static int volume_call_run(const struct volume_call *v, struct err *e) {
    char pool[POOL_NAME_MAX];
    int rc = csi_check_id(v->volume_id, "volume_id", e);
    if (rc == 0)
        rc = pool_of_id(v->volume_id, ID_VOLUME, pool, e);
    if (rc)
        return rc;
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    if (!v->shared) {
        rc = oplock_acquire(v->controller->locks, v->volume_id, v->call, v->request, &lock, e);
        if (rc)
            return rc;
    }
    return pool_work_run(&(struct pool_work){.controller = v->controller,
                                             .pool = pool,
                                             .secrets = v->secrets,
                                             .fn = v->fn,
                                             .arg = v->arg,
                                             .e = e});
}

struct volume_arg {
    const char *id;
    const char *node;
    uint64_t size_bytes, limit_bytes;
    bool read_only;
    bool needs_node;
    struct volume_info info;
};

static int delete_fn(struct catalog *catalog, void *arg, struct err *e) {
    const struct volume_arg *a = arg;
    return catalog_volume_delete(catalog, a->id, false, e);
}

static int delete_volume(struct rpc_call *call, const Csi__V1__DeleteVolumeRequest *request,
                         Csi__V1__DeleteVolumeResponse *response, struct err *e) {
    (void)response;
    CLEANUP_SECRETS struct string_map secrets = {0};
    struct volume_arg arg = {.id = request->volume_id};
    int rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc)
        return rc;
    rc = volume_call_run(&(struct volume_call){.controller = rpc_call_user(call),
                                               .call = call,
                                               .request = &request->base,
                                               .volume_id = request->volume_id,
                                               .secrets = &secrets,
                                               .fn = delete_fn,
                                               .arg = &arg},
                         e);
    return rc == -ERR_NOT_FOUND ? 0 : rc; /* what is no id of ours does not exist */
}

/* --- publish, unpublish -------------------------------------------------------------------------
 */

static int publish_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct volume_arg *a = arg;
    return catalog_volume_publish(catalog, a->id, a->node, a->read_only, false, &a->info, e);
}

/* What the node needs to know out of the volume's record. */
static void set_publish_context(struct rpc_call *call, const struct volume_record *r,
                                Csi__V1__ControllerPublishVolumeResponse *response) {
    const struct {
        const char *key;
        const char *value;
    } pairs[] = {
        {CONTEXT_PUBLISH_EPOCH, rpc_printf(call, "%llu", (unsigned long long)r->publish_epoch)},
        {CONTEXT_FSTYPE, string_map_get(&r->parameters, PARAMETER_FSTYPE)},
        {CONTEXT_MKFS_OPTIONS, string_map_get(&r->parameters, PARAMETER_MKFS_OPTIONS)},
        {CONTEXT_CACHE_SIZE, string_map_get(&r->parameters, PARAMETER_CACHE_SIZE)},
        {CONTEXT_SOURCE, r->source_kind == SOURCE_NONE ? NULL : r->source},
    };
    response->publish_context = RPC_NEW_ARRAY(
        call, Csi__V1__ControllerPublishVolumeResponse__PublishContextEntry *, ARRAY_LEN(pairs));
    for (size_t i = 0; response->publish_context && i < ARRAY_LEN(pairs); i++) {
        if (!pairs[i].value || !pairs[i].value[0])
            continue;
        Csi__V1__ControllerPublishVolumeResponse__PublishContextEntry *entry =
            RPC_NEW(call, Csi__V1__ControllerPublishVolumeResponse__PublishContextEntry,
                    csi__v1__controller_publish_volume_response__publish_context_entry__init);
        if (!entry)
            return;
        entry->key = (char *)pairs[i].key;
        entry->value = rpc_strdup(call, pairs[i].value);
        response->publish_context[response->n_publish_context++] = entry;
    }
}

static int check_node_id(const char *node_id, bool required, struct err *e) {
    if (required && node_id[0] == '\0')
        return err_set(e, -ERR_INVALID, "node_id is missing");
    if (strlen(node_id) > 256)
        return err_set(e, -ERR_INVALID, "node_id is longer than 256 bytes");
    return 0;
}

static int controller_publish_volume(struct rpc_call *call,
                                     const Csi__V1__ControllerPublishVolumeRequest *request,
                                     Csi__V1__ControllerPublishVolumeResponse *response,
                                     struct err *e) {
    CLEANUP_SECRETS struct string_map secrets = {0};
    struct csi_capability capability;
    struct volume_arg arg = {.id = request->volume_id, .node = request->node_id};
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0)
        rc = check_node_id(request->node_id, true, e);
    if (rc == 0)
        rc = csi_capability_parse(request->volume_capability, &capability, e);
    if (rc == 0 && request->readonly)
        rc = err_set(e, -ERR_INVALID, "readonly is not supported (PUBLISH_READONLY)");
    if (rc == 0)
        rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc)
        return rc;
    rc = volume_call_run(&(struct volume_call){.controller = rpc_call_user(call),
                                               .call = call,
                                               .request = &request->base,
                                               .volume_id = request->volume_id,
                                               .secrets = &secrets,
                                               .fn = publish_fn,
                                               .arg = &arg},
                         e);
    if (rc)
        return rc;
    set_publish_context(call, &arg.info.record, response);
    volume_info_release(&arg.info);
    return 0;
}

static int unpublish_fn(struct catalog *catalog, void *arg, struct err *e) {
    const struct volume_arg *a = arg;
    return catalog_volume_unpublish(catalog, a->id, a->node, e);
}

static int controller_unpublish_volume(struct rpc_call *call,
                                       const Csi__V1__ControllerUnpublishVolumeRequest *request,
                                       Csi__V1__ControllerUnpublishVolumeResponse *response,
                                       struct err *e) {
    (void)response;
    CLEANUP_SECRETS struct string_map secrets = {0};
    struct volume_arg arg = {.id = request->volume_id, .node = request->node_id};
    int rc = check_node_id(request->node_id, false, e);
    if (rc == 0)
        rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc)
        return rc;
    rc = volume_call_run(&(struct volume_call){.controller = rpc_call_user(call),
                                               .call = call,
                                               .request = &request->base,
                                               .volume_id = request->volume_id,
                                               .secrets = &secrets,
                                               .fn = unpublish_fn,
                                               .arg = &arg},
                         e);
    return rc == -ERR_NOT_FOUND ? 0 : rc;
}

/* --- questions ----------------------------------------------------------------------------------
 */

static int get_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct volume_arg *a = arg;
    return catalog_volume_get(catalog, a->id, &a->info, e);
}

static int get_volume(struct rpc_call *call, const ProtobufCMessage *request, const char *id,
                      const struct string_map *secrets, struct volume_arg *arg, struct err *e) {
    arg->id = id;
    return volume_call_run(&(struct volume_call){.controller = rpc_call_user(call),
                                                 .call = call,
                                                 .request = request,
                                                 .volume_id = id,
                                                 .secrets = secrets,
                                                 .shared = true,
                                                 .fn = get_fn,
                                                 .arg = arg},
                           e);
}

/* All that is asked for is there: echo it, in copies. */
static void confirm(struct rpc_call *call,
                    const Csi__V1__ValidateVolumeCapabilitiesRequest *request,
                    Csi__V1__ValidateVolumeCapabilitiesResponse *response) {
    Csi__V1__ValidateVolumeCapabilitiesResponse__Confirmed *c =
        RPC_NEW(call, Csi__V1__ValidateVolumeCapabilitiesResponse__Confirmed,
                csi__v1__validate_volume_capabilities_response__confirmed__init);
    if (!c)
        return;
    response->confirmed = c;
    c->volume_capabilities =
        RPC_NEW_ARRAY(call, Csi__V1__VolumeCapability *, request->n_volume_capabilities);
    for (size_t i = 0; c->volume_capabilities && i < request->n_volume_capabilities; i++) {
        c->volume_capabilities[i] = csi_capability_copy(call, request->volume_capabilities[i]);
        c->n_volume_capabilities++;
    }
}

static int validate_volume_capabilities(struct rpc_call *call,
                                        const Csi__V1__ValidateVolumeCapabilitiesRequest *request,
                                        Csi__V1__ValidateVolumeCapabilitiesResponse *response,
                                        struct err *e) {
    CLEANUP_SECRETS struct string_map secrets = {0};
    struct volume_arg arg = {0};
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0 && request->n_volume_capabilities == 0)
        rc = err_set(e, -ERR_INVALID, "volume_capabilities is missing");
    if (rc == 0)
        rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc == 0)
        rc = get_volume(call, &request->base, request->volume_id, &secrets, &arg, e);
    if (rc)
        return rc;
    volume_info_release(&arg.info);
    for (size_t i = 0; i < request->n_volume_capabilities; i++) {
        struct csi_capability capability;
        struct err why;
        if (csi_capability_parse(request->volume_capabilities[i], &capability, &why) != 0) {
            response->message = rpc_strdup(call, why.text);
            return 0;
        }
    }
    if (request->n_mutable_parameters > 0)
        response->message = (char *)"mutable_parameters are not supported";
    else
        confirm(call, request, response);
    return 0;
}

static int controller_get_volume(struct rpc_call *call,
                                 const Csi__V1__ControllerGetVolumeRequest *request,
                                 Csi__V1__ControllerGetVolumeResponse *response, struct err *e) {
    struct volume_arg arg = {0};
    int rc = get_volume(call, &request->base, request->volume_id, NULL, &arg, e);
    if (rc)
        return rc;
    response->volume = volume_new(call, &arg.info);
    response->status = RPC_NEW(call, Csi__V1__ControllerGetVolumeResponse__VolumeStatus,
                               csi__v1__controller_get_volume_response__volume_status__init);
    const char *node = arg.info.record.node;
    if (response->status && node && node[0]) {
        response->status->published_node_ids = RPC_NEW_ARRAY(call, char *, 1);
        if (response->status->published_node_ids) {
            response->status->published_node_ids[0] = rpc_strdup(call, node);
            response->status->n_published_node_ids = 1;
        }
    }
    volume_info_release(&arg.info);
    return 0;
}

/* --- ListVolumes --------------------------------------------------------------------------------
 */

struct list_arg {
    const char *token;
    size_t max;
    struct volume_list list;
};

static int list_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct list_arg *a = arg;
    return catalog_volume_list(catalog, a->token, a->max, &a->list, e);
}

static Csi__V1__ListVolumesResponse__Entry *list_entry_new(struct rpc_call *call,
                                                           const struct volume_info *info) {
    Csi__V1__ListVolumesResponse__Entry *entry = RPC_NEW(
        call, Csi__V1__ListVolumesResponse__Entry, csi__v1__list_volumes_response__entry__init);
    Csi__V1__ListVolumesResponse__VolumeStatus *status =
        RPC_NEW(call, Csi__V1__ListVolumesResponse__VolumeStatus,
                csi__v1__list_volumes_response__volume_status__init);
    if (!entry || !status)
        return entry;
    entry->volume = volume_new(call, info);
    entry->status = status;
    if (info->record.node && info->record.node[0]) {
        status->published_node_ids = RPC_NEW_ARRAY(call, char *, 1);
        if (status->published_node_ids) {
            status->published_node_ids[0] = rpc_strdup(call, info->record.node);
            status->n_published_node_ids = 1;
        }
    }
    return entry;
}

static int list_volumes(struct rpc_call *call, const Csi__V1__ListVolumesRequest *request,
                        Csi__V1__ListVolumesResponse *response, struct err *e) {
    struct controller *c = rpc_call_user(call);
    CLEANUP(list_walk_release) struct list_walk walk;
    int rc = list_walk_begin(&walk, c, request->starting_token, request->max_entries, NULL, e);
    if (rc)
        return rc;
    response->entries = RPC_NEW_ARRAY(call, Csi__V1__ListVolumesResponse__Entry *, walk.left);
    const char *pool;
    while ((pool = list_walk_pool(&walk)) != NULL) {
        struct list_arg arg = {.token = walk.token, .max = MIN(walk.left, CATALOG_PAGE_MAX)};
        rc = pool_work_run(
            &(struct pool_work){.controller = c, .pool = pool, .fn = list_fn, .arg = &arg, .e = e});
        if (rc)
            return rc;
        for (size_t i = 0; response->entries && i < arg.list.count; i++)
            response->entries[response->n_entries++] = list_entry_new(call, &arg.list.items[i]);
        list_walk_advance(&walk, arg.list.count, arg.list.next_token);
        volume_list_release(&arg.list);
    }
    response->next_token = list_walk_token(&walk, call);
    return 0;
}

/* --- ControllerExpandVolume ---------------------------------------------------------------------
 */

static int expand_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct volume_arg *a = arg;
    return catalog_volume_expand(catalog, a->id, a->size_bytes, a->limit_bytes, &a->info,
                                 &a->needs_node, e);
}

static int controller_expand_volume(struct rpc_call *call,
                                    const Csi__V1__ControllerExpandVolumeRequest *request,
                                    Csi__V1__ControllerExpandVolumeResponse *response,
                                    struct err *e) {
    CLEANUP_SECRETS struct string_map secrets = {0};
    struct volume_arg arg = {.id = request->volume_id};
    struct csi_capability capability = {0};
    int rc = csi_check_id(request->volume_id, "volume_id", e);
    if (rc == 0 && (!request->capacity_range || request->capacity_range->required_bytes == 0))
        rc = err_set(e, -ERR_INVALID, "capacity_range.required_bytes is missing");
    if (rc == 0)
        rc =
            csi_capacity_parse(request->capacity_range, 0, 0, &arg.size_bytes, &arg.limit_bytes, e);
    if (rc == 0 && request->volume_capability)
        rc = csi_capability_parse(request->volume_capability, &capability, e);
    if (rc == 0)
        rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc)
        return rc;
    rc = volume_call_run(&(struct volume_call){.controller = rpc_call_user(call),
                                               .call = call,
                                               .request = &request->base,
                                               .volume_id = request->volume_id,
                                               .secrets = &secrets,
                                               .fn = expand_fn,
                                               .arg = &arg},
                         e);
    if (rc)
        return rc;
    response->capacity_bytes = (int64_t)MAX(arg.info.size_bytes, arg.info.record.size_bytes);
    /* A filesystem has to be grown in any case; a block volume only where it is in use. */
    response->node_expansion_required = !capability.block || arg.needs_node;
    volume_info_release(&arg.info);
    return 0;
}

/* --- capabilities -------------------------------------------------------------------------------
 */

static int controller_get_capabilities(struct rpc_call *call,
                                       const Csi__V1__ControllerGetCapabilitiesRequest *request,
                                       Csi__V1__ControllerGetCapabilitiesResponse *response,
                                       struct err *e) {
#define CAPABILITY(x) CSI__V1__CONTROLLER_SERVICE_CAPABILITY__RPC__TYPE__##x
    static const Csi__V1__ControllerServiceCapability__RPC__Type types[] = {
        CAPABILITY(CREATE_DELETE_VOLUME),
        CAPABILITY(PUBLISH_UNPUBLISH_VOLUME),
        CAPABILITY(LIST_VOLUMES),
        CAPABILITY(LIST_VOLUMES_PUBLISHED_NODES),
        CAPABILITY(CREATE_DELETE_SNAPSHOT),
        CAPABILITY(LIST_SNAPSHOTS),
        CAPABILITY(GET_SNAPSHOT),
        CAPABILITY(CLONE_VOLUME),
        CAPABILITY(EXPAND_VOLUME),
        CAPABILITY(GET_VOLUME),
        CAPABILITY(SINGLE_NODE_MULTI_WRITER),
    };
#undef CAPABILITY
    (void)request;
    (void)e;
    response->capabilities =
        RPC_NEW_ARRAY(call, Csi__V1__ControllerServiceCapability *, ARRAY_LEN(types));
    for (size_t i = 0; response->capabilities && i < ARRAY_LEN(types); i++) {
        Csi__V1__ControllerServiceCapability *capability =
            RPC_NEW(call, Csi__V1__ControllerServiceCapability,
                    csi__v1__controller_service_capability__init);
        Csi__V1__ControllerServiceCapability__RPC *rpc =
            RPC_NEW(call, Csi__V1__ControllerServiceCapability__RPC,
                    csi__v1__controller_service_capability__rpc__init);
        if (!capability || !rpc)
            return 0;
        rpc->type = types[i];
        capability->type_case = CSI__V1__CONTROLLER_SERVICE_CAPABILITY__TYPE_RPC;
        capability->rpc = rpc;
        response->capabilities[response->n_capabilities++] = capability;
    }
    return 0;
}

const struct csi_controller_ops controller_ops = {
    .create_volume = create_volume,
    .delete_volume = delete_volume,
    .controller_publish_volume = controller_publish_volume,
    .controller_unpublish_volume = controller_unpublish_volume,
    .validate_volume_capabilities = validate_volume_capabilities,
    .list_volumes = list_volumes,
    .controller_get_capabilities = controller_get_capabilities,
    .create_snapshot = create_snapshot,
    .delete_snapshot = delete_snapshot,
    .list_snapshots = list_snapshots,
    .get_snapshot = get_snapshot,
    .controller_expand_volume = controller_expand_volume,
    .controller_get_volume = controller_get_volume,
};
