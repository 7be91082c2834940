/* Block device calls for fibers: submit, wait, return. */
#pragma once

#include "common/fiber.h"
#include "portalbd/blockdev/blockdev.h"

/* fiber. Submits req (its done and priv-like members are taken over) and waits for its end, also
 * when the fiber is cancelled, because the device borrows the buffers. Returns req->rc. */
int bd_submit_wait(struct env *env, struct blockdev *dev, struct bd_request *req);

/* fiber. What these say; the range must be aligned and inside the device. */
int bd_read(struct env *env, struct blockdev *dev, uint64_t off, void *buf, size_t len);
int bd_write(struct env *env, struct blockdev *dev, uint64_t off, const void *data, size_t len,
             unsigned flags);
int bd_flush(struct env *env, struct blockdev *dev);
