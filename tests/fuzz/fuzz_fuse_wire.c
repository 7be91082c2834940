/* libFuzzer: requests of the kernel's FUSE protocol. Whatever comes is parsed within its bounds,
 * and what is understood can be answered. */
#include <stdlib.h>

#include "common/mem.h"
#include "portalbd/fuse/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_io(const struct fuse_wire_request *r, struct view in) {
    if (r->kind == FUSE_WIRE_READ || r->kind == FUSE_WIRE_WRITE)
        CHECK(r->io.len <= FUSE_WIRE_DATA_MAX);
    if (r->kind != FUSE_WIRE_WRITE)
        return;
    CHECK(r->io.data == in.data + FUSE_WIRE_HEAD_SIZE);
    CHECK(r->io.len == in.len - FUSE_WIRE_HEAD_SIZE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    struct fuse_wire_request r;
    struct fuse_wire_agreement agreed;
    struct err e = {0};
    CLEANUP_FREE uint8_t *copy = xmalloc(size); /* of exactly this size, aligned as from read(2) */
    if (size)
        memcpy(copy, data, size);
    if (fuse_wire_parse(view_of(copy, size), &r, &e) < 0) {
        CHECK(e.code == -ERR_INVALID && e.text[0]);
        return 0;
    }
    CHECK(r.kind <= FUSE_WIRE_OTHER);
    check_io(&r, view_of(copy, size));
    if (r.kind == FUSE_WIRE_INIT && fuse_wire_negotiate(&r, &agreed, &e) == 0) {
        CHECK((agreed.flags & ~r.init.flags) == 0);
        CHECK(fuse_wire_put_init(out, &r, &agreed) <= sizeof out);
    }
    return 0;
}
