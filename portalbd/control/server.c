/* The control socket's server.
 *
 * Of a connection, one line at a time is read and handled, by a fiber that also writes the answer;
 * meanwhile nothing is read from it. Whoever sends lines without end, or does not read answers,
 * holds up nobody but himself and a bounded buffer.
 *
 * Invariant: a connection is freed only when no fiber of it runs; the server only when no
 * connection is left. */
#include "portalbd/control/server.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/control/socket_internal.h"

struct control_server {
    struct control_server_config config; /* run_dir and volume are not kept */
    struct env *env;
    struct loop_watch watch;
    int fd;
    int dir_fd; /* of the run folder */
    char *name; /* of the socket in it; owned */
    bool paused;
    bool stopping;
    struct list_node connections;
    size_t count;
    struct fiber_done emptied; /* once stopping */
};

struct connection {
    struct control_server *server;
    struct list_node node;
    struct loop_watch watch;
    int fd;
    struct buf in; /* at most CONTROL_LINE_MAX bytes */
    bool skipping; /* the rest of a line that was too long */
    bool ended;    /* the client has closed, or cannot be talked to */
    struct control_request request;
    struct fiber *fiber; /* handles `request`; NULL: none */
    struct waitq writable;
};

static void on_connection(struct loop_watch *watch, int events);
static void advance(struct connection *c);

/* --- connections --- */

static void watch_listener(struct control_server *s) {
    bool pause = s->count >= CONTROL_CONNECTIONS_MAX;
    if (s->stopping || pause == s->paused)
        return;
    s->paused = pause;
    loop_watch_start(s->config.loop, &s->watch, s->fd, pause ? 0 : LOOP_READABLE, NULL);
}

static void free_connection(struct connection *c) {
    struct control_server *s = c->server;
    CHECK(!c->fiber);
    loop_watch_stop(&c->watch);
    close(c->fd);
    buf_release(&c->in);
    control_request_release(&c->request);
    list_remove(&c->node);
    free(c);
    s->count--;
    watch_listener(s);
    if (s->stopping && s->count == 0)
        fiber_done_set(&s->emptied);
}

/* Like send(2). passed_fd goes along with the first byte, unless it is -1; who reads without
 * asking for descriptors gets the bytes alone. */
static ssize_t send_some(int fd, struct view bytes, int passed_fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {(uint8_t *)bytes.data, bytes.len};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed_fd >= 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &passed_fd, sizeof(int));
    }
    return sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* fiber. Sends all of it, waiting for room; passed_fd as above. */
static void send_all(struct connection *c, struct view bytes, int passed_fd) {
    while (bytes.len > 0 && !c->ended) {
        ssize_t n = send_some(c->fd, bytes, passed_fd);
        if (n >= 0) {
            bytes = view_part(bytes, (size_t)n, bytes.len - (size_t)n);
            passed_fd = -1;
        } else if (errno == EAGAIN) {
            loop_watch_start(c->server->config.loop, &c->watch, c->fd, LOOP_WRITABLE, NULL);
            if (waitq_wait(c->server->env, &c->writable) < 0)
                c->ended = true;
        } else if (errno != EINTR) {
            c->ended = true;
        }
    }
}

static void handle_fiber(void *arg) {
    struct connection *c = arg;
    struct control_server *s = c->server;
    struct buf out = {0};
    struct err e = {0};
    json_t *result = NULL;
    int passed_fd = -1;
    log_debug("control request", LOG_STR("verb", c->request.verb));
    int rc =
        s->config.handle(s->config.arg, c->request.verb, c->request.args, &result, &passed_fd, &e);
    CHECK(rc < 0 ? e.code == rc && passed_fd < 0 : json_is_object(result));
    if (rc < 0)
        control_error_encode(&out, c->request.id, &e);
    else
        control_reply_encode(&out, c->request.id, result);
    json_decref(result);
    send_all(c, buf_view(&out), passed_fd);
    if (passed_fd >= 0)
        close(passed_fd);
    buf_release(&out);
    control_request_release(&c->request);
    c->fiber = NULL;
    advance(c);
}

/* An answer to what is no request: a fiber too, because it may have to wait. */
struct complaint {
    struct connection *c;
    json_int_t id;
    struct err err;
};

static void complain_fiber(void *arg) {
    struct complaint *k = arg;
    struct connection *c = k->c;
    struct buf out = {0};
    control_error_encode(&out, k->id, &k->err);
    free(k);
    send_all(c, buf_view(&out), -1);
    buf_release(&out);
    c->fiber = NULL;
    advance(c);
}

static void complain(struct connection *c, json_int_t id, const struct err *e) {
    struct complaint *k = NEW(struct complaint);
    *k = (struct complaint){.c = c, .id = id, .err = *e};
    c->fiber = fiber_start(c->server->env, complain_fiber, k);
}

