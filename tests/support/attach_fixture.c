/* See attach_fixture.h. */
#include "tests/support/attach_fixture.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/nbd/server.h"
#include "tests/support/temp.h"

static const char *kind = "fuse";
static char *run_dir;
static bool own_dir;
static bool usable;
static char why_not[ERR_TEXT_MAX];

uint8_t fixture_buffer[FIXTURE_BUFFER] __attribute__((aligned(4096)));

struct attach_backend *fixture_open_backend(void) {
    struct attach_backend *b;
    struct err e;
    int rc = strcmp(kind, "nbd") == 0 ? attach_nbd_open(NULL, &b, &e)
                                      : attach_fuse_open(run_dir, &b, &e);
    if (rc < 0)
        fail_msg("%s", e.text);
    return b;
}

bool fixture_is_fuse(void) {
    return strcmp(kind, "fuse") == 0;
}

const char *fixture_run_dir(void) {
    return run_dir;
}

uint64_t fixture_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void fixture_pause_ms(unsigned ms) {
    usleep(ms * 1000);
}

/* --- a device and its daemon --- */

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void fixture_start_server(struct attach_fixture *f, bool resume) {
    attach_server_start(&f->server, f->memory, f->backend->ops->daemon_flag, f->link.daemon_fd,
                        resume);
    close_fd(&f->link.daemon_fd);
}

void fixture_prepare(struct attach_fixture *f) {
    struct blockdev dev = {.read_only = f->memory->read_only};
    f->how = (struct attach_how){.publish_epoch = 7,
                                 .size_bytes = f->memory->size_bytes,
                                 .nbd_flags = nbd_server_flags(&dev),
                                 .read_only = dev.read_only};
    OK(f->backend->ops->prepare(f->backend, f->volume, &f->link, &why));
    fixture_start_server(f, false);
}

void fixture_attach(struct attach_fixture *f) {
    fixture_prepare(f);
    OK(f->backend->ops->attach(f->backend, f->volume, &f->how, &f->link, &f->device, &why));
}

void fixture_recover(struct attach_fixture *f) {
    OK(f->backend->ops->resume(f->backend, f->volume, &f->link, &why));
    fixture_start_server(f, true);
    OK(f->backend->ops->reattach(f->backend, f->volume, &f->how, &f->link, &why));
}

void fixture_fail(struct attach_fixture *f) {
    (f->backend->ops->fail)(f->backend, f->volume); /* cmocka has a macro of that name */
}

