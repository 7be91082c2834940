/* What every attach backend must do, on the kernel itself; what calls do to each other:
 * test_attach_together.c. The daemons are stand-ins over shared memory. */
#include "tests/support/attach_fixture.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/mem.h"

enum { MISMATCH = 100 }; /* exit code of a client that read what was not written */

/* Writes, reads back and flushes at random places, until it is told to stop. */
static int churn(struct attach_fixture *f) {
    static uint8_t again[256 * 1024] __attribute__((aligned(4096)));
    int fd = fixture_open_device(f);
    if (fd < 0)
        return errno;
    uint64_t seed = 99;
    while (!f->traffic->stop) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        size_t len = FIXTURE_BLOCK * (1 + (seed >> 40) % 64);
        uint64_t off =
            (seed >> 20) % ((f->memory->size_bytes - sizeof again) / FIXTURE_BLOCK) * FIXTURE_BLOCK;
        fixture_fill(fixture_buffer, len, seed);
        if (pwrite(fd, fixture_buffer, len, (off_t)off) != (ssize_t)len ||
            (seed % 8 == 0 && fsync(fd) < 0) || pread(fd, again, len, (off_t)off) != (ssize_t)len)
            return errno ? errno : 1;
        if (memcmp(fixture_buffer, again, len) != 0)
            return MISMATCH;
        f->traffic->rounds++;
    }
    return 0;
}

static void await_rounds(struct attach_fixture *f, uint64_t more) {
    uint64_t goal = f->traffic->rounds + more;
    for (uint64_t end = fixture_now_ms() + 6 * FIXTURE_SOON_MS; f->traffic->rounds < goal;
         fixture_pause_ms(1)) {
        assert_int_equal(child_wait(f->client, 0), -1); /* no error */
        assert_true(fixture_now_ms() < end);
    }
}

/* --- the cases --- */

static void test_appears(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    struct attach_device found;
    int block_size;
    uint64_t size;
    fixture_attach(f);
    assert_string_equal(f->device.volume, f->volume);
    assert_true(f->device.size_bytes == 64 * MIB);
    int fd = fixture_open_device(f);
    assert_true(fd >= 0);
    assert_int_equal(ioctl(fd, BLKSSZGET, &block_size), 0);
    assert_int_equal(block_size, FIXTURE_BLOCK);
    assert_int_equal(ioctl(fd, BLKGETSIZE64, &size), 0);
    assert_true(size == 64 * MIB);
    close(fd);
    assert_true(fixture_is_there(f->backend, f->volume, &found));
    assert_string_equal(found.path, f->device.path);
    assert_true(found.size_bytes == 64 * MIB);
    fixture_detach(f);
}

static void test_read_and_write(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    fixture_attach(f);
    int fd = fixture_open_device(f);
    for (size_t len = FIXTURE_BLOCK; len <= 2 * MIB; len *= 8) {
        fixture_fill(fixture_buffer, len, len);
        assert_int_equal(pwrite(fd, fixture_buffer, len, (off_t)(8 * MIB)), (ssize_t)len);
        assert_memory_equal(f->memory->data + 8 * MIB, fixture_buffer, len);
        memset(fixture_buffer, 0, len);
        assert_int_equal(pread(fd, fixture_buffer, len, (off_t)(8 * MIB)), (ssize_t)len);
        assert_memory_equal(f->memory->data + 8 * MIB, fixture_buffer, len);
    }
    close(fd);
    fixture_detach(f);
}

/* A device without this says "durable" and keeps nothing. */
static void test_fsync_is_flush(void **state) {
    fixture_need(state);
    enum { COUNT = 20 };
    struct attach_fixture *f = *state;
    fixture_attach(f);
    int fd = fixture_open_device(f);
    uint64_t before = f->memory->answered[BD_FLUSH];
    for (unsigned i = 0; i < COUNT; i++) {
        fixture_fill(fixture_buffer, FIXTURE_BLOCK, i);
        assert_int_equal(pwrite(fd, fixture_buffer, FIXTURE_BLOCK, i * FIXTURE_BLOCK),
                         FIXTURE_BLOCK);
        assert_int_equal(fsync(fd), 0);
        assert_true(f->memory->answered[BD_FLUSH] > before + i);
    }
    assert_true(f->memory->answered[BD_FLUSH] <= before + COUNT);
    close(fd);
    fixture_detach(f);
}

