/* An adopted connection changes hands: a first server is drained and closed, a second goes on with
 * a copy of the socket. Whatever the moment, every request is answered once, by one of them, and
 * the first has read nothing behind the request that it was in. */
#include "tests/support/test.h"

#include <linux/sockios.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/bytes.h"
#include "common/fiber.h"
#include "portalbd/blockdev/delay.h"
#include "portalbd/nbd/protocol.h"
#include "portalbd/nbd/server.h"
#include "tests/support/memory_blockdev.h"

enum { SIZE = 1 << 20, QUICK_US = 0, SLOW_US = 2000, PATIENCE_MS = 10000 };

struct fixture {
    struct loop *loop;
    struct blockdev *dev;
    struct nbd_server *server;
    uint64_t delay_us;
    int fd;   /* the client's end */
    int peer; /* a copy of the server's end, which outlives each server */
    bool drained, closed;
    struct waitq waiters;
};

static void open_device(void *arg) {
    struct fixture *f = arg;
    waitq_init(&f->waiters);
    f->dev = bd_delay_open(memory_blockdev_open(SIZE), loop_env(f->loop), f->delay_us, f->delay_us);
}

static void start_server(void *arg) {
    struct fixture *f = arg;
    struct err e;
    f->drained = f->closed = false;
    f->server = nbd_server_new(&(struct nbd_server_config){.loop = f->loop});
    CHECK(nbd_server_adopt(f->server, dup(f->peer), f->dev, &e) == 0);
}

static struct fixture *start(uint64_t delay_us) {
    struct fixture *f = NEW(struct fixture);
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    f->fd = pair[0];
    f->peer = pair[1];
    f->delay_us = delay_us;
    f->loop = loop_new(1);
    loop_thread_start(f->loop, "server");
    loop_call(f->loop, open_device, f);
    loop_call(f->loop, start_server, f);
    return f;
}

static void on_drained(void *arg) {
    struct fixture *f = arg;
    f->drained = true;
    waitq_wake_all(&f->waiters);
}

static void on_closed(void *arg) {
    struct fixture *f = arg;
    f->closed = true;
    waitq_wake_all(&f->waiters);
}

static void drain(void *arg) {
    struct fixture *f = arg;
    nbd_server_drain(f->server, on_drained, f);
}

static void await_drained(void *arg) {
    struct fixture *f = arg;
    while (!f->drained)
        CHECK(waitq_wait(loop_env(f->loop), &f->waiters) == 0);
}

static void look_whether_drained(void *arg) {
    struct fixture *f = arg;
    fiber_sleep_us(loop_env(f->loop), 50 * 1000);
    assert_false(f->drained);
}

static void close_server(void *arg) {
    struct fixture *f = arg;
    nbd_server_close(f->server, on_closed, f);
    while (!f->closed)
        CHECK(waitq_wait(loop_env(f->loop), &f->waiters) == 0);
}

static void close_device(void *arg) {
    struct fixture *f = arg;
    f->dev->ops->close(f->dev);
}

static void stop(struct fixture *f) {
    loop_call(f->loop, close_server, f);
    loop_call(f->loop, close_device, f);
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    close(f->fd);
    close(f->peer);
    free(f);
}

static size_t unread(int fd) {
    int n;
    assert_int_equal(ioctl(fd, SIOCINQ, &n), 0);
    return (size_t)n;
}

/* --- the client --- */

static void add_request(struct buf *stream, uint16_t type, uint64_t cookie, uint64_t off,
                        uint32_t len) {
    uint8_t *b = buf_extend(stream, NBD_REQUEST_SIZE);
    store_be32(b, NBD_REQUEST_MAGIC);
    store_be16(b + 4, 0);
    store_be16(b + 6, type);
    store_be64(b + 8, cookie);
    store_be64(b + 16, off);
    store_be32(b + 24, len);
    if (type == NBD_CMD_WRITE)
        memset(buf_extend(stream, len), (int)cookie, len);
}

static void say(struct fixture *f, const uint8_t *data, size_t len) {
    while (len) {
        ssize_t n = send(f->fd, data, len, MSG_NOSIGNAL);
        assert_true(n > 0);
        data += n;
        len -= (size_t)n;
    }
}

static void hear(struct fixture *f, void *data, size_t len) {
    for (size_t n = 0; n < len;) {
        struct pollfd p = {.fd = f->fd, .events = POLLIN};
        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
        ssize_t got = recv(f->fd, (uint8_t *)data + n, len - n, 0);
        assert_true(got > 0);
        n += (size_t)got;
    }
}

