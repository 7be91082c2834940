/* What every attach backend must do, on the kernel itself:
 *
 *     test_attach [fuse|nbd [RUN_DIR]]
 *
 * The daemons are stand-ins over shared memory (tests/support/attach_server.h). Needs root and what
 * the backend's probe asks for; without it everything is skipped. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/mem.h"
#include "node-agent/attach/attach.h"
#include "portalbd/nbd/server.h"
#include "tests/support/attach_server.h"
#include "tests/support/temp.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

enum {
    BLOCK = 4096,
    SOON_MS = 5000, /* "in bounded time" */
    MISMATCH = 100, /* exit code of a client that read what was not written */
};

static const char *kind = "fuse";
static char *run_dir;
static bool usable;
static char why_not[ERR_TEXT_MAX];

/* Shared with the clients. */
struct traffic {
    _Atomic bool stop;
    _Atomic uint64_t rounds;
};

struct fixture {
    struct attach_backend *backend;
    struct served_memory *memory;
    struct traffic *traffic;
    struct attach_server server;
    struct attach_link link;
    struct attach_how how;
    struct attach_device device;
    char volume[ATTACH_VOLUME_MAX];
    pid_t client; /* 0: none */
};

static struct attach_backend *open_backend(void) {
    struct attach_backend *b;
    struct err e;
    int rc = strcmp(kind, "nbd") == 0 ? attach_nbd_open(NULL, &b, &e)
                                      : attach_fuse_open(run_dir, &b, &e);
    if (rc < 0)
        fail_msg("%s", e.text);
    return b;
}

static bool is_fuse(void) {
    return strcmp(kind, "fuse") == 0;
}

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void pause_ms(unsigned ms) {
    usleep(ms * 1000);
}