static void expect_zero(const uint8_t *bytes, size_t len) {
    for (size_t i = 0; i < len; i++)
        assert_int_equal(bytes[i], 0);
}

static void test_discard_is_trim(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    fixture_attach(f);
    int fd = fixture_open_device(f);
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
    fixture_detach(f);
}

static uint64_t discard_ms(int fd, uint64_t len) {
    uint64_t range[2] = {0, len}, start = fixture_now_ms();
    assert_int_equal(ioctl(fd, BLKDISCARD, range), 0);
    return fixture_now_ms() - start;
}

/* What a discard costs does not grow with its length. */
static void test_discard_of_much(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    uint64_t size = f->memory->size_bytes;
    fixture_attach(f);
    int fd = fixture_open_device(f);
    fixture_fill(fixture_buffer, FIXTURE_BLOCK, 1);
    assert_int_equal(pwrite(fd, fixture_buffer, FIXTURE_BLOCK, (off_t)(size - FIXTURE_BLOCK)),
                     FIXTURE_BLOCK);
    uint64_t little = discard_ms(fd, GIB), before = f->memory->answered[BD_TRIM];
    uint64_t much = discard_ms(fd, size);
    print_message("discard of 1 GiB: %llu ms, of %llu GiB: %llu ms, %llu TRIMs\n",
                  (unsigned long long)little, (unsigned long long)(size / GIB),
                  (unsigned long long)much,
                  (unsigned long long)(f->memory->answered[BD_TRIM] - before));
    assert_true(much <= little + 1000);
    expect_zero(f->memory->data + size - FIXTURE_BLOCK, FIXTURE_BLOCK);
    close(fd);
    fixture_detach(f);
}

