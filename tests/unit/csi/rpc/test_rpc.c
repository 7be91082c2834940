/* Server and client of csi/rpc against each other, on a real socket. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/buf.h"
#include "csi/rpc/csi_service.h"

static char folder[64];
static char socket_path[96];

/* --- a small service --- */

struct fake {
    atomic_int running;
    atomic_int cancelled;
};

static int fake_plugin_info(struct rpc_call *call, const Csi__V1__GetPluginInfoRequest *request,
                            Csi__V1__GetPluginInfoResponse *response, struct err *e) {
    (void)request;
    (void)e;
    response->name = rpc_printf(call, "fake-%d", 7);
    response->vendor_version = rpc_strdup(call, rpc_call_method(call));
    return 0;
}

/* The volume's id says what is to happen. */
static int fake_delete(struct rpc_call *call, const Csi__V1__DeleteVolumeRequest *request,
                       Csi__V1__DeleteVolumeResponse *response, struct err *e) {
    (void)response;
    struct fake *fake = rpc_call_user(call);
    const char *id = request->volume_id;
    if (strcmp(id, "missing") == 0)
        return err_set(e, -ERR_NOT_FOUND, "no volume '%s'", id);
    if (strcmp(id, "broken-text") == 0)
        return err_set(e, -ERR_IO, "mkfs said \xff\xc3 and \xc3\xa9");
    if (strcmp(id, "sleep") == 0 || strcmp(id, "wait") == 0) {
        atomic_fetch_add(&fake->running, 1);
        struct pollfd fd = {.fd = rpc_call_cancel_fd(call), .events = POLLIN};
        int n = poll(&fd, 1, strcmp(id, "sleep") == 0 ? 150 : 10000);
        if (n == 1 && rpc_call_cancelled(call))
            atomic_fetch_add(&fake->cancelled, 1);
        atomic_fetch_sub(&fake->running, 1);
        return n == 1 ? err_set(e, -ERR_CANCELLED, "given up") : 0;
    }
    if (strcmp(id, "stuck") == 0)
        usleep(700 * 1000);
    return 0;
}

static int fake_list(struct rpc_call *call, const Csi__V1__ListVolumesRequest *request,
                     Csi__V1__ListVolumesResponse *response, struct err *e) {
    (void)e;
    size_t count = (size_t)request->max_entries;
    response->entries = RPC_NEW_ARRAY(call, Csi__V1__ListVolumesResponse__Entry *, count);
    response->n_entries = response->entries ? count : 0;
    for (size_t i = 0; i < response->n_entries; i++) {
        Csi__V1__ListVolumesResponse__Entry *entry = RPC_NEW(
            call, Csi__V1__ListVolumesResponse__Entry, csi__v1__list_volumes_response__entry__init);
        response->entries[i] = entry;
        if (!entry)
            continue;
        entry->volume = RPC_NEW(call, Csi__V1__Volume, csi__v1__volume__init);
        if (entry->volume)
            entry->volume->volume_id = rpc_printf(call, "volume-%0100zu", i);
    }
    return 0;
}

static const struct csi_identity_ops identity = {.get_plugin_info = fake_plugin_info};
static const struct csi_controller_ops controller = {.delete_volume = fake_delete,
                                                     .list_volumes = fake_list};

static struct rpc_server *start(struct fake *fake, const struct rpc_server_config *extra) {
    struct rpc_server_config config = extra ? *extra : (struct rpc_server_config){0};
    config.endpoint = socket_path;
    struct rpc_server *s = rpc_server_new(&config);
    rpc_server_add_csi_identity(s, &identity, fake);
    rpc_server_add_csi_controller(s, &controller, fake);
    struct err e;
    assert_int_equal(rpc_server_start(s, &e), 0);
    return s;
}

static void stop(struct rpc_server *s) {
    struct err e;
    assert_int_equal(rpc_server_stop(s, 1000, 5000, &e), 0);
    rpc_server_free(s);
}

static struct rpc_client *client_new(void) {
    struct rpc_client *c;
    struct err e;
    assert_int_equal(rpc_client_new(socket_path, &c, &e), 0);
    return c;
}

