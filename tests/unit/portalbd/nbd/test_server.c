/* The server over socket pairs: what other people's clients do not show (draining, adopted
 * connections, a device that is fenced, ends while requests are under way). */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/fiber.h"
#include "portalbd/blockdev/delay.h"
#include "portalbd/blockdev/fault.h"
#include "portalbd/nbd/protocol.h"
#include "portalbd/nbd/server.h"
#include "tests/support/memory_blockdev.h"

enum { SIZE = 1 << 20, SLOW_US = 100 * 1000 };

/* Keeps requests until it is opened, and says how many. */
struct gate {
    struct blockdev dev;
    struct blockdev *below;
    bool shut;
    struct list_node held; /* struct bd_request */
    size_t count;
    struct waitq changed;
};

struct fixture {
    struct loop *loop;
    struct nbd_server *server;
    struct gate gate;
    struct blockdev *fault;
    struct nbd_exports exports;
    int fd;   /* the client's end */
    int peer; /* the server's end, until it has it */
    bool adopt;
    unsigned opened, closed;
    struct nbd_lookup *lookup;
    struct env_event event;
    bool flag;
    struct waitq waiters;
};

/* --- the gate --- */

static bool gate_submit(struct blockdev *dev, struct bd_request *req) {
    struct gate *g = container_of(dev, struct gate, dev);
    if (!g->shut)
        return bd_submit(g->below, req);
    list_push_back(&g->held, &req->node);
    g->count++;
    waitq_wake_all(&g->changed);
    return false;
}

static uint64_t gate_size_bytes(struct blockdev *dev) {
    return bd_size_bytes(container_of(dev, struct gate, dev)->below);
}

static void gate_close(struct blockdev *dev) {
    struct gate *g = container_of(dev, struct gate, dev);
    CHECK(g->count == 0);
    g->below->ops->close(g->below);
}

static const struct blockdev_ops gate_ops = {
    .submit = gate_submit, .size_bytes = gate_size_bytes, .close = gate_close};

static void gate_init(struct gate *g, struct blockdev *below) {
    *g = (struct gate){.dev = *below, .below = below};
    g->dev.ops = &gate_ops;
    list_init(&g->held);
    waitq_init(&g->changed);
}

/* --- an exporter that counts --- */

static void on_answer(struct env_event *event) {
    struct fixture *f = container_of(event, struct fixture, event);
    f->lookup->done(f->lookup);
}

static void op_open(struct nbd_exports *x, struct nbd_lookup *l) {
    struct fixture *f = container_of(x, struct fixture, exports);
    l->rc = 0;
    l->dev = &f->gate.dev;
    l->handle = f;
    f->opened++;
    f->lookup = l;
    f->event.fn = on_answer;
    env_post(loop_env(f->loop), &f->event);
}

static void op_close(struct nbd_exports *x, void *handle) {
    (void)x;
    ((struct fixture *)handle)->closed++;
}

static const struct nbd_exports_ops ops = {.open = op_open, .close = op_close};

/* --- set up, tear down --- */

static void start_fiber(void *arg) {
    struct fixture *f = arg;
    struct err e;
    waitq_init(&f->waiters);
    f->fault = bd_fault_open(memory_blockdev_open(SIZE));
    gate_init(&f->gate, bd_delay_open(f->fault, loop_env(f->loop), SLOW_US, SLOW_US));
    f->server =
        nbd_server_new(&(struct nbd_server_config){.loop = f->loop, .exports = &f->exports});
    CHECK((f->adopt ? nbd_server_adopt(f->server, f->peer, &f->gate.dev, &e)
                    : nbd_server_serve(f->server, f->peer, &e)) == 0);
}

static struct fixture *start(bool adopt) {
    struct fixture *f = NEW(struct fixture);
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct timeval timeout = {.tv_sec = 10};
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    f->fd = pair[0];
    f->peer = pair[1];
    f->adopt = adopt;
    f->exports.ops = &ops;
    f->loop = loop_new(1);
    loop_thread_start(f->loop, "server");
    loop_call(f->loop, start_fiber, f);
    return f;
}