static uint64_t hear_reply(struct fixture *f, uint32_t *ret_errno) {
    uint8_t b[NBD_SIMPLE_REPLY_SIZE];
    hear(f, b, sizeof b);
    assert_int_equal(load_be32(b), NBD_SIMPLE_REPLY_MAGIC);
    *ret_errno = load_be32(b + 4);
    return load_be64(b + 8);
}

/* --- tests --- */

/* What the client says, one of each kind, and where each request ends. */
enum { COOKIE_READ = 2, COOKIE_REFUSED = 4, COOKIES = 7 };

static void make_stream(struct buf *stream, size_t ends[COOKIES + 1]) {
    static const struct {
        uint16_t type;
        uint64_t off;
        uint32_t len;
    } requests[COOKIES + 1] = {[1] = {NBD_CMD_WRITE, 0, 512},
                               [COOKIE_READ] = {NBD_CMD_READ, 8192, 512},
                               [3] = {NBD_CMD_FLUSH, 0, 0},
                               [COOKIE_REFUSED] = {NBD_CMD_WRITE, 100, 200}, /* not aligned */
                               [5] = {NBD_CMD_TRIM, 16384, 4096},
                               [6] = {NBD_CMD_WRITE, 4096, 1024},
                               [7] = {NBD_CMD_WRITE_ZEROES, 32768, 512}};
    ends[0] = 0;
    for (unsigned i = 1; i <= COOKIES; i++) {
        add_request(stream, requests[i].type, i, requests[i].off, requests[i].len);
        ends[i] = stream->len;
    }
}

static void expect_each_reply_once(struct fixture *f) {
    unsigned seen = 0;
    for (unsigned i = 0; i < COOKIES; i++) {
        uint32_t eno;
        uint8_t data[512];
        uint64_t cookie = hear_reply(f, &eno);
        assert_true(cookie >= 1 && cookie <= COOKIES);
        assert_int_equal(eno, cookie == COOKIE_REFUSED ? NBD_EINVAL : 0);
        if (cookie == COOKIE_READ)
            hear(f, data, sizeof data);
        assert_int_equal(seen & 1u << cookie, 0);
        seen |= 1u << cookie;
    }
    assert_int_equal(unread(f->fd), 0);
}

/* `cut` bytes have been read when the first server is asked to stop. */
static void hand_over_at(const struct buf *stream, const size_t *ends, size_t cut,
                         uint64_t delay_us) {
    struct fixture *f = start(delay_us);
    size_t boundary = 0;
    for (unsigned i = 0; boundary < cut; i++)
        boundary = ends[i];
    say(f, stream->data, cut);
    for (int waited = 0; unread(f->peer) > 0; waited++) {
        assert_true(waited < PATIENCE_MS);
        poll(NULL, 0, 1);
    }
    loop_call(f->loop, drain, f);
    say(f, stream->data + cut, stream->len - cut);
    loop_call(f->loop, await_drained, f);
    assert_int_equal(unread(f->peer), stream->len - boundary);
    loop_call(f->loop, close_server, f);
    assert_int_equal(unread(f->peer), stream->len - boundary);
    loop_call(f->loop, start_server, f);
    expect_each_reply_once(f);
    stop(f);
}

static void test_at_every_byte(void **state) {
    (void)state;
    CLEANUP_BUF struct buf stream = {0};
    size_t ends[COOKIES + 1];
    make_stream(&stream, ends);
    for (size_t cut = 0; cut <= stream.len; cut++)
        hand_over_at(&stream, ends, cut, QUICK_US);
}

/* The requests that were read are with the device when the drain begins. */
static void test_with_requests_under_way(void **state) {
    (void)state;
    CLEANUP_BUF struct buf stream = {0};
    size_t ends[COOKIES + 1];
    make_stream(&stream, ends);
    for (size_t cut = 0; cut <= stream.len; cut += 11)
        hand_over_at(&stream, ends, cut, SLOW_US);
}

/* Without bytes behind the cut: half a request is waited for. */
static void test_waits_for_the_rest_of_a_request(void **state) {
    (void)state;
    CLEANUP_BUF struct buf stream = {0};
    struct fixture *f = start(QUICK_US);
    uint32_t eno;
    add_request(&stream, NBD_CMD_WRITE, 1, 0, 512);
    say(f, stream.data, 100);
    while (unread(f->peer) > 0)
        poll(NULL, 0, 1);
    loop_call(f->loop, drain, f);
    loop_call(f->loop, look_whether_drained, f);
    say(f, stream.data + 100, stream.len - 100);
    loop_call(f->loop, await_drained, f);
    assert_int_equal(hear_reply(f, &eno), 1);
    assert_int_equal(eno, 0);
    stop(f);
}

