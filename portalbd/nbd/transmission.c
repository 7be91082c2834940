/* Requests decoded, replies encoded.
 *
 * With structured replies a READ is answered by one chunk (which is what DF asks for, so DF needs
 * no code), BLOCK_STATUS by one chunk, errors by a chunk with a text; the successes of all other
 * commands are simple replies in both modes. */
#include "portalbd/nbd/transmission.h"

#include "common/bytes.h"

uint16_t nbd_transmission_flags(bool read_only, bool structured_replies) {
    unsigned flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
    if (read_only)
        flags |= NBD_FLAG_READ_ONLY;
    else
        flags |= NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                 NBD_FLAG_SEND_FAST_ZERO;
    if (structured_replies)
        flags |= NBD_FLAG_SEND_DF;
    return (uint16_t)flags;
}

bool nbd_request_decode(const uint8_t *bytes, struct nbd_request *ret) {
    if (load_be32(bytes) != NBD_REQUEST_MAGIC)
        return false;
    ret->flags = load_be16(bytes + 4);
    ret->type = load_be16(bytes + 6);
    ret->cookie = load_be64(bytes + 8);
    ret->off = load_be64(bytes + 16);
    ret->len = load_be32(bytes + 24);
    return true;
}

struct command {
    bool known;
    enum bd_op op;
    uint16_t flags; /* that it may carry, besides FUA, which every command may */
};

static const struct command commands[] = {
    [NBD_CMD_READ] = {true, BD_READ, NBD_CMD_FLAG_DF},
    [NBD_CMD_WRITE] = {true, BD_WRITE, 0},
    [NBD_CMD_FLUSH] = {true, BD_FLUSH, 0},
    [NBD_CMD_TRIM] = {true, BD_TRIM, 0},
    [NBD_CMD_CACHE] = {true, BD_CACHE, 0},
    [NBD_CMD_WRITE_ZEROES] = {true, BD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO},
    [NBD_CMD_BLOCK_STATUS] = {true, BD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE},
};

static unsigned device_flags(enum bd_op op, uint16_t flags) {
    unsigned ret = 0;
    bool writes = op == BD_WRITE || op == BD_TRIM || op == BD_WRITE_ZEROES;
    if (flags & NBD_CMD_FLAG_FUA && writes) /* on others the protocol gives it no meaning */
        ret |= BD_FUA;
    if (flags & NBD_CMD_FLAG_NO_HOLE)
        ret |= BD_NO_HOLE;
    if (flags & NBD_CMD_FLAG_FAST_ZERO)
        ret |= BD_FAST_ZERO;
    if (flags & NBD_CMD_FLAG_REQ_ONE)
        ret |= BD_REQ_ONE;
    return ret;
}

int nbd_request_translate(const struct nbd_mode *mode, const struct nbd_request *r,
                          struct bd_request *ret, struct err *e) {
    CHECK(r->type != NBD_CMD_DISC);
    if (r->type >= ARRAY_LEN(commands) || !commands[r->type].known)
        return err_set(e, -ERR_INVALID, "unknown command %u", r->type);
    const struct command *c = &commands[r->type];
    uint16_t unknown = r->flags & (uint16_t) ~(c->flags | NBD_CMD_FLAG_FUA);
    if (unknown)
        return err_set(e, -ERR_INVALID, "command %u does not take the flags 0x%x", r->type,
                       unknown);
    if (r->flags & NBD_CMD_FLAG_DF && !mode->structured_replies)
        return err_set(e, -ERR_INVALID, "DF needs structured replies");
    if (c->op == BD_BLOCK_STATUS && !(mode->structured_replies && mode->context_allocation))
        return err_set(e, -ERR_INVALID, "no metadata context was negotiated");
    ret->op = c->op;
    ret->flags = device_flags(c->op, r->flags);
    ret->off = r->off;
    ret->len = r->len;
    return 0;
}

static size_t put_simple(uint8_t *head, uint64_t cookie, int nbd_errno) {
    store_be32(head, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(head + 4, (uint32_t)nbd_errno);
    store_be64(head + 8, cookie);
    return NBD_SIMPLE_REPLY_SIZE;
}

/* The only chunk of its reply. */
static size_t put_chunk(uint8_t *head, enum nbd_reply_type type, uint64_t cookie, size_t len) {
    store_be32(head, NBD_STRUCTURED_REPLY_MAGIC);
    store_be16(head + 4, NBD_REPLY_FLAG_DONE);
    store_be16(head + 6, (uint16_t)type);
    store_be64(head + 8, cookie);
    store_be32(head + 16, (uint32_t)len);
    return NBD_CHUNK_HEADER_SIZE;
}

size_t nbd_reply_done(uint8_t *head, uint64_t cookie) {
    return put_simple(head, cookie, 0);
}

size_t nbd_reply_read(const struct nbd_mode *mode, const struct nbd_request *r, uint8_t *head) {
    if (!mode->structured_replies)
        return put_simple(head, r->cookie, 0);
    size_t n = put_chunk(head, NBD_REPLY_OFFSET_DATA, r->cookie, 8 + (size_t)r->len);
    store_be64(head + n, r->off);
    return n + 8;
}

size_t nbd_reply_error(const struct nbd_mode *mode, uint64_t cookie, int nbd_errno,
                       const char *text, uint8_t *bytes) {
    CHECK(nbd_errno > 0);
    if (!mode->structured_replies)
        return put_simple(bytes, cookie, nbd_errno);
    size_t len = strnlen(text, NBD_ERROR_TEXT_MAX);
    /* Not in the middle of a character. */
    while (len > 0 && text[len] != '\0' && ((uint8_t)text[len] & 0xc0) == 0x80)
        len--;
    size_t n = put_chunk(bytes, NBD_REPLY_ERROR, cookie, 6 + len);
    store_be32(bytes + n, (uint32_t)nbd_errno);
    store_be16(bytes + n + 4, (uint16_t)len);
    memcpy(bytes + n + 6, text, len);
    return n + 6 + len;
}

size_t nbd_reply_status(const struct nbd_request *r, const struct bd_extent *extents, size_t count,
                        uint8_t *bytes) {
    CHECK(count > 0);
    uint8_t *p = bytes + NBD_CHUNK_HEADER_SIZE;
    store_be32(p, NBD_CONTEXT_ALLOCATION_ID);
    p += 4;
    uint64_t total = 0, run = 0;
    for (size_t i = 0; i < count; i++) {
        CHECK(extents[i].len > 0 && extents[i].len <= r->len - total);
        total += extents[i].len;
        run += extents[i].len;
        if (i + 1 < count && extents[i + 1].state == extents[i].state)
            continue;
        store_be32(p, (uint32_t)run);
        store_be32(p + 4, extents[i].state);
        p += 8;
        run = 0;
    }
    put_chunk(bytes, NBD_REPLY_BLOCK_STATUS, r->cookie,
              (size_t)(p - bytes) - NBD_CHUNK_HEADER_SIZE);
    return (size_t)(p - bytes);
}
