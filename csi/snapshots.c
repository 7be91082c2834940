/* csi.v1.Controller: snapshots. A snapshot is cut from the store alone, wherever its volume is in
 * use, and lives on when the volume is deleted. When the call returns it is ready. */
#include <string.h>

#include "common/mem.h"
#include "csi/controller_internal.h"

#define CLEANUP_SECRETS CLEANUP(csi_map_wipe)

static Csi__V1__Snapshot *snapshot_new(struct rpc_call *call, const struct snapshot_info *info) {
    Csi__V1__Snapshot *s = RPC_NEW(call, Csi__V1__Snapshot, csi__v1__snapshot__init);
    Google__Protobuf__Timestamp *time =
        RPC_NEW(call, Google__Protobuf__Timestamp, google__protobuf__timestamp__init);
    if (!s || !time)
        return s;
    time->seconds = (int64_t)(info->record.created_ms / 1000);
    time->nanos = (int32_t)(info->record.created_ms % 1000) * 1000000;
    s->snapshot_id = rpc_strdup(call, info->id);
    s->source_volume_id = rpc_strdup(call, info->source_id);
    s->size_bytes = (int64_t)info->record.size_bytes;
    s->creation_time = time;
    s->ready_to_use = 1;
    return s;
}

struct snapshot_arg {
    const char *name; /* to create */
    const char *id;   /* of the volume to cut from, or of the snapshot */
    struct snapshot_info info;
};

static int check_parameters(const Csi__V1__CreateSnapshotRequest *request, struct err *e) {
    for (size_t i = 0; i < request->n_parameters; i++)
        if (!parameter_is_extra(request->parameters[i]->key))
            return err_set(e, -ERR_INVALID,
                           "parameter '%.64s' is not known; a VolumeSnapshotClass needs none",
                           request->parameters[i]->key);
    return 0;
}

static int create_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct snapshot_arg *a = arg;
    return catalog_snapshot_create(catalog, a->name, a->id, &a->info, e);
}

int create_snapshot(struct rpc_call *call, const Csi__V1__CreateSnapshotRequest *request,
                    Csi__V1__CreateSnapshotResponse *response, struct err *e) {
    struct controller *c = rpc_call_user(call);
    CLEANUP_SECRETS struct string_map secrets = {0};
    struct snapshot_arg arg = {.name = request->name, .id = request->source_volume_id};
    char pool[POOL_NAME_MAX];
    int rc = csi_check_name(request->name, "name", e);
    if (rc == 0)
        rc = csi_check_id(request->source_volume_id, "source_volume_id", e);
    if (rc == 0)
        rc = check_parameters(request, e);
    if (rc == 0)
        rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc == 0)
        rc = pool_of_id(request->source_volume_id, ID_VOLUME, pool, e);
    if (rc)
        return rc;
    CLEANUP_FREE char *key = xasprintf("snapshot-name:%s", request->name);
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    rc = oplock_acquire(c->locks, key, call, &request->base, &lock, e);
    if (rc)
        return rc;
    rc = pool_work_run(&(struct pool_work){
        .call = call, .pool = pool, .secrets = &secrets, .fn = create_fn, .arg = &arg, .e = e});
    if (rc)
        return rc;
    response->snapshot = snapshot_new(call, &arg.info);
    snapshot_info_release(&arg.info);
    return 0;
}

static int delete_fn(struct catalog *catalog, void *arg, struct err *e) {
    const struct snapshot_arg *a = arg;
    return catalog_snapshot_delete(catalog, a->id, e);
}

int delete_snapshot(struct rpc_call *call, const Csi__V1__DeleteSnapshotRequest *request,
                    Csi__V1__DeleteSnapshotResponse *response, struct err *e) {
    (void)response;
    struct controller *c = rpc_call_user(call);
    CLEANUP_SECRETS struct string_map secrets = {0};
    struct snapshot_arg arg = {.id = request->snapshot_id};
    char pool[POOL_NAME_MAX];
    int rc = csi_check_id(request->snapshot_id, "snapshot_id", e);
    if (rc == 0)
        rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc)
        return rc;
    if (pool_of_id(request->snapshot_id, ID_SNAPSHOT, pool, NULL) != 0)
        return 0; /* what is no id of ours does not exist */
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    rc = oplock_acquire(c->locks, request->snapshot_id, call, &request->base, &lock, e);
    if (rc)
        return rc;
    return pool_work_run(&(struct pool_work){
        .call = call, .pool = pool, .secrets = &secrets, .fn = delete_fn, .arg = &arg, .e = e});
}

static int get_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct snapshot_arg *a = arg;
    return catalog_snapshot_get(catalog, a->id, &a->info, e);
}