static int delete_volume(struct rpc_client *client, const char *id, uint32_t timeout_ms,
                         struct err *e) {
    CLEANUP_ARENA struct arena arena;
    arena_init(&arena, 1 << 20);
    Csi__V1__DeleteVolumeRequest request = CSI__V1__DELETE_VOLUME_REQUEST__INIT;
    request.volume_id = (char *)id;
    Csi__V1__DeleteVolumeResponse *response;
    return csi_controller_delete_volume(
        &(struct rpc_client_call){.client = client, .timeout_ms = timeout_ms, .arena = &arena},
        &request, &response, e);
}

/* --- tests --- */

static void test_call_and_answer(void **state) {
    (void)state;
    struct fake fake = {0};
    struct rpc_server *s = start(&fake, NULL);
    struct rpc_client *c = client_new();
    CLEANUP_ARENA struct arena arena;
    arena_init(&arena, 1 << 20);
    struct rpc_client_call how = {.client = c, .timeout_ms = 5000, .arena = &arena};
    Csi__V1__GetPluginInfoRequest request = CSI__V1__GET_PLUGIN_INFO_REQUEST__INIT;
    Csi__V1__GetPluginInfoResponse *response;
    struct err e = {0};
    assert_int_equal(csi_identity_get_plugin_info(&how, &request, &response, &e), 0);
    assert_string_equal(response->name, "fake-7");
    assert_string_equal(response->vendor_version, "/csi.v1.Identity/GetPluginInfo");

    Csi__V1__ProbeRequest probe = CSI__V1__PROBE_REQUEST__INIT;
    Csi__V1__ProbeResponse *probed;
    assert_int_equal(csi_identity_probe(&how, &probe, &probed, &e), -ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "/csi.v1.Identity/Probe"));
    rpc_client_free(c);
    stop(s);
}

static void test_errors_travel(void **state) {
    (void)state;
    struct fake fake = {0};
    struct rpc_server *s = start(&fake, NULL);
    struct rpc_client *c = client_new();
    struct err e = {0};
    assert_int_equal(delete_volume(c, "there", 5000, &e), 0);
    assert_int_equal(delete_volume(c, "missing", 5000, &e), -ERR_NOT_FOUND);
    assert_string_equal(e.text, "DeleteVolume: no volume 'missing'");
    assert_int_equal(delete_volume(c, "broken-text", 5000, &e), -ERR_IO);
    assert_string_equal(e.text, "DeleteVolume: mkfs said ?? and \xc3\xa9");
    rpc_client_free(c);
    stop(s);
}

static void test_no_server(void **state) {
    (void)state;
    struct rpc_client *c = client_new();
    struct err e = {0};
    assert_int_equal(delete_volume(c, "there", 2000, &e), -ERR_TRANSIENT);
    struct fake fake = {0};
    struct rpc_server *s = start(&fake, NULL);
    int rc = -1;
    for (int i = 0; i < 100 && rc != 0; i++) { /* the channel reconnects by itself */
        rc = delete_volume(c, "there", 2000, &e);
        usleep(50 * 1000);
    }
    assert_int_equal(rc, 0);
    rpc_client_free(c);
    stop(s);
}

static void test_deadline_and_cancel(void **state) {
    (void)state;
    struct fake fake = {0};
    struct rpc_server *s = start(&fake, NULL);
    struct rpc_client *c = client_new();
    struct err e = {0};
    assert_int_equal(delete_volume(c, "wait", 100, &e), -ERR_TIMEOUT);
    for (int i = 0; i < 200 && atomic_load(&fake.cancelled) == 0; i++)
        usleep(10 * 1000);
    assert_int_equal(atomic_load(&fake.cancelled), 1);
    rpc_client_free(c);
    stop(s);
}