static void on_flag(void *arg) {
    struct fixture *f = arg;
    f->flag = true;
    waitq_wake_all(&f->waiters);
}

static void await_flag(struct fixture *f) {
    while (!f->flag)
        CHECK(waitq_wait(loop_env(f->loop), &f->waiters) == 0);
    f->flag = false;
}

static void stop_fiber(void *arg) {
    struct fixture *f = arg;
    nbd_server_close(f->server, on_flag, f);
    await_flag(f);
    f->gate.dev.ops->close(&f->gate.dev);
}

static void stop(struct fixture *f) {
    loop_call(f->loop, stop_fiber, f);
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    assert_int_equal(f->opened, f->closed);
    if (f->fd >= 0)
        close(f->fd);
    free(f);
}

static void drain_fiber(void *arg) {
    struct fixture *f = arg;
    nbd_server_drain(f->server, on_flag, f);
}

static void await_fiber(void *arg) {
    await_flag(arg);
}

static void shut_fiber(void *arg) {
    ((struct fixture *)arg)->gate.shut = true;
}

static void await_held_fiber(void *arg) {
    struct fixture *f = arg;
    while (f->gate.count == 0)
        CHECK(waitq_wait(loop_env(f->loop), &f->gate.changed) == 0);
}

static void open_fiber(void *arg) {
    struct gate *g = &((struct fixture *)arg)->gate;
    g->shut = false;
    for (struct list_node *n; (n = list_pop_front(&g->held));) {
        struct bd_request *req = list_entry(n, struct bd_request, node);
        g->count--;
        if (bd_submit(g->below, req))
            req->done(req);
    }
}

static void not_drained_fiber(void *arg) {
    CHECK(!((struct fixture *)arg)->flag);
}

/* --- the client's side --- */

static void say(struct fixture *f, const void *data, size_t len) {
    assert_int_equal(send(f->fd, data, len, MSG_NOSIGNAL), (ssize_t)len);
}

static void hear(struct fixture *f, void *data, size_t len) {
    for (size_t n = 0; n < len;) {
        ssize_t got = recv(f->fd, (uint8_t *)data + n, len - n, 0);
        assert_true(got > 0);
        n += (size_t)got;
    }
}

static bool hears_end(struct fixture *f) {
    uint8_t byte;
    return recv(f->fd, &byte, 1, 0) == 0;
}

static void handshake(struct fixture *f) {
    uint8_t b[32] = {0};
    hear(f, b, NBD_GREETING_SIZE);
    store_be32(b, 3);
    store_be64(b + 4, NBD_OPTION_MAGIC);
    store_be32(b + 12, NBD_OPT_EXPORT_NAME);
    store_be32(b + 16, 0);
    say(f, b, 20);
    hear(f, b, 10);
}

static void request(struct fixture *f, uint16_t type, uint64_t cookie, uint64_t off, uint32_t len) {
    uint8_t b[NBD_REQUEST_SIZE];
    store_be32(b, NBD_REQUEST_MAGIC);
    store_be16(b + 4, 0);
    store_be16(b + 6, type);
    store_be64(b + 8, cookie);
    store_be64(b + 16, off);
    store_be32(b + 24, len);
    say(f, b, sizeof b);
}

/* The errno of the reply, which must have this cookie. */
static uint32_t reply(struct fixture *f, uint64_t cookie) {
    uint8_t b[NBD_SIMPLE_REPLY_SIZE];
    hear(f, b, sizeof b);
    assert_int_equal(load_be32(b), NBD_SIMPLE_REPLY_MAGIC);
    assert_true(load_be64(b + 8) == cookie);
    return load_be32(b + 4);
}

/* --- tests --- */

