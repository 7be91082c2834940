/* The server of /metrics and /healthz, on libmicrohttpd: one thread of its own, that polls, and a
 * bounded number of connections. The listening socket is ours, so that its errors have words. */
#include "common/http.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 16, CONNECTION_MEMORY = 16 * 1024, STACK_SIZE = 256 * 1024 };

struct http_server {
    struct http_config config;
    struct MHD_Daemon *daemon;
    uint16_t port;
};

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned status, const char *type,
                              struct buf *body) {
    /* MHD frees the bytes with free(3) when it has sent them. */
    struct MHD_Response *response =
        MHD_create_response_from_buffer(body->len, body->data, MHD_RESPMEM_MUST_FREE);
    CHECK(response);
    *body = (struct buf){0};
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result handle(void *arg, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_size, void **state) {
    (void)version, (void)upload;
    static int seen;
    struct http_server *s = arg;
    if (*state != &seen) { /* MHD calls once with the headers, answers come from the second call */
        *state = &seen;
        return MHD_YES;
    }
    if (*upload_size > 0) { /* a body is read and dropped */
        *upload_size = 0;
        return MHD_YES;
    }
    CLEANUP_BUF struct buf body = {0};
    const char *plain = "text/plain; charset=utf-8";
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        buf_append_str(&body, "only GET\n");
        return answer(connection, MHD_HTTP_METHOD_NOT_ALLOWED, plain, &body);
    }
    if (strcmp(url, "/metrics") == 0 && s->config.metrics) {
        metrics_render(s->config.metrics, &body);
        if (s->config.more_metrics)
            s->config.more_metrics(s->config.arg, &body);
        buf_reserve(&body, 1);
        return answer(connection, MHD_HTTP_OK, METRICS_CONTENT_TYPE, &body);
    }
    if (strcmp(url, "/healthz") == 0) {
        bool healthy = !s->config.healthy || s->config.healthy(s->config.arg, &body);
        if (body.len == 0)
            buf_append_str(&body, healthy ? "ok\n" : "not healthy\n");
        return answer(connection, healthy ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, plain,
                      &body);
    }
    buf_append_str(&body, "there are /metrics and /healthz\n");
    return answer(connection, MHD_HTTP_NOT_FOUND, plain, &body);
}

union any_addr {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static int parse_addr(const char *text, uint16_t port, union any_addr *ret_addr, socklen_t *ret_len,
                      struct err *e) {
    *ret_addr = (union any_addr){0};
    if (inet_pton(AF_INET, text, &ret_addr->v4.sin_addr) == 1) {
        ret_addr->v4.sin_family = AF_INET;
        ret_addr->v4.sin_port = htons(port);
        *ret_len = sizeof ret_addr->v4;
        return 0;
    }
    if (inet_pton(AF_INET6, text, &ret_addr->v6.sin6_addr) == 1) {
        ret_addr->v6.sin6_family = AF_INET6;
        ret_addr->v6.sin6_port = htons(port);
        *ret_len = sizeof ret_addr->v6;
        return 0;
    }
    return err_set(
        e, -ERR_INVALID,
        "'%s' is not a numeric IPv4 or IPv6 address; write for example 127.0.0.1 or ::", text);
}

static void close_fd(const int *fd) {
    if (*fd >= 0)
        close(*fd);
}

/* A listening socket of the caller's, and the port that it got; or -ERR_x. */
static int listen_on(const char *addr_text, uint16_t port, uint16_t *ret_port, struct err *e) {
    union any_addr addr;
    socklen_t len;
    int rc = parse_addr(addr_text, port, &addr, &len, e);
    if (rc < 0)
        return rc;
    CLEANUP(close_fd)
    int fd = socket(addr.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
        return err_from_errno(e, errno, "make the HTTP server's socket");
    if (bind(fd, &addr.any, len) < 0) {
        if (errno == EADDRINUSE)
            return err_set(e, -ERR_IN_USE,
                           "port %u on %s is taken by another program; choose another one, or 0 "
                           "for any free one",
                           port, addr_text);
        return err_from_errno(e, errno, "bind the HTTP server to %s port %u", addr_text, port);
    }
    if (listen(fd, BACKLOG) < 0 || getsockname(fd, &addr.any, &len) < 0)
        return err_from_errno(e, errno, "listen on %s port %u", addr_text, port);
    *ret_port = ntohs(addr.any.sa_family == AF_INET ? addr.v4.sin_port : addr.v6.sin6_port);
    int taken = fd;
    fd = -1;
    return taken;
}

/* The thread inherits a mask that leaves all signals to the others. */
static struct MHD_Daemon *start_daemon(struct http_server *s, int fd) {
    sigset_t all, old;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &old) == 0);
    struct MHD_Daemon *daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_ITC, 0, NULL, NULL, handle, s,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)HTTP_IDLE_S_MAX,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY, MHD_OPTION_THREAD_STACK_SIZE,
        (size_t)STACK_SIZE, MHD_OPTION_END);
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    return daemon;
}

int http_server_start(const struct http_config *config, struct http_server **ret_server,
                      struct err *e) {
    uint16_t port = 0;
    int fd = listen_on(config->addr ? config->addr : "127.0.0.1", config->port, &port, e);
    if (fd < 0)
        return fd;
    struct http_server *s = NEW(struct http_server);
    s->config = *config;
    s->port = port;
    s->daemon = start_daemon(s, fd);
    if (!s->daemon) {
        close(fd);
        free(s);
        return err_set(e, -ERR_IO, "the HTTP server's thread did not start");
    }
    *ret_server = s;
    return 0;
}

uint16_t http_server_port(const struct http_server *s) {
    return s->port;
}

void http_server_stop(struct http_server *s) {
    if (!s)
        return;
    MHD_stop_daemon(s->daemon); /* closes the listening socket too */
    free(s);
}