static void test_read_only(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    int read_only = 0;
    f->memory->read_only = true;
    memset(f->memory->data, 0x11, MIB);
    fixture_attach(f);
    int fd = open(f->device.path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(ioctl(fd, BLKROGET, &read_only), 0);
    assert_int_not_equal(read_only, 0);
    assert_int_equal(pread(fd, fixture_buffer, FIXTURE_BLOCK, 0), FIXTURE_BLOCK);
    assert_int_equal(fixture_buffer[0], 0x11);
    close(fd);
    fd = fixture_open_device(f);
    assert_true(fd < 0 || pwrite(fd, fixture_buffer, FIXTURE_BLOCK, 0) < 0);
    if (fd >= 0)
        close(fd);
    assert_int_equal(f->memory->received[BD_WRITE], 0);
    fixture_detach(f);
}

static void test_grow(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    struct attach_device found;
    uint64_t size;
    fixture_attach(f);
    int fd = fixture_open_device(f);
    f->memory->size_bytes = 128 * MIB;
    attach_server_grow(&f->server);
    for (unsigned twice = 0; twice < 2; twice++)
        OK(f->backend->ops->grow(f->backend, f->volume, 128 * MIB, &why));
    assert_int_equal(ioctl(fd, BLKGETSIZE64, &size), 0);
    assert_true(size == 128 * MIB);
    fixture_fill(fixture_buffer, FIXTURE_BLOCK, 5);
    assert_int_equal(pwrite(fd, fixture_buffer, FIXTURE_BLOCK, (off_t)(128 * MIB - FIXTURE_BLOCK)),
                     FIXTURE_BLOCK);
    assert_memory_equal(f->memory->data + 128 * MIB - FIXTURE_BLOCK, fixture_buffer, FIXTURE_BLOCK);
    close(fd);
    assert_true(fixture_is_there(f->backend, f->volume, &found));
    assert_true(found.size_bytes == 128 * MIB);
    fixture_detach(f);
}

static void test_busy(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    struct err e;
    fixture_attach(f);
    int fd = open(f->device.path, O_RDWR | O_DIRECT | O_EXCL | O_CLOEXEC); /* as a mount does */
    assert_true(fd >= 0);
    assert_int_equal(f->backend->ops->detach(f->backend, f->volume, false, &e), -ERR_BUSY);
    fixture_fill(fixture_buffer, FIXTURE_BLOCK, 3);
    assert_int_equal(pwrite(fd, fixture_buffer, FIXTURE_BLOCK, 0), FIXTURE_BLOCK);
    assert_memory_equal(f->memory->data, fixture_buffer, FIXTURE_BLOCK);
    close(fd);
    fixture_detach(f);
}

static void test_twice(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    struct attach_link other = ATTACH_LINK_NONE;
    struct err e;
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
    OK(f->backend->ops->detach(f->backend, f->volume, true, &why));
    fixture_attach(f);
    assert_int_equal(f->backend->ops->prepare(f->backend, f->volume, &other, &e), -ERR_EXISTS);
    fixture_detach(f);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
}

/* All that a new agent has is the kernel. */
static void test_discovered_by_another(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    struct attach_device found;
    fixture_attach(f);
    struct attach_backend *other = fixture_open_backend();
    assert_true(fixture_is_there(other, f->volume, &found));
    assert_string_equal(found.path, f->device.path);
    assert_true(found.publish_epoch == 7 || found.publish_epoch == 0);
    OK(other->ops->detach(other, f->volume, false, &why));
    assert_false(fixture_is_there(other, f->volume, NULL));
    other->ops->close(other);
    assert_int_equal(attach_server_wait(&f->server, FIXTURE_SOON_MS), 0);
}

static void test_force(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    fixture_attach(f);
    fixture_start_stuck_write(f);
    uint64_t start = fixture_now_ms();
    OK(f->backend->ops->detach(f->backend, f->volume, true, &why));
    assert_true(fixture_now_ms() - start < FIXTURE_SOON_MS);
    assert_int_not_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    assert_false(fixture_is_there(f->backend, f->volume, NULL));
    f->memory->held = false;
    assert_int_equal(attach_server_wait(&f->server, FIXTURE_SOON_MS), 0);
}

/* --- daemons that come and go --- */

static void test_killed_and_resumed(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    fixture_attach(f);
    fixture_start_stuck_write(f);
    attach_server_kill(&f->server);
    assert_int_equal(child_wait(f->client, 300), -1); /* it waits */
    assert_true(fixture_is_there(f->backend, f->volume, NULL));
    f->memory->held = false;
    fixture_recover(f);
    assert_int_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    fixture_fill(fixture_buffer, FIXTURE_BLOCK, 1);
    assert_memory_equal(f->memory->data + MIB, fixture_buffer, FIXTURE_BLOCK);
    fixture_detach(f);
}

static void test_killed_again_and_again(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    f->memory->delay_us = 2000;
    fixture_attach(f);
    f->client = fixture_start_client(f, churn);
    for (unsigned round = 0; round < 8; round++) {
        await_rounds(f, 5);
        fixture_pause_ms(round);
        attach_server_kill(&f->server);
        fixture_pause_ms(20 * round);
        fixture_recover(f);
    }
    await_rounds(f, 5);
    f->traffic->stop = true;
    assert_int_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    fixture_detach(f);
}

static void test_handed_over(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    f->memory->delay_us = 500;
    fixture_attach(f);
    f->client = fixture_start_client(f, churn);
    uint64_t longest = 0;
    for (unsigned round = 0; round < 10; round++) {
        await_rounds(f, 10);
        uint64_t start = fixture_now_ms();
        f->link.daemon_fd = attach_server_hand_over(&f->server);
        fixture_start_server(f, true);
        OK(f->backend->ops->reattach(f->backend, f->volume, &f->how, &f->link, &why));
        await_rounds(f, 1);
        longest = MAX(longest, fixture_now_ms() - start);
    }
    print_message("longest pause of a hand-over: %llu ms\n", (unsigned long long)longest);
    assert_true(longest < 2000); /* nothing waited for a timer */
    f->traffic->stop = true;
    assert_int_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    fixture_detach(f);
}

/* Nobody will serve it again. */
static void test_fail(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    fixture_attach(f);
    fixture_start_stuck_write(f);
    attach_server_kill(&f->server);
    assert_int_equal(child_wait(f->client, 300), -1);
    uint64_t start = fixture_now_ms();
    fixture_fail(f);
    assert_int_not_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    f->client = fixture_start_client(f, fixture_write_one);
    assert_int_not_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    assert_true(fixture_now_ms() - start < FIXTURE_SOON_MS);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
    assert_false(fixture_is_there(f->backend, f->volume, NULL));
}

static int attach_in_child(struct attach_fixture *f) {
    struct err e;
    return f->backend->ops->attach(f->backend, f->volume, &f->how, &f->link, &f->device, &e) < 0;
}

/* A call that waits for a dead daemon ends by fail, from elsewhere. */
static void test_fail_ends_a_call(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    f->how = (struct attach_how){.publish_epoch = 7, .size_bytes = f->memory->size_bytes};
    if (!fixture_is_fuse()) {
        print_message("attach of this backend waits for no daemon\n");
        skip();
    }
    OK(f->backend->ops->prepare(f->backend, f->volume, &f->link, &why));
    f->client = fixture_start_client(f, attach_in_child);
    assert_int_equal(child_wait(f->client, 300), -1);
    fixture_fail(f);
    assert_int_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 1);
    struct err e;
    assert_int_equal(f->backend->ops->resume(f->backend, f->volume, &f->link, &e), -ERR_IO);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
}

