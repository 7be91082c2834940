/* S3 answers -> outcomes.
 *
 * A 404 is "absent" only when the store's own words say NoSuchKey: a proxy's 404 page, or a bucket
 * that is gone, is not. What is not understood counts as trouble that may pass. */
#include "portalbd/objstore/s3_answer.h"

#include <inttypes.h>
#include <stdlib.h>

#include "portalbd/objstore/layer_internal.h"
#include "portalbd/objstore/s3_xml.h"

enum { ERROR_BYTES_MAX = 8 * 1024 };

static bool is_one_of(const char *code, const char *const *list) {
    for (; *list; list++)
        if (strcmp(code, *list) == 0)
            return true;
    return false;
}

static int code_of_404(const struct obj_request *req, const char *code) {
    if (strcmp(code, "NoSuchBucket") == 0)
        return -ERR_NO_BUCKET;
    if (strcmp(code, "NoSuchKey") == 0 && req->verb == OBJ_GET)
        return -ERR_NOT_FOUND;
    return -ERR_TRANSIENT;
}

static int code_of_400(const char *code, enum s3_hint *hint) {
    static const char *const credentials[] = {"ExpiredToken", "InvalidToken",
                                              "TokenRefreshRequired", NULL};
    static const char *const config[] = {"AuthorizationHeaderMalformed", "InvalidBucketName",
                                         "IllegalLocationConstraintException", NULL};
    if (is_one_of(code, credentials)) {
        *hint = S3_HINT_CREDENTIALS;
        return -ERR_DENIED;
    }
    if (is_one_of(code, config))
        return -ERR_CONFIG;
    return strcmp(code, "KeyTooLongError") == 0 ? -ERR_INVALID : -ERR_TRANSIENT;
}

static int code_of_403(const char *code, enum s3_hint *hint) {
    if (strcmp(code, "RequestTimeTooSkewed") == 0) {
        *hint = S3_HINT_CLOCK;
        return -ERR_TRANSIENT;
    }
    *hint = S3_HINT_CREDENTIALS;
    return -ERR_DENIED;
}

static int code_of_status(const struct obj_request *req, int status, const char *code,
                          enum s3_hint *hint) {
    switch (status) {
    case 301:
        return -ERR_CONFIG;
    case 400:
        return code_of_400(code, hint);
    case 401:
    case 403:
        return code_of_403(code, hint);
    case 404:
        return code_of_404(req, code);
    case 405:
    case 501:
        return -ERR_UNSUPPORTED;
    case 412:
        return req->verb == OBJ_PUT ? -ERR_EXISTS : -ERR_TRANSIENT;
    default: /* 307, 408, 409, 429, 5xx, and what nobody has heard of */
        return -ERR_TRANSIENT;
    }
}

/* An HTTP-date in Retry-After is not honoured: S3 sends seconds. */
static uint64_t retry_after_us(const char *header) {
    if (!header || *header < '0' || *header > '9')
        return 0;
    uint64_t seconds = strtoull(header, NULL, 10);
    return MIN(seconds, UINT64_C(3600)) * 1000000;
}

static enum s3_hint apply_error(struct obj_request *req, const struct s3_answer *a) {
    struct s3_error error;
    enum s3_hint hint = S3_HINT_NONE;
    s3_xml_parse_error(a->text, &error);
    /* An error document under status 200 is an error too; S3 sends 500s that way. */
    int status =
        a->status < 300 ? (strcmp(error.code, "AccessDenied") == 0 ? 403 : 500) : a->status;
    int rc = code_of_status(req, status, error.code, &hint);
    const char *region = error.region[0] ? error.region : a->bucket_region;
    req->retry_after_us = retry_after_us(a->retry_after);
    if (rc == -ERR_CONFIG && region)
        obj_request_fail(
            req, rc, "the bucket is in region '%.60s', the pool's settings say another", region);
    else
        obj_request_fail(req, rc, "the store answered %d %s%s%s", a->status, error.code,
                         error.message[0] ? ": " : "", error.message);
    return hint;
}

/* "bytes 0-9/100" */
static bool parse_content_range(const char *text, uint64_t *first, uint64_t *last,
                                uint64_t *total) {
    int n = 0;
    return text &&
           sscanf(text, "bytes %" SCNu64 "-%" SCNu64 "/%" SCNu64 "%n", first, last, total, &n) ==
               3 &&
           text[n] == '\0' && *first <= *last && *last < *total;
}

