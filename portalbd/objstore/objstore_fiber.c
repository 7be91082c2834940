/* Store calls that wait. The request lives on the fiber's stack, therefore a cancelled call cancels
 * its request and still waits for done(). */
#include "portalbd/objstore/objstore_fiber.h"

#include <stdlib.h>

struct call {
    struct obj_request req;
    struct fiber_done done;
};

static void on_done(struct obj_request *req) {
    fiber_done_set(&container_of(req, struct call, req)->done);
}

static void call_release(struct call *c) {
    obj_request_release(&c->req);
}

#define CLEANUP_CALL CLEANUP(call_release)

static int cancelled(struct err *e, const struct obj_request *req) {
    const char *key = req->verb == OBJ_DELETE ? req->keys[0] : req->key;
    return err_set(e, -ERR_CANCELLED, "%s '%s': cancelled", obj_verb_name(req->verb), key);
}

/* Submits and waits; the request's outcome. */
static int run(struct objstore *s, struct call *c, struct err *e) {
    if (fiber_cancelled(s->env))
        return cancelled(e, &c->req);
    fiber_done_init(&c->done);
    c->req.done = on_done;
    objstore_submit(s, &c->req);
    if (fiber_done_wait(s->env, &c->done) < 0) {
        if (!c->done.done) /* it may have ended between the cancel and our turn */
            objstore_cancel(s, &c->req);
        fiber_done_wait_always(s->env, &c->done);
        return cancelled(e, &c->req);
    }
    if (c->req.rc < 0)
        err_copy(e, &c->req.err);
    return c->req.rc;
}

static void take_body(struct call *c, struct buf *ret) {
    if (!ret->data) {
        *ret = c->req.body;
        c->req.body = (struct buf){0};
    } else {
        buf_append(ret, c->req.body.data, c->req.body.len);
    }
}

int objstore_get(struct objstore *s, const char *key, size_t size_max, struct buf *ret,
                 struct err *e) {
    CLEANUP_CALL struct call c = {.req = {.verb = OBJ_GET, .key = key, .size_max = size_max}};
    int rc = run(s, &c, e);
    if (rc == 0)
        take_body(&c, ret);
    return rc;
}

int objstore_get_range(struct objstore *s, const char *key, uint64_t off, size_t len,
                       struct buf *ret, struct err *e) {
    CHECK(len > 0);
    CLEANUP_CALL struct call c = {
        .req = {.verb = OBJ_GET, .key = key, .off = off, .len = len, .size_max = len}};
    int rc = run(s, &c, e);
    if (rc == 0)
        take_body(&c, ret);
    return rc;
}

int objstore_get_suffix(struct objstore *s, const char *key, size_t len, struct buf *ret,
                        uint64_t *ret_object_size, struct err *e) {
    CHECK(len > 0);
    CLEANUP_CALL struct call c = {
        .req = {.verb = OBJ_GET, .key = key, .len = len, .suffix = true, .size_max = len}};
    int rc = run(s, &c, e);
    if (rc == 0) {
        take_body(&c, ret);
        if (ret_object_size)
            *ret_object_size = c.req.object_size;
    }
    return rc;
}

int objstore_put(struct objstore *s, const char *key, struct view body, struct buf *ret_existing,
                 struct err *e) {
    CLEANUP_CALL struct call c = {
        .req = {.verb = OBJ_PUT, .key = key, .parts = &body, .part_count = 1}};
    int rc = run(s, &c, e);
    if (rc == -ERR_EXISTS && ret_existing)
        take_body(&c, ret_existing);
    return rc;
}

int objstore_put_parts(struct objstore *s, const char *key, const struct view *parts,
                       size_t part_count, struct err *e) {
    CLEANUP_CALL struct call c = {
        .req = {.verb = OBJ_PUT, .key = key, .parts = parts, .part_count = part_count}};
    return run(s, &c, e);
}

int objstore_delete(struct objstore *s, const char *const *keys, size_t key_count, struct err *e) {
    for (size_t done = 0; done < key_count;) {
        size_t n = MIN(key_count - done, (size_t)OBJ_LIST_MAX);
        CLEANUP_CALL struct call c = {
            .req = {.verb = OBJ_DELETE, .keys = keys + done, .key_count = n}};
        int rc = run(s, &c, e);
        if (rc < 0)
            return rc;
        done += n;
    }
    return 0;
}

int objstore_delete_one(struct objstore *s, const char *key, struct err *e) {
    return objstore_delete(s, &key, 1, e);
}

void obj_list_release(struct obj_list *list) {
    for (size_t i = 0; i < list->count; i++)
        free(list->entries[i].key);
    free(list->entries);
    *list = (struct obj_list){0};
}

static void take_entries(struct call *c, struct obj_list *list) {
    size_t total = list->count + c->req.entry_count;
    if (c->req.entry_count > 0) {
        list->entries = xrealloc(list->entries, total * sizeof list->entries[0]);
        memcpy(list->entries + list->count, c->req.entries,
               c->req.entry_count * sizeof list->entries[0]);
    }
    list->count = total;
    list->more = c->req.more;
    free(c->req.entries);
    c->req.entries = NULL;
    c->req.entry_count = 0; /* the keys moved */
}

int objstore_list(struct objstore *s, const char *prefix, const char *start_after, size_t keys_max,
                  struct obj_list *ret, struct err *e) {
    CHECK(keys_max > 0);
    struct obj_list list = {0};
    do {
        const char *after = list.count ? list.entries[list.count - 1].key : start_after;
        unsigned n = (unsigned)MIN(keys_max - list.count, (size_t)OBJ_LIST_MAX);
        CLEANUP_CALL struct call c = {
            .req = {.verb = OBJ_LIST, .key = prefix, .start_after = after, .keys_max = n}};
        int rc = run(s, &c, e);
        if (rc < 0) {
            obj_list_release(&list);
            return rc;
        }
        CHECK(c.req.entry_count > 0 || !c.req.more); /* every store refuses such a page */
        take_entries(&c, &list);
    } while (list.more && list.count < keys_max);
    *ret = list;
    return 0;
}
