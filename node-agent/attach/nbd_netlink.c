/* libnl does the framing; each operation is one request and what the kernel answers to it (see
 * nbd_netlink.h). The kernel's own words (extended acknowledgement) become part of the error. */
#include "node-agent/attach/nbd_netlink.h"

#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { KERNEL_TEXT_MAX = 160 };

/* One request and its answer. */
struct call {
    struct nl_sock *sock;
    struct nl_msg *msg;
    struct nl_cb *cb;
    int family;
    bool finished;
    int eno; /* of the kernel's answer; 0: done */
    char text[KERNEL_TEXT_MAX];
    uint32_t index;
    bool has_index;
};

static void call_release(struct call *c) {
    nlmsg_free(c->msg);
    if (c->cb)
        nl_cb_put(c->cb);
    nl_socket_free(c->sock);
}
#define CLEANUP_CALL CLEANUP(call_release)

static int from_libnl(struct err *e, int rc, const char *what) {
    return err_set(e, -ERR_IO, "netlink: %s: %s", what, nl_geterror(rc));
}

/* --- answers --- */

static int on_ack(struct nl_msg *msg, void *arg) {
    (void)msg;
    struct call *c = arg;
    c->finished = true;
    return NL_STOP;
}

static int on_message(struct nl_msg *msg, void *arg) {
    struct call *c = arg;
    struct nlattr *attrs[NBD_ATTR_MAX + 1];
    if (genlmsg_parse(nlmsg_hdr(msg), 0, attrs, NBD_ATTR_MAX, NULL) == 0 && attrs[NBD_ATTR_INDEX] &&
        nla_len(attrs[NBD_ATTR_INDEX]) >= (int)sizeof c->index) {
        c->index = nla_get_u32(attrs[NBD_ATTR_INDEX]);
        c->has_index = true;
    }
    return NL_OK;
}

/* The text stands behind the error and the copy of our request, unless that was left out. */
static void copy_kernel_text(struct call *c, const struct nlmsgerr *answer) {
    const struct nlmsghdr *h =
        (const struct nlmsghdr *)(const void *)((const char *)answer - NLMSG_HDRLEN);
    if (!(h->nlmsg_flags & NLM_F_ACK_TLVS))
        return;
    size_t off = NLMSG_HDRLEN + sizeof *answer;
    if (!(h->nlmsg_flags & NLM_F_CAPPED))
        off += NLMSG_ALIGN(answer->msg.nlmsg_len) - NLMSG_HDRLEN;
    if (off >= h->nlmsg_len)
        return;
    struct nlattr *first = (struct nlattr *)(void *)((char *)(uintptr_t)h + off);
    const struct nlattr *text = nla_find(first, (int)(h->nlmsg_len - off), NLMSGERR_ATTR_MSG);
    if (text)
        snprintf(c->text, sizeof c->text, "%.*s", nla_len(text), (const char *)nla_data(text));
}

static int on_error(struct sockaddr_nl *from, struct nlmsgerr *answer, void *arg) {
    (void)from;
    struct call *c = arg;
    c->finished = true;
    c->eno = -answer->error;
    copy_kernel_text(c, answer);
    return NL_STOP;
}

/* --- calls --- */

