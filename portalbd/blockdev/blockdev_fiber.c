/* Block device calls for fibers. */
#include "portalbd/blockdev/blockdev_fiber.h"

/* The request is embedded by value in the wait, so that done() finds the wait. */
struct bd_wait {
    struct bd_request req;
    struct fiber_done ended;
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct bd_wait, req)->ended);
}

int bd_submit_wait(struct env *env, struct blockdev *dev, struct bd_request *req) {
    struct bd_wait w = {.req = *req};
    w.req.done = on_done;
    fiber_done_init(&w.ended);
    if (!bd_submit(dev, &w.req))
        fiber_done_wait_always(env, &w.ended);
    req->rc = w.req.rc;
    if (req->op == BD_BLOCK_STATUS)
        req->extents.count = w.req.extents.count;
    return req->rc;
}

int bd_read(struct env *env, struct blockdev *dev, uint64_t off, void *buf, size_t len) {
    struct bd_request req = {.op = BD_READ, .off = off, .len = len, .read_buf = buf};
    return bd_submit_wait(env, dev, &req);
}

int bd_write(struct env *env, struct blockdev *dev, uint64_t off, const void *data, size_t len,
             unsigned flags) {
    struct bd_request req = {
        .op = BD_WRITE, .flags = flags, .off = off, .len = len, .write_data = data};
    return bd_submit_wait(env, dev, &req);
}

int bd_flush(struct env *env, struct blockdev *dev) {
    struct bd_request req = {.op = BD_FLUSH};
    return bd_submit_wait(env, dev, &req);
}
