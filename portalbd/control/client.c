/* The control socket's client. */
#include "portalbd/control/client.h"

#include <dirent.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/control/socket_internal.h"

enum { LIST_MAX = 65536, DIAL_PAUSE_MS = 5 };

static uint64_t now_us(void) {
    struct timespec ts;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &ts) == 0);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static int dial(const char *run_dir, const char *volume, int *ret_fd, struct err *e) {
    struct sockaddr_un addr;
    int dir_fd;
    int rc = control_address(run_dir, volume, &addr, &dir_fd, e);
    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), eno = errno;
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
        eno = errno;
        close(fd);
        fd = -1;
    }
    close(dir_fd);
    if (fd >= 0) {
        *ret_fd = fd;
        return 0;
    }
    if (eno == ENOENT || eno == ECONNREFUSED)
        return err_set(e, -ERR_NOT_FOUND, "no daemon serves volume %s here", volume);
    if (eno == EAGAIN)
        return err_set(e, -ERR_BUSY, "the daemon of volume %s has no room for another connection",
                       volume);
    return err_from_errno(e, eno, "control socket of volume %s", volume);
}

/* Waits its turn while the daemon's queue of connections is full. */
static int dial_until(const char *run_dir, const char *volume, uint64_t deadline_us, int *ret_fd,
                      struct err *e) {
    for (;;) {
        int rc = dial(run_dir, volume, ret_fd, e);
        if (rc != -ERR_BUSY || now_us() >= deadline_us)
            return rc;
        poll(NULL, 0, DIAL_PAUSE_MS);
    }
}

/* Until the socket is ready, or the time is over. */
static int await(int fd, short events, uint64_t deadline_us, struct err *e) {
    for (;;) {
        uint64_t now = now_us();
        struct pollfd p = {.fd = fd, .events = events};
        uint64_t left_ms = now < deadline_us ? DIV_UP(deadline_us - now, 1000) : 0;
        int n = poll(&p, 1, (int)MIN(left_ms, (uint64_t)3600 * 1000));
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return err_from_errno(e, errno, "control socket");
        if (now_us() >= deadline_us)
            return err_set(e, -ERR_TIMEOUT, "the daemon has not answered in time");
    }
}

static int send_all(int fd, struct view bytes, uint64_t deadline_us, struct err *e) {
    while (bytes.len > 0) {
        ssize_t n = send(fd, bytes.data, bytes.len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            bytes = view_part(bytes, (size_t)n, bytes.len - (size_t)n);
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return err_set(e, -ERR_TRANSIENT, "the daemon has closed the connection");
        int rc = await(fd, POLLOUT, deadline_us, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Like recv(2). The first descriptor that comes along becomes *passed_fd; further ones do not fit
 * and are closed by the kernel. */
static ssize_t receive_some(int fd, struct buf *in, int *passed_fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {in->data + in->len, in->cap - in->len};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    if (*passed_fd < 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_LEN(sizeof(int)); /* CMSG_SPACE has room for two */
    }
    ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    const struct cmsghdr *c = n >= 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len >= CMSG_LEN(sizeof(int)))
        memcpy(passed_fd, CMSG_DATA(c), sizeof(int));
    return n;
}

/* A line without its newline, in `in`. *passed_fd: -1, or what came with it, also on an error. */
static int receive_line(int fd, struct buf *in, int *passed_fd, uint64_t deadline_us,
                        struct err *e) {
    for (;;) {
        buf_reserve(in, 4096);
        ssize_t n = receive_some(fd, in, passed_fd);
        if (n > 0) {
            uint8_t *newline = memchr(in->data + in->len, '\n', (size_t)n);
            in->len += (size_t)n;
            if (newline) {
                in->len = (size_t)(newline - in->data);
                return 0;
            }
            if (in->len > CONTROL_LINE_MAX)
                return err_set(e, -ERR_CORRUPT, "the daemon's answer has no end");
            continue;
        }
        if (n == 0 || (errno != EAGAIN && errno != EINTR))
            return err_set(e, -ERR_TRANSIENT, "the daemon has closed the connection");
        int rc = await(fd, POLLIN, deadline_us, e);
        if (rc < 0)
            return rc;
    }
}

int control_call_fd(const char *run_dir, const char *volume, const char *verb, const json_t *args,
                    uint64_t timeout_us, json_t **ret_result, int *ret_fd, struct err *e) {
    enum { ID = 1 };
    CLEANUP_BUF struct buf out = {0};
    CLEANUP_BUF struct buf in = {0};
    uint64_t now = now_us();
    uint64_t deadline_us = timeout_us < UINT64_MAX - now ? now + timeout_us : UINT64_MAX;
    int fd, passed_fd = -1;
    int rc = control_request_encode(&out, ID, verb, args, e);
    if (rc < 0 || (rc = dial_until(run_dir, volume, deadline_us, &fd, e)) < 0)
        return rc;
    rc = send_all(fd, buf_view(&out), deadline_us, e);
    if (rc == 0)
        rc = receive_line(fd, &in, &passed_fd, deadline_us, e);
    close(fd);
    if (rc == 0)
        rc = control_reply_decode(buf_view(&in), ID, ret_result, e);
    if (rc == 0)
        *ret_fd = passed_fd;
    else if (passed_fd >= 0)
        close(passed_fd);
    return rc;
}

int control_call(const char *run_dir, const char *volume, const char *verb, const json_t *args,
                 uint64_t timeout_us, json_t **ret_result, struct err *e) {
    int passed_fd;
    int rc = control_call_fd(run_dir, volume, verb, args, timeout_us, ret_result, &passed_fd, e);
    if (rc == 0 && passed_fd >= 0)
        close(passed_fd);
    return rc;
}

bool control_is_live(const char *run_dir, const char *volume) {
    int fd;
    int rc = dial(run_dir, volume, &fd, NULL);
    if (rc == 0)
        close(fd);
    return rc == 0 || rc == -ERR_BUSY;
}

int control_list(const char *run_dir, char ***ret_volumes, size_t *ret_count, struct err *e) {
    char **volumes = NULL;
    size_t count = 0;
    DIR *dir = opendir(run_dir);
    if (!dir && errno != ENOENT)
        return err_from_errno(e, errno, "run folder %s", run_dir);
    struct dirent *entry;
    while (dir && count < LIST_MAX && (entry = readdir(dir))) {
        size_t len = strlen(entry->d_name), suffix = strlen(CONTROL_SOCKET_SUFFIX);
        if (len <= suffix || strcmp(entry->d_name + len - suffix, CONTROL_SOCKET_SUFFIX) != 0)
            continue;
        if (strcmp(entry->d_name, CONTROL_AGENT_NAME CONTROL_SOCKET_SUFFIX) == 0)
            continue;
        volumes = xrealloc(volumes, (count + 1) * sizeof *volumes);
        volumes[count++] = xstrndup(entry->d_name, len - suffix);
    }
    if (dir)
        closedir(dir);
    *ret_volumes = volumes;
    *ret_count = count;
    return 0;
}
