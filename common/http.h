/* A small HTTP server for a program's /metrics and /healthz, on a thread of its own
 * (libmicrohttpd).
 *
 * GET /metrics gives the registry's text. GET /healthz gives 200 or 503 and the callback's text.
 * Anything else is 404 or 405. At most HTTP_CONNECTIONS_MAX connections, idle ones are closed after
 * HTTP_IDLE_S_MAX. */
#pragma once

#include "common/buf.h"
#include "common/err.h"
#include "common/metrics.h"

enum { HTTP_CONNECTIONS_MAX = 16, HTTP_IDLE_S_MAX = 30 };

struct http_config {
    const char *addr;        /* numeric IPv4 or IPv6 address; NULL: 127.0.0.1 */
    uint16_t port;           /* 0: the kernel chooses */
    struct metrics *metrics; /* borrowed until stop */
    /* Appends metrics of others (of this program's children, say) to the registry's text: other
     * names than the registry's. On the server's thread; may block for some seconds. NULL: none. */
    void (*more_metrics)(void *arg, struct buf *text);
    /* Appends a line or more that say how things are; true: healthy. On the server's thread: must
     * not block. NULL: always healthy. */
    bool (*healthy)(void *arg, struct buf *text);
    void *arg;
};

struct http_server;

/* -ERR_IN_USE: the port is taken. -ERR_INVALID: not an address. */
int http_server_start(const struct http_config *config, struct http_server **ret_server,
                      struct err *e);
uint16_t http_server_port(const struct http_server *s);
void http_server_stop(struct http_server *s); /* joins the thread and frees; NULL is fine */
