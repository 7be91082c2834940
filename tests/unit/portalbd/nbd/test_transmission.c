/* Requests decoded and replies encoded, byte by byte. */
#include "tests/support/test.h"

#include "common/bytes.h"
#include "portalbd/nbd/transmission.h"

static const struct nbd_mode simple = {0};
static const struct nbd_mode structured = {.structured_replies = true, .context_allocation = true};

static void test_decode(void **state) {
    (void)state;
    static const uint8_t bytes[NBD_REQUEST_SIZE] = "\x25\x60\x95\x13\x00\x05\x00\x06"
                                                   "\x01\x02\x03\x04\x05\x06\x07\x08"
                                                   "\x00\x00\x00\x10\x00\x00\x02\x00"
                                                   "\xff\xff\xfe";
    struct nbd_request r;
    assert_true(nbd_request_decode(bytes, &r));
    assert_int_equal(r.flags, 5);
    assert_int_equal(r.type, 6);
    assert_true(r.cookie == 0x0102030405060708);
    assert_true(r.off == 0x1000000200);
    assert_int_equal(r.len, 0xfffffe00);
    for (unsigned i = 0; i < 4; i++) {
        uint8_t broken[NBD_REQUEST_SIZE];
        memcpy(broken, bytes, sizeof broken);
        broken[i] ^= 1;
        assert_false(nbd_request_decode(broken, &r));
    }
}

/* Every command with every flag, against the table of what the protocol allows. */
static void test_translate(void **state) {
    (void)state;
    static const struct {
        enum bd_op op;
        uint16_t flags; /* besides FUA */
    } allowed[] = {
        [NBD_CMD_READ] = {BD_READ, NBD_CMD_FLAG_DF},
        [NBD_CMD_WRITE] = {BD_WRITE, 0},
        [NBD_CMD_DISC] = {BD_OPS, 0},
        [NBD_CMD_FLUSH] = {BD_FLUSH, 0},
        [NBD_CMD_TRIM] = {BD_TRIM, 0},
        [NBD_CMD_CACHE] = {BD_CACHE, 0},
        [NBD_CMD_WRITE_ZEROES] = {BD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO},
        [NBD_CMD_BLOCK_STATUS] = {BD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE},
    };
    for (unsigned type = 0; type < 300; type++) {
        if (type == NBD_CMD_DISC)
            continue;
        bool known = type < ARRAY_LEN(allowed);
        for (unsigned bit = 0; bit < 16; bit++) {
            uint16_t flag = (uint16_t)(1u << bit);
            struct nbd_request r = {.flags = flag, .type = (uint16_t)type, .off = 4096, .len = 512};
            struct bd_request bd = {0};
            bool fine = known && (flag == NBD_CMD_FLAG_FUA || allowed[type].flags & flag);
            assert_int_equal(nbd_request_translate(&structured, &r, &bd, NULL),
                             fine ? 0 : -ERR_INVALID);
            if (fine) {
                assert_int_equal(bd.op, allowed[type].op);
                assert_int_equal(bd.off, 4096);
                assert_int_equal(bd.len, 512);
            }
        }
    }
}

static void test_flags_of_the_device(void **state) {
    (void)state;
    static const struct {
        uint16_t type, flags;
        unsigned bd_flags;
    } cases[] = {
        {NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, BD_FUA},
        {NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, BD_FUA},
        {NBD_CMD_READ, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF, 0},
        {NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, 0},
        {NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
         BD_FUA | BD_NO_HOLE | BD_FAST_ZERO},
        {NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, BD_REQ_ONE},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct nbd_request r = {.flags = cases[i].flags, .type = cases[i].type};
        struct bd_request bd = {0};
        assert_int_equal(nbd_request_translate(&structured, &r, &bd, NULL), 0);
        assert_int_equal(bd.flags, cases[i].bd_flags);
    }
}