static void test_response_limits(void **state) {
    (void)state;
    struct fake fake = {0};
    struct rpc_server *s = start(&fake, NULL);
    struct rpc_client *c = client_new();
    static const struct {
        int count, want;
    } cases[] = {{1000, 0}, {50000, -ERR_OVERLOAD}, {200000, -ERR_OVERLOAD}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP_ARENA struct arena arena;
        arena_init(&arena, 64 << 20);
        struct rpc_client_call how = {.client = c, .timeout_ms = 20000, .arena = &arena};
        Csi__V1__ListVolumesRequest request = CSI__V1__LIST_VOLUMES_REQUEST__INIT;
        request.max_entries = cases[i].count;
        Csi__V1__ListVolumesResponse *response;
        struct err e = {0};
        assert_int_equal(csi_controller_list_volumes(&how, &request, &response, &e), cases[i].want);
        if (cases[i].want == 0)
            assert_int_equal(response->n_entries, cases[i].count);
    }
    rpc_client_free(c);
    stop(s);
}

static void *sleeper(void *arg) {
    struct err e = {0};
    return (void *)(intptr_t)delete_volume(arg, "sleep", 10000, &e);
}

static void test_stop_waits_for_calls(void **state) {
    (void)state;
    struct fake fake = {0};
    struct rpc_server *s = start(&fake, &(struct rpc_server_config){.workers = 2});
    struct rpc_client *c = client_new();
    pthread_t threads[6];
    for (size_t i = 0; i < ARRAY_LEN(threads); i++)
        pthread_create(&threads[i], NULL, sleeper, c);
    while (atomic_load(&fake.running) < 2)
        usleep(1000);
    usleep(50 * 1000); /* the others are queued */
    stop(s);
    for (size_t i = 0; i < ARRAY_LEN(threads); i++) {
        void *rc;
        pthread_join(threads[i], &rc);
        assert_int_equal((intptr_t)rc, 0);
    }
    rpc_client_free(c);
}

/* With every worker busy, and more calls waiting, a health check is still answered. */
static void test_quick_calls_pass(void **state) {
    (void)state;
    struct fake fake = {0};
    struct rpc_server *s =
        rpc_server_new(&(struct rpc_server_config){.endpoint = socket_path, .workers = 1});
    rpc_server_add_csi_identity(s, &identity, &fake);
    rpc_server_add_csi_controller(s, &controller, &fake);
    rpc_server_mark_quick(s, &csi__v1__identity__descriptor);
    struct err e = {0};
    assert_int_equal(rpc_server_start(s, &e), 0);
    struct rpc_client *c = client_new();
    pthread_t threads[8];
    for (size_t i = 0; i < ARRAY_LEN(threads); i++)
        pthread_create(&threads[i], NULL, sleeper, c);
    while (atomic_load(&fake.running) < 1)
        usleep(1000);
    CLEANUP_ARENA struct arena arena;
    arena_init(&arena, 1 << 20);
    struct rpc_client_call how = {.client = c, .timeout_ms = 5000, .arena = &arena};
    Csi__V1__GetPluginInfoRequest request = CSI__V1__GET_PLUGIN_INFO_REQUEST__INIT;
    Csi__V1__GetPluginInfoResponse *response;
    assert_int_equal(csi_identity_get_plugin_info(&how, &request, &response, &e), 0);
    assert_int_equal(atomic_load(&fake.running), 1); /* the others still wait */
    for (size_t i = 0; i < ARRAY_LEN(threads); i++)
        pthread_join(threads[i], NULL);
    rpc_client_free(c);
    stop(s);
}

static void *waiter(void *arg) {
    struct err e = {0};
    return (void *)(intptr_t)delete_volume(arg, "wait", 0, &e);
}

static void test_stop_cancels_after_grace(void **state) {
    (void)state;
    struct fake fake = {0};
    struct rpc_server *s = start(&fake, NULL);
    struct rpc_client *c = client_new();
    pthread_t thread;
    pthread_create(&thread, NULL, waiter, c);
    while (atomic_load(&fake.running) < 1)
        usleep(1000);
    struct err e;
    assert_int_equal(rpc_server_stop(s, 50, 5000, &e), 0);
    rpc_server_free(s);
    void *rc;
    pthread_join(thread, &rc);
    assert_true((intptr_t)rc != 0);
    assert_int_equal(atomic_load(&fake.cancelled), 1);
    rpc_client_free(c);
}