#define OK(call)                                                                                   \
    do {                                                                                           \
        struct err why = {0};                                                                      \
        if ((call) < 0)                                                                            \
            fail_msg("%s: %s", #call, why.text);                                                   \
    } while (0)

/* --- a device and its daemon --- */

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void start_server(struct fixture *f, bool resume) {
    attach_server_start(&f->server, f->memory, f->backend->ops->daemon_flag, f->link.daemon_fd,
                        resume);
    close_fd(&f->link.daemon_fd);
}

static void attach(struct fixture *f) {
    const struct attach_ops *ops = f->backend->ops;
    struct blockdev dev = {.read_only = f->memory->read_only};
    f->how = (struct attach_how){.publish_epoch = 7,
                                 .size_bytes = f->memory->size_bytes,
                                 .nbd_flags = nbd_server_flags(&dev),
                                 .read_only = dev.read_only};
    OK(ops->prepare(f->backend, f->volume, &f->link, &why));
    start_server(f, false);
    OK(ops->attach(f->backend, f->volume, &f->how, &f->link, &f->device, &why));
}

/* A next daemon, after the last one's end. */
static void recover(struct fixture *f) {
    OK(f->backend->ops->resume(f->backend, f->volume, &f->link, &why));
    start_server(f, true);
    OK(f->backend->ops->reattach(f->backend, f->volume, &f->how, &f->link, &why));
}

static void fail_device(struct fixture *f) {
    (f->backend->ops->fail)(f->backend, f->volume); /* cmocka has a macro of that name */
}

static int setup_of(void **state, uint64_t size_bytes, uint64_t room_bytes) {
    static unsigned number;
    if (!usable)
        return 0;
    struct fixture *f = NEW(struct fixture);
    f->backend = open_backend();
    f->memory = served_memory_new(size_bytes, room_bytes);
    f->link = ATTACH_LINK_NONE;
    f->traffic =
        mmap(NULL, sizeof *f->traffic, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(f->traffic != MAP_FAILED);
    snprintf(f->volume, sizeof f->volume, "suite-%d-%u", (int)getpid(), ++number);
    *state = f;
    return 0;
}

static int setup(void **state) {
    return setup_of(state, 64 * MIB, 256 * MIB);
}

/* A terabyte, where there is so much address space (user-mode Linux has half of that). */
static uint64_t much_bytes(void) {
    void *p = mmap(NULL, TIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return 128 * GIB;
    munmap(p, TIB);
    return TIB;
}

static int setup_large(void **state) {
    return setup_of(state, much_bytes(), much_bytes());
}

static void end_client(struct fixture *f) {
    if (f->client) {
        kill(f->client, SIGKILL);
        waitpid(f->client, NULL, 0);
    }
    f->client = 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    if (!f)
        return 0;
    f->memory->held = false;
    fail_device(f);
    end_client(f);
    attach_server_kill(&f->server);
    f->backend->ops->detach(f->backend, f->volume, true, NULL);
    attach_link_close(&f->link);
    f->backend->ops->close(f->backend);
    munmap(f->traffic, sizeof *f->traffic);
    served_memory_free(f->memory);
    free(f);
    return 0;
}

static bool is_there(struct attach_backend *b, const char *volume, struct attach_device *ret) {
    struct attach_devices all;
    OK(b->ops->discover(b, &all, &why));
    const struct attach_device *d = attach_devices_find(&all, volume);
    if (d && ret)
        *ret = *d;
    bool found = d != NULL;
    attach_devices_release(&all);
    return found;
}

/* Detaches what nobody uses; the daemon ends by itself, whoever has copies of its descriptor. */
static void detach(struct fixture *f) {
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
    assert_false(is_there(f->backend, f->volume, NULL));
    assert_int_equal(attach_server_wait(&f->server, SOON_MS), 0);
}

/* --- clients: other processes, as an application is --- */

static uint8_t block[2 * MIB] __attribute__((aligned(4096)));

static void fill(uint8_t *bytes, size_t len, uint64_t seed) {
    for (size_t i = 0; i < len; i += sizeof seed) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        memcpy(bytes + i, &seed, sizeof seed);
    }
}

static pid_t start_client(struct fixture *f, int (*fn)(struct fixture *f)) {
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close_range(3, ~0U, 0);
        _exit(fn(f));
    }
    return pid;
}

static int open_device(const struct fixture *f) {
    return open(f->device.path, O_RDWR | O_DIRECT | O_CLOEXEC);
}

/* Writes one block at 1 MiB. */
static int write_one(struct fixture *f) {
    int fd = open_device(f);
    fill(block, BLOCK, 1);
    if (fd < 0 || pwrite(fd, block, BLOCK, MIB) != BLOCK)
        return errno ? errno : 1;
    return 0;
}

/* Writes, reads back and flushes at random places, until it is told to stop. */
static int churn(struct fixture *f) {
    static uint8_t again[256 * 1024] __attribute__((aligned(4096)));
    int fd = open_device(f);
    if (fd < 0)
        return errno;
    uint64_t seed = 99;
    while (!f->traffic->stop) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        size_t len = BLOCK * (1 + (seed >> 40) % 64);
        uint64_t off = (seed >> 20) % ((f->memory->size_bytes - sizeof again) / BLOCK) * BLOCK;
        fill(block, len, seed);
        if (pwrite(fd, block, len, (off_t)off) != (ssize_t)len ||
            (seed % 8 == 0 && fsync(fd) < 0) || pread(fd, again, len, (off_t)off) != (ssize_t)len)
            return errno ? errno : 1;
        if (memcmp(block, again, len) != 0)
            return MISMATCH;
        f->traffic->rounds++;
    }
    return 0;
}

static void await_received(struct fixture *f, enum bd_op op, uint64_t more_than) {
    for (uint64_t end = now_ms() + SOON_MS; f->memory->received[op] <= more_than; pause_ms(1))
        assert_true(now_ms() < end);
}

static void await_rounds(struct fixture *f, uint64_t more) {
    uint64_t goal = f->traffic->rounds + more;
    for (uint64_t end = now_ms() + 6 * SOON_MS; f->traffic->rounds < goal; pause_ms(1)) {
        assert_int_equal(child_wait(f->client, 0), -1); /* no error */
        assert_true(now_ms() < end);
    }
}

/* A client whose write a daemon has read, and keeps. */
static void start_stuck_write(struct fixture *f) {
    f->memory->held = true;
    uint64_t before = f->memory->received[BD_WRITE];
    f->client = start_client(f, write_one);
    await_received(f, BD_WRITE, before);
}

static int expect_client_ends(struct fixture *f, int timeout_ms) {
    int code = child_wait(f->client, timeout_ms);
    assert_true(code >= 0); /* it hangs */
    f->client = 0;
    return code;
}

/* --- the cases --- */

static void need(void **state) {
    if (*state)
        return;
    print_message("%s\n", why_not);
    skip();
}

