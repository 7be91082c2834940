/* The controller service as sidecars see it: over gRPC, on pools in memory. */
#include "tests/support/test.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/mem.h"
#include "csi/convert.h"
#include "csi/driver.h"
#include "tests/support/temp.h"

#define MIB (UINT64_C(1) << 20)

static struct fixture {
    char *folder;
    char *pool_file;
    char *endpoint;
    struct loop *loop;
    struct pools *pools;
    struct controller controller;
    struct rpc_server *server;
    struct rpc_client *client;
    struct arena arena;
    struct err e; /* of the last call */
} f;

static struct rpc_client_call how(void) {
    return (struct rpc_client_call){.client = f.client, .timeout_ms = 30000, .arena = &f.arena};
}

/* Calls a method; the response, or NULL with f.e. */
#define CALL(Response, method, request)                                                            \
    ({                                                                                             \
        Csi__V1__##Response *response_ = NULL;                                                     \
        struct rpc_client_call how_ = how();                                                       \
        f.e = (struct err){0};                                                                     \
        csi_controller_##method(&how_, (request), &response_, &f.e);                               \
        response_;                                                                                 \
    })

static void register_nodes(void *arg) {
    (void)arg;
    static const char *const pools[] = {"fast", "slow"};
    for (size_t i = 0; i < ARRAY_LEN(pools); i++) {
        struct pool *pool;
        struct err e;
        assert_int_equal(pools_get(f.pools, pools[i], NULL, &pool, &e), 0);
        assert_int_equal(catalog_node_register(&pool->catalog, "node-1", "1", &e), 0);
        assert_int_equal(catalog_node_register(&pool->catalog, "node-2", "1", &e), 0);
        pools_put(f.pools, pool);
    }
}