/* Without a copy in other hands the connection ends with its daemon. */
static void test_last_copy(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    struct err e;
    if (!fixture_is_fuse()) {
        print_message("the kernel keeps devices of this backend\n");
        skip();
    }
    fixture_attach(f);
    fixture_start_stuck_write(f);
    attach_link_close(&f->link);
    assert_int_equal(child_wait(f->client, 100), -1);
    attach_server_kill(&f->server);
    assert_int_not_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    assert_int_equal(f->backend->ops->resume(f->backend, f->volume, &f->link, &e), -ERR_IO);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
}

/* --- a filesystem on it --- */

static int run_shell(struct attach_fixture *f, const char *format) {
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

static int run_fio(struct attach_fixture *f) {
    (void)f;
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 1);
    char *dir = xasprintf("--directory=%s/mnt", fixture_run_dir());
    execlp("fio", "fio", "--name=verify", dir, "--rw=randwrite", "--bsrange=4k-128k", "--size=24M",
           "--ioengine=libaio", "--direct=1", "--iodepth=16", "--fsync=32", "--loops=4",
           "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--end_fsync=1",
           (char *)NULL);
    return 127;
}

/* ext4 and a program that checks all it reads, through the deaths of daemons with requests under
 * way. */
static void test_filesystem_through_kills(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    CLEANUP_FREE char *point = xasprintf("%s/mnt", fixture_run_dir());
    if (run_shell(f, "command -v fio mkfs.ext4 e2fsck >/dev/null #%s") != 0) {
        print_message("fio, mkfs.ext4 or e2fsck is not there\n");
        skip();
    }
    fixture_attach(f);
    assert_int_equal(run_shell(f, "mkfs.ext4 -q -F %s"), 0);
    assert_true(mkdir(point, 0700) == 0 || errno == EEXIST);
    if (mount(f->device.path, point, "ext4", 0, "errors=remount-ro") < 0 && errno == ENODEV) {
        print_message("this kernel has no ext4\n");
        skip();
    }
    f->memory->delay_us = 2000;
    f->client = fixture_start_client(f, run_fio);
    unsigned kills = 0;
    int code;
    while ((code = child_wait(f->client, 200)) == -1 && kills < 20) {
        attach_server_kill(&f->server);
        fixture_pause_ms(50);
        fixture_recover(f);
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
    fixture_detach(f);
}

/* --- main --- */

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)
#define LARGE_CASE(test)                                                                           \
    cmocka_unit_test_setup_teardown(test, fixture_setup_large, fixture_teardown)

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
    if (!fixture_begin(argc, argv))
        return 2;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_end();
    return rc;
}
