/* What the files of the server share. */
#pragma once

#include "portalbd/nbd/buffers.h"
#include "portalbd/nbd/server.h"
#include "portalbd/nbd/transmission.h"

struct nbd_listener {
    struct nbd_server *server;
    struct list_node node;
    struct loop_watch watch;
    int fd;
    bool tcp;
    bool paused;
    char *path; /* owned; of a unix socket that we bound */
    uint64_t dev, ino;
};

struct nbd_server {
    struct nbd_server_config config;
    struct env *env;
    struct list_node listeners;
    struct list_node connections;
    size_t connection_count;
    size_t handshake_count;
    size_t submitted; /* requests that are with a device */
    size_t bytes_open;
    struct nbd_buffers buffers;
    struct list_node spare_ops;
    size_t spare_op_count;
    bool draining;
    bool closing;
    struct env_event event; /* for the callbacks below */
    bool event_posted;
    bool idle_due;
    void (*drained)(void *arg);
    void *drained_arg;
    void (*closed)(void *arg);
    void *closed_arg;

    struct metrics_group *metrics;
    struct metrics_counter connections_total;
    struct metrics_counter handshakes_failed;
    struct metrics_counter requests_refused;
    struct metrics_gauge connections_now;
};

/* connection.c */
struct nbd_connection;
/* Takes fd over. dev: adopted, in the transmission phase. */
int nbd_connection_start(struct nbd_server *s, int fd, struct blockdev *dev, struct err *e);
void nbd_connection_drain(struct list_node *node);
void nbd_connection_undrain(struct list_node *node);
/* Drained: owes nobody anything and, when adopted, stands at a boundary between requests. */
bool nbd_connection_is_at_rest(const struct list_node *node);
/* When it has this handle: answers what was read, and ends. In a later turn. */
void nbd_connection_finish(struct list_node *node, const void *handle);
void nbd_connection_kill(struct list_node *node); /* closes the socket; it may be gone on return */

/* server.c: what connections tell. */
void nbd_server_changed(struct nbd_server *s); /* counts changed: limits, drained, idle, closed */
void nbd_server_gone(struct nbd_server *s, bool was_handshake); /* a connection has been freed */

/* listen.c: sockets that are bound and listen, or -1. */
int nbd_socket_unix(const char *path, struct err *e);
int nbd_socket_tcp(const char *address, uint16_t *ret_port, struct err *e);