static void write_pool_file(const char *text) {
    FILE *file = fopen(f.pool_file, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    chmod(f.pool_file, 0600);
}

static int set_up(void **state) {
    (void)state;
    struct err e;
    f.folder = temp_folder_new();
    f.pool_file = xasprintf("%s/pools.conf", f.folder);
    f.endpoint = xasprintf("unix://%s/csi.sock", f.folder);
    write_pool_file("[fast]\nurl = memory:\n\n[slow]\nurl = memory:\n");
    f.loop = loop_new(2);
    f.pools = pools_new(&(struct pools_config){.loop = f.loop, .path = f.pool_file});
    loop_thread_start(f.loop, "catalog");
    loop_call(f.loop, register_nodes, NULL);
    f.controller.loop = f.loop;
    f.controller.pools = f.pools;
    f.controller.locks = oplocks_new();
    f.server = rpc_server_new(&(struct rpc_server_config){.endpoint = f.endpoint});
    rpc_server_add_csi_controller(f.server, &controller_ops, &f.controller);
    arena_init(&f.arena, 64 << 20);
    return rpc_server_start(f.server, &e) || rpc_client_new(f.endpoint, &f.client, &e);
}

static void free_pools(void *pools) {
    pools_free(pools);
}

static int tear_down(void **state) {
    (void)state;
    struct err e;
    rpc_client_free(f.client);
    int rc = rpc_server_stop(f.server, 1000, 5000, &e);
    rpc_server_free(f.server);
    loop_call(f.loop, free_pools, f.pools);
    loop_thread_stop(f.loop);
    loop_free(f.loop);
    oplocks_free(f.controller.locks);
    arena_release(&f.arena);
    free(f.pool_file);
    free(f.endpoint);
    temp_folder_free(f.folder);
    return rc;
}

/* --- requests --- */

static Csi__V1__VolumeCapability__AccessMode writer;
static Csi__V1__VolumeCapability__MountVolume mount_volume;
static Csi__V1__VolumeCapability__BlockVolume block_volume;
static Csi__V1__VolumeCapability capability;
static Csi__V1__VolumeCapability *capabilities[] = {&capability};
static Csi__V1__CreateVolumeRequest__ParametersEntry parameter_pool, parameter;
static Csi__V1__CreateVolumeRequest__ParametersEntry *parameters[] = {&parameter_pool, &parameter};
static Csi__V1__CapacityRange range;
static Csi__V1__VolumeContentSource source;
static Csi__V1__VolumeContentSource__SnapshotSource snapshot_source;
static Csi__V1__VolumeContentSource__VolumeSource volume_source;

static Csi__V1__CreateVolumeRequest create_request(const char *name, uint64_t required,
                                                   uint64_t limit) {
    Csi__V1__CreateVolumeRequest r = CSI__V1__CREATE_VOLUME_REQUEST__INIT;
    csi__v1__volume_capability__access_mode__init(&writer);
    writer.mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_MULTI_WRITER;
    csi__v1__volume_capability__mount_volume__init(&mount_volume);
    csi__v1__volume_capability__block_volume__init(&block_volume);
    csi__v1__volume_capability__init(&capability);
    capability.access_mode = &writer;
    capability.access_type_case = CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_MOUNT;
    capability.mount = &mount_volume;
    csi__v1__create_volume_request__parameters_entry__init(&parameter_pool);
    csi__v1__create_volume_request__parameters_entry__init(&parameter);
    parameter_pool.key = (char *)"pool";
    parameter_pool.value = (char *)"fast";
    csi__v1__capacity_range__init(&range);
    range.required_bytes = (int64_t)required;
    range.limit_bytes = (int64_t)limit;
    r.name = (char *)name;
    r.volume_capabilities = capabilities;
    r.n_volume_capabilities = 1;
    r.parameters = parameters;
    r.n_parameters = 1;
    r.capacity_range = &range;
    return r;
}

static Csi__V1__CreateVolumeRequest from_snapshot(const char *name, const char *id) {
    Csi__V1__CreateVolumeRequest r = create_request(name, 0, 0);
    csi__v1__volume_content_source__init(&source);
    csi__v1__volume_content_source__snapshot_source__init(&snapshot_source);
    source.type_case = CSI__V1__VOLUME_CONTENT_SOURCE__TYPE_SNAPSHOT;
    source.snapshot = &snapshot_source;
    snapshot_source.snapshot_id = (char *)id;
    r.volume_content_source = &source;
    return r;
}

static Csi__V1__Volume *create(const char *name, uint64_t size) {
    Csi__V1__CreateVolumeRequest r = create_request(name, size, 0);
    Csi__V1__CreateVolumeResponse *response = CALL(CreateVolumeResponse, create_volume, &r);
    if (!response)
        fail_msg("create '%s': %s", name, f.e.text);
    return response->volume;
}

static void remove_volume(const char *id) {
    Csi__V1__DeleteVolumeRequest r = CSI__V1__DELETE_VOLUME_REQUEST__INIT;
    r.volume_id = (char *)id;
    if (!CALL(DeleteVolumeResponse, delete_volume, &r))
        fail_msg("delete '%s': %s", id, f.e.text);
}

static int create_fails(const Csi__V1__CreateVolumeRequest *r) {
    assert_null(CALL(CreateVolumeResponse, create_volume, r));
    return f.e.code;
}

static Csi__V1__ControllerPublishVolumeResponse *publish(const char *id, const char *node) {
    Csi__V1__ControllerPublishVolumeRequest r = CSI__V1__CONTROLLER_PUBLISH_VOLUME_REQUEST__INIT;
    create_request("", 0, 0); /* fills the capability */
    r.volume_id = (char *)id;
    r.node_id = (char *)node;
    r.volume_capability = &capability;
    return CALL(ControllerPublishVolumeResponse, controller_publish_volume, &r);
}

static void unpublish(const char *id, const char *node) {
    Csi__V1__ControllerUnpublishVolumeRequest r =
        CSI__V1__CONTROLLER_UNPUBLISH_VOLUME_REQUEST__INIT;
    r.volume_id = (char *)id;
    r.node_id = (char *)node;
    if (!CALL(ControllerUnpublishVolumeResponse, controller_unpublish_volume, &r))
        fail_msg("unpublish '%s': %s", id, f.e.text);
}

static const char *context_get(const Csi__V1__ControllerPublishVolumeResponse *r, const char *key) {
    for (size_t i = 0; i < r->n_publish_context; i++)
        if (strcmp(r->publish_context[i]->key, key) == 0)
            return r->publish_context[i]->value;
    return "";
}

/* --- CreateVolume --- */

static void test_create_is_idempotent(void **state) {
    (void)state;
    Csi__V1__Volume *v = create("a", 64 * MIB);
    assert_int_equal(v->capacity_bytes, 64 * MIB);
    assert_null(v->content_source);
    Csi__V1__Volume *again = create("a", 64 * MIB);
    assert_string_equal(v->volume_id, again->volume_id);
    Csi__V1__CreateVolumeRequest r = create_request("a", 65 * MIB, 0);
    assert_int_equal(create_fails(&r), -ERR_EXISTS);
    remove_volume(v->volume_id);
    remove_volume(v->volume_id);
    assert_string_not_equal(create("a", 64 * MIB)->volume_id, v->volume_id);
}

static void test_sizes(void **state) {
    (void)state;
    static const struct {
        uint64_t required, limit, want;
    } good[] = {
        {0, 0, 1024 * MIB},
        {0, 8 * MIB, 8 * MIB},
        {0, 8 * MIB + 1, 8 * MIB},
        {1, 0, 4 * MIB}, /* the least that ext4 can live on */
        {64 * MIB + 1, 0, 65 * MIB},
        {64 * MIB + 1, 64 * MIB + 4096, 64 * MIB + 4096},
        {64 * MIB, 64 * MIB, 64 * MIB},
    };
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        char name[32];
        snprintf(name, sizeof name, "size-%zu", i);
        Csi__V1__CreateVolumeRequest r = create_request(name, good[i].required, good[i].limit);
        Csi__V1__CreateVolumeResponse *response = CALL(CreateVolumeResponse, create_volume, &r);
        if (!response)
            fail_msg("%zu: %s", i, f.e.text);
        assert_int_equal(response->volume->capacity_bytes, good[i].want);
        remove_volume(response->volume->volume_id);
    }
    static const struct {
        int64_t required, limit;
        int want;
    } bad[] = {
        {-1, 0, -ERR_INVALID},
        {0, -1, -ERR_INVALID},
        {2 << 20, 1 << 20, -ERR_INVALID},
        {INT64_MAX, 0, -ERR_NO_SPACE},
        {(64 << 20) + 1, (64 << 20) + 1, -ERR_NO_SPACE},
        {0, 1000, -ERR_NO_SPACE},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Csi__V1__CreateVolumeRequest r = create_request("bad-size", 0, 0);
        range.required_bytes = bad[i].required;
        range.limit_bytes = bad[i].limit;
        assert_int_equal(create_fails(&r), bad[i].want);
    }
}

