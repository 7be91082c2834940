/* The transmission phase without I/O: requests decoded, replies encoded. Pure functions. */
#pragma once

#include "common/err.h"
#include "common/view.h"
#include "portalbd/blockdev/blockdev.h"
#include "portalbd/nbd/protocol.h"

/* What the handshake agreed on. */
struct nbd_mode {
    bool structured_replies;
    bool context_allocation;
};

/* NBD_FLAG_x that an export is announced with. */
uint16_t nbd_transmission_flags(bool read_only, bool structured_replies);

struct nbd_request {
    uint16_t flags; /* NBD_CMD_FLAG_x */
    uint16_t type;  /* NBD_CMD_x, or anything */
    uint64_t cookie;
    uint64_t off;
    uint32_t len;
};

/* From NBD_REQUEST_SIZE bytes; false: that is no request, the stream is lost. */
bool nbd_request_decode(const uint8_t *bytes, struct nbd_request *ret);

/* Does a payload of ret->len bytes follow the request, whatever becomes of it? */
static inline bool nbd_request_has_payload(const struct nbd_request *r) {
    return r->type == NBD_CMD_WRITE;
}

/* Into the words of a block device: op, flags, off, len; not DISC. -ERR_INVALID: a command or a
 * flag that there is not. Bounds and the like are bd_validate's. */
int nbd_request_translate(const struct nbd_mode *mode, const struct nbd_request *r,
                          struct bd_request *ret, struct err *e);

/* The encoders write the bytes that go before a reply's data and return how many. */
enum { NBD_REPLY_HEAD_MAX = NBD_CHUNK_HEADER_SIZE + 8 };

/* A success without data. */
size_t nbd_reply_done(uint8_t *head, uint64_t cookie);
/* A READ; its r->len bytes of data follow. */
size_t nbd_reply_read(const struct nbd_mode *mode, const struct nbd_request *r, uint8_t *head);
/* An error, simple or, where it was negotiated, with a text (cut at NBD_ERROR_TEXT_MAX bytes). */
enum { NBD_ERROR_TEXT_MAX = 200 };
enum { NBD_ERROR_REPLY_MAX = NBD_CHUNK_HEADER_SIZE + 6 + NBD_ERROR_TEXT_MAX };
size_t nbd_reply_error(const struct nbd_mode *mode, uint64_t cookie, int nbd_errno,
                       const char *text, uint8_t *bytes);
/* A BLOCK_STATUS: the whole reply. Neighbours in the same state become one extent; together they
 * must not exceed r->len. */
static inline size_t nbd_reply_status_max(size_t extents) {
    return NBD_CHUNK_HEADER_SIZE + 4 + extents * 8;
}
size_t nbd_reply_status(const struct nbd_request *r, const struct bd_extent *extents, size_t count,
                        uint8_t *bytes);
