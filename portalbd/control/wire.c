/* The control protocol's bytes.
 *
 *   request  {"v":1,"id":7,"verb":"grow","args":{"size_bytes":1073741824}}
 *   reply    {"v":1,"id":7,"result":{...}}
 *            {"v":1,"id":7,"error":{"code":"NO_SPACE","text":"..."}}
 *
 * Unknown members are passed over, so that either side may be the newer one. */
#include "portalbd/control/wire.h"

#include <stdlib.h>

#include "common/mem.h"

enum { JSON_FLAGS = JSON_REJECT_DUPLICATES };

void control_request_release(struct control_request *r) {
    json_decref(r->args);
    r->args = NULL;
}

/* --- reading --- */

static json_t *load(struct view line, struct err *e) {
    json_error_t why;
    json_t *j = json_loadb((const char *)line.data, line.len, JSON_FLAGS, &why);
    if (!j) {
        err_set_text(e, -ERR_INVALID, "not JSON: %s", why.text);
        return NULL;
    }
    if (!json_is_object(j)) {
        err_set_text(e, -ERR_INVALID, "not a JSON object");
        json_decref(j);
        return NULL;
    }
    return j;
}

static int decode_request(struct control_request *ret, const json_t *j, struct err *e) {
    const json_t *id = json_object_get(j, "id"), *version = json_object_get(j, "v");
    const char *verb = json_string_value(json_object_get(j, "verb"));
    json_t *args = json_object_get(j, "args");
    if (json_is_integer(id) && json_integer_value(id) >= 0)
        ret->id = json_integer_value(id);
    if (!json_is_integer(version) || json_integer_value(version) != CONTROL_VERSION)
        return err_set(e, -ERR_UNSUPPORTED, "\"v\" must be %d: the version of the protocol",
                       CONTROL_VERSION);
    if (ret->id < 0)
        return err_set(e, -ERR_INVALID, "\"id\" must be an integer from 0 on");
    if (!verb || strlen(verb) > CONTROL_VERB_MAX)
        return err_set(e, -ERR_INVALID, "\"verb\" must be a short string");
    if (args && !json_is_object(args))
        return err_set(e, -ERR_INVALID, "\"args\" must be an object");
    strcpy(ret->verb, verb);
    ret->args = args ? json_incref(args) : json_object();
    return 0;
}

int control_request_decode(struct control_request *ret, struct view line, struct err *e) {
    *ret = (struct control_request){.id = -1};
    struct err why = {0};
    json_t *j = load(line, &why);
    if (!j)
        return err_copy(e, &why);
    int rc = decode_request(ret, j, e);
    json_decref(j);
    return rc;
}

static int code_of_name(const char *name) {
#define ERR_CODE(n, eno, retryable, nbd, grpc)                                                     \
    if (strcmp(name, #n) == 0)                                                                     \
        return -ERR_##n;
#include "common/err_codes.def"
#undef ERR_CODE
    return -ERR_IO; /* a newer daemon's */
}

static int decode_error(const json_t *error, struct err *e) {
    const char *name = json_string_value(json_object_get(error, "code"));
    const char *text = json_string_value(json_object_get(error, "text"));
    if (!name || !text)
        return err_set(e, -ERR_CORRUPT, "the daemon's answer is not one of the control protocol");
    int code = code_of_name(name);
    return err_set(e, code, "%s", text);
}

int control_reply_decode(struct view line, json_int_t id, json_t **ret_result, struct err *e) {
    struct err why = {0};
    json_t *j = load(line, &why);
    if (!j)
        return err_set(e, -ERR_CORRUPT, "the daemon's answer is %s", why.text);
    const json_t *their_id = json_object_get(j, "id"), *error = json_object_get(j, "error");
    json_t *result = json_object_get(j, "result");
    int rc = 0;
    /* A request that was not understood is answered under the id -1. */
    if (!json_is_integer(their_id) || (json_integer_value(their_id) != id && !error))
        rc = err_set(e, -ERR_CORRUPT, "the daemon's answer is to another request");
    else if (error)
        rc = decode_error(error, e);
    else if (!json_is_object(result))
        rc = err_set(e, -ERR_CORRUPT, "the daemon's answer has no result");
    else
        *ret_result = json_incref(result);
    json_decref(j);
    return rc;
}

int control_arg_string(const json_t *args, const char *name, const char **ret_value,
                       struct err *e) {
    const char *value = json_string_value(json_object_get(args, name));
    if (!value)
        return err_set(e, -ERR_INVALID, "the argument \"%s\" must be a string", name);
    *ret_value = value;
    return 0;
}

int control_arg_u64(const json_t *args, const char *name, uint64_t *ret_value, struct err *e) {
    const json_t *value = json_object_get(args, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return err_set(e, -ERR_INVALID, "the argument \"%s\" must be an integer from 0 on", name);
    *ret_value = (uint64_t)json_integer_value(value);
    return 0;
}

/* --- writing --- */

static int append(const char *bytes, size_t len, void *out) {
    buf_append(out, bytes, len);
    return 0;
}

/* False, and nothing is appended, when the line would be too long. Takes j. */
static bool append_line(struct buf *out, json_t *j) {
    size_t before = out->len;
    CHECK(json_dump_callback(j, append, out, JSON_COMPACT) == 0);
    json_decref(j);
    buf_append(out, "\n", 1);
    if (out->len - before <= CONTROL_LINE_MAX)
        return true;
    out->len = before;
    return false;
}

int control_request_encode(struct buf *out, json_int_t id, const char *verb, const json_t *args,
                           struct err *e) {
    json_t *j =
        json_pack("{s:i,s:I,s:s,s:O*}", "v", CONTROL_VERSION, "id", id, "verb", verb, "args", args);
    if (!j) /* a string that is not UTF-8 */
        return err_set(e, -ERR_INVALID, "the arguments are not valid text");
    if (!append_line(out, j))
        return err_set(e, -ERR_INVALID, "the arguments are longer than %d bytes", CONTROL_LINE_MAX);
    return 0;
}

void control_error_encode(struct buf *out, json_int_t id, const struct err *e) {
    json_t *error = json_pack("{s:s,s:s}", "code", err_code_name(e->code), "text", e->text);
    if (!error)
        error = json_pack("{s:s,s:s}", "code", err_code_name(e->code), "text",
                          "(the reason is not valid text)");
    CHECK(append_line(out,
                      json_pack("{s:i,s:I,s:o}", "v", CONTROL_VERSION, "id", id, "error", error)));
}

void control_reply_encode(struct buf *out, json_int_t id, const json_t *result) {
    CHECK(json_is_object(result));
    json_t *j = json_pack("{s:i,s:I,s:O}", "v", CONTROL_VERSION, "id", id, "result", result);
    if (append_line(out, j))
        return;
    struct err e;
    err_set_text(&e, -ERR_OVERLOAD, "the answer is longer than %d bytes: ask for less",
                 CONTROL_LINE_MAX);
    control_error_encode(out, id, &e);
}