static void test_socket(void **state) {
    (void)state;
    struct fake fake = {0};
    struct rpc_server *s = start(&fake, NULL);
    struct stat st;
    assert_int_equal(stat(socket_path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);

    struct rpc_server *second =
        rpc_server_new(&(struct rpc_server_config){.endpoint = socket_path});
    struct err e;
    assert_int_equal(rpc_server_start(second, &e), -ERR_IN_USE);
    rpc_server_free(second);
    stop(s);
    assert_int_equal(stat(socket_path, &st), -1);

    /* What a killed process leaves is taken over. */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(addr.sun_path, socket_path);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    close(fd);
    s = start(&fake, NULL);
    /* A successor's socket stays. */
    assert_int_equal(unlink(socket_path), 0);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    stop(s);
    assert_int_equal(stat(socket_path, &st), 0);
    close(fd);
    unlink(socket_path);

    /* Anything else than a socket stays, too. */
    fd = open(socket_path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    s = rpc_server_new(&(struct rpc_server_config){.endpoint = socket_path});
    assert_int_equal(rpc_server_start(s, &e), -ERR_CONFIG);
    rpc_server_free(s);
    unlink(socket_path);
}

static void test_endpoints(void **state) {
    (void)state;
    static const char *const bad[] = {"", "x.sock", "tcp://127.0.0.1:1", "unix://x.sock", "unix:"};
    struct err e;
    struct rpc_client *c;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(rpc_client_new(bad[i], &c, &e), -ERR_INVALID);
    static const char *const good[] = {"unix:///a/b.sock", "unix:/a/b.sock", "/a/b.sock"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        assert_int_equal(rpc_client_new(good[i], &c, &e), 0);
        rpc_client_free(c);
    }
}

static void test_codes_round_trip(void **state) {
    (void)state;
    assert_int_equal(rpc_err_from_code(0), 0);
    assert_int_equal(rpc_err_from_code(99), -ERR_IO);
    assert_int_equal(rpc_err_from_code(-1), -ERR_IO);
    static const int same[] = {1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (size_t i = 0; i < ARRAY_LEN(same); i++)
        assert_int_equal(err_to_grpc(rpc_err_from_code(same[i])), same[i]);
}

static void test_dump_leaves_secrets_out(void **state) {
    (void)state;
    Csi__V1__DeleteVolumeRequest__SecretsEntry secret =
        CSI__V1__DELETE_VOLUME_REQUEST__SECRETS_ENTRY__INIT;
    secret.key = (char *)"key";
    secret.value = (char *)"hunter2";
    Csi__V1__DeleteVolumeRequest__SecretsEntry *secrets[] = {&secret};
    Csi__V1__DeleteVolumeRequest request = CSI__V1__DELETE_VOLUME_REQUEST__INIT;
    request.volume_id = (char *)"pv-\"1\"\n";
    request.secrets = secrets;
    request.n_secrets = 1;
    CLEANUP_BUF struct buf text = {0};
    rpc_dump(&text, &request.base, 1000);
    assert_string_equal(buf_cstr(&text),
                        "{\"volume_id\":\"pv-\\\"1\\\"\\u000a\",\"secrets\":\"***\"}");
    buf_clear(&text);
    rpc_dump(&text, &request.base, 16);
    assert_true(text.len <= 16);
}

static int set_up(void **state) {
    (void)state;
    strcpy(folder, "/tmp/portalbd-rpc-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(socket_path, sizeof socket_path, "%s/x.sock", folder);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    unlink(socket_path);
    return rmdir(folder); /* no other file next to the socket */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_call_and_answer),  cmocka_unit_test(test_errors_travel),
        cmocka_unit_test(test_no_server),        cmocka_unit_test(test_deadline_and_cancel),
        cmocka_unit_test(test_response_limits),  cmocka_unit_test(test_stop_waits_for_calls),
        cmocka_unit_test(test_quick_calls_pass), cmocka_unit_test(test_stop_cancels_after_grace),
        cmocka_unit_test(test_socket),           cmocka_unit_test(test_endpoints),
        cmocka_unit_test(test_codes_round_trip), cmocka_unit_test(test_dump_leaves_secrets_out),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