static void test_appears(void **state) {
    need(state);
    struct fixture *f = *state;
    struct attach_device found;
    int block_size;
    uint64_t size;
    attach(f);
    assert_string_equal(f->device.volume, f->volume);
    assert_true(f->device.size_bytes == 64 * MIB);
    int fd = open_device(f);
    assert_true(fd >= 0);
    assert_int_equal(ioctl(fd, BLKSSZGET, &block_size), 0);
    assert_int_equal(block_size, BLOCK);
    assert_int_equal(ioctl(fd, BLKGETSIZE64, &size), 0);
    assert_true(size == 64 * MIB);
    close(fd);
    assert_true(is_there(f->backend, f->volume, &found));
    assert_string_equal(found.path, f->device.path);
    assert_true(found.size_bytes == 64 * MIB);
    detach(f);
}

static void test_read_and_write(void **state) {
    need(state);
    struct fixture *f = *state;
    attach(f);
    int fd = open_device(f);
    for (size_t len = BLOCK; len <= 2 * MIB; len *= 8) {
        fill(block, len, len);
        assert_int_equal(pwrite(fd, block, len, (off_t)(8 * MIB)), (ssize_t)len);
        assert_memory_equal(f->memory->data + 8 * MIB, block, len);
        memset(block, 0, len);
        assert_int_equal(pread(fd, block, len, (off_t)(8 * MIB)), (ssize_t)len);
        assert_memory_equal(f->memory->data + 8 * MIB, block, len);
    }
    close(fd);
    detach(f);
}

/* A device without this says "durable" and keeps nothing. */
static void test_fsync_is_flush(void **state) {
    need(state);
    enum { COUNT = 20 };
    struct fixture *f = *state;
    attach(f);
    int fd = open_device(f);
    uint64_t before = f->memory->answered[BD_FLUSH];
    for (unsigned i = 0; i < COUNT; i++) {
        fill(block, BLOCK, i);
        assert_int_equal(pwrite(fd, block, BLOCK, i * BLOCK), BLOCK);
        assert_int_equal(fsync(fd), 0);
        assert_true(f->memory->answered[BD_FLUSH] > before + i);
    }
    assert_true(f->memory->answered[BD_FLUSH] <= before + COUNT);
    close(fd);
    detach(f);
}

static void expect_zero(const uint8_t *bytes, size_t len) {
    for (size_t i = 0; i < len; i++)
        assert_int_equal(bytes[i], 0);
}

static void test_discard_is_trim(void **state) {
    need(state);
    struct fixture *f = *state;
    attach(f);
    int fd = open_device(f);
    uint8_t *data = f->memory->data;
    memset(data, 0xaa, 4 * MIB);
    uint64_t before = f->memory->answered[BD_TRIM];
    uint64_t discard[2] = {MIB, MIB}, zeroes[2] = {3 * MIB, 64 * 1024};
    assert_int_equal(ioctl(fd, BLKDISCARD, discard), 0);
    assert_true(f->memory->answered[BD_TRIM] > before);
    expect_zero(data + MIB, MIB);
    assert_int_equal(data[MIB - 1], 0xaa);
    assert_int_equal(data[2 * MIB], 0xaa);
    assert_int_equal(ioctl(fd, BLKZEROOUT, zeroes), 0);
    expect_zero(data + 3 * MIB, 64 * 1024);
    assert_int_equal(data[3 * MIB - 1], 0xaa);
    assert_int_equal(data[3 * MIB + 64 * 1024], 0xaa);
    close(fd);
    detach(f);
}

static uint64_t discard_ms(int fd, uint64_t len) {
    uint64_t range[2] = {0, len}, start = now_ms();
    assert_int_equal(ioctl(fd, BLKDISCARD, range), 0);
    return now_ms() - start;
}

/* What a discard costs does not grow with its length. */
static void test_discard_of_much(void **state) {
    need(state);
    struct fixture *f = *state;
    uint64_t size = f->memory->size_bytes;
    attach(f);
    int fd = open_device(f);
    fill(block, BLOCK, 1);
    assert_int_equal(pwrite(fd, block, BLOCK, (off_t)(size - BLOCK)), BLOCK);
    uint64_t little = discard_ms(fd, GIB), before = f->memory->answered[BD_TRIM];
    uint64_t much = discard_ms(fd, size);
    print_message("discard of 1 GiB: %llu ms, of %llu GiB: %llu ms, %llu TRIMs\n",
                  (unsigned long long)little, (unsigned long long)(size / GIB),
                  (unsigned long long)much,
                  (unsigned long long)(f->memory->answered[BD_TRIM] - before));
    assert_true(much <= little + 1000);
    expect_zero(f->memory->data + size - BLOCK, BLOCK);
    close(fd);
    detach(f);
}

