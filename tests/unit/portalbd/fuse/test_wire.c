/* The FUSE protocol: requests as a kernel builds them, broken ones, and the replies' bytes. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>

#include "portalbd/fuse/wire.h"

struct request {
    uint8_t bytes[512];
    size_t len;
};

static struct request request_of(uint32_t opcode, const void *body, size_t body_len) {
    struct request r = {.len = sizeof(struct fuse_in_header) + body_len};
    struct fuse_in_header head = {
        .len = (uint32_t)r.len, .opcode = opcode, .unique = 77, .nodeid = 1};
    memcpy(r.bytes, &head, sizeof head);
    if (body_len)
        memcpy(r.bytes + sizeof head, body, body_len);
    return r;
}

static int parse(const struct request *r, struct fuse_wire_request *ret) {
    struct err e;
    return fuse_wire_parse(view_of(r->bytes, r->len), ret, &e);
}

static void test_read(void **state) {
    (void)state;
    struct fuse_read_in in = {.offset = 8192, .size = 4096};
    struct request r = request_of(FUSE_READ, &in, sizeof in);
    struct fuse_wire_request w;
    assert_int_equal(parse(&r, &w), 0);
    assert_int_equal(w.kind, FUSE_WIRE_READ);
    assert_int_equal(w.unique, 77);
    assert_int_equal(w.io.off, 8192);
    assert_int_equal(w.io.len, 4096);

    in.size = FUSE_WIRE_DATA_MAX + 1;
    r = request_of(FUSE_READ, &in, sizeof in);
    assert_int_equal(parse(&r, &w), -ERR_INVALID);
    assert_int_equal(w.unique, 77);
}

static void test_write(void **state) {
    (void)state;
    uint8_t body[sizeof(struct fuse_write_in) + 64];
    struct fuse_write_in in = {.offset = 512, .size = 64};
    memcpy(body, &in, sizeof in);
    memset(body + sizeof in, 'x', 64);
    struct request r = request_of(FUSE_WRITE, body, sizeof body);
    struct fuse_wire_request w;
    assert_int_equal(parse(&r, &w), 0);
    assert_int_equal(w.kind, FUSE_WIRE_WRITE);
    assert_int_equal(w.io.len, 64);
    assert_ptr_equal(w.io.data, r.bytes + FUSE_WIRE_HEAD_SIZE);

    r = request_of(FUSE_WRITE, body, sizeof body - 1); /* less data than it says */
    assert_int_equal(parse(&r, &w), -ERR_INVALID);
    r = request_of(FUSE_WRITE, body, sizeof in - 1);
    assert_int_equal(parse(&r, &w), -ERR_INVALID);
}

