/* The server around the connections: listeners, limits that all of them share, draining, closing.
 *
 * Its callbacks (drained, idle, closed) come from one event that connections cause, so that nobody
 * is called from inside a connection's code. */
#include "portalbd/nbd/server.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/nbd/server_internal.h"

/* --- listeners --- */

static bool has_room(const struct nbd_server *s) {
    return s->connection_count < NBD_CONNECTIONS_MAX && s->handshake_count < NBD_HANDSHAKES_MAX;
}

static void on_listener(struct loop_watch *watch, int events) {
    (void)events;
    struct nbd_listener *l = container_of(watch, struct nbd_listener, watch);
    struct nbd_server *s = l->server;
    struct err e;
    while (has_room(s)) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            static struct log_limit limit;
            if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
                log_warn_limited(&limit, "nbd: a client was not accepted", LOG_ERRNO(errno));
            return;
        }
        if (nbd_connection_start(s, fd, NULL, &e) < 0)
            log_warn("nbd: a client was not accepted", LOG_ERR(&e));
    }
    l->paused = true; /* nbd_server_changed wakes it */
    loop_watch_start(s->config.loop, &l->watch, l->fd, 0, NULL);
}

static int add_listener(struct nbd_server *s, int fd, const char *path, bool tcp, struct err *e) {
    struct nbd_listener *l = NEW(struct nbd_listener);
    l->server = s;
    l->fd = fd;
    l->tcp = tcp;
    l->watch.fn = on_listener;
    struct stat st;
    if (path && stat(path, &st) == 0) {
        l->path = xstrdup(path);
        l->dev = st.st_dev;
        l->ino = st.st_ino;
    }
    list_push_back(&s->listeners, &l->node);
    return loop_watch_start(s->config.loop, &l->watch, fd, LOOP_READABLE, e);
}

static void close_listener(struct nbd_listener *l) {
    struct stat st;
    loop_watch_stop(&l->watch);
    close(l->fd);
    if (l->path && lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        unlink(l->path); /* ours, not one that somebody made since */
    list_remove(&l->node);
    free(l->path);
    free(l);
}

static void close_listeners(struct nbd_server *s) {
    list_for_each (&s->listeners, n)
        close_listener(list_entry(n, struct nbd_listener, node));
}

int nbd_server_listen_unix(struct nbd_server *s, const char *path, struct err *e) {
    int fd = nbd_socket_unix(path, e);
    return fd < 0 ? fd : add_listener(s, fd, path, false, e);
}

int nbd_server_listen_tcp(struct nbd_server *s, const char *address, uint16_t *ret_port,
                          struct err *e) {
    int fd = nbd_socket_tcp(address, ret_port, e);
    return fd < 0 ? fd : add_listener(s, fd, NULL, true, e);
}

int nbd_server_listen_fd(struct nbd_server *s, int fd, struct err *e) {
    int listens = 0;
    socklen_t len = sizeof listens;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 || !listens)
        return err_set(e, -ERR_INVALID, "file descriptor %d is not a listening socket", fd);
    return add_listener(s, fd, NULL, false, e);
}

int nbd_server_serve(struct nbd_server *s, int fd, struct err *e) {
    return nbd_connection_start(s, fd, NULL, e);
}

int nbd_server_adopt(struct nbd_server *s, int fd, struct blockdev *dev, struct err *e) {
    CHECK(dev);
    return nbd_connection_start(s, fd, dev, e);
}

uint16_t nbd_server_flags(const struct blockdev *dev) {
    return nbd_transmission_flags(dev->read_only, false);
}

/* --- counts and callbacks --- */

static void free_server(struct nbd_server *s) {
    CHECK(s->submitted == 0 && s->bytes_open == 0 && list_empty(&s->listeners));
    metrics_group_free(s->metrics);
    nbd_buffers_release(&s->buffers);
    struct list_node *n;
    while ((n = list_pop_front(&s->spare_ops)))
        free(n); /* a spare op starts with its node */
    free(s);
}

/* Somebody waits for it, and it is so. */
static bool is_drained(const struct nbd_server *s) {
    if (!s->drained)
        return false;
    if (!s->draining)
        return true; /* taken back */
    if (s->submitted > 0)
        return false;
    list_for_each (&s->connections, n)
        if (!nbd_connection_is_at_rest(n))
            return false;
    return true;
}

