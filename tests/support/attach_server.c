/* Processes that serve a device from shared memory (see attach_server.h).
 *
 * A byte on the control socket asks for something and comes back when it is done: 'r' ready (nobody
 * asks), 'g' grow, 'h' hand over, which brings the descriptor along. */
#include "tests/support/attach_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/loop.h"
#include "common/mem.h"
#include "portalbd/fuse/server.h"
#include "portalbd/nbd/server.h"

enum { PATIENCE_MS = 10 * 1000, HELD_LOOK_US = 2000, CONTROL_FD = 3, DEVICE_FD = 4 };

/* --- the memory --- */

static void *map_shared(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

struct served_memory *served_memory_new(uint64_t size_bytes, uint64_t room_bytes) {
    CHECK(size_bytes <= room_bytes);
    struct served_memory *m = map_shared(sizeof *m);
    m->data = map_shared(room_bytes);
    m->room_bytes = room_bytes;
    m->size_bytes = size_bytes;
    return m;
}

void served_memory_free(struct served_memory *m) {
    munmap(m->data, m->room_bytes);
    munmap(m, sizeof *m);
}

/* --- the device, in the child --- */

struct device {
    struct blockdev dev;
    struct served_memory *memory;
    struct env *env;
    struct list_node waiting; /* requests, oldest first */
    struct env_timer timer;
};

static void zero(struct served_memory *m, uint64_t off, uint64_t len) {
    uint64_t first = ALIGN_UP(off, 4096), end = off + len, last = end - end % 4096;
    if (first >= last) {
        memset(m->data + off, 0, len);
        return;
    }
    memset(m->data + off, 0, first - off);
    memset(m->data + last, 0, end - last);
    CHECK(madvise(m->data + first, last - first, MADV_REMOVE) == 0);
}

static void execute(struct served_memory *m, struct bd_request *req) {
    uint64_t size = m->size_bytes;
    CHECK(req->off <= size && req->len <= size - req->off);
    req->rc = 0;
    switch (req->op) {
    case BD_READ:
        memcpy(req->read_buf, m->data + req->off, req->len);
        break;
    case BD_WRITE:
        memcpy(m->data + req->off, req->write_data, req->len);
        break;
    case BD_TRIM:
    case BD_WRITE_ZEROES:
        zero(m, req->off, req->len);
        break;
    default:
        break;
    }
    m->answered[req->op]++;
}

static void on_timer(struct env_timer *timer) {
    struct device *d = container_of(timer, struct device, timer);
    if (d->memory->held) {
        env_timer_start(d->env, timer, HELD_LOOK_US);
        return;
    }
    struct list_node due;
    list_init(&due);
    for (struct list_node *n; (n = list_pop_front(&d->waiting));)
        list_push_back(&due, n);
    for (struct list_node *n; (n = list_pop_front(&due));) {
        struct bd_request *req = list_entry(n, struct bd_request, node);
        execute(d->memory, req);
        req->done(req);
    }
}

static bool device_submit(struct blockdev *dev, struct bd_request *req) {
    struct device *d = container_of(dev, struct device, dev);
    struct served_memory *m = d->memory;
    m->received[req->op]++;
    if (!m->held && !m->delay_us) {
        execute(m, req);
        return true;
    }
    req->node = (struct list_node){0};
    list_push_back(&d->waiting, &req->node);
    if (!env_timer_running(&d->timer))
        env_timer_start(d->env, &d->timer, m->held ? HELD_LOOK_US : m->delay_us);
    return false;
}

static uint64_t device_size_bytes(struct blockdev *dev) {
    return container_of(dev, struct device, dev)->memory->size_bytes;
}

static void device_close(struct blockdev *dev) {
    (void)dev;
}

static const struct blockdev_ops device_ops = {
    .submit = device_submit, .size_bytes = device_size_bytes, .close = device_close};

/* --- the process, in the child --- */

struct server {
    struct loop *loop;
    struct device device;
    struct fuse_server *fuse;
    struct nbd_server *nbd;
    bool resume;
    struct loop_watch control;
    struct fiber_done nbd_drained;
};

static void on_fuse_ended(void *arg, int rc, const char *text) {
    (void)arg;
    if (rc < 0)
        fprintf(stderr, "attach_server: %s\n", text);
    _exit(rc < 0);
}

static void on_nbd_idle(void *arg) {
    (void)arg;
    _exit(0);
}

static void on_nbd_drained(void *arg) {
    struct server *s = arg;
    fiber_done_set(&s->nbd_drained);
}

static void say(char what, int fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {&what, 1};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        *c = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    CHECK(sendmsg(CONTROL_FD, &msg, 0) == 1);
}

static void hand_over(void *arg) {
    struct server *s = arg;
    if (s->fuse) {
        fuse_server_drain(s->fuse);
    } else {
        nbd_server_drain(s->nbd, on_nbd_drained, s);
        fiber_done_wait_always(loop_env(s->loop), &s->nbd_drained);
    }
    say('h', DEVICE_FD);
    _exit(ATTACH_SERVER_HANDED_OVER);
}

static void on_control(struct loop_watch *watch, int events) {
    (void)events;
    struct server *s = container_of(watch, struct server, control);
    char what;
    CHECK(read(CONTROL_FD, &what, 1) == 1);
    if (what == 'h') {
        fiber_start(loop_env(s->loop), hand_over, s);
        return;
    }
    if (s->fuse)
        fuse_server_grew(s->fuse);
    say('g', -1);
}

static void serve(void *arg) {
    struct server *s = arg;
    struct err e;
    int rc;
    if (s->nbd) { /* the server closes what it adopts */
        rc = nbd_server_adopt(s->nbd, fcntl(DEVICE_FD, F_DUPFD_CLOEXEC, 0), &s->device.dev, &e);
    } else {
        struct fuse_server_config config = {.loop = s->loop,
                                            .dev = &s->device.dev,
                                            .fd = DEVICE_FD,
                                            .resume = s->resume,
                                            .ended = on_fuse_ended};
        rc = fuse_server_new(&config, &s->fuse, &e);
    }
    CHECK(rc == 0);
    s->control.fn = on_control;
    CHECK(loop_watch_start(s->loop, &s->control, CONTROL_FD, LOOP_READABLE, NULL) == 0);
    say('r', -1);
}

/* Of all that the test has open the child has these two alone: a copy of a descriptor that nobody
 * knows of would keep a connection alive. */
static void keep_descriptors(int control, int device) {
    int c = fcntl(control, F_DUPFD_CLOEXEC, DEVICE_FD + 1);
    int d = fcntl(device, F_DUPFD_CLOEXEC, DEVICE_FD + 1);
    CHECK(c >= 0 && d >= 0);
    CHECK(dup2(c, CONTROL_FD) >= 0 && dup2(d, DEVICE_FD) >= 0);
    close_range(DEVICE_FD + 1, ~0U, 0);
}

static void run(struct served_memory *m, const char *flag, bool resume) {
    struct server *s = NEW(struct server);
    s->loop = loop_new(1);
    s->resume = resume;
    s->device = (struct device){.dev = {.ops = &device_ops,
                                        .read_only = m->read_only,
                                        .block_size_min = SECTOR_SIZE,
                                        .block_size_preferred = 4096},
                                .memory = m,
                                .env = loop_env(s->loop),
                                .timer.fn = on_timer};
    list_init(&s->device.waiting);
    fiber_done_init(&s->nbd_drained);
    if (strcmp(flag, "--nbd-fd") == 0)
        s->nbd = nbd_server_new(
            &(struct nbd_server_config){.loop = s->loop, .on_idle = on_nbd_idle, .arg = s});
    fiber_start(loop_env(s->loop), serve, s);
    loop_run(s->loop);
    _exit(1);
}

/* --- the test's side --- */

static char hear(struct attach_server *s, int *ret_fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char what = 0;
    struct iovec part = {&what, 1};
    struct msghdr msg = {.msg_iov = &part,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof control.bytes};
    struct pollfd p = {.fd = s->control, .events = POLLIN};
    if (poll(&p, 1, PATIENCE_MS) != 1 || recvmsg(s->control, &msg, MSG_CMSG_CLOEXEC) != 1)
        return 0;
    const struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c && ret_fd)
        memcpy(ret_fd, CMSG_DATA(c), sizeof *ret_fd);
    return what;
}

