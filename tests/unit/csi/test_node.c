/* The node service over gRPC, with a stand-in for the node agent that makes loop devices on images.
 * Wants to be root. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/mem.h"
#include "csi/driver.h"
#include "csi/rpc/agent_service.h"
#include "tests/support/temp.h"

enum { IMAGES_MAX = 8 };
#define MIB (INT64_C(1) << 20)

struct image {
    char volume_id[64];
    char device[64]; /* "": not attached */
};

static struct fixture {
    char *folder;
    char *csi_socket, *agent_socket;
    struct rpc_server *csi, *agent;
    struct rpc_client *client, *agent_client;
    struct node node;
    struct arena arena;
    struct err e; /* of the last call */

    struct image images[IMAGES_MAX];
    const char *agent_version;
    unsigned attaches, detaches;
    uint64_t epoch; /* of the last attach, like what follows */
    uint64_t disk_cache_bytes;
    bool no_disk_cache;
} f;

/* The stand-in's threads and the test's take turns; this says so to the thread sanitizer, which
 * cannot look into gRPC. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static int took_turns(int rc) {
    pthread_mutex_lock(&turn);
    pthread_mutex_unlock(&turn);
    return rc;
}

static pthread_mutex_t *turn_begin(void) {
    pthread_mutex_lock(&turn);
    return &turn;
}

static void turn_end(pthread_mutex_t **held) {
    pthread_mutex_unlock(*held);
}

/* --- the stand-in --- */