/* Replies that do not fit the socket leave it before anybody else may use it. */
static void test_replies_that_wait_for_room(void **state) {
    (void)state;
    enum { COUNT = 24 };
    CLEANUP_BUF struct buf stream = {0};
    struct fixture *f = start(QUICK_US);
    uint8_t *data = malloc(SIZE);
    for (unsigned i = 1; i <= COUNT; i++)
        add_request(&stream, NBD_CMD_READ, i, 0, SIZE);
    say(f, stream.data, stream.len);
    while (unread(f->peer) > 0)
        poll(NULL, 0, 1);
    loop_call(f->loop, drain, f);
    loop_call(f->loop, look_whether_drained, f);
    buf_clear(&stream);
    add_request(&stream, NBD_CMD_FLUSH, COUNT + 1, 0, 0);
    say(f, stream.data, stream.len);
    for (unsigned i = 1; i <= COUNT; i++) {
        uint32_t eno;
        assert_int_equal(hear_reply(f, &eno), i);
        hear(f, data, SIZE);
    }
    loop_call(f->loop, await_drained, f);
    assert_int_equal(unread(f->fd), 0);
    assert_int_equal(unread(f->peer), NBD_REQUEST_SIZE);
    loop_call(f->loop, close_server, f);
    loop_call(f->loop, start_server, f);
    uint32_t eno;
    assert_int_equal(hear_reply(f, &eno), COUNT + 1);
    free(data);
    stop(f);
}

static void undrain(void *arg) {
    struct fixture *f = arg;
    nbd_server_undrain(f->server);
    await_drained(f);
    f->drained = false;
}

/* The hand-over does not take place: the same server goes on, from wherever it was. */
static void test_taken_back(void **state) {
    (void)state;
    CLEANUP_BUF struct buf stream = {0};
    size_t ends[COOKIES + 1];
    make_stream(&stream, ends);
    for (size_t cut = 0; cut <= stream.len; cut += 13) {
        struct fixture *f = start(cut % 2 ? QUICK_US : SLOW_US);
        say(f, stream.data, cut);
        loop_call(f->loop, drain, f);
        say(f, stream.data + cut, stream.len - cut);
        if (cut % 3 == 0)
            loop_call(f->loop, await_drained, f);
        loop_call(f->loop, undrain, f);
        expect_each_reply_once(f);
        loop_call(f->loop, drain, f);
        loop_call(f->loop, await_drained, f);
        stop(f);
    }
}

/* A client that goes ends the drain, wherever it was. */
static void test_client_that_goes(void **state) {
    (void)state;
    CLEANUP_BUF struct buf stream = {0};
    add_request(&stream, NBD_CMD_WRITE, 1, 0, 512);
    add_request(&stream, NBD_CMD_WRITE, 2, 0, 512);
    for (size_t cut = 0; cut < stream.len; cut += 50) {
        struct fixture *f = start(SLOW_US);
        say(f, stream.data, cut);
        while (unread(f->peer) > 0)
            poll(NULL, 0, 1);
        loop_call(f->loop, drain, f);
        assert_int_equal(shutdown(f->fd, SHUT_RDWR), 0);
        loop_call(f->loop, await_drained, f);
        stop(f);
    }
}

static void test_flags(void **state) {
    (void)state;
    struct blockdev dev = {.read_only = false};
    const uint16_t both = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH;
    uint16_t flags = nbd_server_flags(&dev);
    assert_int_equal(flags & (both | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_READ_ONLY),
                     both | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM);
    assert_true(flags & NBD_FLAG_SEND_WRITE_ZEROES);
    assert_false(flags & NBD_FLAG_SEND_DF);
    dev.read_only = true;
    flags = nbd_server_flags(&dev);
    assert_int_equal(flags & (both | NBD_FLAG_SEND_TRIM | NBD_FLAG_READ_ONLY),
                     both | NBD_FLAG_READ_ONLY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_at_every_byte),
        cmocka_unit_test(test_with_requests_under_way),
        cmocka_unit_test(test_waits_for_the_rest_of_a_request),
        cmocka_unit_test(test_replies_that_wait_for_room),
        cmocka_unit_test(test_client_that_goes),
        cmocka_unit_test(test_taken_back),
        cmocka_unit_test(test_flags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