static void handle_line(struct connection *c, struct view line) {
    struct err e;
    if (c->skipping) {
        c->skipping = false;
        err_set_text(&e, -ERR_INVALID, "a line has at most %d bytes", CONTROL_LINE_MAX);
        complain(c, -1, &e);
        return;
    }
    if (control_request_decode(&c->request, line, &e) < 0) {
        complain(c, c->request.id, &e);
        return;
    }
    c->fiber = fiber_start(c->server->env, handle_fiber, c);
}

/* Handles the next line that is there, or reads on, or ends. May free c. */
static void advance(struct connection *c) {
    CHECK(!c->fiber);
    if (c->server->stopping || c->ended) {
        free_connection(c);
        return;
    }
    const uint8_t *newline = c->in.len ? memchr(c->in.data, '\n', c->in.len) : NULL;
    if (newline) {
        size_t len = (size_t)(newline - c->in.data);
        loop_watch_start(c->server->config.loop, &c->watch, c->fd, 0, NULL);
        handle_line(c, view_of(c->in.data, len));
        memmove(c->in.data, newline + 1, c->in.len - len - 1);
        c->in.len -= len + 1;
        return;
    }
    if (c->in.len >= CONTROL_LINE_MAX) {
        c->skipping = true;
        c->in.len = 0;
    }
    loop_watch_start(c->server->config.loop, &c->watch, c->fd, LOOP_READABLE, NULL);
}

static void on_connection(struct loop_watch *watch, int events) {
    struct connection *c = container_of(watch, struct connection, watch);
    if (c->fiber) {
        if (events & LOOP_WRITABLE) {
            loop_watch_start(c->server->config.loop, &c->watch, c->fd, 0, NULL);
            waitq_wake_all(&c->writable);
        }
        return;
    }
    buf_reserve(&c->in, CONTROL_LINE_MAX - c->in.len);
    ssize_t n = recv(c->fd, c->in.data + c->in.len, CONTROL_LINE_MAX - c->in.len, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0)
        c->ended = true;
    else
        c->in.len += (size_t)n;
    advance(c);
}

static void on_listener(struct loop_watch *watch, int events) {
    (void)events;
    struct control_server *s = container_of(watch, struct control_server, watch);
    while (s->count < CONTROL_CONNECTIONS_MAX) {
        int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return;
        struct connection *c = NEW(struct connection);
        c->server = s;
        c->fd = fd;
        c->watch.fn = on_connection;
        waitq_init(&c->writable);
        list_push_back(&s->connections, &c->node);
        s->count++;
        advance(c);
    }
    watch_listener(s);
}

/* --- life --- */

static int listen_at(const struct sockaddr_un *addr, struct err *e) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_from_errno(e, errno, "control socket");
    unlink(addr->sun_path); /* the lock says that its owner is dead */
    /* On Linux bind() gives the file the mode of the socket. */
    if (fchmod(fd, 0600) < 0 || bind(fd, (const struct sockaddr *)addr, sizeof *addr) < 0 ||
        listen(fd, CONTROL_CONNECTIONS_MAX) < 0) {
        int rc = err_from_errno(e, errno, "control socket");
        close(fd);
        return rc;
    }
    return fd;
}

int control_server_start(const struct control_server_config *config, struct control_server **ret,
                         struct err *e) {
    struct sockaddr_un addr;
    int dir_fd;
    int rc = control_address(config->run_dir, config->volume, &addr, &dir_fd, e);
    if (rc < 0)
        return rc;
    int fd = listen_at(&addr, e);
    if (fd < 0) {
        close(dir_fd);
        return fd;
    }
    struct control_server *s = NEW(struct control_server);
    s->config = *config;
    s->config.run_dir = s->config.volume = NULL;
    s->env = loop_env(config->loop);
    s->fd = fd;
    s->dir_fd = dir_fd;
    s->name = xasprintf("%s%s", config->volume, CONTROL_SOCKET_SUFFIX);
    s->watch.fn = on_listener;
    list_init(&s->connections);
    fiber_done_init(&s->emptied);
    rc = loop_watch_start(config->loop, &s->watch, fd, LOOP_READABLE, e);
    if (rc < 0) {
        close(fd);
        close(dir_fd);
        free(s->name);
        free(s);
        return rc;
    }
    *ret = s;
    return 0;
}

void control_server_stop(struct control_server *s) {
    s->stopping = true;
    loop_watch_stop(&s->watch);
    close(s->fd);
    unlinkat(s->dir_fd, s->name, 0);
    close(s->dir_fd);
    list_for_each (&s->connections, n) {
        struct connection *c = list_entry(n, struct connection, node);
        if (c->fiber)
            fiber_cancel(c->fiber);
        else
            free_connection(c);
    }
    if (s->count > 0)
        fiber_done_wait_always(s->env, &s->emptied);
    free(s->name);
    free(s);
}