static void test_needs_negotiation(void **state) {
    (void)state;
    struct bd_request bd;
    struct nbd_request df = {.type = NBD_CMD_READ, .flags = NBD_CMD_FLAG_DF};
    struct nbd_request status = {.type = NBD_CMD_BLOCK_STATUS};
    struct nbd_mode no_context = {.structured_replies = true};
    assert_int_equal(nbd_request_translate(&simple, &df, &bd, NULL), -ERR_INVALID);
    assert_int_equal(nbd_request_translate(&simple, &status, &bd, NULL), -ERR_INVALID);
    assert_int_equal(nbd_request_translate(&no_context, &status, &bd, NULL), -ERR_INVALID);
}

static void test_simple_replies(void **state) {
    (void)state;
    uint8_t b[NBD_ERROR_REPLY_MAX];
    struct nbd_request r = {.cookie = 0x1122334455667788, .len = 512};
    assert_int_equal(nbd_reply_done(b, r.cookie), 16);
    assert_memory_equal(b, "\x67\x44\x66\x98\0\0\0\0\x11\x22\x33\x44\x55\x66\x77\x88", 16);
    assert_int_equal(nbd_reply_read(&simple, &r, b), 16);
    assert_memory_equal(b, "\x67\x44\x66\x98\0\0\0\0\x11\x22\x33\x44\x55\x66\x77\x88", 16);
    assert_int_equal(nbd_reply_error(&simple, r.cookie, 28, "text", b), 16);
    assert_memory_equal(b, "\x67\x44\x66\x98\0\0\0\x1c\x11\x22\x33\x44\x55\x66\x77\x88", 16);
}

static void test_structured_replies(void **state) {
    (void)state;
    uint8_t b[NBD_ERROR_REPLY_MAX];
    struct nbd_request r = {.cookie = 1, .off = 0x1000, .len = 0x200};
    assert_int_equal(nbd_reply_read(&structured, &r, b), 28);
    assert_memory_equal(b,
                        "\x66\x8e\x33\xef\0\1\0\1\0\0\0\0\0\0\0\1\0\0\x02\x08"
                        "\0\0\0\0\0\0\x10\0",
                        28);
    assert_int_equal(nbd_reply_error(&structured, 1, 22, "no", b), 28);
    assert_memory_equal(b,
                        "\x66\x8e\x33\xef\0\1\x80\1\0\0\0\0\0\0\0\1\0\0\0\x08"
                        "\0\0\0\x16\0\2no",
                        28);
    /* A long text is cut, not inside a character. */
    char text[NBD_ERROR_TEXT_MAX + 8];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    memcpy(text + NBD_ERROR_TEXT_MAX - 1, "\xc3\xa9", 2);
    size_t n = nbd_reply_error(&structured, 1, 22, text, b);
    assert_int_equal(n, NBD_CHUNK_HEADER_SIZE + 6 + NBD_ERROR_TEXT_MAX - 1);
    assert_int_equal(load_be16(b + 24), NBD_ERROR_TEXT_MAX - 1);
}

static void test_status(void **state) {
    (void)state;
    struct nbd_request r = {.cookie = 1, .len = 0xfffffe00};
    /* The second and third are one; the whole request can be one extent. */
    static const struct bd_extent some[] = {{512, 0}, {512, 3}, {1024, 3}, {512, 2}};
    uint8_t b[256];
    assert_int_equal(nbd_reply_status(&r, some, ARRAY_LEN(some), b), 20 + 4 + 3 * 8);
    assert_memory_equal(b, "\x66\x8e\x33\xef\0\1\0\5\0\0\0\0\0\0\0\1\0\0\0\x1c", 20);
    assert_memory_equal(b + 20,
                        "\0\0\0\1"
                        "\0\0\2\0\0\0\0\0"
                        "\0\0\6\0\0\0\0\3"
                        "\0\0\2\0\0\0\0\2",
                        28);
    static const struct bd_extent whole = {0xfffffe00, 3};
    assert_int_equal(nbd_reply_status(&r, &whole, 1, b), 32);
    assert_int_equal(load_be32(b + 24), 0xfffffe00);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_translate),
        cmocka_unit_test(test_flags_of_the_device),
        cmocka_unit_test(test_needs_negotiation),
        cmocka_unit_test(test_simple_replies),
        cmocka_unit_test(test_structured_replies),
        cmocka_unit_test(test_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