struct attach_fixture *fixture_new(struct attach_backend *b, uint64_t size_bytes,
                                   uint64_t room_bytes) {
    static unsigned number;
    struct attach_fixture *f = NEW(struct attach_fixture);
    f->backend = b;
    f->memory = served_memory_new(size_bytes, room_bytes);
    f->link = ATTACH_LINK_NONE;
    f->traffic =
        mmap(NULL, sizeof *f->traffic, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(f->traffic != MAP_FAILED);
    snprintf(f->volume, sizeof f->volume, "suite-%d-%u", (int)getpid(), ++number);
    return f;
}

int fixture_setup_of(void **state, uint64_t size_bytes, uint64_t room_bytes) {
    if (usable)
        *state = fixture_new(fixture_open_backend(), size_bytes, room_bytes);
    return 0;
}

int fixture_setup(void **state) {
    return fixture_setup_of(state, 64 * MIB, 256 * MIB);
}

/* A terabyte, where there is so much address space (user-mode Linux has half of that). */
static uint64_t much_bytes(void) {
    void *p = mmap(NULL, TIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return 128 * GIB;
    munmap(p, TIB);
    return TIB;
}

int fixture_setup_large(void **state) {
    return fixture_setup_of(state, much_bytes(), much_bytes());
}

static void end_client(struct attach_fixture *f) {
    if (f->client) {
        kill(f->client, SIGKILL);
        waitpid(f->client, NULL, 0);
    }
    f->client = 0;
}

void fixture_free(struct attach_fixture *f) {
    f->memory->held = false;
    fixture_fail(f);
    end_client(f);
    attach_server_kill(&f->server);
    f->backend->ops->detach(f->backend, f->volume, true, NULL);
    attach_link_close(&f->link);
    munmap(f->traffic, sizeof *f->traffic);
    served_memory_free(f->memory);
    free(f);
}

int fixture_teardown(void **state) {
    struct attach_fixture *f = *state;
    if (!f)
        return 0;
    struct attach_backend *b = f->backend;
    fixture_free(f);
    b->ops->close(b);
    return 0;
}

bool fixture_is_there(struct attach_backend *b, const char *volume, struct attach_device *ret) {
    struct attach_devices all;
    OK(b->ops->discover(b, &all, &why));
    const struct attach_device *d = attach_devices_find(&all, volume);
    if (d && ret)
        *ret = *d;
    bool found = d != NULL;
    attach_devices_release(&all);
    return found;
}

void fixture_detach(struct attach_fixture *f) {
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
    assert_false(fixture_is_there(f->backend, f->volume, NULL));
    assert_int_equal(attach_server_wait(&f->server, FIXTURE_SOON_MS), 0);
}

/* --- clients: other processes, as an application is --- */

void fixture_fill(uint8_t *bytes, size_t len, uint64_t seed) {
    for (size_t i = 0; i < len; i += sizeof seed) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        memcpy(bytes + i, &seed, sizeof seed);
    }
}

pid_t fixture_start_client(struct attach_fixture *f, int (*fn)(struct attach_fixture *f)) {
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

int fixture_open_device(const struct attach_fixture *f) {
    return open(f->device.path, O_RDWR | O_DIRECT | O_CLOEXEC);
}

int fixture_write_one(struct attach_fixture *f) {
    int fd = fixture_open_device(f);
    fixture_fill(fixture_buffer, FIXTURE_BLOCK, 1);
    if (fd < 0 || pwrite(fd, fixture_buffer, FIXTURE_BLOCK, MIB) != FIXTURE_BLOCK)
        return errno ? errno : 1;
    return 0;
}

void fixture_await_received(struct attach_fixture *f, enum bd_op op, uint64_t more_than) {
    for (uint64_t end = fixture_now_ms() + FIXTURE_SOON_MS; f->memory->received[op] <= more_than;
         fixture_pause_ms(1))
        assert_true(fixture_now_ms() < end);
}

void fixture_start_stuck_write(struct attach_fixture *f) {
    f->memory->held = true;
    uint64_t before = f->memory->received[BD_WRITE];
    f->client = fixture_start_client(f, fixture_write_one);
    fixture_await_received(f, BD_WRITE, before);
}

int fixture_expect_client_ends(struct attach_fixture *f, int timeout_ms) {
    int code = child_wait(f->client, timeout_ms);
    assert_true(code >= 0); /* it hangs */
    f->client = 0;
    return code;
}

void fixture_need(void **state) {
    if (*state)
        return;
    print_message("%s\n", why_not);
    skip();
}

static void look_whether_usable(void) {
    struct err e;
    char note[ATTACH_NOTE_MAX];
    /* Mounts of ours are seen by nobody else, and end with us. */
    if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        snprintf(why_not, sizeof why_not, "must be root");
        return;
    }
    struct attach_backend *b = fixture_open_backend();
    usable = b->ops->probe(b, note, &e) == 0;
    if (!usable)
        snprintf(why_not, sizeof why_not, "%s", e.text);
    else if (note[0])
        print_message("%s\n", note);
    b->ops->close(b);
}

bool fixture_begin(int argc, char **argv) {
    if (argc > 1)
        kind = argv[1];
    if (strcmp(kind, "fuse") != 0 && strcmp(kind, "nbd") != 0) {
        fprintf(stderr, "usage: %s [fuse|nbd [RUN_DIR]]\n", argv[0]);
        return false;
    }
    own_dir = argc <= 2;
    run_dir = own_dir ? temp_folder_new() : xstrdup(argv[2]);
    look_whether_usable();
    return true;
}

void fixture_end(void) {
    if (own_dir)
        temp_folder_free(run_dir);
    else
        free(run_dir);
}
