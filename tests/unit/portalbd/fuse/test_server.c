/* The FUSE server with a packet socket in the kernel's place: one packet is one request or one
 * reply, as on /dev/fuse. */
#include "tests/support/test.h"

#include <linux/falloc.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/loop.h"
#include "common/mem.h"
#include "portalbd/fuse/server.h"
#include "portalbd/fuse/wire.h"
#include "tests/support/ram_device.h"

enum { DEVICE_SIZE = 8 << 20, MESSAGE_MAX = FUSE_WIRE_REQUEST_MAX };

struct fixture {
    struct loop *loop;
    struct ram_device *ram;
    struct fuse_server *server;
    int kernel; /* the kernel's end */
    int ours;
    uint64_t unique;
    uint8_t *message; /* MESSAGE_MAX bytes */
    int ended;
    bool resume;
    struct fuse_server_stats stats;
};

static void on_ended(void *arg, int rc, const char *text) {
    struct fixture *f = arg;
    (void)text;
    f->ended = rc == 0 ? 1 : -1;
}

static void start(void *arg) {
    struct fixture *f = arg;
    struct err e;
    const struct fuse_server_config config = {.loop = f->loop,
                                              .dev = &f->ram->dev,
                                              .fd = f->ours,
                                              .resume = f->resume,
                                              .ended = on_ended,
                                              .arg = f};
    assert_int_equal(fuse_server_new(&config, &f->server, &e), 0);
}

static void take_stats(void *arg) {
    struct fixture *f = arg;
    f->stats = fuse_server_stats(f->server);
}

static const struct fuse_server_stats *stats_of(struct fixture *f) {
    loop_call(f->loop, take_stats, f);
    return &f->stats;
}

static struct fixture *fixture_new(bool later) {
    struct fixture *f = NEW(struct fixture);
    int fds[2];
    int room = 4 * MESSAGE_MAX;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(setsockopt(fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room), 0);
    f->kernel = fds[0];
    f->ours = fds[1];
    f->message = xmalloc(MESSAGE_MAX);
    f->loop = loop_new(1);
    f->ram = ram_device_new(DEVICE_SIZE, later ? loop_env(f->loop) : NULL);
    loop_thread_start(f->loop, "test");
    loop_call(f->loop, start, f);
    return f;
}

static int setup_inline(void **state) {
    *state = fixture_new(false);
    return 0;
}

static int setup_later(void **state) {
    *state = fixture_new(true);
    return 0;
}

static void finish(void *arg) {
    struct fixture *f = arg;
    fuse_server_drain(f->server);
    fuse_server_free(f->server);
    f->ram->dev.ops->close(&f->ram->dev);
}

static int teardown(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, finish, f);
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    close(f->kernel);
    close(f->ours);
    free(f->message);
    free(f);
    return 0;
}

static uint64_t ask(struct fixture *f, uint32_t opcode, const void *body, size_t body_len,
                    const void *data, size_t data_len) {
    struct fuse_in_header head = {.len = (uint32_t)(sizeof head + body_len + data_len),
                                  .opcode = opcode,
                                  .unique = ++f->unique,
                                  .nodeid = 1};
    memcpy(f->message, &head, sizeof head);
    if (body_len)
        memcpy(f->message + sizeof head, body, body_len);
    if (data_len)
        memcpy(f->message + sizeof head + body_len, data, data_len);
    assert_int_equal(send(f->kernel, f->message, head.len, 0), head.len);
    return head.unique;
}

/* The next reply: its error, and its body in f->message. */
static struct fuse_out_header hear(struct fixture *f, size_t *ret_body_len) {
    struct fuse_out_header head;
    ssize_t n = recv(f->kernel, f->message, MESSAGE_MAX, 0);
    assert_true(n >= (ssize_t)sizeof head);
    memcpy(&head, f->message, sizeof head);
    assert_int_equal(head.len, n);
    memmove(f->message, f->message + sizeof head, (size_t)n - sizeof head);
    if (ret_body_len)
        *ret_body_len = (size_t)n - sizeof head;
    return head;
}

