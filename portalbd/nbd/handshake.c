/* The handshake as a state machine without I/O.
 *
 *            flags          option (whole)         answer of the caller
 *   FLAGS ----------> OPTION ------------> OPENING ------------> OPTION   (INFO, GO refused)
 *                     |  ^  |                      `-----------> READY    (GO, EXPORT_NAME)
 *                     |  |  `------------> LISTING ------------> OPTION
 *            too long v  | all read
 *                     SKIP                 any of them ----------> CLOSED (ABORT, nonsense, limits)
 *
 * Invariants:
 *   I1  An option is looked at only when all of it is there; every length in it is checked against
 *       what is left of it before it is used.
 *   I2  Each option gets exactly one final reply, except EXPORT_NAME, which has none in the
 * protocol. I3  SET_META_CONTEXT replaces what was set before, also when it fails, and holds only
 * for the export name it was sent for. I4  After READY or CLOSED nothing is read any more. */
#include "portalbd/nbd/handshake.h"

#include "common/bytes.h"
#include "common/utf8.h"
#include "portalbd/nbd/transmission.h"

void nbd_handshake_init(struct nbd_handshake *h, bool list_denied, struct buf *out) {
    *h = (struct nbd_handshake){
        .state = NBD_STATE_FLAGS, .list_denied = list_denied, .options_left = NBD_OPTIONS_MAX};
    uint8_t *p = buf_extend(out, NBD_GREETING_SIZE);
    store_be64(p, NBD_MAGIC);
    store_be64(p + 8, NBD_OPTION_MAGIC);
    store_be16(p + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

bool nbd_handshake_opens_to_serve(const struct nbd_handshake *h) {
    CHECK(h->state == NBD_STATE_OPENING);
    return h->option != NBD_OPT_INFO;
}

static enum nbd_handshake_event close_now(struct nbd_handshake *h) {
    h->state = NBD_STATE_CLOSED;
    return NBD_HANDSHAKE_CLOSE;
}

/* --- replies --- */

static uint8_t *reply_begin(struct nbd_handshake *h, uint32_t type, size_t len, struct buf *out) {
    uint8_t *p = buf_extend(out, 20 + len);
    store_be64(p, NBD_OPTION_REPLY_MAGIC);
    store_be32(p + 8, h->option);
    store_be32(p + 12, type);
    store_be32(p + 16, (uint32_t)len);
    return p + 20;
}

static enum nbd_handshake_event reply_ack(struct nbd_handshake *h, struct buf *out) {
    reply_begin(h, NBD_REP_ACK, 0, out);
    h->state = NBD_STATE_OPTION;
    return NBD_HANDSHAKE_MORE;
}

static enum nbd_handshake_event reply_error(struct nbd_handshake *h, uint32_t type,
                                            const char *text, struct buf *out) {
    size_t len = strlen(text);
    memcpy(reply_begin(h, type, len, out), text, len);
    h->state = NBD_STATE_OPTION;
    return NBD_HANDSHAKE_MORE;
}

/* --- reading an option's data --- */

static bool take_u16(struct view *v, uint16_t *ret) {
    if (v->len < 2)
        return false;
    *ret = load_be16(v->data);
    *v = view_part(*v, 2, v->len - 2);
    return true;
}

static bool take_u32(struct view *v, uint32_t *ret) {
    if (v->len < 4)
        return false;
    *ret = load_be32(v->data);
    *v = view_part(*v, 4, v->len - 4);
    return true;
}

/* A string with a 32-bit length: at most NBD_STRING_MAX bytes of UTF-8 without a NUL. */
static bool take_string(struct view *v, struct view *ret) {
    uint32_t len;
    if (!take_u32(v, &len) || len > v->len || len > NBD_STRING_MAX)
        return false;
    *ret = view_part(*v, 0, len);
    *v = view_part(*v, len, v->len - len);
    return utf8_valid(*ret);
}

static void copy_name(char to[NBD_STRING_MAX + 1], struct view name) {
    CHECK(name.len <= NBD_STRING_MAX);
    if (name.len)
        memcpy(to, name.data, name.len);
    to[name.len] = '\0';
}

/* --- options --- */

static enum nbd_handshake_event on_export_name(struct nbd_handshake *h, struct view data) {
    if (data.len > NBD_STRING_MAX || !utf8_valid(data))
        return close_now(h); /* this option has no error reply */
    copy_name(h->name, data);
    h->state = NBD_STATE_OPENING;
    return NBD_HANDSHAKE_OPEN;
}

/* INFO and GO: name, then the kinds of information the client wants. */
static enum nbd_handshake_event on_info(struct nbd_handshake *h, struct view data,
                                        struct buf *out) {
    struct view name;
    uint16_t count, info;
    if (!take_string(&data, &name) || !take_u16(&data, &count) || (size_t)count * 2 != data.len)
        return reply_error(h, NBD_REP_ERR_INVALID, "the option's data is malformed", out);
    h->infos_wanted = 0;
    while (take_u16(&data, &info)) {
        if (info <= NBD_INFO_BLOCK_SIZE)
            h->infos_wanted |= 1u << info;
    }
    copy_name(h->name, name);
    h->state = NBD_STATE_OPENING;
    return NBD_HANDSHAKE_OPEN;
}

static enum nbd_handshake_event on_list(struct nbd_handshake *h, struct view data,
                                        struct buf *out) {
    if (data.len)
        return reply_error(h, NBD_REP_ERR_INVALID, "LIST takes no data", out);
    if (h->list_denied)
        return reply_error(h, NBD_REP_ERR_POLICY, "exports are not listed here", out);
    h->state = NBD_STATE_LISTING;
    return NBD_HANDSHAKE_LIST;
}

static enum nbd_handshake_event on_structured_reply(struct nbd_handshake *h, struct view data,
                                                    struct buf *out) {
    if (data.len)
        return reply_error(h, NBD_REP_ERR_INVALID, "STRUCTURED_REPLY takes no data", out);
    h->structured_replies = true;
    return reply_ack(h, out);
}

static void reply_context(struct nbd_handshake *h, uint32_t id, struct buf *out) {
    size_t len = strlen(NBD_CONTEXT_ALLOCATION);
    uint8_t *p = reply_begin(h, NBD_REP_META_CONTEXT, 4 + len, out);
    store_be32(p, id);
    memcpy(p + 4, NBD_CONTEXT_ALLOCATION, len);
}

/* Does a query name our context? A LIST may also ask for the whole namespace "base:". */
static bool query_matches(struct view query, bool list) {
    return view_equal(query, view_of_str(NBD_CONTEXT_ALLOCATION)) ||
           (list && view_equal(query, view_of_str("base:")));
}

/* LIST_META_CONTEXT and SET_META_CONTEXT: export name, then queries. No query at all lists all. The
 * contexts do not depend on the export, so it is not looked for here: GO does that. */
static enum nbd_handshake_event on_meta_context(struct nbd_handshake *h, struct view data,
                                                struct buf *out) {
    bool list = h->option == NBD_OPT_LIST_META_CONTEXT;
    if (!list)
        h->context_set = false; /* I3 */
    if (!h->structured_replies)
        return reply_error(h, NBD_REP_ERR_INVALID, "negotiate structured replies first", out);
    struct view name, query;
    uint32_t count;
    if (!take_string(&data, &name) || !take_u32(&data, &count))
        return reply_error(h, NBD_REP_ERR_INVALID, "the option's data is malformed", out);
    bool found = list && count == 0;
    for (uint32_t i = 0; i < count; i++) { /* each takes at least 4 of the bytes that are left */
        if (!take_string(&data, &query))
            return reply_error(h, NBD_REP_ERR_INVALID, "a query is malformed", out);
        found = found || query_matches(query, list);
    }
    if (data.len)
        return reply_error(h, NBD_REP_ERR_INVALID, "bytes follow the last query", out);
    if (found)
        reply_context(h, list ? 0 : NBD_CONTEXT_ALLOCATION_ID, out);
    if (found && !list) {
        h->context_set = true;
        copy_name(h->context_name, name);
    }
    return reply_ack(h, out);
}

static enum nbd_handshake_event on_option(struct nbd_handshake *h, struct view data,
                                          struct buf *out) {
    if (h->options_left-- == 0)
        return close_now(h);
    if (!h->fixed && h->option != NBD_OPT_EXPORT_NAME)
        return close_now(h); /* such a client knows no replies to options */
    switch (h->option) {
    case NBD_OPT_EXPORT_NAME:
        return on_export_name(h, data);
    case NBD_OPT_ABORT:
        reply_ack(h, out);
        return close_now(h);
    case NBD_OPT_LIST:
        return on_list(h, data, out);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return on_info(h, data, out);
    case NBD_OPT_STRUCTURED_REPLY:
        return on_structured_reply(h, data, out);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return on_meta_context(h, data, out);
    case NBD_OPT_STARTTLS:
        if (data.len)
            return reply_error(h, NBD_REP_ERR_INVALID, "STARTTLS takes no data", out);
        return reply_error(h, NBD_REP_ERR_UNSUP, "TLS is not supported", out);
    default:
        return reply_error(h, NBD_REP_ERR_UNSUP, "unknown option", out);
    }
}

/* --- the states --- */

static enum nbd_handshake_event step_flags(struct nbd_handshake *h, struct view in, size_t *used) {
    if (in.len < 4)
        return NBD_HANDSHAKE_MORE;
    uint32_t flags = load_be32(in.data);
    *used = 4;
    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
        return close_now(h); /* the protocol demands it */
    h->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    h->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    h->state = NBD_STATE_OPTION;
    return NBD_HANDSHAKE_MORE;
}

static enum nbd_handshake_event step_option(struct nbd_handshake *h, struct view in, size_t *used,
                                            struct buf *out) {
    if (in.len < NBD_OPTION_HEADER_SIZE)
        return NBD_HANDSHAKE_MORE;
    uint32_t len = load_be32(in.data + 12);
    if (load_be64(in.data) != NBD_OPTION_MAGIC || len > NBD_OPTION_SKIP_MAX)
        return close_now(h);
    h->option = load_be32(in.data + 8);
    if (len > NBD_OPTION_PAYLOAD_MAX) {
        *used = NBD_OPTION_HEADER_SIZE;
        h->skip_left = len;
        h->state = NBD_STATE_SKIP;
        return NBD_HANDSHAKE_MORE;
    }
    if (in.len - NBD_OPTION_HEADER_SIZE < len)
        return NBD_HANDSHAKE_MORE;
    *used = NBD_OPTION_HEADER_SIZE + len;
    return on_option(h, view_part(in, NBD_OPTION_HEADER_SIZE, len), out);
}

static enum nbd_handshake_event step_skip(struct nbd_handshake *h, struct view in, size_t *used,
                                          struct buf *out) {
    *used = MIN(in.len, h->skip_left);
    h->skip_left -= *used;
    if (h->skip_left > 0)
        return NBD_HANDSHAKE_MORE;
    if (!h->fixed || h->option == NBD_OPT_EXPORT_NAME || h->options_left-- == 0)
        return close_now(h);
    return reply_error(h, NBD_REP_ERR_TOO_BIG, "the option's data is too long", out);
}

enum nbd_handshake_event nbd_handshake_step(struct nbd_handshake *h, struct view in,
                                            size_t *ret_used, struct buf *out) {
    size_t used = 0;
    *ret_used = 0;
    enum nbd_handshake_event event = NBD_HANDSHAKE_CLOSE;
    switch (h->state) {
    case NBD_STATE_FLAGS:
        event = step_flags(h, in, &used);
        break;
    case NBD_STATE_OPTION:
        event = step_option(h, in, &used, out);
        break;
    case NBD_STATE_SKIP:
        event = step_skip(h, in, &used, out);
        break;
    case NBD_STATE_OPENING:
    case NBD_STATE_LISTING:
    case NBD_STATE_READY:
        CHECK(false); /* the caller's turn */
    case NBD_STATE_CLOSED:
        break;
    }
    CHECK(used <= in.len);
    *ret_used = used;
    return event;
}

/* --- the caller's answers --- */

static enum nbd_handshake_event ready(struct nbd_handshake *h) {
    h->context_allocation = h->context_set && strcmp(h->context_name, h->name) == 0;
    h->state = NBD_STATE_READY;
    return NBD_HANDSHAKE_READY;
}

static enum nbd_handshake_event answer_export_name(struct nbd_handshake *h,
                                                   const struct nbd_export *x, struct buf *out) {
    uint8_t *p = buf_extend(out, 10);
    store_be64(p, x->size_bytes);
    store_be16(p + 8, nbd_transmission_flags(x->read_only, h->structured_replies));
    if (!h->no_zeroes)
        memset(buf_extend(out, 124), 0, 124);
    return ready(h);
}

static void reply_info_string(struct nbd_handshake *h, enum nbd_info info, const char *text,
                              struct buf *out) {
    size_t len = strlen(text);
    uint8_t *p = reply_begin(h, NBD_REP_INFO, 2 + len, out);
    store_be16(p, (uint16_t)info);
    memcpy(p + 2, text, len);
}

static void reply_infos(struct nbd_handshake *h, const struct nbd_export *x, struct buf *out) {
    uint8_t *p = reply_begin(h, NBD_REP_INFO, 12, out);
    store_be16(p, NBD_INFO_EXPORT);
    store_be64(p + 2, x->size_bytes);
    store_be16(p + 10, nbd_transmission_flags(x->read_only, h->structured_replies));
    if (h->infos_wanted & 1u << NBD_INFO_NAME)
        reply_info_string(h, NBD_INFO_NAME, h->name, out);
    if (h->infos_wanted & 1u << NBD_INFO_DESCRIPTION && x->description)
        reply_info_string(h, NBD_INFO_DESCRIPTION, x->description, out);
    if (h->infos_wanted & 1u << NBD_INFO_BLOCK_SIZE) {
        p = reply_begin(h, NBD_REP_INFO, 14, out);
        store_be16(p, NBD_INFO_BLOCK_SIZE);
        store_be32(p + 2, x->block_size_min);
        store_be32(p + 6, x->block_size_preferred);
        store_be32(p + 10, NBD_PAYLOAD_ADVERTISED);
    }
}

enum nbd_handshake_event nbd_handshake_opened(struct nbd_handshake *h, const struct nbd_export *x,
                                              struct buf *out) {
    CHECK(h->state == NBD_STATE_OPENING);
    CHECK(!x->description || strlen(x->description) <= NBD_DESCRIPTION_MAX);
    if (h->option == NBD_OPT_EXPORT_NAME)
        return answer_export_name(h, x, out);
    reply_infos(h, x, out);
    reply_ack(h, out);
    return h->option == NBD_OPT_GO ? ready(h) : NBD_HANDSHAKE_MORE;
}

enum nbd_handshake_event nbd_handshake_listed(struct nbd_handshake *h,
                                              const struct nbd_list_entry *entries, size_t count,
                                              struct buf *out) {
    CHECK(h->state == NBD_STATE_LISTING && count <= NBD_LIST_MAX);
    for (size_t i = 0; i < count; i++) {
        const char *description = entries[i].description ? entries[i].description : "";
        size_t name_len = strlen(entries[i].name), description_len = strlen(description);
        CHECK(name_len <= NBD_STRING_MAX && description_len <= NBD_DESCRIPTION_MAX);
        uint8_t *p = reply_begin(h, NBD_REP_SERVER, 4 + name_len + description_len, out);
        store_be32(p, (uint32_t)name_len);
        memcpy(p + 4, entries[i].name, name_len);
        memcpy(p + 4 + name_len, description, description_len);
    }
    /* A client may go on to ask about each of them; another LIST does not add to that. */
    if (!h->listed)
        h->options_left += NBD_OPTIONS_MAX * (unsigned)count;
    h->listed = true;
    return reply_ack(h, out);
}

enum nbd_handshake_event nbd_handshake_refused(struct nbd_handshake *h, const struct err *e,
                                               struct buf *out) {
    CHECK(h->state == NBD_STATE_OPENING || h->state == NBD_STATE_LISTING);
    if (h->option == NBD_OPT_EXPORT_NAME)
        return close_now(h); /* this option has no error reply */
    uint32_t type = e->code == -ERR_SHUTDOWN    ? NBD_REP_ERR_SHUTDOWN
                    : e->code == -ERR_NOT_FOUND ? NBD_REP_ERR_UNKNOWN
                                                : NBD_REP_ERR_POLICY;
    return reply_error(h, type, e->text, out);
}
