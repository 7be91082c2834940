/* libFuzzer: NBD requests against a small device in memory: decoded, checked, done, answered. What
 * passes the checks must be harmless to the device, and replies must fit their buffers. */
#include <stdlib.h>

#include "common/bytes.h"
#include "common/mem.h"
#include "portalbd/blockdev/validate.h"
#include "portalbd/nbd/transmission.h"
#include "tests/support/memory_blockdev.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DEVICE_SIZE = 64 * 1024 };

static void do_read_write(struct blockdev *dev, struct bd_request *bd, const struct nbd_mode *mode,
                          const struct nbd_request *r) {
    CLEANUP_FREE uint8_t *payload = xcalloc(1, bd->len);
    uint8_t head[NBD_REPLY_HEAD_MAX];
    if (bd->op == BD_READ)
        bd->read_buf = payload;
    else
        bd->write_data = payload;
    CHECK(bd_submit(dev, bd) && bd->rc == 0);
    size_t n = bd->op == BD_READ ? nbd_reply_read(mode, r, head) : nbd_reply_done(head, r->cookie);
    CHECK(n <= sizeof head);
}

static void do_status(struct blockdev *dev, struct bd_request *bd, const struct nbd_request *r) {
    size_t max = bd->flags & BD_REQ_ONE ? 1 : BD_STATUS_EXTENTS_MAX;
    CLEANUP_FREE struct bd_extent *extents = xcalloc(max, sizeof *extents);
    CLEANUP_FREE uint8_t *bytes = xmalloc(nbd_reply_status_max(max));
    bd->extents.items = extents;
    CHECK(bd_submit(dev, bd) && bd->rc == 0);
    size_t n = nbd_reply_status(r, extents, bd->extents.count, bytes);
    CHECK(n <= nbd_reply_status_max(max));
    CHECK(load_be32(bytes + 16) == n - NBD_CHUNK_HEADER_SIZE);
}

static void do_request(struct blockdev *dev, const struct nbd_mode *mode,
                       const struct nbd_request *r) {
    struct bd_request bd = {0};
    struct err e = {0};
    int rc = nbd_request_translate(mode, r, &bd, &e);
    if (rc == 0)
        rc = bd_validate(dev, &bd, &e);
    if (rc < 0) {
        uint8_t bytes[NBD_ERROR_REPLY_MAX];
        CHECK(e.code == rc && err_to_nbd(rc) > 0);
        CHECK(nbd_reply_error(mode, r->cookie, err_to_nbd(rc), e.text, bytes) <= sizeof bytes);
    } else if (bd.op == BD_READ || bd.op == BD_WRITE) {
        do_read_write(dev, &bd, mode, r);
    } else if (bd.op == BD_BLOCK_STATUS) {
        do_status(dev, &bd, r);
    } else {
        CHECK(bd_submit(dev, &bd) && bd.rc == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1)
        return 0;
    struct nbd_mode mode = {.structured_replies = data[0] & 1, .context_allocation = data[0] & 2};
    struct blockdev *dev = memory_blockdev_open(DEVICE_SIZE);
    dev->read_only = data[0] & 4;
    for (size_t off = 1; size - off >= NBD_REQUEST_SIZE; off += NBD_REQUEST_SIZE) {
        struct nbd_request r;
        if (!nbd_request_decode(data + off, &r))
            break;
        if (r.type != NBD_CMD_DISC)
            do_request(dev, &mode, &r);
    }
    dev->ops->close(dev);
    return 0;
}
