/* One operation at a time: who waits, who is told to come again, and what they are told. */
#include "tests/support/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/mem.h"
#include "csi/oplock.h"
#include "csi/rpc/csi_service.h"
#include "tests/support/temp.h"

static struct {
    char *folder, *socket;
    struct rpc_server *server;
    struct rpc_client *client;
    struct oplocks *locks;
    atomic_int inside, most, done;
    atomic_uint hold_ms;
} f;

static void hold(void) {
    int now = atomic_fetch_add(&f.inside, 1) + 1;
    if (now > atomic_load(&f.most))
        atomic_store(&f.most, now);
    usleep(atomic_load(&f.hold_ms) * 1000);
    atomic_fetch_sub(&f.inside, 1);
    atomic_fetch_add(&f.done, 1);
}

static int locked(struct rpc_call *call, const char *key, const ProtobufCMessage *request,
                  struct err *e) {
    CLEANUP_OPLOCK struct oplock *lock = NULL;
    int rc = oplock_acquire(f.locks, key, call, request, &lock, e);
    if (rc == 0)
        hold();
    return rc;
}

static int handle_delete(struct rpc_call *call, const Csi__V1__DeleteVolumeRequest *request,
                         Csi__V1__DeleteVolumeResponse *response, struct err *e) {
    (void)response;
    return locked(call, request->volume_id, &request->base, e);
}

static int handle_get(struct rpc_call *call, const Csi__V1__ControllerGetVolumeRequest *request,
                      Csi__V1__ControllerGetVolumeResponse *response, struct err *e) {
    (void)response;
    return locked(call, request->volume_id, &request->base, e);
}

static const struct csi_controller_ops ops = {.delete_volume = handle_delete,
                                              .controller_get_volume = handle_get};

static int set_up(void **state) {
    (void)state;
    struct err e;
    f.folder = temp_folder_new();
    f.socket = xasprintf("%s/x.sock", f.folder);
    f.locks = oplocks_new();
    f.server = rpc_server_new(&(struct rpc_server_config){.endpoint = f.socket});
    rpc_server_add_csi_controller(f.server, &ops, NULL);
    return rpc_server_start(f.server, &e) || rpc_client_new(f.socket, &f.client, &e);
}

static int tear_down(void **state) {
    (void)state;
    struct err e;
    rpc_client_free(f.client);
    int rc = rpc_server_stop(f.server, 1000, 10000, &e);
    rpc_server_free(f.server);
    oplocks_free(f.locks); /* CHECKs that nothing is held */
    free(f.socket);
    temp_folder_free(f.folder);
    return rc;
}

struct caller {
    const char *key;
    bool get; /* another method */
    uint32_t timeout_ms;
    pthread_t thread;
    int rc;
    struct err e;
};

static void *caller_main(void *arg) {
    struct caller *c = arg;
    CLEANUP_ARENA struct arena arena;
    arena_init(&arena, 1 << 20);
    struct rpc_client_call how = {.client = f.client, .timeout_ms = c->timeout_ms, .arena = &arena};
    if (c->get) {
        Csi__V1__ControllerGetVolumeRequest r = CSI__V1__CONTROLLER_GET_VOLUME_REQUEST__INIT;
        Csi__V1__ControllerGetVolumeResponse *response;
        r.volume_id = (char *)c->key;
        c->rc = csi_controller_controller_get_volume(&how, &r, &response, &c->e);
    } else {
        Csi__V1__DeleteVolumeRequest r = CSI__V1__DELETE_VOLUME_REQUEST__INIT;
        Csi__V1__DeleteVolumeResponse *response;
        r.volume_id = (char *)c->key;
        c->rc = csi_controller_delete_volume(&how, &r, &response, &c->e);
    }
    return NULL;
}

static void go(struct caller *callers, size_t count) {
    atomic_store(&f.most, 0);
    atomic_store(&f.done, 0);
    for (size_t i = 0; i < count; i++) {
        pthread_create(&callers[i].thread, NULL, caller_main, &callers[i]);
        if (i == 0)
            while (atomic_load(&f.inside) == 0 && atomic_load(&f.done) == 0)
                usleep(1000);
    }
    for (size_t i = 0; i < count; i++)
        pthread_join(callers[i].thread, NULL);
}

static void test_one_at_a_time(void **state) {
    (void)state;
    atomic_store(&f.hold_ms, 50);
    struct caller callers[4] = {
        {.key = "a"}, {.key = "a"}, {.key = "a", .get = true}, {.key = "a"}};
    go(callers, ARRAY_LEN(callers));
    for (size_t i = 0; i < ARRAY_LEN(callers); i++)
        assert_int_equal(callers[i].rc, 0);
    assert_int_equal(atomic_load(&f.most), 1);
    assert_int_equal(atomic_load(&f.done), 4);
}

static void test_different_volumes_do_not_wait(void **state) {
    (void)state;
    atomic_store(&f.hold_ms, 300);
    struct caller callers[3] = {{.key = "a"}, {.key = "b"}, {.key = "c"}};
    go(callers, ARRAY_LEN(callers));
    assert_int_equal(atomic_load(&f.most), 3);
}

/* An equal call is answered before its own deadline, with a code that means "come again". */
static void test_equal_call_near_its_deadline(void **state) {
    (void)state;
    atomic_store(&f.hold_ms, 2500);
    struct caller callers[2] = {{.key = "a"}, {.key = "a", .timeout_ms = 1500}};
    go(callers, ARRAY_LEN(callers));
    assert_int_equal(callers[0].rc, 0);
    assert_int_equal(callers[1].rc, -ERR_BUSY);
    assert_non_null(strstr(callers[1].e.text, "DeleteVolume for it is under way"));
}

static void test_other_call_waits_a_moment_only(void **state) {
    (void)state;
    atomic_store(&f.hold_ms, OPLOCK_OTHER_WAIT_MS + 1500);
    struct caller callers[2] = {{.key = "a"}, {.key = "a", .get = true}};
    go(callers, ARRAY_LEN(callers));
    assert_int_equal(callers[0].rc, 0);
    assert_int_equal(callers[1].rc, -ERR_BUSY);
}

static void test_waiters_are_bounded(void **state) {
    (void)state;
    atomic_store(&f.hold_ms, 400);
    struct caller callers[OPLOCK_WAITERS_MAX + 4];
    for (size_t i = 0; i < ARRAY_LEN(callers); i++)
        callers[i] = (struct caller){.key = "a"};
    go(callers, ARRAY_LEN(callers));
    int busy = 0;
    for (size_t i = 0; i < ARRAY_LEN(callers); i++)
        busy += callers[i].rc == -ERR_BUSY;
    assert_int_equal(busy, 3);
    assert_int_equal(atomic_load(&f.done), OPLOCK_WAITERS_MAX + 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_at_a_time),
        cmocka_unit_test(test_different_volumes_do_not_wait),
        cmocka_unit_test(test_equal_call_near_its_deadline),
        cmocka_unit_test(test_other_call_waits_a_moment_only),
        cmocka_unit_test(test_waiters_are_bounded),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