static void test_drain_finishes_and_refuses(void **state) {
    (void)state;
    struct fixture *f = start(false);
    uint8_t data[512];
    handshake(f);
    loop_call(f->loop, shut_fiber, f);
    request(f, NBD_CMD_READ, 1, 0, 512);
    loop_call(f->loop, await_held_fiber, f);
    loop_call(f->loop, drain_fiber, f);
    request(f, NBD_CMD_READ, 2, 0, 512);
    assert_int_equal(reply(f, 2), NBD_ESHUTDOWN);
    loop_call(f->loop, not_drained_fiber, f);
    loop_call(f->loop, open_fiber, f);
    assert_int_equal(reply(f, 1), 0);
    hear(f, data, 512);
    loop_call(f->loop, await_fiber, f);
    request(f, NBD_CMD_DISC, 3, 0, 0);
    assert_true(hears_end(f));
    stop(f);
}

/* The kernel sends again on the next socket what this one leaves unread. */
static void test_drain_leaves_adopted_unread(void **state) {
    (void)state;
    struct fixture *f = start(true);
    uint8_t data[512];
    int unread = 0;
    loop_call(f->loop, shut_fiber, f);
    request(f, NBD_CMD_READ, 1, 0, 512);
    loop_call(f->loop, await_held_fiber, f);
    loop_call(f->loop, drain_fiber, f);
    request(f, NBD_CMD_READ, 2, 0, 512);
    loop_call(f->loop, not_drained_fiber, f);
    loop_call(f->loop, open_fiber, f);
    assert_int_equal(reply(f, 1), 0);
    hear(f, data, 512);
    loop_call(f->loop, await_fiber, f);
    assert_int_equal(recv(f->fd, data, 1, MSG_DONTWAIT), -1);
    assert_int_equal(ioctl(f->peer, FIONREAD, &unread), 0); /* the server has it still */
    assert_int_equal(unread, NBD_REQUEST_SIZE);
    stop(f);
}

/* Nothing is under way: drained at once. */
static void test_drain_idle(void **state) {
    (void)state;
    struct fixture *f = start(false);
    loop_call(f->loop, drain_fiber, f);
    loop_call(f->loop, await_fiber, f);
    uint8_t greeting[64];
    while (recv(f->fd, greeting, sizeof greeting, 0) > 0) { /* the handshake was cut off */
    }
    stop(f);
}

struct arm {
    struct fixture *f;
    int rc;
};

static void arm_fiber(void *arg) {
    struct arm *a = arg;
    bd_fault_arm(a->f->fault, BD_FLUSH, 1, a->rc, false);
}

static void test_fenced_disconnects(void **state) {
    (void)state;
    struct fixture *f = start(false);
    handshake(f);
    request(f, NBD_CMD_FLUSH, 1, 0, 0);
    assert_int_equal(reply(f, 1), 0);
    struct arm a = {f, -ERR_FENCED};
    loop_call(f->loop, arm_fiber, &a);
    request(f, NBD_CMD_FLUSH, 2, 0, 0);
    assert_int_equal(reply(f, 2), NBD_ESHUTDOWN);
    assert_true(hears_end(f));
    stop(f);
}

static void test_errors_pass(void **state) {
    (void)state;
    static const struct {
        int rc;
        uint32_t nbd_errno;
    } cases[] = {{-ERR_CORRUPT, 5}, {-ERR_IO, 5}, {-ERR_UNSUPPORTED, 22}, {-ERR_SHUTDOWN, 108}};
    struct fixture *f = start(false);
    handshake(f);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct arm a = {f, cases[i].rc};
        loop_call(f->loop, arm_fiber, &a);
        request(f, NBD_CMD_FLUSH, i, 0, 0);
        assert_int_equal(reply(f, i), cases[i].nbd_errno);
    }
    stop(f);
}

/* The client goes, the server closes, while requests are with the device and a payload is half
 * there. */
