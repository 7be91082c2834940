/* A listening unix socket: bind, accept, check of the peer. */
#include "csi/rpc/listener.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "csi/rpc/thread.h"

enum {
    BACKLOG_MAX = 128,
    RETRY_MS = 100, /* pause when accept fails for want of file descriptors */
};

static struct sockaddr_un address(const char *path) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    CHECK(strlen(path) < sizeof addr.sun_path);
    strcpy(addr.sun_path, path);
    return addr;
}

/* Whether anybody listens at the path. A full backlog (EAGAIN) means yes. */
static bool somebody_listens(const char *path) {
    struct sockaddr_un addr = address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return true;
    int rc = connect(fd, (struct sockaddr *)&addr, sizeof addr);
    bool nobody = rc != 0 && errno == ECONNREFUSED;
    close(fd);
    return !nobody;
}

static int remove_stale(const char *path, struct err *e) {
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : err_from_errno(e, errno, "socket '%s'", path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(e, -ERR_CONFIG,
                       "'%s' exists and is not a socket; remove it, or choose another path", path);
    if (somebody_listens(path))
        return err_set(e, -ERR_IN_USE, "another process serves on the socket '%s'", path);
    if (unlink(path) != 0 && errno != ENOENT)
        return err_from_errno(e, errno, "remove the stale socket '%s'", path);
    return 0;
}

/* Nobody can connect between bind and listen, so the mode is right from the first connection on. */
static int bind_and_listen(struct rpc_listener *l, unsigned mode, struct err *e) {
    struct sockaddr_un addr = address(l->path);
    struct stat st;
    if (bind(l->fd, (struct sockaddr *)&addr, sizeof addr) != 0) {
        if (errno == ENOENT)
            return err_set(e, -ERR_CONFIG, "the folder of the socket '%s' does not exist", l->path);
        if (errno == EADDRINUSE)
            return err_set(e, -ERR_IN_USE, "another process took the socket '%s'", l->path);
        return err_from_errno(e, errno, "bind the socket '%s'", l->path);
    }
    if (chmod(l->path, mode) != 0 || lstat(l->path, &st) != 0 || listen(l->fd, BACKLOG_MAX) != 0) {
        int eno = errno;
        unlink(l->path);
        return err_from_errno(e, eno, "listen on '%s'", l->path);
    }
    l->dev = st.st_dev;
    l->ino = st.st_ino;
    return 0;
}

static bool peer_allowed(const struct rpc_listener *l, int fd) {
    struct ucred peer;
    socklen_t len = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0)
        return false;
    if (l->any_peer || peer.uid == 0 || peer.uid == geteuid())
        return true;
    static struct log_limit limit;
    log_warn_limited(&limit, "connection refused: only root and our own user may connect",
                     LOG_STR("socket", l->path), LOG_U64("peer_uid", peer.uid),
                     LOG_I64("peer_pid", peer.pid));
    return false;
}

/* One connection; false when the process has no room for it now. */
static bool accept_one(struct rpc_listener *l) {
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
            return true;
        static struct log_limit limit;
        log_warn_limited(&limit, "cannot accept a connection, trying again",
                         LOG_STR("socket", l->path), LOG_ERRNO(errno));
        return false;
    }
    if (peer_allowed(l, fd))
        l->accepted(l->arg, fd);
    else
        close(fd);
    return true;
}

static void *listener_main(void *arg) {
    struct rpc_listener *l = arg;
    bool pause = false;
    for (;;) {
        struct pollfd fds[] = {{.fd = l->stop_fd, .events = POLLIN},
                               {.fd = pause ? -1 : l->fd, .events = POLLIN}};
        int n = poll(fds, ARRAY_LEN(fds), pause ? RETRY_MS : -1);
        if (n > 0 && fds[0].revents)
            return NULL;
        pause = n > 0 && fds[1].revents && !accept_one(l);
    }
}

int rpc_listener_open(struct rpc_listener *l, const char *path, unsigned mode, struct err *e) {
    CHECK(strlen(path) < sizeof l->path);
    strcpy(l->path, path);
    int rc = remove_stale(path, e);
    if (rc)
        return rc;
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0)
        return err_from_errno(e, errno, "socket");
    l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->stop_fd < 0) {
        rc = err_from_errno(e, errno, "eventfd");
        close(l->fd);
        return rc;
    }
    rc = bind_and_listen(l, mode, e);
    if (rc) {
        close(l->fd);
        close(l->stop_fd);
        return rc;
    }
    thread_start(&l->thread, "rpc-listen", listener_main, l);
    return 0;
}

void rpc_listener_close(struct rpc_listener *l) {
    CHECK(eventfd_write(l->stop_fd, 1) == 0);
    CHECK(pthread_join(l->thread, NULL) == 0);
    struct stat st;
    if (lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        unlink(l->path);
    close(l->fd);
    close(l->stop_fd);
}