static int call(struct fixture *f, uint32_t opcode, const void *body, size_t body_len,
                const void *data, size_t data_len, size_t *ret_len) {
    uint64_t unique = ask(f, opcode, body, body_len, data, data_len);
    struct fuse_out_header head = hear(f, ret_len);
    assert_int_equal(head.unique, unique);
    return -head.error;
}

static int do_write(struct fixture *f, uint64_t off, const void *data, uint32_t len) {
    struct fuse_write_in in = {.offset = off, .size = len};
    return call(f, FUSE_WRITE, &in, sizeof in, data, len, NULL);
}

static int do_read(struct fixture *f, uint64_t off, uint32_t len, size_t *ret_len) {
    struct fuse_read_in in = {.offset = off, .size = len};
    return call(f, FUSE_READ, &in, sizeof in, NULL, 0, ret_len);
}

static int do_fallocate(struct fixture *f, uint32_t mode, uint64_t off, uint64_t len) {
    struct fuse_fallocate_in in = {.mode = mode, .offset = off, .length = len};
    return call(f, FUSE_FALLOCATE, &in, sizeof in, NULL, 0, NULL);
}

static void test_small_and_large(void **state) {
    struct fixture *f = *state;
    uint8_t *data = xmalloc(1 << 20);
    for (size_t i = 0; i < 1 << 20; i++)
        data[i] = (uint8_t)(i * 31 + i / 4096);
    const uint32_t sizes[] = {512, 4096, 32768, 33280, 36864, 37376, 131072, 1 << 20};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        size_t got;
        assert_int_equal(do_write(f, 512 * i, data, sizes[i]), 0);
        assert_memory_equal(f->ram->data + 512 * i, data, sizes[i]);
        assert_int_equal(do_read(f, 512 * i, sizes[i], &got), 0);
        assert_int_equal(got, sizes[i]);
        assert_memory_equal(f->message, data, got);
    }
    free(data);
}

static void test_reads_at_any_byte(void **state) {
    struct fixture *f = *state;
    for (size_t i = 0; i < 1 << 16; i++)
        f->ram->data[i] = (uint8_t)(i ^ i >> 8);
    const struct {
        uint64_t off;
        uint32_t len;
        size_t got;
    } cases[] = {{1, 1, 1},
                 {511, 2, 2},
                 {100, 40000, 40000},
                 {DEVICE_SIZE - 10, 100, 10},
                 {DEVICE_SIZE, 4096, 0},
                 {UINT64_MAX - 5, 4096, 0},
                 {3, (1 << 20), (1 << 20)}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        size_t got;
        assert_int_equal(do_read(f, cases[i].off, cases[i].len, &got), 0);
        assert_int_equal(got, cases[i].got);
        if (got)
            assert_memory_equal(f->message, f->ram->data + cases[i].off, got);
    }
}

static void test_refusals(void **state) {
    struct fixture *f = *state;
    uint8_t data[1024] = {1};
    assert_int_equal(do_write(f, 1, data, 512), EINVAL);
    assert_int_equal(do_write(f, 0, data, 513), EINVAL);
    assert_int_equal(do_write(f, DEVICE_SIZE - 512, data, 1024), ENOSPC);
    assert_int_equal(do_write(f, UINT64_MAX - 511, data, 1024), ENOSPC);
    assert_int_equal(do_fallocate(f, FALLOC_FL_ZERO_RANGE, 100, 512), EINVAL);
    assert_int_equal(do_fallocate(f, FALLOC_FL_ZERO_RANGE, 0, 100), EINVAL);
    assert_int_equal(do_fallocate(f, 0, 0, 512), EOPNOTSUPP);
    assert_int_equal(call(f, FUSE_GETXATTR, data, 8, NULL, 0, NULL), ENOSYS);
    assert_int_equal(call(f, FUSE_INTERRUPT, data, 8, NULL, 0, NULL), ENOSYS);
    assert_int_equal(call(f, FUSE_READ, data, 8, NULL, 0, NULL), EIO); /* malformed */
    assert_int_equal(stats_of(f)->malformed, 1);
    f->ram->fail_rc = -ERR_FENCED;
    assert_int_equal(do_read(f, 0, 512, NULL), ESHUTDOWN);
    f->ram->fail_rc = 0;
    assert_int_equal(do_read(f, 0, 512, NULL), 0);
}