/* The snapshot of this id; the caller releases arg->info. */
static int get(struct rpc_call *call, const struct string_map *secrets, struct snapshot_arg *arg,
               struct err *e) {
    char pool[POOL_NAME_MAX];
    int rc = pool_of_id(arg->id, ID_SNAPSHOT, pool, e);
    if (rc)
        return rc;
    return pool_work_run(&(struct pool_work){
        .call = call, .pool = pool, .secrets = secrets, .fn = get_fn, .arg = arg, .e = e});
}

int get_snapshot(struct rpc_call *call, const Csi__V1__GetSnapshotRequest *request,
                 Csi__V1__GetSnapshotResponse *response, struct err *e) {
    CLEANUP_SECRETS struct string_map secrets = {0};
    struct snapshot_arg arg = {.id = request->snapshot_id};
    int rc = csi_check_id(request->snapshot_id, "snapshot_id", e);
    if (rc == 0)
        rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc == 0)
        rc = get(call, &secrets, &arg, e);
    if (rc)
        return rc;
    response->snapshot = snapshot_new(call, &arg.info);
    snapshot_info_release(&arg.info);
    return 0;
}

/* --- ListSnapshots --- */

static void add_entry(struct rpc_call *call, Csi__V1__ListSnapshotsResponse *response,
                      const struct snapshot_info *info) {
    Csi__V1__ListSnapshotsResponse__Entry *entry = RPC_NEW(
        call, Csi__V1__ListSnapshotsResponse__Entry, csi__v1__list_snapshots_response__entry__init);
    if (!entry || !response->entries)
        return;
    entry->snapshot = snapshot_new(call, info);
    response->entries[response->n_entries++] = entry;
}

/* A list of one, or of none. */
static int list_by_id(struct rpc_call *call, const Csi__V1__ListSnapshotsRequest *request,
                      const struct string_map *secrets, Csi__V1__ListSnapshotsResponse *response,
                      struct err *e) {
    struct snapshot_arg arg = {.id = request->snapshot_id};
    int rc = get(call, secrets, &arg, e);
    if (rc == -ERR_NOT_FOUND)
        return 0;
    if (rc)
        return rc;
    const char *source = request->source_volume_id;
    if (source[0] == '\0' || strcmp(source, arg.info.source_id) == 0) {
        response->entries = RPC_NEW_ARRAY(call, Csi__V1__ListSnapshotsResponse__Entry *, 1);
        add_entry(call, response, &arg.info);
    }
    snapshot_info_release(&arg.info);
    return 0;
}

struct list_arg {
    const char *source_id;
    const char *token;
    size_t max;
    struct snapshot_list list;
};

static int list_fn(struct catalog *catalog, void *arg, struct err *e) {
    struct list_arg *a = arg;
    return catalog_snapshot_list(catalog, a->source_id, a->token, a->max, &a->list, NULL, e);
}

int list_snapshots(struct rpc_call *call, const Csi__V1__ListSnapshotsRequest *request,
                   Csi__V1__ListSnapshotsResponse *response, struct err *e) {
    struct controller *c = rpc_call_user(call);
    CLEANUP_SECRETS struct string_map secrets = {0};
    char pool_of_source[POOL_NAME_MAX];
    const char *source = request->source_volume_id, *only = NULL;
    int rc = csi_map_copy(&secrets, request, secrets, e);
    if (rc)
        return rc;
    if (request->snapshot_id[0])
        return list_by_id(call, request, &secrets, response, e);
    if (source[0]) {
        if (pool_of_id(source, ID_VOLUME, pool_of_source, NULL) != 0)
            return 0; /* no such volume: no snapshots */
        only = pool_of_source;
    }
    CLEANUP(list_walk_release) struct list_walk walk;
    rc = list_walk_begin(&walk, c, request->starting_token, request->max_entries, only, e);
    if (rc)
        return rc;
    response->entries = RPC_NEW_ARRAY(call, Csi__V1__ListSnapshotsResponse__Entry *, walk.left);
    const char *pool;
    while ((pool = list_walk_pool(&walk)) != NULL) {
        struct list_arg arg = {
            .source_id = source, .token = walk.token, .max = MIN(walk.left, CATALOG_PAGE_MAX)};
        rc = pool_work_run(&(struct pool_work){
            .call = call, .pool = pool, .secrets = &secrets, .fn = list_fn, .arg = &arg, .e = e});
        if (rc)
            return rc;
        for (size_t i = 0; i < arg.list.count; i++)
            add_entry(call, response, &arg.list.items[i]);
        list_walk_advance(&walk, arg.list.count, arg.list.next_token);
        snapshot_list_release(&arg.list);
    }
    response->next_token = list_walk_token(&walk, call);
    return 0;
}
