/* A listening unix socket of our own, on a thread of its own.
 *
 * gRPC's own listener unlinks whatever lies at its path, also another process's live socket, and
 * unlinks again when it ends, also a successor's. This one takes a path over only from a dead
 * process and removes only what it made. It creates no other file. */
#pragma once

#include <pthread.h>
#include <sys/types.h>
#include <sys/un.h>

#include "common/err.h"

struct rpc_listener {
    /* Takes over a connected, non-blocking, close-on-exec socket. On the listener's thread. */
    void (*accepted)(void *arg, int fd);
    void *arg;
    bool any_peer; /* false: connections of other users than root and us are closed */

    /* its own */
    int fd;
    int stop_fd; /* eventfd */
    pthread_t thread;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    dev_t dev; /* of the socket that we made */
    ino_t ino;
};

/* Binds and starts accepting. -ERR_IN_USE: a live process listens there. -ERR_CONFIG: something
 * else than a socket is there, or the folder is missing. */
int rpc_listener_open(struct rpc_listener *l, const char *path, unsigned mode, struct err *e);
/* Joins the thread and removes the socket, if it still is ours. */
void rpc_listener_close(struct rpc_listener *l);