static void test_zeroes_are_exact(void **state) {
    struct fixture *f = *state;
    memset(f->ram->data, 0xaa, 1 << 20);
    assert_int_equal(do_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1536, 10240), 0);
    assert_int_equal(f->ram->data[1535], 0xaa);
    assert_int_equal(f->ram->data[1536], 0);
    assert_int_equal(f->ram->data[1536 + 10239], 0);
    assert_int_equal(f->ram->data[1536 + 10240], 0xaa);
    assert_int_equal(do_fallocate(f, FALLOC_FL_ZERO_RANGE, 65536, 512), 0);
    assert_int_equal(f->ram->data[65535], 0xaa);
    assert_int_equal(f->ram->data[65536], 0);
    assert_int_equal(f->ram->data[65536 + 512], 0xaa);
    assert_int_equal(f->ram->counts[BD_TRIM], 1);
    assert_int_equal(f->ram->counts[BD_WRITE_ZEROES], 1);

    /* Behind the end: cut where the size is kept, refused where it would grow. */
    const uint32_t punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    assert_int_equal(do_fallocate(f, punch, DEVICE_SIZE - 512, UINT64_C(1) << 40), 0);
    assert_int_equal(do_fallocate(f, punch, DEVICE_SIZE, 4096), 0);
    assert_int_equal(do_fallocate(f, FALLOC_FL_ZERO_RANGE, DEVICE_SIZE - 512, 1024), ENOSPC);
}

static void test_flush_reaches_the_device(void **state) {
    struct fixture *f = *state;
    struct fuse_fsync_in in = {0};
    assert_int_equal(call(f, FUSE_FSYNC, &in, sizeof in, NULL, 0, NULL), 0);
    assert_int_equal(f->ram->counts[BD_FLUSH], 1);
    f->ram->fail_rc = -ERR_IO;
    assert_int_equal(call(f, FUSE_FSYNC, &in, sizeof in, NULL, 0, NULL), EIO);
    f->ram->fail_rc = 0;
    assert_int_equal(call(f, FUSE_FLUSH, &in, sizeof in, NULL, 0, NULL), 0);
    assert_int_equal(f->ram->counts[BD_FLUSH], 2);
}

static void grow(void *arg) {
    struct fixture *f = arg;
    ram_device_grow(f->ram, 2 * DEVICE_SIZE);
    fuse_server_grew(f->server);
}

static void test_grow(void **state) {
    struct fixture *f = *state;
    struct fuse_getattr_in in = {0};
    size_t len;
    loop_call(f->loop, grow, f);
    struct fuse_out_header note = hear(f, NULL);
    assert_int_equal(note.unique, 0);
    assert_int_equal(note.error, FUSE_NOTIFY_INVAL_INODE);
    assert_int_equal(call(f, FUSE_GETATTR, &in, sizeof in, NULL, 0, &len), 0);
    struct fuse_attr_out attr;
    assert_int_equal(len, sizeof attr);
    memcpy(&attr, f->message, sizeof attr);
    assert_int_equal(attr.attr.size, 2 * DEVICE_SIZE);
}