static void test_read_only(void **state) {
    need(state);
    struct fixture *f = *state;
    int read_only = 0;
    f->memory->read_only = true;
    memset(f->memory->data, 0x11, MIB);
    attach(f);
    int fd = open(f->device.path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(ioctl(fd, BLKROGET, &read_only), 0);
    assert_int_not_equal(read_only, 0);
    assert_int_equal(pread(fd, block, BLOCK, 0), BLOCK);
    assert_int_equal(block[0], 0x11);
    close(fd);
    fd = open_device(f);
    assert_true(fd < 0 || pwrite(fd, block, BLOCK, 0) < 0);
    close_fd(&fd);
    assert_int_equal(f->memory->received[BD_WRITE], 0);
    detach(f);
}

static void test_grow(void **state) {
    need(state);
    struct fixture *f = *state;
    struct attach_device found;
    uint64_t size;
    attach(f);
    int fd = open_device(f);
    f->memory->size_bytes = 128 * MIB;
    attach_server_grow(&f->server);
    for (unsigned twice = 0; twice < 2; twice++)
        OK(f->backend->ops->grow(f->backend, f->volume, 128 * MIB, &why));
    assert_int_equal(ioctl(fd, BLKGETSIZE64, &size), 0);
    assert_true(size == 128 * MIB);
    fill(block, BLOCK, 5);
    assert_int_equal(pwrite(fd, block, BLOCK, (off_t)(128 * MIB - BLOCK)), BLOCK);
    assert_memory_equal(f->memory->data + 128 * MIB - BLOCK, block, BLOCK);
    close(fd);
    assert_true(is_there(f->backend, f->volume, &found));
    assert_true(found.size_bytes == 128 * MIB);
    detach(f);
}

static void test_busy(void **state) {
    need(state);
    struct fixture *f = *state;
    struct err e;
    attach(f);
    int fd = open(f->device.path, O_RDWR | O_DIRECT | O_EXCL | O_CLOEXEC); /* as a mount does */
    assert_true(fd >= 0);
    assert_int_equal(f->backend->ops->detach(f->backend, f->volume, false, &e), -ERR_BUSY);
    fill(block, BLOCK, 3);
    assert_int_equal(pwrite(fd, block, BLOCK, 0), BLOCK);
    assert_memory_equal(f->memory->data, block, BLOCK);
    close(fd);
    detach(f);
}

static void test_twice(void **state) {
    need(state);
    struct fixture *f = *state;
    struct attach_link other = ATTACH_LINK_NONE;
    struct err e;
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
    OK(f->backend->ops->detach(f->backend, f->volume, true, &why));
    attach(f);
    assert_int_equal(f->backend->ops->prepare(f->backend, f->volume, &other, &e), -ERR_EXISTS);
    detach(f);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
}

/* All that a new agent has is the kernel. */
static void test_discovered_by_another(void **state) {
    need(state);
    struct fixture *f = *state;
    struct attach_device found;
    attach(f);
    struct attach_backend *other = open_backend();
    assert_true(is_there(other, f->volume, &found));
    assert_string_equal(found.path, f->device.path);
    assert_true(found.publish_epoch == 7 || found.publish_epoch == 0);
    OK(other->ops->detach(other, f->volume, false, &why));
    assert_false(is_there(other, f->volume, NULL));
    other->ops->close(other);
    assert_int_equal(attach_server_wait(&f->server, SOON_MS), 0);
}

static void test_force(void **state) {
    need(state);
    struct fixture *f = *state;
    attach(f);
    start_stuck_write(f);
    uint64_t start = now_ms();
    OK(f->backend->ops->detach(f->backend, f->volume, true, &why));
    assert_true(now_ms() - start < SOON_MS);
    assert_int_not_equal(expect_client_ends(f, SOON_MS), 0);
    assert_false(is_there(f->backend, f->volume, NULL));
    f->memory->held = false;
    assert_int_equal(attach_server_wait(&f->server, SOON_MS), 0);
}

/* --- daemons that come and go --- */

static void test_killed_and_resumed(void **state) {
    need(state);
    struct fixture *f = *state;
    attach(f);
    start_stuck_write(f);
    attach_server_kill(&f->server);
    assert_int_equal(child_wait(f->client, 300), -1); /* it waits */
    assert_true(is_there(f->backend, f->volume, NULL));
    f->memory->held = false;
    recover(f);
    assert_int_equal(expect_client_ends(f, SOON_MS), 0);
    fill(block, BLOCK, 1);
    assert_memory_equal(f->memory->data + MIB, block, BLOCK);
    detach(f);
}

static void test_killed_again_and_again(void **state) {
    need(state);
    struct fixture *f = *state;
    f->memory->delay_us = 2000;
    attach(f);
    f->client = start_client(f, churn);
    for (unsigned round = 0; round < 8; round++) {
        await_rounds(f, 5);
        pause_ms(round);
        attach_server_kill(&f->server);
        pause_ms(20 * round);
        recover(f);
    }
    await_rounds(f, 5);
    f->traffic->stop = true;
    assert_int_equal(expect_client_ends(f, SOON_MS), 0);
    detach(f);
}

static void test_handed_over(void **state) {
    need(state);
    struct fixture *f = *state;
    f->memory->delay_us = 500;
    attach(f);
    f->client = start_client(f, churn);
    uint64_t longest = 0;
    for (unsigned round = 0; round < 10; round++) {
        await_rounds(f, 10);
        uint64_t start = now_ms();
        f->link.daemon_fd = attach_server_hand_over(&f->server);
        start_server(f, true);
        OK(f->backend->ops->reattach(f->backend, f->volume, &f->how, &f->link, &why));
        await_rounds(f, 1);
        longest = MAX(longest, now_ms() - start);
    }
    print_message("longest pause of a hand-over: %llu ms\n", (unsigned long long)longest);
    assert_true(longest < 2000); /* nothing waited for a timer */
    f->traffic->stop = true;
    assert_int_equal(expect_client_ends(f, SOON_MS), 0);
    detach(f);
}

/* Nobody will serve it again. */
static void test_fail(void **state) {
    need(state);
    struct fixture *f = *state;
    attach(f);
    start_stuck_write(f);
    attach_server_kill(&f->server);
    assert_int_equal(child_wait(f->client, 300), -1);
    uint64_t start = now_ms();
    fail_device(f);
    assert_int_not_equal(expect_client_ends(f, SOON_MS), 0);
    f->client = start_client(f, write_one);
    assert_int_not_equal(expect_client_ends(f, SOON_MS), 0);
    assert_true(now_ms() - start < SOON_MS);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
    assert_false(is_there(f->backend, f->volume, NULL));
}

static int attach_in_child(struct fixture *f) {
    struct err e;
    return f->backend->ops->attach(f->backend, f->volume, &f->how, &f->link, &f->device, &e) < 0;
}

/* A call that waits for a dead daemon ends by fail, from elsewhere. */
static void test_fail_ends_a_call(void **state) {
    need(state);
    struct fixture *f = *state;
    f->how = (struct attach_how){.publish_epoch = 7, .size_bytes = f->memory->size_bytes};
    if (!is_fuse()) {
        print_message("attach of this backend waits for no daemon\n");
        skip();
    }
    OK(f->backend->ops->prepare(f->backend, f->volume, &f->link, &why));
    f->client = start_client(f, attach_in_child);
    assert_int_equal(child_wait(f->client, 300), -1);
    fail_device(f);
    assert_int_equal(expect_client_ends(f, SOON_MS), 1);
    struct err e;
    assert_int_equal(f->backend->ops->resume(f->backend, f->volume, &f->link, &e), -ERR_IO);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
}

/* Without a copy in other hands the connection ends with its daemon. */
static void test_last_copy(void **state) {
    need(state);
    struct fixture *f = *state;
    struct err e;
    if (!is_fuse()) {
        print_message("the kernel keeps devices of this backend\n");
        skip();
    }
    attach(f);
    start_stuck_write(f);
    attach_link_close(&f->link);
    assert_int_equal(child_wait(f->client, 100), -1);
    attach_server_kill(&f->server);
    assert_int_not_equal(expect_client_ends(f, SOON_MS), 0);
    assert_int_equal(f->backend->ops->resume(f->backend, f->volume, &f->link, &e), -ERR_IO);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
}

/* --- a filesystem on it --- */

static int run_shell(struct fixture *f, const char *format) {
    char command[1024];
    snprintf(command, sizeof command, format, f->device.path);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close_range(3, ~0U, 0);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    return child_wait(pid, 60 * 1000);
}

static int run_fio(struct fixture *f) {
    (void)f;
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 1);
    char *dir = xasprintf("--directory=%s/mnt", run_dir);
    execlp("fio", "fio", "--name=verify", dir, "--rw=randwrite", "--bsrange=4k-128k", "--size=24M",
           "--ioengine=libaio", "--direct=1", "--iodepth=16", "--fsync=32", "--loops=4",
           "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--end_fsync=1",
           (char *)NULL);
    return 127;
}

