/* The numbers of the NBD protocol (the network block device project's doc/proto.md), and our limits
 * on what a client may ask for. */
#pragma once

#include "common/base.h"

#define NBD_MAGIC                  UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC           UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC     UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC          UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)

/* Handshake flags, of server and client alike. */
enum { NBD_FLAG_FIXED_NEWSTYLE = 1, NBD_FLAG_NO_ZEROES = 2 };

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ERR(n) (UINT32_C(0x80000000) | (n))
enum nbd_option_reply {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERR_UNSUP    NBD_REP_ERR(1)
#define NBD_REP_ERR_POLICY   NBD_REP_ERR(2)
#define NBD_REP_ERR_INVALID  NBD_REP_ERR(3)
#define NBD_REP_ERR_UNKNOWN  NBD_REP_ERR(6)
#define NBD_REP_ERR_SHUTDOWN NBD_REP_ERR(7)
#define NBD_REP_ERR_TOO_BIG  NBD_REP_ERR(9)

enum nbd_info {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3
};

enum nbd_transmission_flags {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_command_flags {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum { NBD_REPLY_FLAG_DONE = 1 };
enum nbd_reply_type {
    NBD_REPLY_NONE = 0,
    NBD_REPLY_OFFSET_DATA = 1,
    NBD_REPLY_BLOCK_STATUS = 5,
    NBD_REPLY_ERROR = (1 << 15) + 1,
};

enum nbd_errno { NBD_EINVAL = 22, NBD_ENOTSUP = 95, NBD_ESHUTDOWN = 108 };

enum {
    /* Sizes the protocol gives, bytes. */
    NBD_GREETING_SIZE = 18,
    NBD_OPTION_HEADER_SIZE = 16,
    NBD_REQUEST_SIZE = 28,
    NBD_SIMPLE_REPLY_SIZE = 16,
    NBD_CHUNK_HEADER_SIZE = 20,
    NBD_STRING_MAX = 4096,

    /* Our limits. */
    NBD_OPTION_PAYLOAD_MAX = 64 * 1024,        /* bytes of one option's data */
    NBD_OPTION_SKIP_MAX = 1024 * 1024,         /* bytes; longer data ends the connection */
    NBD_OPTIONS_MAX = 32,                      /* options in a handshake, and as many again for */
                                               /* each export that was listed */
    NBD_DESCRIPTION_MAX = 256,                 /* bytes of an export's description */
    NBD_LIST_MAX = 4096,                       /* exports in a LIST answer */
    NBD_PAYLOAD_ADVERTISED = 32 * 1024 * 1024, /* bytes: INFO_BLOCK_SIZE's maximum */
    NBD_PAYLOAD_SKIP_MAX = 128 * 1024 * 1024,  /* bytes of a refused WRITE that are still read */
};

/* The one metadata context there is, and the id it gets. */
#define NBD_CONTEXT_ALLOCATION "base:allocation"
enum { NBD_CONTEXT_ALLOCATION_ID = 1 };