static void test_read_only(void **state) {
    struct fixture *f = *state;
    uint8_t data[512] = {0};
    struct fuse_open_in open_rw = {.flags = 2}, open_ro = {.flags = 0};
    f->ram->dev.read_only = true;
    assert_int_equal(call(f, FUSE_OPEN, &open_rw, sizeof open_rw, NULL, 0, NULL), EROFS);
    assert_int_equal(call(f, FUSE_OPEN, &open_ro, sizeof open_ro, NULL, 0, NULL), 0);
    assert_int_equal(do_write(f, 0, data, 512), EROFS);
    assert_int_equal(do_fallocate(f, FALLOC_FL_ZERO_RANGE, 0, 512), EROFS);
    assert_int_equal(do_read(f, 0, 512, NULL), 0);
}

/* One more request does not block: a server that waits until its replies are taken takes none. */
static bool may_ask(struct fixture *f) {
    struct pollfd p = {.fd = f->kernel, .events = POLLOUT};
    return poll(&p, 1, 0) == 1;
}

/* More than there are slots and large buffers: all are answered, the rest waits in the socket. */
static void test_many_in_flight(void **state) {
    struct fixture *f = *state;
    enum { COUNT = 600 };
    uint8_t *seen = xcalloc(COUNT + 1, 1);
    unsigned heard = 0, asked = 0;
    for (size_t i = 0; i < DEVICE_SIZE; i++)
        f->ram->data[i] = (uint8_t)(i / 512);
    while (heard < COUNT) {
        for (unsigned burst = 0; burst < 100 && asked < COUNT && may_ask(f); burst++, asked++) {
            struct fuse_read_in in = {.offset = asked % 64 * 512,
                                      .size = asked % 3 == 0 ? 65536 : 512};
            ask(f, FUSE_READ, &in, sizeof in, NULL, 0);
        }
        for (unsigned burst = 0; burst < 50 && heard < asked; burst++, heard++) {
            size_t len;
            struct fuse_out_header head = hear(f, &len);
            unsigned i = (unsigned)head.unique - 1;
            assert_int_equal(head.error, 0);
            assert_int_equal(len, i % 3 == 0 ? 65536 : 512);
            assert_int_equal(f->message[0], i % 64);
            assert_false(seen[head.unique]);
            seen[head.unique] = 1;
        }
    }
    free(seen);
}

static void wait_for_end(void *arg) {
    struct fixture *f = arg;
    for (int i = 0; i < 1000 && !f->ended; i++)
        assert_int_equal(fiber_sleep_us(loop_env(f->loop), 1000), 0);
}

static void test_unmount_ends(void **state) {
    struct fixture *f = *state;
    shutdown(f->kernel, SHUT_RDWR);
    loop_call(f->loop, wait_for_end, f);
    assert_int_equal(f->ended, 1);
}

static void end_server(void *arg) {
    struct fixture *f = arg;
    fuse_server_drain(f->server);
    fuse_server_free(f->server);
}

static void expect_resend_wanted(struct fixture *f) {
    struct fuse_out_header note = hear(f, NULL);
    assert_int_equal(note.unique, 0);
    assert_int_equal(note.error, 7); /* FUSE_NOTIFY_RESEND */
}

static int expect_init_answered(struct fixture *f) {
    struct fuse_init_in in = {.major = 7,
                              .minor = 36,
                              .flags =
                                  FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_INIT_EXT,
                              .flags2 = 1 << 7 /* FUSE_HAS_RESEND */};
    return call(f, FUSE_INIT, &in, sizeof in, NULL, 0, NULL);
}

/* The next process serves at once, and asks for what was not answered. */
static void test_resume(void **state) {
    struct fixture *f = *state;
    assert_int_equal(expect_init_answered(f), 0);
    assert_true(stats_of(f)->resend);
    loop_call(f->loop, end_server, f);
    f->resume = true;
    loop_call(f->loop, start, f);
    expect_resend_wanted(f);
    assert_int_equal(do_read(f, 0, 4096, NULL), 0);
    assert_int_equal(stats_of(f)->resent, 0);
    f->unique |= UINT64_C(1) << 63;
    assert_int_equal(do_read(f, 0, 4096, NULL), 0); /* checks that the reply has the same unique */
    assert_int_equal(stats_of(f)->resent, 1);
    assert_true(stats_of(f)->resend);
    assert_int_equal(expect_init_answered(f), 0); /* the first process may have died before it */
}

