/* A connection: its socket, its buffers, its handshake, its end.
 *
 *   HANDSHAKE --ready--> SERVING --DISC, EOF, nonsense,-> FINISHING --all answered--> freed
 *       |                   |      its export ends            |
 *       `--close, deadline--+----------- socket error --------+--> DEAD --all back--> freed
 *
 * connection_run is the only place that parses, sends, receives and frees: everything else (socket
 * events, ends of requests, answers of the exporter, the deadline) changes the state and runs it.
 *
 * Invariants:
 *   I1  Who is asked for something (device, exporter, env's queue) finds the connection alive: it
 * is freed only when submitted == 0, !waiting and !turn_posted. I2  Bytes that arrive are parsed in
 * order; while the parser is blocked nothing is received. I3  The socket is watched for what the
 * next step needs, and for nothing else. I4  An adopted connection that is drained receives no byte
 * behind the request that it is in; at its end the parser stays blocked. */
#include "portalbd/nbd/connection_internal.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"

enum {
    ROUNDS_MAX = 16,       /* of parse, send, receive before others have their turn */
    SEND_PARTS_MAX = 256,  /* views in one sendmsg */
    OUT_PAUSE = 64 * 1024, /* bytes of handshake replies unsent, at which no option is read */
    SOCKET_BUFFER = 4 * 1024 * 1024,
};

static void connection_run(struct nbd_connection *c);

/* --- ends --- */

static void close_socket(struct nbd_connection *c) {
    if (c->fd < 0)
        return;
    loop_watch_stop(&c->watch);
    close(c->fd);
    c->fd = -1;
    c->state = CONNECTION_DEAD;
}

static void drop_unsent(struct nbd_connection *c) {
    struct list_node *n;
    while ((n = list_pop_front(&c->replies)))
        requests_free_op(list_entry(n, struct nbd_op, node));
    if (c->receiving) {
        requests_free_op(c->receiving);
        c->receiving = NULL;
    }
}

static bool is_over(const struct nbd_connection *c) {
    if (c->submitted || c->waiting || c->turn_posted)
        return false;
    if (c->state == CONNECTION_DEAD)
        return true;
    return c->state == CONNECTION_FINISHING && list_empty(&c->replies) && c->out_off == c->out.len;
}

static void free_connection(struct nbd_connection *c) {
    struct nbd_server *s = c->server;
    close_socket(c);
    drop_unsent(c);
    CHECK(c->ops_open == 0 && c->bytes_open == 0);
    env_timer_stop(s->env, &c->deadline);
    if (c->handle)
        s->config.exports->ops->close(s->config.exports, c->handle);
    bool was_handshake = c->handshake != NULL;
    if (was_handshake)
        metrics_counter_inc(&s->handshakes_failed);
    free(c->handshake);
    buf_release(&c->out);
    free(c->in);
    list_remove(&c->node);
    free(c);
    nbd_server_gone(s, was_handshake);
}

/* --- socket --- */

static size_t gather(struct nbd_connection *c, struct iovec *parts) {
    size_t n = 0, skip = c->reply_off;
    if (c->out_off < c->out.len)
        parts[n++] = (struct iovec){c->out.data + c->out_off, c->out.len - c->out_off};
    list_for_each (&c->replies, node) {
        if (n + 2 > SEND_PARTS_MAX)
            break;
        struct nbd_op *op = list_entry(node, struct nbd_op, node);
        size_t head = MIN(skip, op->head_len), body = skip - head;
        if (head < op->head_len)
            parts[n++] = (struct iovec){op->head + head, op->head_len - head};
        if (body < op->body_len)
            parts[n++] = (struct iovec){(uint8_t *)op->body + body, op->body_len - body};
        skip = 0;
    }
    return n;
}

static void sent(struct nbd_connection *c, size_t n) {
    size_t out = MIN(n, c->out.len - c->out_off);
    c->out_off += out;
    n -= out;
    if (c->out_off == c->out.len) {
        buf_clear(&c->out);
        c->out_off = 0;
    }
    while (n > 0) {
        CHECK(!list_empty(&c->replies));
        struct nbd_op *op = list_entry(c->replies.next, struct nbd_op, node);
        size_t left = op->head_len + op->body_len - c->reply_off;
        if (n < left) {
            c->reply_off += n;
            return;
        }
        n -= left;
        c->reply_off = 0;
        list_remove(&op->node);
        requests_free_op(op);
    }
}

