/* One connection, as connection.c (socket, buffers, handshake, end) and requests.c (transmission)
 * see it. */
#pragma once

#include "portalbd/nbd/server_internal.h"

enum connection_state {
    CONNECTION_HANDSHAKE,
    CONNECTION_SERVING,
    CONNECTION_FINISHING, /* reads no more; ends when nothing is under way and all is sent */
    CONNECTION_DEAD,      /* the socket is closed; ends when nothing is under way */
};

enum {
    CONNECTION_IN_SIZE = 128 * 1024, /* bytes of the receive buffer; holds a whole option */
};

/* A request from its header to the last byte of its reply. */
struct nbd_op {
    struct list_node node; /* first: spare ones; replies to send */
    struct bd_request bd;
    struct nbd_connection *conn;
    struct nbd_request wire;
    uint8_t *buffer; /* payload, owned; NULL: none */
    size_t buffer_len;
    const uint8_t *body; /* what follows head in the reply; borrowed from buffer */
    size_t body_len;
    size_t head_len;
    uint8_t head[NBD_ERROR_REPLY_MAX];
};

/* Why the parser stopped. */
enum parse_result {
    PARSE_HUNGRY,  /* needs more bytes */
    PARSE_BLOCKED, /* must wait for requests to end, replies to be sent, or an export to open */
    PARSE_ENDED,   /* nothing will be read any more */
};

struct nbd_connection {
    struct nbd_server *server;
    struct list_node node; /* server->connections */
    enum connection_state state;
    bool adopted;

    /* Socket. */
    int fd;
    struct loop_watch watch;
    int watched; /* LOOP_x that the watch has */
    struct env_event turn;
    bool turn_posted;

    /* Received, not parsed: in[in_off, in_len). */
    uint8_t *in;
    size_t in_off, in_len;

    /* Handshake. */
    struct nbd_handshake *handshake; /* NULL afterwards */
    struct buf out;                  /* its bytes to send ... */
    size_t out_off;                  /* ... from here on */
    struct env_timer deadline;
    uint64_t deadline_us;
    uint64_t wait_start_us;
    struct nbd_lookup lookup;
    struct nbd_listing listing;
    bool waiting; /* for lookup or listing */

    /* Transmission. */
    struct nbd_mode mode;
    struct blockdev *dev;
    void *handle;             /* of exports->open */
    struct nbd_op *receiving; /* a WRITE whose payload arrives */
    size_t received;
    uint64_t skip_left;       /* bytes of a refused WRITE's payload */
    struct list_node replies; /* struct nbd_op, in the order of sending */
    size_t reply_off;         /* bytes of the first that are sent */
    size_t ops_open;          /* requests whose reply is not sent yet */
    size_t submitted;         /* ... that are with the device */
    size_t bytes_open;        /* payload of ops_open */
};

static inline struct view connection_input(const struct nbd_connection *c) {
    return view_of(c->in + c->in_off, c->in_len - c->in_off);
}

/* Reads on to the end of a request, and no further. */
static inline bool connection_is_handing_over(const struct nbd_connection *c) {
    return c->adopted && c->server->draining;
}

/* connection.c: run it in a later turn. */
void connection_wake(struct nbd_connection *c);

/* requests.c */
enum parse_result requests_parse(struct nbd_connection *c);
/* After PARSE_HUNGRY: bytes to the end of the header or payload that has begun; 0: none has. */
size_t requests_missing(const struct nbd_connection *c);
void requests_free_op(struct nbd_op *op);