/* At every point of a stream of requests: what was read is answered by who read it, the rest is
 * read by the next, nothing twice. */
static void test_handover(void **state) {
    struct fixture *f = *state;
    enum { ROUNDS = 50, COUNT = 40 };
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t first = f->unique + 1, seen = 0;
        for (unsigned i = 0; i < COUNT; i++) {
            struct fuse_read_in in = {.offset = i * 512, .size = i % 7 == 0 ? 65536 : 512};
            ask(f, FUSE_READ, &in, sizeof in, NULL, 0);
            if (i == round % COUNT) {
                loop_call(f->loop, end_server, f);
                f->resume = true;
                loop_call(f->loop, start, f);
            }
        }
        unsigned notes = 0;
        for (unsigned i = 0; i < COUNT + 1; i++) {
            struct fuse_out_header head = hear(f, NULL);
            if (head.unique == 0) {
                notes += head.error == 7;
                continue;
            }
            assert_int_equal(head.error, 0);
            assert_int_equal(seen >> (head.unique - first) & 1, 0);
            seen |= UINT64_C(1) << (head.unique - first);
        }
        assert_int_equal(notes, 1);
        assert_int_equal(seen, (UINT64_C(1) << COUNT) - 1);
    }
}

static void drain_only(void *arg) {
    struct fixture *f = arg;
    fuse_server_drain(f->server);
}

static void undrain(void *arg) {
    struct fixture *f = arg;
    fuse_server_undrain(f->server);
}

/* The hand-over does not take place: the same server goes on. */
static void test_drain_taken_back(void **state) {
    struct fixture *f = *state;
    for (unsigned i = 0; i < 3; i++) {
        struct fuse_read_in in = {.size = 512};
        loop_call(f->loop, drain_only, f);
        uint64_t unique = ask(f, FUSE_READ, &in, sizeof in, NULL, 0);
        struct pollfd p = {.fd = f->kernel, .events = POLLIN};
        assert_int_equal(poll(&p, 1, 20), 0);
        loop_call(f->loop, undrain, f);
        assert_int_equal(hear(f, NULL).unique, unique);
    }
}

/* A kernel that knows no such notification refuses it (EINVAL), as a timer does. */
static void start_without_resend(void *arg) {
    struct fixture *f = arg;
    struct err e;
    struct fuse_server *server;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    const struct fuse_server_config config = {
        .loop = f->loop, .dev = &f->ram->dev, .fd = fd, .resume = true};
    assert_int_equal(fuse_server_new(&config, &server, &e), 0);
    assert_false(fuse_server_stats(server).resend);
    fuse_server_drain(server);
    fuse_server_free(server);
    close(fd);
}

static void test_resume_on_an_old_kernel(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, start_without_resend, f);
}

#define BOTH(test)                                                                                 \
    cmocka_unit_test_setup_teardown(test, setup_inline, teardown),                                 \
        cmocka_unit_test_setup_teardown(test, setup_later, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        BOTH(test_small_and_large),
        BOTH(test_reads_at_any_byte),
        BOTH(test_refusals),
        BOTH(test_zeroes_are_exact),
        BOTH(test_flush_reaches_the_device),
        BOTH(test_grow),
        BOTH(test_read_only),
        BOTH(test_many_in_flight),
        BOTH(test_unmount_ends),
        BOTH(test_resume),
        BOTH(test_handover),
        BOTH(test_resume_on_an_old_kernel),
        BOTH(test_drain_taken_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
