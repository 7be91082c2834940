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
#include "csi/controller_internal.h"

#define CLEANUP_SECRETS CLEANUP(csi_map_wipe)

/* --- answers --- */

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

Csi__V1__Volume *volume_new(struct rpc_call *call, const struct volume_info *info) {
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

/* --- calls on one volume --- */

/* The frame of every call that names a volume: its pool, its lock, its credentials. */
struct volume_call {
    struct rpc_call *call;
    const ProtobufCMessage *request;
    const char *volume_id;
    const struct string_map *secrets;
    bool shared; /* only reads: no lock */
    int (*fn)(struct catalog *catalog, void *arg, struct err *e);
    void *arg;
};

static int volume_call_run(const struct volume_call *v, struct err *e) {
    const struct controller *c = rpc_call_user(v->call);
    char pool[POOL_NAME_MAX];
    int rc = csi_check_id(v->volume_id, "volume_id", e);
    if (rc == 0)
        rc = pool_of_id(v->volume_id, ID_VOLUME, pool, e);
    if (rc)
        return rc;
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    if (!v->shared) {
        rc = oplock_acquire(c->locks, v->volume_id, v->call, v->request, &lock, e);
        if (rc)
            return rc;
    }
    return pool_work_run(&(struct pool_work){
        .call = v->call, .pool = pool, .secrets = v->secrets, .fn = v->fn, .arg = v->arg, .e = e});
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
    rc = volume_call_run(&(struct volume_call){.call = call,
                                               .request = &request->base,
                                               .volume_id = request->volume_id,
                                               .secrets = &secrets,
                                               .fn = delete_fn,
                                               .arg = &arg},
                         e);
    return rc == -ERR_NOT_FOUND ? 0 : rc; /* what is no id of ours does not exist */
}

/* --- publish, unpublish --- */

static int publish_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct volume_arg *a = arg;
    return catalog_volume_publish(catalog, a->id, a->node, a->read_only, false, &a->info, e);
}

/* What the node needs to know out of the volume's record. */
static void set_publish_context(struct rpc_call *call, const struct volume_info *info,
                                Csi__V1__ControllerPublishVolumeResponse *response) {
    const struct volume_record *r = &info->record;
    uint64_t size = MAX(r->size_bytes, info->size_bytes);
    const struct {
        const char *key;
        const char *value;
    } pairs[] = {
        {CONTEXT_PUBLISH_EPOCH, rpc_printf(call, "%llu", (unsigned long long)r->publish_epoch)},
        {CONTEXT_FSTYPE, string_map_get(&r->parameters, PARAMETER_FSTYPE)},
        {CONTEXT_MKFS_OPTIONS, string_map_get(&r->parameters, PARAMETER_MKFS_OPTIONS)},
        {CONTEXT_CACHE_SIZE, string_map_get(&r->parameters, PARAMETER_CACHE_SIZE)},
        {CONTEXT_DISK_CACHE, string_map_get(&r->parameters, PARAMETER_DISK_CACHE)},
        {CONTEXT_SOURCE, r->source_kind == SOURCE_NONE ? NULL : r->source},
        {CONTEXT_SIZE, rpc_printf(call, "%llu", (unsigned long long)size)},
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
    rc = volume_call_run(&(struct volume_call){.call = call,
                                               .request = &request->base,
                                               .volume_id = request->volume_id,
                                               .secrets = &secrets,
                                               .fn = publish_fn,
                                               .arg = &arg},
                         e);
    if (rc)
        return rc;
    set_publish_context(call, &arg.info, response);
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
    rc = volume_call_run(&(struct volume_call){.call = call,
                                               .request = &request->base,
                                               .volume_id = request->volume_id,
                                               .secrets = &secrets,
                                               .fn = unpublish_fn,
                                               .arg = &arg},
                         e);
    return rc == -ERR_NOT_FOUND ? 0 : rc;
}

/* --- questions --- */

static int get_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct volume_arg *a = arg;
    return catalog_volume_get(catalog, a->id, &a->info, e);
}

static int get_volume(struct rpc_call *call, const ProtobufCMessage *request, const char *id,
                      const struct string_map *secrets, struct volume_arg *arg, struct err *e) {
    arg->id = id;
    return volume_call_run(&(struct volume_call){.call = call,
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

/* --- ListVolumes --- */

struct list_arg {
    const char *token;
    size_t max;
    struct volume_list list;
};

static int list_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct list_arg *a = arg;
    return catalog_volume_list(catalog, a->token, a->max, &a->list, NULL, e);
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
            &(struct pool_work){.call = call, .pool = pool, .fn = list_fn, .arg = &arg, .e = e});
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

/* --- ControllerExpandVolume --- */

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
    rc = volume_call_run(&(struct volume_call){.call = call,
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

/* --- capabilities --- */

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