static void test_parameters(void **state) {
    (void)state;
    static const struct {
        const char *key, *value;
        int want;
        const char *text; /* is in the message */
    } cases[] = {
        {"cacheSize", "256Mi", 0, ""},
        {"csi.storage.k8s.io/pvc/name", "claim", 0, ""},
        {"csi.storage.k8s.io/fstype", "xfs", 0, ""},
        {"mkfsOptions", "-i 65536", 0, ""},
        {"diskCacheSize", "64Mi", 0, ""},
        {"diskCacheSize", "4Ti", 0, ""},
        {"diskCacheSize", "none", 0, ""},
        {"diskCacheSize", "0", -ERR_INVALID, "neither none nor a size"},
        {"diskCacheSize", "63Mi", -ERR_INVALID, "diskCacheSize: '63Mi'"},
        {"diskCacheSize", "5Ti", -ERR_INVALID, "64Mi to 4Ti"},
        {"diskCacheSize", "", -ERR_INVALID, "diskCacheSize"},
        {"color", "red", -ERR_INVALID, "'color'"},
        {"cacheSize", "lots", -ERR_INVALID, "cacheSize"},
        {"csi.storage.k8s.io/fstype", "ntfs", -ERR_INVALID, "ntfs"},
        {"mkfsOptions", "rm -rf", -ERR_INVALID, "mkfsOptions"},
        {"pool", "nowhere", -ERR_CONFIG, "nowhere"},
        {"pool", "a-name-too-long", -ERR_INVALID, "pool"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char name[32];
        snprintf(name, sizeof name, "parameter-%zu", i);
        Csi__V1__CreateVolumeRequest r = create_request(name, 512 * MIB, 0);
        parameter.key = (char *)cases[i].key;
        parameter.value = (char *)cases[i].value;
        r.n_parameters = 2;
        Csi__V1__CreateVolumeResponse *response = CALL(CreateVolumeResponse, create_volume, &r);
        if (cases[i].want == 0) {
            assert_non_null(response);
            remove_volume(response->volume->volume_id);
            continue;
        }
        /* FAILED_PRECONDITION comes back as the first error of that code */
        int want = rpc_err_from_code(err_to_grpc(cases[i].want));
        assert_null(response);
        assert_int_equal(f.e.code, want);
        assert_non_null(strstr(f.e.text, cases[i].text));
    }
}

static void test_bad_requests(void **state) {
    (void)state;
    Csi__V1__CreateVolumeRequest r = create_request("", 64 * MIB, 0);
    assert_int_equal(create_fails(&r), -ERR_INVALID);
    char name[CSI_NAME_MAX + 2];
    memset(name, 'n', sizeof name);
    name[CSI_NAME_MAX + 1] = '\0';
    r = create_request(name, 64 * MIB, 0);
    assert_int_equal(create_fails(&r), -ERR_INVALID);
    name[CSI_NAME_MAX] = '\0';
    remove_volume(create(name, 64 * MIB)->volume_id);

    r = create_request("bell\a", 64 * MIB, 0);
    assert_int_equal(create_fails(&r), -ERR_INVALID);
    r = create_request("no-capability", 64 * MIB, 0);
    r.n_volume_capabilities = 0;
    assert_int_equal(create_fails(&r), -ERR_INVALID);
    r = create_request("many-writers", 64 * MIB, 0);
    writer.mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__MULTI_NODE_MULTI_WRITER;
    assert_int_equal(create_fails(&r), -ERR_INVALID);
    r = create_request("no-pool", 64 * MIB, 0);
    r.n_parameters = 0; /* there are two */
    assert_int_equal(create_fails(&r), -ERR_INVALID);
    assert_non_null(strstr(f.e.text, "2 pools"));
    r = create_request("mutable", 64 * MIB, 0);
    Csi__V1__CreateVolumeRequest__MutableParametersEntry entry =
        CSI__V1__CREATE_VOLUME_REQUEST__MUTABLE_PARAMETERS_ENTRY__INIT;
    entry.key = (char *)"XXX_FakeKey";
    Csi__V1__CreateVolumeRequest__MutableParametersEntry *entries[] = {&entry};
    r.mutable_parameters = entries;
    r.n_mutable_parameters = 1;
    assert_int_equal(create_fails(&r), -ERR_INVALID);
}

static void test_secrets(void **state) {
    (void)state;
    Csi__V1__CreateVolumeRequest r = create_request("secret", 64 * MIB, 0);
    Csi__V1__CreateVolumeRequest__SecretsEntry
        a = CSI__V1__CREATE_VOLUME_REQUEST__SECRETS_ENTRY__INIT,
        b = a;
    Csi__V1__CreateVolumeRequest__SecretsEntry *secrets[] = {&a, &b};
    r.secrets = secrets;
    r.n_secrets = 1;
    a.key = (char *)"password";
    a.value = (char *)"hunter2";
    assert_int_equal(create_fails(&r), -ERR_INVALID);
    assert_null(strstr(f.e.text, "hunter2"));
    a.key = (char *)"access_key_id";
    assert_int_equal(create_fails(&r), -ERR_INVALID);
}

static void *create_thread(void *name) {
    static struct err errors[8];
    static _Atomic unsigned next;
    unsigned i = next++ % 8;
    CLEANUP_ARENA struct arena arena;
    arena_init(&arena, 1 << 20);
    struct rpc_client_call call = {.client = f.client, .timeout_ms = 30000, .arena = &arena};
    Csi__V1__CreateVolumeRequest r = CSI__V1__CREATE_VOLUME_REQUEST__INIT;
    r.name = name;
    r.volume_capabilities = capabilities;
    r.n_volume_capabilities = 1;
    r.parameters = parameters;
    r.n_parameters = 1;
    Csi__V1__CreateVolumeResponse *response;
    if (csi_controller_create_volume(&call, &r, &response, &errors[i]) != 0)
        return errors[i].code == -ERR_BUSY ? xstrdup("busy") : NULL;
    return xstrdup(response->volume->volume_id);
}

/* A sidecar that gave up asks again while the first call is under way. */
static void test_equal_calls_at_once(void **state) {
    (void)state;
    pthread_t threads[8];
    create_request("", 0, 0);
    for (size_t i = 0; i < ARRAY_LEN(threads); i++)
        pthread_create(&threads[i], NULL, create_thread, (void *)"at-once");
    char *first = NULL;
    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        void *id;
        pthread_join(threads[i], &id);
        assert_non_null(id);
        if (strcmp(id, "busy") == 0 || (first && strcmp(first, id) == 0)) {
            free(id);
            continue;
        }
        assert_null(first);
        first = id;
    }
    assert_non_null(first);
    remove_volume(first);
    free(first);
}