/* ext4 and a program that checks all it reads, through the deaths of daemons with requests under
 * way. */
static void test_filesystem_through_kills(void **state) {
    need(state);
    struct fixture *f = *state;
    CLEANUP_FREE char *point = xasprintf("%s/mnt", run_dir);
    if (run_shell(f, "command -v fio mkfs.ext4 e2fsck >/dev/null #%s") != 0) {
        print_message("fio, mkfs.ext4 or e2fsck is not there\n");
        skip();
    }
    attach(f);
    assert_int_equal(run_shell(f, "mkfs.ext4 -q -F %s"), 0);
    assert_true(mkdir(point, 0700) == 0 || errno == EEXIST);
    if (mount(f->device.path, point, "ext4", 0, "errors=remount-ro") < 0 && errno == ENODEV) {
        print_message("this kernel has no ext4\n");
        skip();
    }
    f->memory->delay_us = 2000;
    f->client = start_client(f, run_fio);
    unsigned kills = 0;
    int code;
    while ((code = child_wait(f->client, 200)) == -1 && kills < 20) {
        attach_server_kill(&f->server);
        pause_ms(50);
        recover(f);
        kills++;
    }
    /* nbd: what a dead daemon had comes again only seconds later. */
    if (code == -1)
        code = child_wait(f->client, 60 * 1000);
    f->client = 0;
    print_message("daemons killed: %u\n", kills);
    assert_int_equal(umount(point), 0);
    assert_int_equal(code, 0);
    assert_true(kills >= 3);
    assert_int_equal(run_shell(f, "e2fsck -fn %s >/dev/null 2>&1"), 0);
    detach(f);
}