static int call_connect(struct call *c, struct err *e) {
    c->sock = nl_socket_alloc();
    c->msg = nlmsg_alloc();
    c->cb = nl_cb_alloc(NL_CB_DEFAULT);
    CHECK(c->sock && c->msg && c->cb);
    int rc = genl_connect(c->sock);
    if (rc < 0)
        return from_libnl(e, rc, "connect");
    const int one = 1;
    (void)setsockopt(nl_socket_get_fd(c->sock), SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one);
    (void)setsockopt(nl_socket_get_fd(c->sock), SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
    c->family = genl_ctrl_resolve(c->sock, NBD_GENL_FAMILY_NAME);
    if (c->family == -NLE_OBJ_NOTFOUND)
        return err_set(e, -ERR_NOT_FOUND, "netlink: the kernel has no family 'nbd' here");
    return c->family < 0 ? from_libnl(e, c->family, "find the family 'nbd'") : 0;
}

static int call_begin(struct call *c, uint8_t command, struct err *e) {
    int rc = call_connect(c, e);
    if (rc < 0)
        return rc;
    CHECK(
        genlmsg_put(c->msg, NL_AUTO_PORT, NL_AUTO_SEQ, c->family, 0, 0, command, NBD_GENL_VERSION));
    return 0;
}

static void put_u64(struct call *c, int attribute, uint64_t value) {
    CHECK(nla_put_u64(c->msg, attribute, value) == 0);
}

static void put_socket(struct call *c, int socket) {
    struct nlattr *sockets = nla_nest_start(c->msg, NBD_ATTR_SOCKETS);
    CHECK(sockets);
    struct nlattr *item = nla_nest_start(c->msg, NBD_SOCK_ITEM);
    CHECK(item && nla_put_u32(c->msg, NBD_SOCK_FD, (uint32_t)socket) == 0);
    nla_nest_end(c->msg, item);
    nla_nest_end(c->msg, sockets);
}

static int refused(const struct call *c, const char *what, struct err *e) {
    int rc = err_from_errno(e, c->eno, "netlink: %s%s%s", what, c->text[0] ? ": " : "", c->text);
    if (c->eno == EPERM)
        return err_set(e, -ERR_DENIED,
                       "netlink: %s: not permitted: CAP_SYS_ADMIN of the node itself is needed, "
                       "not of a user namespace",
                       what);
    return rc;
}

static int call_run(struct call *c, const char *what, struct err *e) {
    nl_cb_set(c->cb, NL_CB_ACK, NL_CB_CUSTOM, on_ack, c);
    nl_cb_set(c->cb, NL_CB_VALID, NL_CB_CUSTOM, on_message, c);
    nl_cb_err(c->cb, NL_CB_CUSTOM, on_error, c);
    int rc = nl_send_auto(c->sock, c->msg);
    while (rc >= 0 && !c->finished)
        rc = nl_recvmsgs(c->sock, c->cb);
    if (c->finished)
        return c->eno ? refused(c, what, e) : 0;
    return from_libnl(e, rc, what);
}

int nbd_netlink_probe(struct err *e) {
    CLEANUP_CALL struct call c = {0};
    return call_connect(&c, e);
}

int nbd_netlink_connect(const struct nbd_connect *r, uint32_t *ret_index, struct err *e) {
    CLEANUP_CALL struct call c = {0};
    int rc = call_begin(&c, NBD_CMD_CONNECT, e);
    if (rc < 0)
        return rc;
    put_u64(&c, NBD_ATTR_SIZE_BYTES, r->size_bytes);
    put_u64(&c, NBD_ATTR_BLOCK_SIZE_BYTES, r->block_size_bytes);
    put_u64(&c, NBD_ATTR_SERVER_FLAGS, r->server_flags);
    put_u64(&c, NBD_ATTR_TIMEOUT, 0); /* with one connection: requests are never aborted */
    put_u64(&c, NBD_ATTR_DEAD_CONN_TIMEOUT, r->dead_conn_timeout_s);
    CHECK(nla_put_string(c.msg, NBD_ATTR_BACKEND_IDENTIFIER, r->backend) == 0);
    put_socket(&c, r->socket);
    rc = call_run(&c, "connect a device", e);
    if (rc < 0)
        return rc;
    if (!c.has_index)
        return err_set(e, -ERR_IO, "netlink: connect a device: the kernel does not say which");
    *ret_index = c.index;
    return 0;
}

int nbd_netlink_reconfigure(const struct nbd_reconfigure *r, struct err *e) {
    CLEANUP_CALL struct call c = {0};
    int rc = call_begin(&c, NBD_CMD_RECONFIGURE, e);
    if (rc < 0)
        return rc;
    CHECK(nla_put_u32(c.msg, NBD_ATTR_INDEX, r->index) == 0);
    CHECK(nla_put_string(c.msg, NBD_ATTR_BACKEND_IDENTIFIER, r->backend) == 0);
    if (r->size_bytes)
        put_u64(&c, NBD_ATTR_SIZE_BYTES, r->size_bytes);
    if (r->dead_conn_timeout_s)
        put_u64(&c, NBD_ATTR_DEAD_CONN_TIMEOUT, r->dead_conn_timeout_s);
    if (r->socket >= 0)
        put_socket(&c, r->socket);
    char what[48];
    snprintf(what, sizeof what, "reconfigure nbd%u", r->index);
    return call_run(&c, what, e);
}

int nbd_netlink_disconnect(uint32_t index, struct err *e) {
    CLEANUP_CALL struct call c = {0};
    int rc = call_begin(&c, NBD_CMD_DISCONNECT, e);
    if (rc < 0)
        return rc;
    CHECK(nla_put_u32(c.msg, NBD_ATTR_INDEX, index) == 0);
    char what[48];
    snprintf(what, sizeof what, "disconnect nbd%u", index);
    return call_run(&c, what, e);
}