static bool has_unsent(const struct nbd_connection *c) {
    return c->out_off < c->out.len || !list_empty(&c->replies);
}

/* Sends what there is, as far as the socket takes it; true: something. */
static bool send_all(struct nbd_connection *c) {
    bool some = false;
    while (c->fd >= 0 && has_unsent(c)) {
        struct iovec parts[SEND_PARTS_MAX];
        struct msghdr msg = {.msg_iov = parts, .msg_iovlen = gather(c, parts)};
        ssize_t n = sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                close_socket(c);
            return some;
        }
        sent(c, (size_t)n);
        some = true;
    }
    return some;
}

/* Into the payload that is expected, and what follows it into the buffer. True: there may be more.
 */
static bool receive(struct nbd_connection *c) {
    if (c->in_off == c->in_len) {
        c->in_off = c->in_len = 0;
    } else if (c->in_off > 0) {
        memmove(c->in, c->in + c->in_off, c->in_len - c->in_off);
        c->in_len -= c->in_off;
        c->in_off = 0;
    }
    CHECK(c->in_len < CONNECTION_IN_SIZE);
    struct iovec parts[2];
    size_t count = 0, direct = 0;
    if (c->receiving) {
        CHECK(c->in_len == 0);
        direct = c->receiving->buffer_len - c->received;
        parts[count++] = (struct iovec){c->receiving->buffer + c->received, direct};
    }
    size_t room = CONNECTION_IN_SIZE - c->in_len;
    if (connection_is_handing_over(c))
        room = direct ? 0 : MIN(room, requests_missing(c));
    if (room)
        parts[count++] = (struct iovec){c->in + c->in_len, room};
    CHECK(count > 0);
    struct msghdr msg = {.msg_iov = parts, .msg_iovlen = count};
    ssize_t n;
    do {
        n = recvmsg(c->fd, &msg, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        if (errno != EAGAIN)
            close_socket(c);
        return false;
    }
    if (n == 0) { /* the client will say nothing more, but may listen still */
        if (c->receiving)
            requests_free_op(TAKE_PTR(c->receiving));
        c->state = CONNECTION_FINISHING;
        return false;
    }
    size_t payload = MIN((size_t)n, direct);
    c->received += payload;
    c->in_len += (size_t)n - payload;
    return (size_t)n == direct + room;
}

static void update_watch(struct nbd_connection *c, bool hungry) {
    int want = (hungry ? LOOP_READABLE : 0) | (has_unsent(c) ? LOOP_WRITABLE : 0);
    struct err e;
    if (want == c->watched)
        return;
    c->watched = want;
    if (loop_watch_start(c->server->config.loop, &c->watch, c->fd, want, &e) < 0) {
        log_error("nbd: a connection is dropped", LOG_ERR(&e));
        close_socket(c);
    }
}

/* --- handshake --- */

static void on_handshake_event(struct nbd_connection *c, enum nbd_handshake_event event);

/* While somebody else is asked, the client's time stands still. */
static void wait_begin(struct nbd_connection *c) {
    c->waiting = true;
    c->wait_start_us = env_now_us(c->server->env);
    env_timer_stop(c->server->env, &c->deadline);
}

static void wait_end(struct nbd_connection *c) {
    CHECK(c->waiting);
    c->waiting = false;
    if (c->state != CONNECTION_HANDSHAKE)
        return;
    uint64_t now = env_now_us(c->server->env);
    c->deadline_us += now - c->wait_start_us;
    env_timer_start(c->server->env, &c->deadline, c->deadline_us > now ? c->deadline_us - now : 0);
}

static void on_lookup(struct nbd_lookup *l) {
    struct nbd_connection *c = container_of(l, struct nbd_connection, lookup);
    struct nbd_exports *exports = c->server->config.exports;
    wait_end(c);
    if (c->state != CONNECTION_HANDSHAKE) {
        if (l->rc == 0)
            exports->ops->close(exports, l->handle);
    } else if (l->rc < 0) {
        on_handshake_event(c, nbd_handshake_refused(c->handshake, &l->err, &c->out));
    } else {
        struct nbd_export x = {.size_bytes = bd_size_bytes(l->dev),
                               .read_only = l->dev->read_only,
                               .block_size_min = l->dev->block_size_min,
                               .block_size_preferred = l->dev->block_size_preferred,
                               .description = l->description};
        if (nbd_handshake_opens_to_serve(c->handshake)) {
            c->dev = l->dev;
            c->handle = l->handle;
        } else {
            exports->ops->close(exports, l->handle);
        }
        on_handshake_event(c, nbd_handshake_opened(c->handshake, &x, &c->out));
    }
    connection_run(c);
}

static void on_listing(struct nbd_listing *l) {
    struct nbd_connection *c = container_of(l, struct nbd_connection, listing);
    wait_end(c);
    if (c->state == CONNECTION_HANDSHAKE) {
        on_handshake_event(
            c, l->rc < 0 ? nbd_handshake_refused(c->handshake, &l->err, &c->out)
                         : nbd_handshake_listed(c->handshake, l->entries, l->count, &c->out));
    }
    nbd_listing_release(l);
    connection_run(c);
}

static void handshake_ready(struct nbd_connection *c) {
    struct nbd_server *s = c->server;
    c->mode.structured_replies = c->handshake->structured_replies;
    c->mode.context_allocation = c->handshake->context_allocation;
    log_debug("nbd: a client has opened an export", LOG_STR("export", c->handshake->name));
    free(c->handshake);
    c->handshake = NULL;
    env_timer_stop(s->env, &c->deadline);
    c->state = CONNECTION_SERVING;
    s->handshake_count--;
    nbd_server_changed(s);
}

static void on_handshake_event(struct nbd_connection *c, enum nbd_handshake_event event) {
    struct nbd_exports *exports = c->server->config.exports;
    switch (event) {
    case NBD_HANDSHAKE_MORE:
        break;
    case NBD_HANDSHAKE_OPEN:
        c->lookup = (struct nbd_lookup){.name = c->handshake->name, .done = on_lookup};
        wait_begin(c);
        exports->ops->open(exports, &c->lookup);
        break;
    case NBD_HANDSHAKE_LIST:
        c->listing = (struct nbd_listing){.done = on_listing};
        wait_begin(c);
        exports->ops->list(exports, &c->listing);
        break;
    case NBD_HANDSHAKE_READY:
        handshake_ready(c);
        break;
    case NBD_HANDSHAKE_CLOSE:
        c->state = CONNECTION_FINISHING;
        break;
    }
}

static enum parse_result handshake_parse(struct nbd_connection *c) {
    while (c->state == CONNECTION_HANDSHAKE) {
        if (c->waiting || c->out.len - c->out_off > OUT_PAUSE)
            return PARSE_BLOCKED;
        size_t used;
        enum nbd_handshake_event event =
            nbd_handshake_step(c->handshake, connection_input(c), &used, &c->out);
        c->in_off += used;
        if (event == NBD_HANDSHAKE_MORE && used == 0)
            return PARSE_HUNGRY;
        on_handshake_event(c, event);
    }
    return PARSE_ENDED;
}

static void on_deadline(struct env_timer *timer) {
    struct nbd_connection *c = container_of(timer, struct nbd_connection, deadline);
    CHECK(c->handshake && !c->waiting);
    static struct log_limit limit;
    log_info_limited(&limit, "nbd: a client is dropped that did not finish its handshake in time");
    close_socket(c);
    connection_run(c);
}

/* --- running --- */

static enum parse_result parse(struct nbd_connection *c) {
    if (c->state == CONNECTION_HANDSHAKE) {
        enum parse_result result = handshake_parse(c);
        if (c->state == CONNECTION_HANDSHAKE)
            return result;
    }
    return requests_parse(c);
}

/* Parses, sends and receives until one of them has to wait; says whether it wants more bytes. What
 * it waits for when it does not: the device, the exporter (both wake it) or the socket's room. */
static bool advance(struct nbd_connection *c) {
    bool more = true; /* the socket may hold more than we have read */
    for (unsigned round = 0; c->fd >= 0; round++) {
        enum parse_result parsed = parse(c);
        bool sent_some = send_all(c);
        bool unblocked = parsed == PARSE_BLOCKED && sent_some;
        bool hungry = parsed == PARSE_HUNGRY;
        if (!unblocked && !(hungry && more))
            return hungry;
        if (round == ROUNDS_MAX) { /* others first */
            connection_wake(c);
            return false;
        }
        if (hungry)
            more = receive(c);
    }
    return false;
}

/* May free c. */
static void connection_run(struct nbd_connection *c) {
    bool hungry = advance(c);
    if (c->server->draining)
        nbd_server_changed(c->server); /* it may have come to rest */
    if (c->fd < 0)
        drop_unsent(c);
    else if (!is_over(c))
        update_watch(c, hungry);
    if (is_over(c))
        free_connection(c);
}

static void on_turn(struct env_event *event) {
    struct nbd_connection *c = container_of(event, struct nbd_connection, turn);
    c->turn_posted = false;
    connection_run(c);
}

void connection_wake(struct nbd_connection *c) {
    if (c->turn_posted)
        return;
    c->turn_posted = true;
    env_post(c->server->env, &c->turn);
}

static void on_socket(struct loop_watch *watch, int events) {
    (void)events;
    connection_run(container_of(watch, struct nbd_connection, watch));
}

/* --- the server's calls --- */

static void tune_socket(int fd) {
    int one = 1, size = SOCKET_BUFFER;
    /* Whole replies fit, so that a reader that keeps up costs one sendmsg. Beyond the system's
     * limit only with the capability for it. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* on unix sockets: no effect */
}

static void start_handshake(struct nbd_connection *c) {
    struct nbd_server *s = c->server;
    c->handshake = NEW(struct nbd_handshake);
    nbd_handshake_init(c->handshake, s->config.list_denied, &c->out);
    c->deadline.fn = on_deadline;
    c->deadline_us = env_now_us(s->env) + NBD_HANDSHAKE_US_MAX;
    env_timer_start(s->env, &c->deadline, NBD_HANDSHAKE_US_MAX);
    s->handshake_count++;
}

int nbd_connection_start(struct nbd_server *s, int fd, struct blockdev *dev, struct err *e) {
    int type = 0;
    socklen_t len = sizeof type;
    CHECK(dev || s->config.exports);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM) {
        close(fd);
        return err_set(e, -ERR_INVALID, "file descriptor %d is not a stream socket", fd);
    }
    struct nbd_connection *c = NEW(struct nbd_connection);
    c->server = s;
    c->fd = fd;
    c->watch.fn = on_socket;
    c->turn.fn = on_turn;
    c->in = xmalloc(CONNECTION_IN_SIZE);
    list_init(&c->replies);
    list_push_back(&s->connections, &c->node);
    s->connection_count++;
    metrics_counter_inc(&s->connections_total);
    metrics_gauge_set(&s->connections_now, (int64_t)s->connection_count);
    tune_socket(fd);
    if (dev) {
        c->adopted = true;
        c->dev = dev;
        c->state = CONNECTION_SERVING;
    } else {
        start_handshake(c);
    }
    connection_wake(c);
    return 0;
}