/* --- publish --- */

static void test_publish(void **state) {
    (void)state;
    Csi__V1__Volume *v = create("published", 64 * MIB);
    Csi__V1__ControllerPublishVolumeResponse *r = publish(v->volume_id, "node-1");
    assert_non_null(r);
    assert_string_equal(context_get(r, CONTEXT_PUBLISH_EPOCH), "1");
    assert_string_equal(context_get(r, CONTEXT_FSTYPE), "ext4");
    assert_string_equal(context_get(r, CONTEXT_SOURCE), "");
    r = publish(v->volume_id, "node-1");
    assert_string_equal(context_get(r, CONTEXT_PUBLISH_EPOCH), "1");
    assert_null(publish(v->volume_id, "node-2"));
    assert_int_equal(f.e.code, -ERR_IN_USE);
    assert_non_null(strstr(f.e.text, "node-1"));
    assert_null(publish("fake-vol-id", "node-1"));
    assert_int_equal(f.e.code, -ERR_NOT_FOUND);
    assert_null(publish(v->volume_id, ""));
    assert_int_equal(f.e.code, -ERR_INVALID);

    Csi__V1__DeleteVolumeRequest d = CSI__V1__DELETE_VOLUME_REQUEST__INIT;
    d.volume_id = v->volume_id;
    assert_null(CALL(DeleteVolumeResponse, delete_volume, &d));
    assert_int_equal(f.e.code, -ERR_IN_USE);

    unpublish(v->volume_id, "node-2"); /* not there: nothing happens */
    unpublish(v->volume_id, "node-1");
    unpublish(v->volume_id, "node-1");
    unpublish("fake-vol-id", "node-1");
    assert_null(publish(v->volume_id, "node-3"));
    assert_int_equal(f.e.code, -ERR_NOT_FOUND);
    r = publish(v->volume_id, "node-2");
    assert_non_null(r);
    assert_true(atoi(context_get(r, CONTEXT_PUBLISH_EPOCH)) >= 2);
    unpublish(v->volume_id, "");
    remove_volume(v->volume_id);
}

