/* What all stores and layers share: requests, and the child request that a layer sends below. */
#include "portalbd/objstore/objstore.h"

#include <stdlib.h>

#include "portalbd/objstore/layer_internal.h"

void obj_request_release(struct obj_request *req) {
    buf_release(&req->body);
    for (size_t i = 0; i < req->entry_count; i++)
        free(req->entries[i].key);
    free(req->entries);
    req->entries = NULL;
    req->entry_count = 0;
    req->more = false;
    req->object_size = 0;
    req->retry_after_us = 0;
    req->rc = 0;
    req->err.code = 0;
    req->err.text[0] = '\0';
}

const char *obj_verb_name(enum obj_verb verb) {
    static const char *const names[OBJ_VERBS] = {"get", "put", "list", "delete"};
    CHECK((unsigned)verb < OBJ_VERBS);
    return names[verb];
}

size_t obj_request_body_len(const struct obj_request *req) {
    size_t len = 0;
    for (size_t i = 0; i < req->part_count; i++)
        len += req->parts[i].len;
    return len;
}

void obj_request_check(const struct obj_request *req) {
    CHECK(req->done);
    CHECK((unsigned)req->verb < OBJ_VERBS);
    CHECK(!req->entries && !req->body.data);
    switch (req->verb) {
    case OBJ_GET:
        CHECK(req->key && *req->key);
        CHECK(req->size_max <= OBJ_SIZE_MAX && req->len <= OBJ_SIZE_MAX);
        CHECK(!req->suffix || req->len > 0);
        break;
    case OBJ_PUT:
        CHECK(req->key && *req->key);
        CHECK(req->part_count <= OBJ_PUT_PARTS_MAX);
        CHECK(obj_request_body_len(req) <= OBJ_SIZE_MAX);
        break;
    case OBJ_LIST:
        CHECK(req->key);
        CHECK(req->keys_max >= 1 && req->keys_max <= OBJ_LIST_MAX);
        break;
    case OBJ_DELETE:
        CHECK(req->key_count >= 1 && req->key_count <= OBJ_LIST_MAX);
        break;
    }
}

void obj_request_name(const struct obj_request *req, char *ret, size_t size) {
    const char *key = req->verb == OBJ_DELETE ? req->keys[0] : req->key;
    snprintf(ret, size, "%s '%s'%s", obj_verb_name(req->verb), key,
             req->verb == OBJ_DELETE && req->key_count > 1 ? " and others" : "");
}

int obj_request_fail(struct obj_request *req, int code, const char *fmt, ...) {
    char name[OBJ_NAME_MAX], why[ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    obj_request_name(req, name, sizeof name);
    req->rc = err_set(&req->err, code, "%s: %s", name, why);
    return req->rc;
}

int obj_range_resolve(const struct obj_request *req, uint64_t size, uint64_t *ret_off,
                      size_t *ret_len) {
    uint64_t off = 0, len = size;
    if (req->suffix) {
        len = MIN(size, (uint64_t)req->len);
        off = size - len;
    } else if (req->len > 0 || req->off > 0) {
        if (req->off > 0 && req->off >= size)
            return -ERR_CORRUPT;
        off = req->off;
        len = size - off;
        if (req->len > 0)
            len = MIN(len, (uint64_t)req->len);
    }
    if (len > (req->size_max ? req->size_max : OBJ_SIZE_MAX))
        return -ERR_CORRUPT;
    *ret_off = off;
    *ret_len = (size_t)len;
    return 0;
}

void layer_child_init(struct obj_request *child, const struct obj_request *above) {
    *child = (struct obj_request){
        .verb = above->verb,
        .key = above->key,
        .off = above->off,
        .len = above->len,
        .suffix = above->suffix,
        .size_max = above->size_max,
        .parts = above->parts,
        .part_count = above->part_count,
        .start_after = above->start_after,
        .keys_max = above->keys_max,
        .keys = above->keys,
        .key_count = above->key_count,
        .background = above->background,
    };
}

void layer_answer_move(struct obj_request *above, struct obj_request *child) {
    above->rc = child->rc;
    err_copy(&above->err, &child->err);
    above->body = child->body;
    child->body = (struct buf){0};
    above->object_size = child->object_size;
    above->entries = TAKE_PTR(child->entries);
    above->entry_count = child->entry_count;
    child->entry_count = 0;
    above->more = child->more;
    above->retry_after_us = child->retry_after_us;
}