void nbd_connection_drain(struct list_node *node) {
    struct nbd_connection *c = container_of(node, struct nbd_connection, node);
    if (c->state == CONNECTION_HANDSHAKE)
        close_socket(c);
    connection_run(c);
}

bool nbd_connection_is_at_rest(const struct list_node *node) {
    const struct nbd_connection *c = container_of(node, struct nbd_connection, node);
    if (c->submitted)
        return false;
    if (!c->adopted || c->fd < 0)
        return true;
    return c->ops_open == 0 && c->skip_left == 0 && connection_input(c).len == 0;
}

void nbd_connection_undrain(struct list_node *node) {
    connection_wake(container_of(node, struct nbd_connection, node));
}

static void on_end_deadline(struct env_timer *timer) {
    struct nbd_connection *c = container_of(timer, struct nbd_connection, deadline);
    close_socket(c);
    connection_run(c);
}

void nbd_connection_finish(struct list_node *node, const void *handle) {
    struct nbd_connection *c = container_of(node, struct nbd_connection, node);
    if (c->handle != handle || c->state == CONNECTION_DEAD)
        return;
    CHECK(c->state != CONNECTION_HANDSHAKE); /* its deadline is another one */
    if (c->receiving)
        requests_free_op(TAKE_PTR(c->receiving));
    c->state = CONNECTION_FINISHING;
    c->deadline.fn = on_end_deadline;
    env_timer_start(c->server->env, &c->deadline, NBD_END_US_MAX);
    connection_wake(c);
}

void nbd_connection_kill(struct list_node *node) {
    struct nbd_connection *c = container_of(node, struct nbd_connection, node);
    close_socket(c);
    connection_run(c);
}
