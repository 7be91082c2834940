/* The handshake as a state machine without I/O: bytes in, bytes out. Fixed newstyle, the server's
 * side.
 *
 * The caller feeds what it has received and sends what comes out; where the answer hangs on the
 * exports, the machine stops with an event and goes on when it is told. It never allocates from
 * what a client says: an option is at most NBD_OPTION_PAYLOAD_MAX bytes and stays in the caller's
 * buffer until it is whole. */
#pragma once

#include "common/buf.h"
#include "common/err.h"
#include "portalbd/nbd/protocol.h"

/* What the handshake tells a client about an export. */
struct nbd_export {
    uint64_t size_bytes;
    bool read_only;
    uint32_t block_size_min;
    uint32_t block_size_preferred;
    const char *description; /* valid UTF-8, at most NBD_DESCRIPTION_MAX bytes; NULL: none */
};

struct nbd_list_entry {
    const char *name;        /* valid UTF-8, at most NBD_STRING_MAX bytes */
    const char *description; /* NULL: none */
};

enum nbd_handshake_event {
    NBD_HANDSHAKE_MORE,  /* needs more bytes than it was given */
    NBD_HANDSHAKE_OPEN,  /* find the export h->name, then nbd_handshake_opened or _refused */
    NBD_HANDSHAKE_LIST,  /* list the exports, then nbd_handshake_listed or _refused */
    NBD_HANDSHAKE_READY, /* over: what follows are requests to the export opened last */
    NBD_HANDSHAKE_CLOSE, /* over: send what came out, then close the connection */
};

enum nbd_handshake_state {
    NBD_STATE_FLAGS,   /* waits for the client's flags */
    NBD_STATE_OPTION,  /* waits for an option */
    NBD_STATE_SKIP,    /* reads over the data of an option that is too long */
    NBD_STATE_OPENING, /* the caller looks for an export */
    NBD_STATE_LISTING, /* the caller lists the exports */
    NBD_STATE_READY,
    NBD_STATE_CLOSED,
};

struct nbd_handshake {
    enum nbd_handshake_state state;
    /* What has been negotiated; valid when READY. */
    bool structured_replies;
    bool context_allocation; /* BLOCK_STATUS was asked for, for the export that was opened */

    char name[NBD_STRING_MAX + 1]; /* the export to open */

    /* handshake.c's own. */
    bool fixed;
    bool no_zeroes;
    bool list_denied;
    bool listed;
    uint32_t option;       /* the one under way */
    uint64_t skip_left;    /* bytes */
    unsigned options_left; /* that this client may still send */
    unsigned infos_wanted; /* 1 << NBD_INFO_x */
    bool context_set;
    char context_name[NBD_STRING_MAX + 1]; /* the export SET_META_CONTEXT was for */
};

/* Puts the greeting out. list_denied: LIST is answered with ERR_POLICY. */
void nbd_handshake_init(struct nbd_handshake *h, bool list_denied, struct buf *out);

/* Goes on with `in`, at most one option at a time; *ret_used bytes of it are done with. With MORE,
 * call again with the rest and at least one byte more: the caller's buffer must hold
 * NBD_OPTION_HEADER_SIZE + NBD_OPTION_PAYLOAD_MAX bytes. Appends to out. */
enum nbd_handshake_event nbd_handshake_step(struct nbd_handshake *h, struct view in,
                                            size_t *ret_used, struct buf *out);

/* The answers to OPEN and LIST; then call nbd_handshake_step again, unless READY or CLOSE. */
enum nbd_handshake_event nbd_handshake_opened(struct nbd_handshake *h, const struct nbd_export *x,
                                              struct buf *out);
enum nbd_handshake_event nbd_handshake_listed(struct nbd_handshake *h,
                                              const struct nbd_list_entry *entries, size_t count,
                                              struct buf *out);
/* It could not be opened or listed: e says why, in words for the client. */
enum nbd_handshake_event nbd_handshake_refused(struct nbd_handshake *h, const struct err *e,
                                               struct buf *out);

/* Is the export under way to be served (GO, EXPORT_NAME), or only described (INFO)? While OPENING.
 */
bool nbd_handshake_opens_to_serve(const struct nbd_handshake *h);