/* --- snapshots --- */

static Csi__V1__Snapshot *snapshot(const char *name, const char *volume_id) {
    Csi__V1__CreateSnapshotRequest r = CSI__V1__CREATE_SNAPSHOT_REQUEST__INIT;
    r.name = (char *)name;
    r.source_volume_id = (char *)volume_id;
    Csi__V1__CreateSnapshotResponse *response = CALL(CreateSnapshotResponse, create_snapshot, &r);
    return response ? response->snapshot : NULL;
}

static void delete_snapshot(const char *id) {
    Csi__V1__DeleteSnapshotRequest r = CSI__V1__DELETE_SNAPSHOT_REQUEST__INIT;
    r.snapshot_id = (char *)id;
    if (!CALL(DeleteSnapshotResponse, delete_snapshot, &r))
        fail_msg("delete snapshot '%s': %s", id, f.e.text);
}

static Csi__V1__ListSnapshotsResponse *list_snapshots(const char *id, const char *volume_id,
                                                      const char *token, int32_t max) {
    Csi__V1__ListSnapshotsRequest r = CSI__V1__LIST_SNAPSHOTS_REQUEST__INIT;
    r.snapshot_id = (char *)id;
    r.source_volume_id = (char *)volume_id;
    r.starting_token = (char *)token;
    r.max_entries = max;
    return CALL(ListSnapshotsResponse, list_snapshots, &r);
}