static void on_event(struct env_event *event) {
    struct nbd_server *s = container_of(event, struct nbd_server, event);
    s->event_posted = false;
    if (is_drained(s)) {
        void (*drained)(void *) = s->drained;
        s->drained = NULL;
        drained(s->drained_arg);
    }
    if (s->idle_due && s->connection_count == 0) {
        s->idle_due = false;
        if (s->config.on_idle && !s->closing)
            s->config.on_idle(s->config.arg);
    }
    if (s->closing && s->connection_count == 0 && !s->event_posted) {
        void (*closed)(void *) = s->closed;
        void *arg = s->closed_arg;
        free_server(s);
        if (closed)
            closed(arg);
    }
}

void nbd_server_changed(struct nbd_server *s) {
    if (!s->event_posted && (s->connection_count == 0 || is_drained(s))) {
        s->event_posted = true;
        env_post(s->env, &s->event);
    }
    if (!has_room(s))
        return;
    list_for_each (&s->listeners, n) {
        struct nbd_listener *l = list_entry(n, struct nbd_listener, node);
        if (l->paused)
            loop_watch_start(s->config.loop, &l->watch, l->fd, LOOP_READABLE, NULL);
        l->paused = false;
    }
}

void nbd_server_gone(struct nbd_server *s, bool was_handshake) {
    CHECK(s->connection_count > 0);
    s->connection_count--;
    if (was_handshake) {
        CHECK(s->handshake_count > 0);
        s->handshake_count--;
    }
    metrics_gauge_set(&s->connections_now, (int64_t)s->connection_count);
    s->idle_due = s->connection_count == 0;
    nbd_server_changed(s);
}

/* --- life --- */

static void register_metrics(struct nbd_server *s) {
    s->metrics = metrics_group_new(s->config.metrics, NULL);
    metrics_counter_register(s->metrics, &s->connections_total, "portalbd_nbd_connections_total",
                             "NBD connections accepted.", NULL);
    metrics_gauge_register(s->metrics, &s->connections_now, "portalbd_nbd_connections",
                           "NBD connections open now.", NULL);
    metrics_counter_register(s->metrics, &s->handshakes_failed,
                             "portalbd_nbd_handshakes_failed_total",
                             "NBD connections that ended before their handshake.", NULL);
    metrics_counter_register(s->metrics, &s->requests_refused,
                             "portalbd_nbd_requests_refused_total",
                             "NBD requests refused before they reached a device.", NULL);
}

struct nbd_server *nbd_server_new(const struct nbd_server_config *config) {
    struct nbd_server *s = NEW(struct nbd_server);
    s->config = *config;
    s->env = loop_env(config->loop);
    s->event.fn = on_event;
    list_init(&s->listeners);
    list_init(&s->connections);
    list_init(&s->spare_ops);
    nbd_buffers_init(&s->buffers);
    register_metrics(s);
    return s;
}

void nbd_server_drain(struct nbd_server *s, void (*done)(void *arg), void *arg) {
    CHECK(!s->draining && !s->closing);
    s->draining = true;
    s->drained = done;
    s->drained_arg = arg;
    close_listeners(s);
    list_for_each (&s->connections, n)
        nbd_connection_drain(n);
    nbd_server_changed(s);
}

void nbd_server_undrain(struct nbd_server *s) {
    CHECK(s->draining && !s->closing);
    s->draining = false;
    list_for_each (&s->connections, n)
        nbd_connection_undrain(n);
    nbd_server_changed(s);
}

void nbd_server_end_clients(struct nbd_server *s, const void *handle) {
    CHECK(handle);
    list_for_each (&s->connections, n)
        nbd_connection_finish(n, handle);
}

void nbd_server_close(struct nbd_server *s, void (*done)(void *arg), void *arg) {
    CHECK(!s->closing);
    s->closing = true;
    s->closed = done;
    s->closed_arg = arg;
    close_listeners(s);
    list_for_each (&s->connections, n)
        nbd_connection_kill(n);
    nbd_server_changed(s);
}
