/* The control protocol's bytes (docs/control.md): one JSON object a line, both ways. Pure. */
#pragma once

#include <jansson.h>

#include "common/buf.h"
#include "common/err.h"

enum {
    CONTROL_VERSION = 1,
    CONTROL_LINE_MAX = 64 * 1024, /* bytes of a line, its newline included */
    CONTROL_VERB_MAX = 32,        /* bytes of a verb */
};

struct control_request {
    json_int_t id;
    char verb[CONTROL_VERB_MAX + 1];
    json_t *args; /* an object; owned */
};
void control_request_release(struct control_request *r);

/* A line without its newline. -ERR_INVALID, with a sentence for the sender: not a request; ret->id
 * is what could be read of it, else -1. -ERR_UNSUPPORTED: another version of the protocol. */
int control_request_decode(struct control_request *ret, struct view line, struct err *e);
/* Appends a line. args may be NULL. -ERR_INVALID: it would be too long. */
int control_request_encode(struct buf *out, json_int_t id, const char *verb, const json_t *args,
                           struct err *e);

/* Append a line. A result that is too long becomes an error (-ERR_OVERLOAD) by itself. */
void control_reply_encode(struct buf *out, json_int_t id, const json_t *result);
void control_error_encode(struct buf *out, json_int_t id, const struct err *e);

/* A line without its newline: 0 and *ret_result (owned by the caller), or the error that it
 * carries. -ERR_CORRUPT: not a reply, or to another request. */
int control_reply_decode(struct view line, json_int_t id, json_t **ret_result, struct err *e);

/* Arguments: what a verb wants of its args object. -ERR_INVALID names the argument. */
int control_arg_string(const json_t *args, const char *name, const char **ret_value,
                       struct err *e); /* borrowed from args */
int control_arg_u64(const json_t *args, const char *name, uint64_t *ret_value, struct err *e);