static void test_fallocate(void **state) {
    (void)state;
    const struct {
        uint32_t mode;
        enum fuse_wire_kind kind;
        bool keep_size;
    } cases[] = {
        {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FUSE_WIRE_PUNCH_HOLE, true},
        {FALLOC_FL_ZERO_RANGE, FUSE_WIRE_ZERO_RANGE, false},
        {FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FUSE_WIRE_ZERO_RANGE, true},
        {0, FUSE_WIRE_FALLOCATE_OTHER, false},
        {FALLOC_FL_COLLAPSE_RANGE, FUSE_WIRE_FALLOCATE_OTHER, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct fuse_fallocate_in in = {.offset = 4096, .length = 1 << 20, .mode = cases[i].mode};
        struct request r = request_of(FUSE_FALLOCATE, &in, sizeof in);
        struct fuse_wire_request w;
        assert_int_equal(parse(&r, &w), 0);
        assert_int_equal(w.kind, cases[i].kind);
        assert_int_equal(w.io.keep_size, cases[i].keep_size);
    }
}

static void test_every_length_is_bounded(void **state) {
    (void)state;
    struct fuse_wire_request w;
    uint8_t body[64] = {0};
    for (uint32_t opcode = 0; opcode < 64; opcode++) {
        for (size_t len = 0; len <= sizeof body; len++) {
            struct request r = request_of(opcode, body, len);
            uint8_t *exact = malloc(r.len); /* a byte too far is seen by the sanitizers */
            memcpy(exact, r.bytes, r.len);
            (void)fuse_wire_parse(view_of(exact, r.len), &w, NULL);
            (void)fuse_wire_parse(view_of(exact, len), &w, NULL);
            free(exact);
        }
    }
    struct request r = request_of(FUSE_STATFS, NULL, 0);
    assert_int_equal(fuse_wire_parse(view_of(r.bytes, 10), &w, NULL), -ERR_INVALID);
    assert_int_equal(w.unique, 0);
    r.bytes[0]++; /* its length is a lie */
    assert_int_equal(parse(&r, &w), -ERR_INVALID);
}

static struct fuse_wire_request init_of(uint32_t major, uint32_t minor, uint64_t flags) {
    struct fuse_init_in in = {.major = major,
                              .minor = minor,
                              .max_readahead = 131072,
                              .flags = (uint32_t)flags | FUSE_INIT_EXT,
                              .flags2 = (uint32_t)(flags >> 32)};
    struct request r = request_of(FUSE_INIT, &in, sizeof in);
    struct fuse_wire_request w;
    assert_int_equal(parse(&r, &w), 0);
    return w;
}

static void test_negotiate(void **state) {
    (void)state;
    const uint64_t needed = FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES;
    struct fuse_wire_agreement a;
    struct err e;
    struct fuse_wire_request w = init_of(7, 45, UINT64_MAX);
    assert_int_equal(fuse_wire_negotiate(&w, &a, &e), 0);
    assert_true(a.resend);
    assert_int_equal(a.minor, FUSE_KERNEL_MINOR_VERSION);
    assert_int_equal(a.flags & FUSE_WRITEBACK_CACHE, 0);
    w = init_of(7, 31, needed);
    assert_int_equal(fuse_wire_negotiate(&w, &a, &e), 0);
    assert_false(a.resend);
    assert_int_equal(a.minor, 31);
    w = init_of(7, 30, UINT64_MAX);
    assert_int_equal(fuse_wire_negotiate(&w, &a, &e), -ERR_UNSUPPORTED);
    w = init_of(7, 45, needed & ~(uint64_t)FUSE_MAX_PAGES);
    assert_int_equal(fuse_wire_negotiate(&w, &a, &e), -ERR_UNSUPPORTED);
    w = init_of(8, 0, UINT64_MAX);
    assert_int_equal(fuse_wire_negotiate(&w, &a, &e), -ERR_UNSUPPORTED);

    /* An old kernel's INIT is shorter. */
    struct fuse_init_in in = {.major = 7, .minor = 31, .flags = (uint32_t)needed};
    struct request r = request_of(FUSE_INIT, &in, 16);
    assert_int_equal(parse(&r, &w), 0);
    assert_int_equal(fuse_wire_negotiate(&w, &a, &e), 0);
}

static struct fuse_out_header head_of(const uint8_t *out) {
    struct fuse_out_header h;
    memcpy(&h, out, sizeof h);
    return h;
}

static void test_replies(void **state) {
    (void)state;
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    struct fuse_wire_file file = {.size_bytes = 1 << 20};
    assert_int_equal(fuse_wire_put_error(out, 5, ENOSPC), sizeof(struct fuse_out_header));
    assert_int_equal(head_of(out).error, -ENOSPC);
    assert_int_equal(head_of(out).unique, 5);

    size_t n = fuse_wire_put_attr(out, 6, &file);
    struct fuse_attr_out attr;
    memcpy(&attr, out + sizeof(struct fuse_out_header), sizeof attr);
    assert_int_equal(n, sizeof(struct fuse_out_header) + sizeof attr);
    assert_int_equal(attr.attr.size, 1 << 20);
    assert_int_equal(attr.attr_valid, 0);

    assert_int_equal(fuse_wire_put_read_head(out, 7, 4096), sizeof(struct fuse_out_header));
    assert_int_equal(head_of(out).len, sizeof(struct fuse_out_header) + 4096);

    n = fuse_wire_put_attr_changed(out);
    struct fuse_notify_inval_inode_out inval;
    memcpy(&inval, out + sizeof(struct fuse_out_header), sizeof inval);
    assert_int_equal(head_of(out).len, n);
    assert_int_equal(head_of(out).unique, 0);
    assert_int_equal(head_of(out).error, FUSE_NOTIFY_INVAL_INODE);
    assert_int_equal(inval.ino, 1);
    assert_true(inval.off < 0);

    assert_int_equal(fuse_wire_put_resend(out), sizeof(struct fuse_out_header));
    assert_int_equal(head_of(out).len, sizeof(struct fuse_out_header));
    assert_int_equal(head_of(out).unique, 0);
    assert_int_equal(head_of(out).error, 7); /* FUSE_NOTIFY_RESEND of <linux/fuse.h>, 7.40 */

    n = fuse_wire_put_statfs(out, 8, &file);
    struct fuse_statfs_out st;
    memcpy(&st, out + sizeof(struct fuse_out_header), sizeof st);
    assert_int_equal(n, sizeof(struct fuse_out_header) + sizeof st);
    assert_int_equal(st.st.bsize, 4096);
}

static void test_resent(void **state) {
    (void)state;
    struct fuse_read_in in = {.size = 4096};
    struct request r = request_of(FUSE_READ, &in, sizeof in);
    struct fuse_wire_request w;
    assert_int_equal(parse(&r, &w), 0);
    assert_false(w.resent);
    struct fuse_in_header head;
    memcpy(&head, r.bytes, sizeof head);
    head.unique |= UINT64_C(1) << 63;
    memcpy(r.bytes, &head, sizeof head);
    assert_int_equal(parse(&r, &w), 0);
    assert_true(w.resent);
    assert_int_equal(w.unique, head.unique); /* the kernel looks for it with its bit */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),      cmocka_unit_test(test_write),
        cmocka_unit_test(test_fallocate), cmocka_unit_test(test_every_length_is_bounded),
        cmocka_unit_test(test_negotiate), cmocka_unit_test(test_replies),
        cmocka_unit_test(test_resent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
