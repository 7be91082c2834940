/* Errors as values: the table's accessors and the text. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void check_failed(const char *condition, const char *file, int line, const char *func) {
    fprintf(stderr, "%s:%d: %s: CHECK failed: %s\n", file, line, func, condition);
    abort();
}

/* Cuts the text where it was truncated in the middle of a UTF-8 sequence: status messages must be
 * valid UTF-8. */
static void cut_utf8(char *text) {
    size_t len = strlen(text);
    size_t start = len;
    while (start > 0 && len - start < 4 && ((unsigned char)text[start - 1] & 0xc0) == 0x80)
        start--;
    if (start == 0)
        return;
    unsigned char lead = (unsigned char)text[start - 1];
    size_t want = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (want > 1 && len - (start - 1) < want)
        text[start - 1] = '\0';
}

static void set_text(struct err *e, const char *fmt, va_list ap) {
    int n = vsnprintf(e->text, sizeof e->text, fmt, ap);
    if (n >= (int)sizeof e->text)
        cut_utf8(e->text);
}

void err_set_text(struct err *e, int code, const char *fmt, ...) {
    CHECK(code < 0);
    if (!e)
        return;
    e->code = code;
    va_list ap;
    va_start(ap, fmt);
    set_text(e, fmt, ap);
    va_end(ap);
}

int err_wrap(struct err *e, const char *fmt, ...) {
    CHECK(e && e->code < 0);
    char inner[sizeof e->text];
    memcpy(inner, e->text, sizeof inner);
    va_list ap;
    va_start(ap, fmt);
    set_text(e, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->text);
    if (snprintf(e->text + n, sizeof e->text - n, ": %s", inner) >= (int)(sizeof e->text - n))
        cut_utf8(e->text);
    return e->code;
}

int err_copy(struct err *to, const struct err *from) {
    CHECK(from->code <= 0);
    if (to && to != from)
        *to = *from;
    return from->code;
}

static int code_of_errno(int eno) {
    switch (eno) {
    case ENOENT:
        return -ERR_NOT_FOUND;
    case EEXIST:
        return -ERR_EXISTS;
    case EACCES:
    case EPERM:
        return -ERR_DENIED;
    case EBUSY:
        return -ERR_BUSY;
    case EINVAL:
        return -ERR_INVALID;
    case ETIMEDOUT:
        return -ERR_TIMEOUT;
    default:
        return -ERR_IO;
    }
}

int err_from_errno(struct err *e, int eno, const char *fmt, ...) {
    int code = code_of_errno(eno);
    if (!e)
        return code;
    e->code = code;
    va_list ap;
    va_start(ap, fmt);
    set_text(e, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->text);
    snprintf(e->text + n, sizeof e->text - n, ": %s", strerror(eno));
    return code;
}

bool err_is_retryable(int code) {
    switch (-code) {
#define ERR_CODE(name, eno, retryable, nbd, grpc)                                                  \
    case eno:                                                                                      \
        return retryable;
#include "common/err_codes.def"
#undef ERR_CODE
    default:
        return false;
    }
}

int err_to_nbd(int code) {
    switch (-code) {
#define ERR_CODE(name, eno, retryable, nbd, grpc)                                                  \
    case eno:                                                                                      \
        return nbd;
#include "common/err_codes.def"
#undef ERR_CODE
    default:
        return 5;
    }
}

int err_to_grpc(int code) {
    switch (-code) {
#define ERR_CODE(name, eno, retryable, nbd, grpc)                                                  \
    case eno:                                                                                      \
        return grpc;
#include "common/err_codes.def"
#undef ERR_CODE
    default:
        return 13;
    }
}

const char *err_code_name(int code) {
    switch (-code) {
    case 0:
        return "ok";
#define ERR_CODE(name, eno, retryable, nbd, grpc)                                                  \
    case eno:                                                                                      \
        return #name;
#include "common/err_codes.def"
#undef ERR_CODE
    default:
        return "UNKNOWN";
    }
}