static void test_ends_under_load(void **state) {
    (void)state;
    for (unsigned how = 0; how < 3; how++) {
        struct fixture *f = start(how == 2);
        uint8_t payload[4096] = {0};
        if (how != 2)
            handshake(f);
        for (unsigned i = 0; i < 200; i++) /* more than may be under way */
            request(f, NBD_CMD_READ, i, 0, 4096);
        request(f, NBD_CMD_WRITE, 1000, 0, 4096);
        say(f, payload, 100);
        usleep(how * 10000);
        if (how == 0) {
            close(f->fd);
            f->fd = -1;
        }
        stop(f);
    }
}

/* A client that only shuts its sending side still gets its answers. */
static void test_half_close(void **state) {
    (void)state;
    struct fixture *f = start(false);
    uint8_t data[512];
    handshake(f);
    request(f, NBD_CMD_READ, 1, 0, 512);
    shutdown(f->fd, SHUT_WR);
    assert_int_equal(reply(f, 1), 0);
    hear(f, data, 512);
    assert_true(hears_end(f));
    stop(f);
}

static void end_clients_fiber(void *arg) {
    struct fixture *f = arg;
    nbd_server_end_clients(f->server, &f->gate); /* nobody's handle */
    nbd_server_end_clients(f->server, f);
}

/* An export that ends: what was read whole is answered, then its clients are disconnected. */
static void test_export_ends(void **state) {
    (void)state;
    for (unsigned busy = 0; busy < 2; busy++) {
        struct fixture *f = start(false);
        uint8_t data[512] = {0};
        handshake(f);
        request(f, NBD_CMD_FLUSH, 1, 0, 0);
        assert_int_equal(reply(f, 1), 0);
        loop_call(f->loop, shut_fiber, f);
        if (busy) {
            request(f, NBD_CMD_READ, 2, 0, 512);
            request(f, NBD_CMD_WRITE, 3, 0, 512);
            say(f, data, 100); /* never whole */
            loop_call(f->loop, await_held_fiber, f);
        }
        loop_call(f->loop, end_clients_fiber, f);
        loop_call(f->loop, open_fiber, f);
        if (busy) {
            assert_int_equal(reply(f, 2), 0);
            hear(f, data, 512);
        }
        assert_true(hears_end(f));
        stop(f);
    }
}

static void refused_fiber(void *arg) {
    struct fixture *f = arg;
    struct err e;
    static const char *const bad[] = {
        "0.0.0.0:10809", "192.168.0.1:1", "[::]:1", "example.com:1",
        "127.0.0.1",     "127.0.0.1:x",   ":1",     "127.0.0.1:65536"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        CHECK(nbd_server_listen_tcp(f->server, bad[i], NULL, &e) == -ERR_INVALID);
    uint16_t port = 0;
    CHECK(nbd_server_listen_tcp(f->server, "localhost:0", &port, &e) == 0 && port > 0);
    char taken[32];
    snprintf(taken, sizeof taken, "127.0.0.1:%u", port);
    CHECK(nbd_server_listen_tcp(f->server, taken, NULL, &e) == -ERR_IN_USE);
    CHECK(nbd_server_listen_unix(f->server, "/", &e) == -ERR_IN_USE);
    CHECK(nbd_server_listen_unix(f->server, "", &e) == -ERR_INVALID);
    CHECK(nbd_server_listen_fd(f->server, 0, &e) == -ERR_INVALID);
}

static void test_addresses(void **state) {
    (void)state;
    struct fixture *f = start(false);
    loop_call(f->loop, refused_fiber, f);
    stop(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drain_finishes_and_refuses),
        cmocka_unit_test(test_drain_leaves_adopted_unread),
        cmocka_unit_test(test_drain_idle),
        cmocka_unit_test(test_fenced_disconnects),
        cmocka_unit_test(test_errors_pass),
        cmocka_unit_test(test_ends_under_load),
        cmocka_unit_test(test_half_close),
        cmocka_unit_test(test_export_ends),
        cmocka_unit_test(test_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