static void run(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void run(const char *fmt, ...) {
    char command[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    if (system(command) != 0)
        fail_msg("%s", command);
}

static char *image_path(const char *volume_id) {
    return xasprintf("%s/%s.img", f.folder, volume_id);
}

static struct image *image_find(const char *volume_id) {
    for (size_t i = 0; i < IMAGES_MAX; i++)
        if (strcmp(f.images[i].volume_id, volume_id) == 0)
            return &f.images[i];
    return NULL;
}

static uint64_t file_size(const char *path) {
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

static void loop_attach(struct image *image) {
    CLEANUP_FREE char *path = image_path(image->volume_id);
    CLEANUP_FREE char *command = xasprintf("losetup -f --show -b 4096 %s", path);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    assert_non_null(fgets(image->device, sizeof image->device, p));
    image->device[strcspn(image->device, "\n")] = '\0';
    assert_int_equal(pclose(p), 0);
}

static int fake_attach(struct rpc_call *call,
                       const Portalbd__Agent__V1__AttachVolumeRequest *request,
                       Portalbd__Agent__V1__AttachVolumeResponse *response, struct err *e) {
    CLEANUP(turn_end) pthread_mutex_t *held = turn_begin();
    (void)held;
    struct image *image = image_find(request->volume_id);
    if (!image)
        return err_set(e, -ERR_NOT_FOUND, "no such volume");
    CLEANUP_FREE char *path = image_path(request->volume_id);
    if (!image->device[0])
        loop_attach(image);
    f.attaches++;
    f.epoch = request->publish_epoch;
    f.disk_cache_bytes = request->disk_cache_bytes;
    f.no_disk_cache = request->no_disk_cache;
    response->device_path = rpc_strdup(call, image->device);
    response->size_bytes = file_size(path);
    return 0;
}

static int fake_detach(struct rpc_call *call,
                       const Portalbd__Agent__V1__DetachVolumeRequest *request,
                       Portalbd__Agent__V1__DetachVolumeResponse *response, struct err *e) {
    CLEANUP(turn_end) pthread_mutex_t *held = turn_begin();
    (void)held;
    (void)call;
    (void)response;
    (void)e;
    struct image *image = image_find(request->volume_id);
    if (image && image->device[0]) {
        run("losetup -d %s", image->device);
        image->device[0] = '\0';
        f.detaches++;
    }
    return 0;
}

static int fake_list(struct rpc_call *call,
                     const Portalbd__Agent__V1__ListAttachmentsRequest *request,
                     Portalbd__Agent__V1__ListAttachmentsResponse *response, struct err *e) {
    CLEANUP(turn_end) pthread_mutex_t *held = turn_begin();
    (void)held;
    (void)request;
    (void)e;
    response->attachments = RPC_NEW_ARRAY(call, Portalbd__Agent__V1__Attachment *, IMAGES_MAX);
    for (size_t i = 0; i < IMAGES_MAX; i++) {
        if (!f.images[i].device[0])
            continue;
        CLEANUP_FREE char *path = image_path(f.images[i].volume_id);
        Portalbd__Agent__V1__Attachment *a =
            RPC_NEW(call, Portalbd__Agent__V1__Attachment, portalbd__agent__v1__attachment__init);
        a->volume_id = f.images[i].volume_id;
        a->device_path = f.images[i].device;
        a->size_bytes = file_size(path);
        response->attachments[response->n_attachments++] = a;
    }
    return 0;
}

static int fake_grow(struct rpc_call *call, const Portalbd__Agent__V1__GrowVolumeRequest *request,
                     Portalbd__Agent__V1__GrowVolumeResponse *response, struct err *e) {
    CLEANUP(turn_end) pthread_mutex_t *held = turn_begin();
    (void)held;
    (void)call;
    (void)e;
    struct image *image = image_find(request->volume_id);
    CLEANUP_FREE char *path = image_path(request->volume_id);
    assert_int_equal(truncate(path, (off_t)request->size_bytes), 0);
    run("losetup -c %s", image->device);
    response->size_bytes = request->size_bytes;
    return 0;
}

static int fake_health(struct rpc_call *call,
                       const Portalbd__Agent__V1__GetVolumeHealthRequest *request,
                       Portalbd__Agent__V1__GetVolumeHealthResponse *response, struct err *e) {
    CLEANUP(turn_end) pthread_mutex_t *held = turn_begin();
    (void)held;
    (void)call;
    (void)request;
    (void)e;
    response->abnormal = 1;
    response->message = (char *)"the object store does not answer";
    return 0;
}

static int fake_info(struct rpc_call *call, const Portalbd__Agent__V1__GetInfoRequest *request,
                     Portalbd__Agent__V1__GetInfoResponse *response, struct err *e) {
    CLEANUP(turn_end) pthread_mutex_t *held = turn_begin();
    (void)held;
    (void)call;
    (void)request;
    (void)e;
    response->version = (char *)f.agent_version;
    response->node_id = (char *)"node-1";
    return 0;
}

static const struct agent_ops fake_agent = {
    .attach_volume = fake_attach,
    .detach_volume = fake_detach,
    .list_attachments = fake_list,
    .grow_volume = fake_grow,
    .get_volume_health = fake_health,
    .get_info = fake_info,
};

static void start_agent(void) {
    struct err e;
    f.agent = rpc_server_new(&(struct rpc_server_config){.endpoint = f.agent_socket});
    rpc_server_add_agent(f.agent, &fake_agent, NULL);
    assert_int_equal(rpc_server_start(f.agent, &e), 0);
}

static void stop_agent(void) {
    struct err e;
    assert_int_equal(rpc_server_stop(f.agent, 1000, 5000, &e), 0);
    rpc_server_free(f.agent);
    f.agent = NULL;
}

/* --- fixture --- */

static int set_up(void **state) {
    (void)state;
    struct err e;
    f = (struct fixture){.agent_version = "1.0.0"};
    f.folder = temp_folder_new();
    f.csi_socket = xasprintf("%s/csi.sock", f.folder);
    f.agent_socket = xasprintf("%s/agent.sock", f.folder);
    start_agent();
    int rc = rpc_client_new(f.agent_socket, &f.agent_client, &e);
    f.node = (struct node){
        .agent = f.agent_client, .locks = oplocks_new(), .version = "1.2.3", .volumes_max = 9};
    f.csi = rpc_server_new(&(struct rpc_server_config){.endpoint = f.csi_socket});
    rpc_server_add_csi_node(f.csi, &node_ops, &f.node);
    arena_init(&f.arena, 64 << 20);
    return rc || rpc_server_start(f.csi, &e) || rpc_client_new(f.csi_socket, &f.client, &e);
}

static void unmount_all(void) {
    CLEANUP_FREE char *command =
        xasprintf("grep -o ' %s/[^ ]* ' /proc/mounts | sort -r | xargs -r umount -l", f.folder);
    assert_int_equal(system(command), 0);
}

static int tear_down(void **state) {
    (void)state;
    struct err e;
    unmount_all();
    for (size_t i = 0; i < IMAGES_MAX; i++)
        if (f.images[i].device[0])
            run("losetup -d %s", f.images[i].device);
    rpc_client_free(f.client);
    int rc = rpc_server_stop(f.csi, 1000, 5000, &e);
    rpc_server_free(f.csi);
    rpc_client_free(f.agent_client);
    if (f.agent)
        stop_agent();
    oplocks_free(f.node.locks);
    arena_release(&f.arena);
    free(f.csi_socket);
    free(f.agent_socket);
    temp_folder_free(f.folder);
    return rc;
}

static void make_image(const char *volume_id, int64_t size) {
    CLEANUP_FREE char *path = image_path(volume_id);
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
    for (size_t i = 0; i < IMAGES_MAX; i++)
        if (!f.images[i].volume_id[0]) {
            snprintf(f.images[i].volume_id, sizeof f.images[i].volume_id, "%s", volume_id);
            return;
        }
    fail();
}

static char *path_of(const char *name) { /* lives as long as the arena */
    char *path = arena_alloc(&f.arena, 256);
    snprintf(path, 256, "%s/%s", f.folder, name);
    return path;
}

/* --- calls --- */

static Csi__V1__VolumeCapability__AccessMode mode;
static Csi__V1__VolumeCapability__MountVolume mount_volume;
static Csi__V1__VolumeCapability__BlockVolume block_volume;
static Csi__V1__VolumeCapability capability;
static const char *source;     /* publish_context.source */
static const char *epoch;      /* publish_context.publishEpoch */
static const char *disk_cache; /* publish_context.diskCacheSize */
static bool publish_read_only;

static void want(const char *fstype) {
    csi__v1__volume_capability__access_mode__init(&mode);
    mode.mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_MULTI_WRITER;
    csi__v1__volume_capability__mount_volume__init(&mount_volume);
    csi__v1__volume_capability__block_volume__init(&block_volume);
    csi__v1__volume_capability__init(&capability);
    capability.access_mode = &mode;
    capability.access_type_case = fstype ? CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_MOUNT
                                         : CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_BLOCK;
    if (fstype) {
        capability.mount = &mount_volume;
        mount_volume.fs_type = (char *)fstype;
    } else {
        capability.block = &block_volume;
    }
    source = "";
    epoch = "5";
    disk_cache = "";
    publish_read_only = false;
}

static struct rpc_client_call how(void) {
    took_turns(0);
    return (struct rpc_client_call){.client = f.client, .timeout_ms = 60000, .arena = &f.arena};
}

#define SET_CONTEXT(request, Entry, init)                                                          \
    Entry context_epoch_ = init, context_source_ = init, context_disk_ = init;                     \
    Entry *context_[] = {&context_epoch_, &context_source_, &context_disk_};                       \
    context_disk_.key = (char *)CONTEXT_DISK_CACHE;                                                \
    context_disk_.value = (char *)disk_cache;                                                      \
    context_epoch_.key = (char *)CONTEXT_PUBLISH_EPOCH;                                            \
    context_epoch_.value = (char *)epoch;                                                          \
    context_source_.key = (char *)CONTEXT_SOURCE;                                                  \
    context_source_.value = (char *)source;                                                        \
    (request).publish_context = context_;                                                          \
    (request).n_publish_context = epoch[0] ? 3 : 0

static int stage_volume(const char *id, const char *staging) {
    Csi__V1__NodeStageVolumeRequest r = CSI__V1__NODE_STAGE_VOLUME_REQUEST__INIT;
    Csi__V1__NodeStageVolumeResponse *response;
    struct rpc_client_call call = how();
    SET_CONTEXT(r, Csi__V1__NodeStageVolumeRequest__PublishContextEntry,
                CSI__V1__NODE_STAGE_VOLUME_REQUEST__PUBLISH_CONTEXT_ENTRY__INIT);
    r.volume_id = (char *)id;
    r.staging_target_path = path_of(staging);
    r.volume_capability = &capability;
    return took_turns(csi_node_node_stage_volume(&call, &r, &response, &f.e));
}

static int publish_volume(const char *id, const char *staging, const char *target) {
    Csi__V1__NodePublishVolumeRequest r = CSI__V1__NODE_PUBLISH_VOLUME_REQUEST__INIT;
    Csi__V1__NodePublishVolumeResponse *response;
    struct rpc_client_call call = how();
    SET_CONTEXT(r, Csi__V1__NodePublishVolumeRequest__PublishContextEntry,
                CSI__V1__NODE_PUBLISH_VOLUME_REQUEST__PUBLISH_CONTEXT_ENTRY__INIT);
    r.volume_id = (char *)id;
    r.staging_target_path = path_of(staging);
    r.target_path = path_of(target);
    r.volume_capability = &capability;
    r.readonly = publish_read_only;
    return took_turns(csi_node_node_publish_volume(&call, &r, &response, &f.e));
}

static int unpublish_volume(const char *id, const char *target) {
    Csi__V1__NodeUnpublishVolumeRequest r = CSI__V1__NODE_UNPUBLISH_VOLUME_REQUEST__INIT;
    Csi__V1__NodeUnpublishVolumeResponse *response;
    struct rpc_client_call call = how();
    r.volume_id = (char *)id;
    r.target_path = path_of(target);
    return took_turns(csi_node_node_unpublish_volume(&call, &r, &response, &f.e));
}

static int unstage_volume(const char *id, const char *staging) {
    Csi__V1__NodeUnstageVolumeRequest r = CSI__V1__NODE_UNSTAGE_VOLUME_REQUEST__INIT;
    Csi__V1__NodeUnstageVolumeResponse *response;
    struct rpc_client_call call = how();
    r.volume_id = (char *)id;
    r.staging_target_path = path_of(staging);
    return took_turns(csi_node_node_unstage_volume(&call, &r, &response, &f.e));
}

static int volume_stats(const char *id, const char *path,
                        Csi__V1__NodeGetVolumeStatsResponse **ret) {
    Csi__V1__NodeGetVolumeStatsRequest r = CSI__V1__NODE_GET_VOLUME_STATS_REQUEST__INIT;
    struct rpc_client_call call = how();
    r.volume_id = (char *)id;
    r.volume_path = (char *)path;
    return took_turns(csi_node_node_get_volume_stats(&call, &r, ret, &f.e));
}

static int expand_volume(const char *id, const char *path, int64_t size) {
    Csi__V1__NodeExpandVolumeRequest r = CSI__V1__NODE_EXPAND_VOLUME_REQUEST__INIT;
    Csi__V1__NodeExpandVolumeResponse *response;
    Csi__V1__CapacityRange range = CSI__V1__CAPACITY_RANGE__INIT;
    struct rpc_client_call call = how();
    range.required_bytes = size;
    r.volume_id = (char *)id;
    r.volume_path = (char *)path;
    r.capacity_range = &range;
    int rc = took_turns(csi_node_node_expand_volume(&call, &r, &response, &f.e));
    if (rc == 0)
        assert_int_equal(response->capacity_bytes, size);
    return rc;
}

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", #call, f.e.text);                                                   \
    } while (0)

static void put_file(const char *name, const char *text) {
    FILE *file = fopen(path_of(name), "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void assert_file(const char *name, const char *text) {
    char line[64] = "";
    FILE *file = fopen(path_of(name), "r");
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof line, file));
    fclose(file);
    assert_string_equal(line, text);
}

static bool exists(const char *name) {
    struct stat st;
    return lstat(path_of(name), &st) == 0;
}

static int64_t fs_size(const char *name) {
    struct statvfs s;
    assert_int_equal(statvfs(path_of(name), &s), 0);
    return (int64_t)(s.f_blocks * s.f_frsize);
}

#define NEED_ROOT()                                                                                \
    do {                                                                                           \
        if (geteuid() != 0) {                                                                      \
            printf("needs root\n");                                                                \
            skip();                                                                                \
        }                                                                                          \
    } while (0)

/* --- tests --- */

static void life(const char *fstype) {
    bool ext4 = strcmp(fstype, "ext4") == 0;
    want(fstype);
    disk_cache = ext4 ? "1Gi" : "none";
    make_image("v", 400 * MIB);
    for (int i = 0; i < 2; i++)
        OK(stage_volume("v", "stage"));
    assert_int_equal(f.epoch, 5);
    assert_int_equal(f.disk_cache_bytes, ext4 ? 1024 * MIB : 0);
    assert_int_equal(f.no_disk_cache, !ext4);
    for (int i = 0; i < 2; i++)
        OK(publish_volume("v", "stage", "target"));
    put_file("target/file", "hello");
    OK(publish_volume("v", "stage", "target-2")); /* many writers on one node */
    assert_file("target-2/file", "hello");
    assert_int_equal(unstage_volume("v", "stage"), -ERR_BUSY);
    assert_int_equal(f.detaches, 0);
    for (int i = 0; i < 2; i++) {
        OK(unpublish_volume("v", "target"));
        OK(unpublish_volume("v", "target-2"));
    }
    assert_false(exists("target"));
    for (int i = 0; i < 2; i++)
        OK(unstage_volume("v", "stage"));
    assert_int_equal(f.detaches, 1);
    OK(stage_volume("v", "stage")); /* what was written is there: not formatted again */
    assert_file("stage/file", "hello");
    OK(unstage_volume("v", "stage"));
}

static void test_life_ext4(void **state) {
    (void)state;
    NEED_ROOT();
    life("ext4");
}

static void test_life_xfs(void **state) {
    (void)state;
    NEED_ROOT();
    life("xfs");
}

static void test_life_block(void **state) {
    (void)state;
    NEED_ROOT();
    want(NULL);
    make_image("v", 64 * MIB);
    OK(stage_volume("v", "stage"));
    for (int i = 0; i < 2; i++)
        OK(publish_volume("v", "stage", "target"));
    struct stat st;
    assert_int_equal(stat(path_of("target"), &st), 0);
    assert_true(S_ISBLK(st.st_mode));
    Csi__V1__NodeGetVolumeStatsResponse *stats;
    OK(volume_stats("v", path_of("target"), &stats));
    assert_int_equal(stats->n_usage, 1);
    assert_int_equal(stats->usage[0]->total, 64 * MIB);
    OK(expand_volume("v", path_of("target"), 128 * MIB));
    assert_int_equal(unstage_volume("v", "stage"), -ERR_BUSY);
    for (int i = 0; i < 2; i++)
        OK(unpublish_volume("v", "target"));
    assert_false(exists("target"));
    OK(unstage_volume("v", "stage"));
}

/* After a reboot nothing is mounted, and kubelet only publishes. */
static void test_publish_stages(void **state) {
    (void)state;
    NEED_ROOT();
    want("ext4");
    make_image("v", 64 * MIB);
    OK(stage_volume("v", "stage"));
    put_file("stage/file", "hello");
    OK(unstage_volume("v", "stage"));
    OK(publish_volume("v", "stage", "target"));
    assert_file("target/file", "hello");
}

/* The device came back under another name: what is mounted of the old one is replaced. */
static void test_mounts_of_another_device_are_replaced(void **state) {
    (void)state;
    NEED_ROOT();
    want("ext4");
    make_image("old", 64 * MIB);
    make_image("new", 64 * MIB);
    OK(stage_volume("old", "stage"));
    OK(publish_volume("old", "stage", "target"));
    OK(stage_volume("new", "stage-2"));
    put_file("stage-2/file", "new");
    OK(unstage_volume("new", "stage-2"));
    OK(publish_volume("new", "stage", "target"));
    assert_file("target/file", "new");
    assert_file("stage/file", "new");
}

/* What an attempt that died half way leaves. */
static void test_half_done(void **state) {
    (void)state;
    NEED_ROOT();
    want("ext4");
    make_image("v", 64 * MIB);
    assert_int_equal(mkdir(path_of("target"), 0700), 0);
    OK(publish_volume("v", "stage", "target"));
    assert_int_equal(umount(path_of("target")), 0); /* died between umount and rmdir */
    OK(unpublish_volume("v", "target"));
    assert_false(exists("target"));
    assert_int_equal(umount(path_of("stage")), 0); /* died between umount and detach */
    OK(unstage_volume("v", "stage"));
    assert_int_equal(f.detaches, 1);

    want(NULL);
    close(open(path_of("block"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    OK(publish_volume("v", "stage", "block"));
    OK(unpublish_volume("v", "block"));
}

static void test_data_at_the_target_is_not_removed(void **state) {
    (void)state;
    NEED_ROOT();
    assert_int_equal(mkdir(path_of("target"), 0700), 0);
    put_file("target/file", "hello");
    assert_true(unpublish_volume("v", "target") < 0);
    assert_file("target/file", "hello");
    put_file("file", "hello");
    assert_int_equal(unpublish_volume("v", "file"), -ERR_IN_USE);
    assert_file("file", "hello");
}

static void test_what_is_not_formatted(void **state) {
    (void)state;
    NEED_ROOT();
    want("ext4");
    source = "snap-1";
    make_image("copy", 64 * MIB);
    assert_int_equal(stage_volume("copy", "stage"), -ERR_IN_USE);
    assert_non_null(strstr(f.e.text, "snap-1"));

    source = "";
    make_image("foreign", 64 * MIB);
    CLEANUP_FREE char *path = image_path("foreign");
    run("mkswap -q %s", path);
    assert_int_equal(stage_volume("foreign", "stage"), -ERR_IN_USE);
    assert_non_null(strstr(f.e.text, "swap"));

    OK(stage_volume("copy", "stage"));
    OK(unstage_volume("copy", "stage"));
    want("xfs");
    assert_int_equal(stage_volume("copy", "stage"), -ERR_IN_USE);
    assert_non_null(strstr(f.e.text, "it holds ext4"));
}

/* A restore has its origin's filesystem id, and may be larger. */
static void restore_is_larger(const char *fstype) {
    want(fstype);
    make_image("v", 400 * MIB);
    OK(stage_volume("v", "stage"));
    put_file("stage/file", "hello");
    OK(unstage_volume("v", "stage"));
    make_image("copy", 400 * MIB);
    CLEANUP_FREE char *from = image_path("v"), *to = image_path("copy");
    run("cp --sparse=always %s %s && truncate -s 800M %s", from, to, to);
    source = "v";
    OK(stage_volume("copy", "stage-copy"));
    source = "";
    OK(stage_volume("v", "stage"));
    assert_file("stage-copy/file", "hello");
    assert_true(fs_size("stage-copy") > 700 * MIB);
    assert_true(fs_size("stage") < 400 * MIB);
}

static void test_restore_ext4(void **state) {
    (void)state;
    NEED_ROOT();
    restore_is_larger("ext4");
}

static void test_restore_xfs(void **state) {
    (void)state;
    NEED_ROOT();
    restore_is_larger("xfs");
}

static void test_expand_online(void **state) {
    (void)state;
    NEED_ROOT();
    want("xfs");
    make_image("v", 400 * MIB);
    OK(publish_volume("v", "stage", "target"));
    assert_int_equal(expand_volume("v", path_of("elsewhere"), 800 * MIB), -ERR_NOT_FOUND);
    assert_int_equal(expand_volume("other", path_of("target"), 800 * MIB), -ERR_NOT_FOUND);
    for (int i = 0; i < 2; i++)
        OK(expand_volume("v", path_of("target"), 800 * MIB));
    assert_true(fs_size("target") > 700 * MIB);
}

static void test_read_only(void **state) {
    (void)state;
    NEED_ROOT();
    want("ext4");
    make_image("v", 64 * MIB);
    publish_read_only = true;
    OK(publish_volume("v", "stage", "target"));
    OK(publish_volume("v", "stage", "target"));
    assert_int_equal(open(path_of("target/x"), O_CREAT | O_WRONLY, 0600), -1);
    assert_int_equal(errno, EROFS);
    publish_read_only = false;
    assert_int_equal(publish_volume("v", "stage", "target"), -ERR_EXISTS);
    OK(publish_volume("v", "stage", "writable"));
    put_file("writable/x", "hello");
}

static void test_single_writer(void **state) {
    (void)state;
    NEED_ROOT();
    want("ext4");
    mode.mode = CSI__V1__VOLUME_CAPABILITY__ACCESS_MODE__MODE__SINGLE_NODE_SINGLE_WRITER;
    make_image("v", 64 * MIB);
    OK(publish_volume("v", "stage", "target"));
    OK(publish_volume("v", "stage", "target"));
    assert_int_equal(publish_volume("v", "stage", "target-2"), -ERR_IN_USE);
    assert_false(exists("target-2"));
    OK(unpublish_volume("v", "target"));
    OK(publish_volume("v", "stage", "target-2"));
}

static void test_stats(void **state) {
    (void)state;
    NEED_ROOT();
    want("ext4");
    make_image("v", 64 * MIB);
    OK(publish_volume("v", "stage", "target"));
    Csi__V1__NodeGetVolumeStatsResponse *stats;
    OK(volume_stats("v", path_of("target"), &stats));
    assert_int_equal(stats->n_usage, 2);
    assert_int_equal(stats->usage[0]->unit, CSI__V1__VOLUME_USAGE__UNIT__BYTES);
    assert_int_equal(stats->usage[0]->total, fs_size("target"));
    assert_int_equal(stats->usage[1]->unit, CSI__V1__VOLUME_USAGE__UNIT__INODES);
    assert_true(stats->volume_condition->abnormal);
    assert_string_equal(stats->volume_condition->message, "the object store does not answer");
    assert_int_equal(volume_stats("v", "some/path", &stats), -ERR_NOT_FOUND);
    assert_int_equal(volume_stats("v", "/", &stats), -ERR_NOT_FOUND);
    assert_int_equal(volume_stats("other", path_of("target"), &stats), -ERR_NOT_FOUND);
    assert_int_equal(volume_stats("v", "", &stats), -ERR_INVALID);
}

static void test_bad_requests(void **state) {
    (void)state;
    want("ext4");
    assert_int_equal(stage_volume("", "stage"), -ERR_INVALID);
    assert_int_equal(stage_volume("v", "a/../b"), -ERR_INVALID);
    assert_int_equal(stage_volume("v", "stage"), -ERR_NOT_FOUND); /* says the agent */
    epoch = "";
    assert_int_equal(stage_volume("v", "stage"), -ERR_INVALID);
    assert_non_null(strstr(f.e.text, "publishEpoch"));
    epoch = "4294967296";
    assert_int_equal(stage_volume("v", "stage"), -ERR_INVALID);
    want("ext4");
    disk_cache = "some";
    assert_int_equal(stage_volume("v", "stage"), -ERR_INVALID);
    assert_non_null(strstr(f.e.text, "diskCacheSize"));
    want("ntfs");
    assert_int_equal(stage_volume("v", "stage"), -ERR_INVALID);
    want("ext4");
    char *flags[] = {(char *)"noatime", (char *)"bad\nflag"};
    mount_volume.mount_flags = flags;
    mount_volume.n_mount_flags = 2;
    assert_int_equal(stage_volume("v", "stage"), -ERR_INVALID);
}

static void test_mount_flags(void **state) {
    (void)state;
    NEED_ROOT();
    want("ext4");
    make_image("v", 64 * MIB);
    char *flags[] = {(char *)"noatime", (char *)"commit=7"};
    mount_volume.mount_flags = flags;
    mount_volume.n_mount_flags = 2;
    OK(stage_volume("v", "stage"));
    run("grep ' %s ' /proc/mounts | grep noatime | grep -q commit=7", path_of("stage"));
}

static void test_agent(void **state) {
    (void)state;
    Csi__V1__NodeGetInfoRequest r = CSI__V1__NODE_GET_INFO_REQUEST__INIT;
    Csi__V1__NodeGetInfoResponse *response;
    struct rpc_client_call call = how();
    OK(took_turns(csi_node_node_get_info(&call, &r, &response, &f.e)));
    assert_string_equal(response->node_id, "node-1");
    assert_int_equal(response->max_volumes_per_node, 9);

    want("ext4");
    f.agent_version = "2.0.0";
    assert_int_equal(stage_volume("v", "stage"), -ERR_IN_USE); /* FAILED_PRECONDITION */
    assert_non_null(strstr(f.e.text, "2.0.0"));
    stop_agent();
    assert_int_equal(stage_volume("v", "stage"), -ERR_TRANSIENT);
    assert_int_equal(unstage_volume("v", "stage"), -ERR_TRANSIENT);
    OK(unpublish_volume("v", "target")); /* needs no agent */
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        TEST(test_life_ext4),
        TEST(test_life_xfs),
        TEST(test_life_block),
        TEST(test_publish_stages),
        TEST(test_mounts_of_another_device_are_replaced),
        TEST(test_half_done),
        TEST(test_data_at_the_target_is_not_removed),
        TEST(test_what_is_not_formatted),
        TEST(test_restore_ext4),
        TEST(test_restore_xfs),
        TEST(test_expand_online),
        TEST(test_read_only),
        TEST(test_single_writer),
        TEST(test_stats),
        TEST(test_bad_requests),
        TEST(test_mount_flags),
        TEST(test_agent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
