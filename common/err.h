/* Errors as values. A function that can fail returns 0 or -ERR_x and fills *e when e is not NULL.
 *
 * The first failure sets the text, each layer that knows something new wraps it ("volume 'a': open:
 * ..."). Nothing is allocated on an error path. A function logs an error or returns it, never both.
 */
#pragma once

#include <errno.h>
#include <stdarg.h>

#include "common/base.h"

enum err_code {
#define ERR_CODE(name, eno, retryable, nbd, grpc) ERR_##name = (eno),
#include "common/err_codes.def"
#undef ERR_CODE
};

enum {
    ERR_TEXT_MAX = 400
}; /* bytes, the final NUL included; longer texts are cut on a UTF-8 boundary */

struct err {
    int code; /* 0 or -ERR_x */
    char text[ERR_TEXT_MAX];
};

/* Sets code and text; returns the code. `code` is -ERR_x. */
#define err_set(e, code, ...) (err_set_text((e), (code), __VA_ARGS__), (code))
void err_set_text(struct err *e, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts "<fmt>: " in front of the text; returns the code that e already has. */
int err_wrap(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Copies an error whole and returns its code; `to` may be NULL. */
int err_copy(struct err *to, const struct err *from);

/* From errno of a failed local system call: maps what the table knows, else -ERR_IO; the text ends
 * in strerror. */
int err_from_errno(struct err *e, int eno, const char *fmt, ...) PRINTF_LIKE(3, 4);

bool err_is_retryable(int code);
int err_to_nbd(int code);  /* the errno that the NBD protocol defines for this failure, > 0 */
int err_to_grpc(int code); /* google.rpc.Code, > 0 */
const char *err_code_name(int code); /* "not_found", for logs and metrics; never NULL */