/* --- main --- */

static void look_whether_usable(void) {
    struct err e;
    char note[ATTACH_NOTE_MAX];
    /* Mounts of ours are seen by nobody else, and end with us. */
    if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        snprintf(why_not, sizeof why_not, "must be root");
        return;
    }
    struct attach_backend *b = open_backend();
    usable = b->ops->probe(b, note, &e) == 0;
    if (!usable)
        snprintf(why_not, sizeof why_not, "%s", e.text);
    else if (note[0])
        print_message("%s\n", note);
    b->ops->close(b);
}

#define CASE(test)       cmocka_unit_test_setup_teardown(test, setup, teardown)
#define LARGE_CASE(test) cmocka_unit_test_setup_teardown(test, setup_large, teardown)

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        CASE(test_appears),
        CASE(test_read_and_write),
        CASE(test_fsync_is_flush),
        CASE(test_discard_is_trim),
        LARGE_CASE(test_discard_of_much),
        CASE(test_read_only),
        CASE(test_grow),
        CASE(test_busy),
        CASE(test_twice),
        CASE(test_discovered_by_another),
        CASE(test_force),
        CASE(test_killed_and_resumed),
        CASE(test_killed_again_and_again),
        CASE(test_handed_over),
        CASE(test_fail),
        CASE(test_fail_ends_a_call),
        CASE(test_last_copy),
        CASE(test_filesystem_through_kills),
    };
    if (argc > 1)
        kind = argv[1];
    if (strcmp(kind, "fuse") != 0 && strcmp(kind, "nbd") != 0) {
        fprintf(stderr, "usage: test_attach [fuse|nbd [RUN_DIR]]\n");
        return 2;
    }
    bool own_dir = argc <= 2;
    run_dir = own_dir ? temp_folder_new() : xstrdup(argv[2]);
    look_whether_usable();
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    if (own_dir)
        temp_folder_free(run_dir);
    else
        free(run_dir);
    return rc;
}