static void test_snapshots(void **state) {
    (void)state;
    Csi__V1__Volume *v = create("source", 64 * MIB), *other = create("other", 64 * MIB);
    Csi__V1__Snapshot *s = snapshot("s1", v->volume_id);
    assert_non_null(s);
    assert_string_equal(s->source_volume_id, v->volume_id);
    assert_true(s->ready_to_use);
    assert_int_equal(s->size_bytes, 64 * MIB);
    assert_true(s->creation_time->seconds >= 0);
    assert_string_equal(snapshot("s1", v->volume_id)->snapshot_id, s->snapshot_id);
    assert_null(snapshot("s1", other->volume_id));
    assert_int_equal(f.e.code, -ERR_EXISTS);
    assert_null(snapshot("s2", "fake-vol-id"));
    assert_int_equal(f.e.code, -ERR_NOT_FOUND);

    Csi__V1__Snapshot *s2 = snapshot("s2", v->volume_id), *s3 = snapshot("s3", other->volume_id);
    assert_int_equal(list_snapshots("", "", "", 0)->n_entries, 3);
    assert_int_equal(list_snapshots("", v->volume_id, "", 0)->n_entries, 2);
    assert_int_equal(list_snapshots(s->snapshot_id, "", "", 0)->n_entries, 1);
    assert_int_equal(list_snapshots(s->snapshot_id, other->volume_id, "", 0)->n_entries, 0);
    assert_int_equal(list_snapshots("none-exist-id", "", "", 0)->n_entries, 0);
    assert_int_equal(list_snapshots("", "none-exist-id", "", 0)->n_entries, 0);
    Csi__V1__ListSnapshotsResponse *page = list_snapshots("", "", "", 2);
    assert_int_equal(page->n_entries, 2);
    assert_true(page->next_token[0]);
    page = list_snapshots("", "", page->next_token, 5);
    assert_int_equal(page->n_entries, 1);
    assert_string_equal(page->next_token, "");
    assert_null(list_snapshots("", "", "invalid-token", 0));
    assert_int_equal(f.e.code, -ERR_BUSY); /* ABORTED */

    /* A restored volume outlives snapshot and source. */
    Csi__V1__CreateVolumeRequest r = from_snapshot("restored", s->snapshot_id);
    range.required_bytes = 100 * MIB;
    Csi__V1__CreateVolumeResponse *restored = CALL(CreateVolumeResponse, create_volume, &r);
    assert_non_null(restored);
    assert_int_equal(restored->volume->capacity_bytes, 100 * MIB);
    assert_string_equal(restored->volume->content_source->snapshot->snapshot_id, s->snapshot_id);
    Csi__V1__ControllerPublishVolumeResponse *p = publish(restored->volume->volume_id, "node-1");
    assert_string_equal(context_get(p, CONTEXT_SOURCE), s->snapshot_id);
    unpublish(restored->volume->volume_id, "node-1");
    r = from_snapshot("restored-2", "non-existing-snapshot-id");
    assert_int_equal(create_fails(&r), -ERR_NOT_FOUND);
    r = from_snapshot("restored-3", s->snapshot_id);
    range.limit_bytes = 10 * MIB;
    assert_int_equal(create_fails(&r), -ERR_NO_SPACE);
    r = from_snapshot("restored-4", s->snapshot_id);
    parameter_pool.value = (char *)"slow";
    assert_int_equal(create_fails(&r), -ERR_INVALID);

    delete_snapshot(s->snapshot_id);
    delete_snapshot(s->snapshot_id);
    delete_snapshot("non-existing-snapshot-id");
    delete_snapshot(s2->snapshot_id);
    delete_snapshot(s3->snapshot_id);
    remove_volume(v->volume_id);
    remove_volume(other->volume_id);
    remove_volume(restored->volume->volume_id);
}

