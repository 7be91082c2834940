/* The transmission phase of a connection: requests out of its input, into the device, replies onto
 * its list.
 *
 * A request that the device answers inline is on the list of replies when the parser returns, so
 * that everything that came in one recv() leaves in one sendmsg(); others come through on_done,
 * which wakes the connection once a turn.
 *
 * A WRITE that is refused is answered at once and its payload read over: the stream stays in step.
 */
#include <stdlib.h>

#include "common/mem.h"
#include "portalbd/blockdev/validate.h"
#include "portalbd/nbd/connection_internal.h"

/* --- payload buffers and their limits --- */

/* Bytes of memory that a request will hold until its reply is sent. */
static size_t payload_size(const struct nbd_request *r) {
    switch (r->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return r->len <= BD_REQUEST_MAX ? r->len : 0; /* a larger one is refused */
    case NBD_CMD_BLOCK_STATUS: {
        size_t extents = r->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : BD_STATUS_EXTENTS_MAX;
        return extents * sizeof(struct bd_extent) + nbd_reply_status_max(extents);
    }
    default:
        return 0;
    }
}

/* Alone a connection may always have one request, so that nobody starves. */
static bool admitted(const struct nbd_connection *c, size_t bytes) {
    const struct nbd_server *s = c->server;
    if (c->ops_open >= NBD_CONNECTION_REQUESTS_MAX)
        return false;
    return c->bytes_open == 0 || (c->bytes_open + bytes <= NBD_CONNECTION_BYTES_MAX &&
                                  s->bytes_open + bytes <= NBD_SERVER_BYTES_MAX);
}

static void get_buffer(struct nbd_op *op, size_t len) {
    op->buffer = nbd_buffers_get(&op->conn->server->buffers, len);
    op->buffer_len = len;
    op->conn->bytes_open += len;
    op->conn->server->bytes_open += len;
}

static void put_buffer(struct nbd_op *op) {
    if (!op->buffer)
        return;
    nbd_buffers_put(&op->conn->server->buffers, op->buffer, op->buffer_len);
    op->conn->bytes_open -= op->buffer_len;
    op->conn->server->bytes_open -= op->buffer_len;
    op->buffer = NULL;
    op->buffer_len = 0;
}

/* --- the life of a request --- */

static void on_done(struct bd_request *req);

static struct nbd_op *new_op(struct nbd_connection *c, const struct nbd_request *wire) {
    struct nbd_server *s = c->server;
    struct list_node *n = list_pop_front(&s->spare_ops);
    struct nbd_op *op = n ? container_of(n, struct nbd_op, node) : NEW(struct nbd_op);
    if (n)
        s->spare_op_count--;
    op->conn = c;
    op->wire = *wire;
    op->bd = (struct bd_request){.done = on_done};
    op->body = NULL;
    op->body_len = op->head_len = 0;
    c->ops_open++;
    return op;
}

void requests_free_op(struct nbd_op *op) {
    struct nbd_connection *c = op->conn;
    put_buffer(op);
    CHECK(c->ops_open > 0);
    c->ops_open--;
    if (c->server->spare_op_count >= NBD_CONNECTION_REQUESTS_MAX) {
        free(op);
        return;
    }
    c->server->spare_op_count++;
    list_push_front(&c->server->spare_ops, &op->node);
}

static void reply(struct nbd_op *op) {
    list_push_back(&op->conn->replies, &op->node);
}

static void reply_error(struct nbd_op *op, int rc, const char *text) {
    int nbd_errno = err_to_nbd(rc);
    if (nbd_errno == NBD_ENOTSUP && !(op->wire.flags & NBD_CMD_FLAG_FAST_ZERO))
        nbd_errno = NBD_EINVAL; /* the protocol keeps ENOTSUP for FAST_ZERO */
    op->head_len = nbd_reply_error(&op->conn->mode, op->wire.cookie, nbd_errno, text, op->head);
    reply(op);
}

static const char *failure_text(int rc) {
    switch (-rc) {
    case ERR_FENCED:
        return "another writer has taken the volume over";
    case ERR_SHUTDOWN:
    case ERR_CANCELLED:
        return "the volume is being closed";
    case ERR_CORRUPT:
        return "stored data is damaged; the server's log names the object";
    default:
        return err_code_name(rc);
    }
}