static void apply_range(struct obj_request *req, const struct s3_answer *a) {
    uint64_t first, last, total, off;
    size_t len;
    if (!parse_content_range(a->content_range, &first, &last, &total)) {
        obj_request_fail(req, -ERR_TRANSIENT, "a part without saying which");
    } else if (obj_range_resolve(req, total, &off, &len) < 0 || first != off ||
               last - first + 1 != len || req->body.len != len) {
        obj_request_fail(req, -ERR_TRANSIENT, "another part than asked for: %zu bytes, '%.60s'",
                         req->body.len, a->content_range);
    } else {
        req->object_size = total;
    }
}

/* 416: nothing of the range lies inside the object. */
static void apply_unsatisfiable(struct obj_request *req) {
    if (req->suffix || req->off == 0)
        req->object_size = 0; /* such a range is only empty when the object is */
    else
        obj_request_fail(req, -ERR_CORRUPT, "it ends before byte %" PRIu64, req->off);
}

static void apply_get(struct obj_request *req, const struct s3_answer *a) {
    bool ranged = req->suffix || req->len > 0 || req->off > 0;
    if (a->status == 206 && ranged)
        apply_range(req, a);
    else if (a->status == 200 && (req->suffix || req->off == 0))
        req->object_size = req->body.len; /* the whole; not larger than asked for */
    else
        obj_request_fail(req, -ERR_UNSUPPORTED, "the store does not do ranges (status %d)",
                         a->status);
    if (req->rc < 0)
        buf_release(&req->body);
}

/* Keys come in order, behind start_after, under prefix: else the store is not one that we can use.
 */
static int take_entries(struct obj_request *req, const char *prefix, struct s3_list *list) {
    size_t prefix_len = strlen(prefix), want_len = strlen(req->key);
    const char *before = req->start_after;
    for (size_t i = 0; i < list->count; i++) {
        char *key = list->entries[i].key;
        if (strncmp(key, prefix, prefix_len) != 0 ||
            strncmp(key + prefix_len, req->key, want_len) != 0 ||
            (before && strcmp(before, key + prefix_len) >= 0))
            return obj_request_fail(req, -ERR_UNSUPPORTED,
                                    "the store lists keys that were not asked for, or not in the "
                                    "order of their bytes");
        memmove(key, key + prefix_len, strlen(key + prefix_len) + 1);
        before = key;
    }
    req->entries = TAKE_PTR(list->entries);
    req->entry_count = list->count;
    req->more = list->truncated;
    list->count = 0;
    return 0;
}

static void apply_list(struct obj_request *req, const char *prefix, const struct s3_answer *a) {
    struct s3_list list = {0};
    struct err why;
    if (s3_xml_parse_list(a->text, req->keys_max, &list, &why) < 0)
        obj_request_fail(req, why.code, "%s", why.text);
    else
        take_entries(req, prefix, &list);
    s3_list_release(&list);
}

static enum s3_hint apply_deleted(struct obj_request *req, const struct s3_answer *a) {
    enum s3_hint hint = S3_HINT_NONE;
    struct s3_deleted deleted;
    struct err why;
    if (s3_xml_parse_deleted(a->text, &deleted, &why) < 0) {
        obj_request_fail(req, why.code, "%s", why.text);
    } else if (deleted.errors > 0) {
        int rc = -ERR_TRANSIENT;
        if (strcmp(deleted.first.code, "AccessDenied") == 0)
            rc = code_of_403(deleted.first.code, &hint);
        obj_request_fail(req, rc, "%zu keys are not deleted: %s: %s", deleted.errors,
                         deleted.first.code, deleted.first.message);
    }
    return hint;
}

enum s3_hint s3_answer_apply(struct obj_request *req, const char *prefix,
                             const struct s3_answer *a) {
    struct s3_error error;
    bool gone = a->status == 404 && req->verb == OBJ_DELETE && req->key_count == 1 &&
                s3_xml_parse_error(a->text, &error) && strcmp(error.code, "NoSuchKey") == 0;
    req->rc = 0;
    if (gone)
        return S3_HINT_NONE;
    if (a->status == 416 && req->verb == OBJ_GET) {
        buf_release(&req->body);
        apply_unsatisfiable(req);
        return S3_HINT_NONE;
    }
    bool good = a->status == 200 || a->status == 204 || a->status == 206;
    bool is_short = a->text.len <= ERROR_BYTES_MAX; /* a long one is no error document */
    if (!good || (is_short && s3_xml_parse_error(a->text, &error))) {
        buf_release(&req->body);
        return apply_error(req, a);
    }
    if (req->verb == OBJ_GET)
        apply_get(req, a);
    else if (req->verb == OBJ_LIST)
        apply_list(req, prefix, a);
    else if (req->verb == OBJ_DELETE && req->key_count > 1)
        return apply_deleted(req, a);
    return S3_HINT_NONE;
}