static void test_clone(void **state) {
    (void)state;
    Csi__V1__Volume *v = create("original", 64 * MIB);
    Csi__V1__CreateVolumeRequest r = create_request("clone", 0, 0);
    csi__v1__volume_content_source__init(&source);
    csi__v1__volume_content_source__volume_source__init(&volume_source);
    source.type_case = CSI__V1__VOLUME_CONTENT_SOURCE__TYPE_VOLUME;
    source.volume = &volume_source;
    volume_source.volume_id = v->volume_id;
    r.volume_content_source = &source;
    Csi__V1__CreateVolumeResponse *clone = CALL(CreateVolumeResponse, create_volume, &r);
    assert_non_null(clone);
    assert_int_equal(clone->volume->capacity_bytes, 64 * MIB);
    assert_string_equal(clone->volume->content_source->volume->volume_id, v->volume_id);
    remove_volume(v->volume_id);
    remove_volume(clone->volume->volume_id);
}

/* --- lists, expand, validate --- */

static Csi__V1__ListVolumesResponse *list_volumes(const char *token, int32_t max) {
    Csi__V1__ListVolumesRequest r = CSI__V1__LIST_VOLUMES_REQUEST__INIT;
    r.starting_token = (char *)token;
    r.max_entries = max;
    return CALL(ListVolumesResponse, list_volumes, &r);
}

static void test_list_over_pools(void **state) {
    (void)state;
    size_t before = list_volumes("", 0)->n_entries;
    char *ids[7];
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        char name[32];
        snprintf(name, sizeof name, "listed-%zu", i);
        Csi__V1__CreateVolumeRequest r = create_request(name, 64 * MIB, 0);
        parameter_pool.value = (char *)(i % 2 ? "slow" : "fast");
        ids[i] = CALL(CreateVolumeResponse, create_volume, &r)->volume->volume_id;
    }
    assert_non_null(publish(ids[3], "node-2"));
    assert_int_equal(list_volumes("", 0)->n_entries, before + ARRAY_LEN(ids));
    for (int32_t max = 1; max <= 8; max++) {
        const char *token = "";
        size_t seen = 0, published = 0;
        do {
            Csi__V1__ListVolumesResponse *page = list_volumes(token, max);
            assert_non_null(page);
            assert_true(page->n_entries <= (size_t)max);
            for (size_t i = 0; i < page->n_entries; i++)
                published += page->entries[i]->status->n_published_node_ids;
            seen += page->n_entries;
            token = page->next_token;
        } while (token[0]);
        assert_int_equal(seen, before + ARRAY_LEN(ids));
        assert_int_equal(published, 1);
    }
    assert_null(list_volumes("", -1));
    assert_int_equal(f.e.code, -ERR_INVALID);
    static const char *const tokens[] = {"invalid-token", "nowhere/", "fast/not-a-token", "/"};
    for (size_t i = 0; i < ARRAY_LEN(tokens); i++) {
        assert_null(list_volumes(tokens[i], 0));
        assert_int_equal(f.e.code, -ERR_BUSY);
    }
    unpublish(ids[3], "node-2");
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        remove_volume(ids[i]);
}

static void test_expand(void **state) {
    (void)state;
    Csi__V1__Volume *v = create("growing", 64 * MIB);
    Csi__V1__ControllerExpandVolumeRequest r = CSI__V1__CONTROLLER_EXPAND_VOLUME_REQUEST__INIT;
    r.volume_id = v->volume_id;
    assert_null(CALL(ControllerExpandVolumeResponse, controller_expand_volume, &r));
    assert_int_equal(f.e.code, -ERR_INVALID);
    create_request("", 100 * MIB, 0);
    r.capacity_range = &range;
    r.volume_capability = &capability;
    for (int i = 0; i < 2; i++) {
        Csi__V1__ControllerExpandVolumeResponse *response =
            CALL(ControllerExpandVolumeResponse, controller_expand_volume, &r);
        assert_non_null(response);
        assert_int_equal(response->capacity_bytes, 100 * MIB);
        assert_true(response->node_expansion_required);
    }
    range.required_bytes = 50 * MIB; /* larger already */
    assert_int_equal(
        CALL(ControllerExpandVolumeResponse, controller_expand_volume, &r)->capacity_bytes,
        100 * MIB);
    r.volume_id = (char *)"fake-vol-id";
    assert_null(CALL(ControllerExpandVolumeResponse, controller_expand_volume, &r));
    assert_int_equal(f.e.code, -ERR_NOT_FOUND);
    /* A creation repeated after growth is the same creation. */
    assert_string_equal(create("growing", 64 * MIB)->volume_id, v->volume_id);
    remove_volume(v->volume_id);
}