void attach_server_start(struct attach_server *s, struct served_memory *m, const char *flag, int fd,
                         bool resume) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fflush(NULL);
    s->pid = fork();
    CHECK(s->pid >= 0);
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        keep_descriptors(pair[1], fd);
        run(m, flag, resume);
    }
    close(pair[1]);
    s->control = pair[0];
    CHECK(hear(s, NULL) == 'r');
}

void attach_server_grow(struct attach_server *s) {
    CHECK(write(s->control, "g", 1) == 1);
    CHECK(hear(s, NULL) == 'g');
}

static void ended(struct attach_server *s) {
    close(s->control);
    *s = (struct attach_server){0};
}

void attach_server_kill(struct attach_server *s) {
    if (!s->pid)
        return;
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    ended(s);
}

int attach_server_hand_over(struct attach_server *s) {
    int fd = -1;
    CHECK(write(s->control, "h", 1) == 1);
    CHECK(hear(s, &fd) == 'h' && fd >= 0);
    CHECK(attach_server_wait(s, PATIENCE_MS) == ATTACH_SERVER_HANDED_OVER);
    return fd;
}

int child_wait(pid_t pid, int timeout_ms) {
    for (int waited = 0;; waited++) {
        int status;
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (waited >= timeout_ms)
            return -1;
        poll(NULL, 0, 1);
    }
}

int attach_server_wait(struct attach_server *s, int timeout_ms) {
    int code = child_wait(s->pid, timeout_ms);
    if (code >= 0)
        ended(s);
    return code;
}