/* The device has answered. */
static void finish(struct nbd_op *op) {
    struct nbd_connection *c = op->conn;
    int rc = op->bd.rc;
    CHECK(rc <= 0 && c->submitted > 0);
    c->submitted--;
    c->server->submitted--;
    if (op->bd.op == BD_WRITE || rc < 0)
        put_buffer(op);
    if (rc < 0) {
        reply_error(op, rc, failure_text(rc));
        if (rc == -ERR_FENCED && c->state == CONNECTION_SERVING)
            c->state = CONNECTION_FINISHING; /* a fenced volume never answers anything else again */
        return;
    }
    if (op->bd.op == BD_READ) {
        op->head_len = nbd_reply_read(&c->mode, &op->wire, op->head);
        op->body = op->buffer;
        op->body_len = op->wire.len;
    } else if (op->bd.op == BD_BLOCK_STATUS) {
        uint8_t *bytes = (uint8_t *)(op->bd.extents.items + BD_STATUS_EXTENTS_MAX);
        if (op->bd.flags & BD_REQ_ONE)
            bytes = (uint8_t *)(op->bd.extents.items + 1);
        op->body = bytes;
        op->body_len =
            nbd_reply_status(&op->wire, op->bd.extents.items, op->bd.extents.count, bytes);
    } else {
        op->head_len = nbd_reply_done(op->head, op->wire.cookie);
    }
    reply(op);
}

static void on_done(struct bd_request *req) {
    struct nbd_op *op = container_of(req, struct nbd_op, bd);
    struct nbd_connection *c = op->conn;
    finish(op);
    connection_wake(c);
    nbd_server_changed(c->server);
}

static void refuse(struct nbd_op *op, int rc, const char *text) {
    metrics_counter_inc(&op->conn->server->requests_refused);
    put_buffer(op);
    reply_error(op, rc, text);
}

static void submit(struct nbd_op *op) {
    struct nbd_connection *c = op->conn;
    if (c->server->draining && !c->adopted) {
        refuse(op, -ERR_SHUTDOWN, "the server is shutting down");
        return;
    }
    c->submitted++;
    c->server->submitted++;
    if (bd_submit(c->dev, &op->bd))
        finish(op);
}

/* --- parsing --- */

static enum parse_result end(struct nbd_connection *c) {
    c->state = CONNECTION_FINISHING;
    return PARSE_ENDED;
}

/* A request's header has arrived. */
static void begin(struct nbd_connection *c, const struct nbd_request *wire) {
    struct nbd_op *op = new_op(c, wire);
    struct err e;
    int rc = nbd_request_translate(&c->mode, wire, &op->bd, &e);
    if (rc == 0)
        rc = bd_validate(c->dev, &op->bd, &e);
    if (rc < 0) {
        if (nbd_request_has_payload(wire))
            c->skip_left = wire->len;
        refuse(op, rc, e.text);
        if (c->skip_left > NBD_PAYLOAD_SKIP_MAX)
            end(c);
        return;
    }
    size_t size = payload_size(wire);
    if (size)
        get_buffer(op, size);
    switch (op->bd.op) {
    case BD_READ:
        op->bd.read_buf = op->buffer;
        break;
    case BD_WRITE:
        op->bd.write_data = op->buffer;
        c->receiving = op;
        c->received = 0;
        return;
    case BD_BLOCK_STATUS:
        op->bd.extents.items = (struct bd_extent *)(void *)op->buffer;
        op->bd.extents.count = 0;
        break;
    default:
        break;
    }
    submit(op);
}

size_t requests_missing(const struct nbd_connection *c) {
    if (c->skip_left)
        return c->skip_left;
    if (c->receiving)
        return c->receiving->buffer_len - c->received;
    size_t len = connection_input(c).len;
    CHECK(len < NBD_REQUEST_SIZE);
    return len ? NBD_REQUEST_SIZE - len : 0;
}

/* Takes what there is of a payload out of the input; true when it is complete. */
static bool take_payload(struct nbd_connection *c) {
    struct view in = connection_input(c);
    if (c->skip_left) {
        size_t n = MIN(in.len, c->skip_left);
        c->in_off += n;
        c->skip_left -= n;
        return c->skip_left == 0;
    }
    if (!c->receiving)
        return true;
    size_t n = MIN(in.len, c->receiving->buffer_len - c->received);
    if (n)
        memcpy(c->receiving->buffer + c->received, in.data, n);
    c->in_off += n;
    c->received += n;
    if (c->received < c->receiving->buffer_len)
        return false;
    submit(TAKE_PTR(c->receiving));
    return true;
}

enum parse_result requests_parse(struct nbd_connection *c) {
    while (c->state == CONNECTION_SERVING) {
        if (!take_payload(c))
            return PARSE_HUNGRY;
        if (c->state != CONNECTION_SERVING)
            break;
        struct view in = connection_input(c);
        struct nbd_request wire;
        if (in.len == 0 && connection_is_handing_over(c))
            return PARSE_BLOCKED; /* the rest is for the next daemon */
        if (in.len < NBD_REQUEST_SIZE)
            return PARSE_HUNGRY;
        if (!nbd_request_decode(in.data, &wire) || wire.type == NBD_CMD_DISC)
            return end(c);
        if (!admitted(c, payload_size(&wire)))
            return PARSE_BLOCKED;
        c->in_off += NBD_REQUEST_SIZE;
        begin(c, &wire);
    }
    return PARSE_ENDED;
}