static void test_validate_and_get(void **state) {
    (void)state;
    Csi__V1__Volume *v = create("valid", 64 * MIB);
    Csi__V1__ValidateVolumeCapabilitiesRequest r =
        CSI__V1__VALIDATE_VOLUME_CAPABILITIES_REQUEST__INIT;
    r.volume_id = v->volume_id;
    assert_null(CALL(ValidateVolumeCapabilitiesResponse, validate_volume_capabilities, &r));
    assert_int_equal(f.e.code, -ERR_INVALID);
    create_request("", 0, 0);
    mount_volume.fs_type = (char *)"xfs";
    r.volume_capabilities = capabilities;
    r.n_volume_capabilities = 1;
    Csi__V1__ValidateVolumeCapabilitiesResponse *response =
        CALL(ValidateVolumeCapabilitiesResponse, validate_volume_capabilities, &r);
    assert_non_null(response->confirmed);
    assert_string_equal(response->confirmed->volume_capabilities[0]->mount->fs_type, "xfs");
    writer.mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__MULTI_NODE_MULTI_WRITER;
    response = CALL(ValidateVolumeCapabilitiesResponse, validate_volume_capabilities, &r);
    assert_null(response->confirmed);
    assert_true(response->message[0]);
    r.volume_id = (char *)"fake-vol-id";
    assert_null(CALL(ValidateVolumeCapabilitiesResponse, validate_volume_capabilities, &r));
    assert_int_equal(f.e.code, -ERR_NOT_FOUND);

    Csi__V1__ControllerGetVolumeRequest get = CSI__V1__CONTROLLER_GET_VOLUME_REQUEST__INIT;
    get.volume_id = v->volume_id;
    publish(v->volume_id, "node-1");
    Csi__V1__ControllerGetVolumeResponse *got =
        CALL(ControllerGetVolumeResponse, controller_get_volume, &get);
    assert_string_equal(got->status->published_node_ids[0], "node-1");
    unpublish(v->volume_id, "node-1");
    remove_volume(v->volume_id);
}

/* The pool file changes under a running driver. */
static void test_pool_file_is_read_again(void **state) {
    (void)state;
    Csi__V1__CreateVolumeRequest r = create_request("late", 64 * MIB, 0);
    parameter_pool.value = (char *)"third";
    assert_true(create_fails(&r) < 0);
    write_pool_file("[fast]\nurl = memory:\n\n[slow]\nurl = memory:\n\n[third]\nurl = memory:\n");
    Csi__V1__CreateVolumeResponse *response = CALL(CreateVolumeResponse, create_volume, &r);
    assert_non_null(response);
    write_pool_file("this is no pool file\n"); /* what was good stays good */
    remove_volume(response->volume->volume_id);
    write_pool_file("[fast]\nurl = memory:\n\n[slow]\nurl = memory:\n");
    r = create_request("later", 64 * MIB, 0);
    parameter_pool.value = (char *)"third";
    assert_true(create_fails(&r) < 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_is_idempotent),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_secrets),
        cmocka_unit_test(test_equal_calls_at_once),
        cmocka_unit_test(test_publish),
        cmocka_unit_test(test_snapshots),
        cmocka_unit_test(test_clone),
        cmocka_unit_test(test_list_over_pools),
        cmocka_unit_test(test_expand),
        cmocka_unit_test(test_validate_and_get),
        cmocka_unit_test(test_pool_file_is_read_again),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
