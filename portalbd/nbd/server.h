/* The NBD server: sockets on a loop, everything on its thread.
 *
 * Many requests of a connection are under way at a time and are answered in any order. What a
 * client can make us hold is bounded (NBD_CONNECTION_x): at a limit we stop reading its socket. */
#pragma once

#include "common/loop.h"
#include "common/metrics.h"
#include "portalbd/nbd/exports.h"

enum {
    NBD_CONNECTIONS_MAX = 256,               /* at the limit nobody is accepted until one leaves */
    NBD_HANDSHAKES_MAX = 100,                /* of these may still be in the handshake */
    NBD_HANDSHAKE_US_MAX = 10 * 1000 * 1000, /* a handshake, waiting for us not counted */
    NBD_END_US_MAX = 5 * 1000 * 1000,        /* the end of a connection whose export ends */
    NBD_CONNECTION_REQUESTS_MAX = 128,       /* under way in one connection */
    NBD_CONNECTION_BYTES_MAX = 32 * 1024 * 1024, /* of payload in one connection, and ... */
    NBD_SERVER_BYTES_MAX = 64 * 1024 * 1024, /* ... in all; but a connection with nothing under */
                                             /* way may always have one request */
};

struct nbd_server;

struct nbd_server_config {
    struct loop *loop;
    struct nbd_exports *exports; /* borrowed; NULL when there are only adopted connections */
    struct metrics *metrics;     /* may be NULL */
    bool list_denied;            /* LIST is refused */
    /* Called in a later turn whenever the last connection has ended. May be NULL. */
    void (*on_idle)(void *arg);
    void *arg;
};

struct nbd_server *nbd_server_new(const struct nbd_server_config *config);

/* Listen. A unix socket gets mode 0600; a socket file that nobody listens at any more is replaced,
 * and the file is removed at the end. TCP: "127.0.0.1:10809", "[::1]:0", "localhost:10809";
 * loopback only, anything else is -ERR_INVALID; ret_port (may be NULL) is what the kernel chose for
 * port 0. */
int nbd_server_listen_unix(struct nbd_server *s, const char *path, struct err *e);
int nbd_server_listen_tcp(struct nbd_server *s, const char *address, uint16_t *ret_port,
                          struct err *e);
/* Takes over a socket that listens already (systemd socket activation). */
int nbd_server_listen_fd(struct nbd_server *s, int fd, struct err *e);

/* Takes over a connected socket: a client that starts with the handshake. */
int nbd_server_serve(struct nbd_server *s, int fd, struct err *e);
/* Takes over a connected socket that is in the transmission phase already, with simple replies: the
 * other end is the kernel's client. dev is borrowed until the connection has ended. */
int nbd_server_adopt(struct nbd_server *s, int fd, struct blockdev *dev, struct err *e);
/* The transmission flags (NBD_FLAG_x) of a device that is served so: there is no handshake to tell
 * its client. */
uint16_t nbd_server_flags(const struct blockdev *dev);

/* No new clients; requests that are under way are finished; what comes later is answered with
 * ESHUTDOWN. Calls done(arg) in a later turn when nothing is under way. Not twice without undrain.
 *
 * An adopted connection comes to rest at a boundary between requests: everything that was read is
 * answered, a request that was read in part is read to its end and answered first, and nothing
 * behind it is read. When done is called, all replies are in the socket: another process may go on
 * with a copy of the descriptor. It waits for a client that does not read, or sends half a request,
 * until the connection ends: the caller has a limit. */
void nbd_server_drain(struct nbd_server *s, void (*done)(void *arg), void *arg);
/* Takes it back: adopted connections are read again. done, if it was not called yet, is now. */
void nbd_server_undrain(struct nbd_server *s);

/* For those who have this handle (of exports->open): the requests that were read are answered, then
 * the connection ends; a client that does not take its answers is cut off after
 * NBD_END_US_MAX. Any context: nobody is closed before a later turn. */
void nbd_server_end_clients(struct nbd_server *s, const void *handle);

/* Closes all sockets (our descriptors alone, without shutdown(2): who has a copy of one goes on
 * with it), waits for what is under way and frees the server; then done(arg), in a later turn. done
 * may be NULL. */
void nbd_server_close(struct nbd_server *s, void (*done)(void *arg), void *arg);
