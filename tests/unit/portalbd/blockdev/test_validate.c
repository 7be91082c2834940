/* What a request from outside may say, at every edge. */
#include "tests/support/test.h"

#include "portalbd/blockdev/validate.h"
#include "tests/support/memory_blockdev.h"

enum { SIZE = 1 << 20 };

struct check {
    enum bd_op op;
    unsigned flags;
    uint64_t off, len;
    int rc;
};

static void check_all(struct blockdev *dev, const struct check *checks, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct bd_request req = {.op = checks[i].op,
                                 .flags = checks[i].flags,
                                 .off = checks[i].off,
                                 .len = checks[i].len};
        struct err e = {0};
        int rc = bd_validate(dev, &req, &e);
        if (rc != checks[i].rc)
            print_error("case %zu: %d (%s)\n", i, rc, e.text);
        assert_int_equal(rc, checks[i].rc);
        assert_true(rc == 0 || e.text[0] != '\0');
    }
}

static void test_bounds(void **state) {
    (void)state;
    static const struct check checks[] = {
        {BD_READ, 0, 0, SIZE, 0},
        {BD_READ, 0, SIZE - 512, 512, 0},
        {BD_READ, 0, SIZE - 512, 1024, -ERR_INVALID},
        {BD_READ, 0, SIZE, 512, -ERR_INVALID},
        {BD_READ, 0, UINT64_MAX - 511, 512, -ERR_INVALID}, /* off + len is 0 */
        {BD_READ, 0, UINT64_MAX - 511, 1024, -ERR_INVALID},
        {BD_WRITE, 0, SIZE - 512, 1024, -ERR_NO_SPACE},
        {BD_WRITE, 0, UINT64_MAX - 511, 1024, -ERR_NO_SPACE},
        {BD_WRITE_ZEROES, 0, SIZE, 512, -ERR_NO_SPACE},
        {BD_TRIM, 0, SIZE, 512, -ERR_INVALID},
        {BD_CACHE, 0, SIZE, 512, -ERR_INVALID},
        {BD_BLOCK_STATUS, 0, SIZE, 512, -ERR_INVALID},
        {BD_BLOCK_STATUS, 0, 0, UINT32_MAX - 511, -ERR_INVALID},
    };
    struct blockdev *dev = memory_blockdev_open(SIZE);
    check_all(dev, checks, ARRAY_LEN(checks));
    dev->ops->close(dev);
}

static void test_shape(void **state) {
    (void)state;
    static const struct check checks[] = {
        {BD_READ, 0, 0, 0, -ERR_INVALID},
        {BD_WRITE, 0, 0, 0, -ERR_INVALID},
        {BD_TRIM, 0, 0, 0, -ERR_INVALID},
        {BD_BLOCK_STATUS, 0, 0, 0, -ERR_INVALID},
        {BD_READ, 0, 1, 512, -ERR_INVALID},
        {BD_READ, 0, 0, 511, -ERR_INVALID},
        {BD_TRIM, 0, 256, 512, -ERR_INVALID},
        {BD_FLUSH, 0, 0, 0, 0},
        {BD_FLUSH, 0, 512, 0, -ERR_INVALID},
        {BD_FLUSH, 0, 0, 512, -ERR_INVALID},
        {BD_FLUSH, BD_FUA, 0, 0, -ERR_INVALID},
        {BD_READ, BD_FUA, 0, 512, -ERR_INVALID},
        {BD_WRITE, BD_FUA, 0, 512, 0},
        {BD_WRITE, BD_NO_HOLE, 0, 512, -ERR_INVALID},
        {BD_TRIM, BD_FUA, 0, 512, 0},
        {BD_WRITE_ZEROES, BD_FUA | BD_NO_HOLE | BD_FAST_ZERO, 0, 512, 0},
        {BD_WRITE_ZEROES, BD_REQ_ONE, 0, 512, -ERR_INVALID},
        {BD_BLOCK_STATUS, BD_REQ_ONE, 0, 512, 0},
        {BD_OPS, 0, 0, 512, -ERR_INVALID},
    };
    struct blockdev *dev = memory_blockdev_open(SIZE);
    check_all(dev, checks, ARRAY_LEN(checks));
    dev->block_size_min = 4096;
    static const struct check coarse[] = {{BD_READ, 0, 512, 4096, -ERR_INVALID},
                                          {BD_READ, 0, 4096, 512, -ERR_INVALID},
                                          {BD_READ, 0, 4096, 4096, 0}};
    check_all(dev, coarse, ARRAY_LEN(coarse));
    dev->ops->close(dev);
}

static void test_read_only(void **state) {
    (void)state;
    static const struct check checks[] = {
        {BD_WRITE, 0, 0, 512, -ERR_READ_ONLY},
        {BD_WRITE, 0, SIZE, 512, -ERR_READ_ONLY},
        {BD_TRIM, 0, 0, 512, -ERR_READ_ONLY},
        {BD_WRITE_ZEROES, 0, 0, 512, -ERR_READ_ONLY},
        {BD_READ, 0, 0, 512, 0},
        {BD_FLUSH, 0, 0, 0, 0},
        {BD_CACHE, 0, 0, 512, 0},
        {BD_BLOCK_STATUS, 0, 0, 512, 0},
    };
    struct blockdev *dev = memory_blockdev_open(SIZE);
    dev->read_only = true;
    check_all(dev, checks, ARRAY_LEN(checks));
    dev->ops->close(dev);
}

static void test_sizes(void **state) {
    (void)state;
    uint64_t max = BD_REQUEST_MAX;
    const struct check checks[] = {
        {BD_READ, 0, 0, max, 0},
        {BD_READ, 0, 0, max + 512, -ERR_INVALID},
        {BD_WRITE, 0, 0, max, 0},
        {BD_WRITE, 0, 0, max + 512, -ERR_INVALID},
        {BD_TRIM, 0, 0, UINT32_MAX - 511, 0},
        {BD_WRITE_ZEROES, 0, 0, UINT32_MAX - 511, 0},
        {BD_BLOCK_STATUS, 0, 0, UINT32_MAX - 511, 0},
    };
    struct blockdev *dev = memory_blockdev_open(UINT64_C(8) << 30);
    check_all(dev, checks, ARRAY_LEN(checks));
    dev->ops->close(dev);
}

/* The size that counts is the one of now. */
static void test_grown(void **state) {
    (void)state;
    struct blockdev *dev = memory_blockdev_open_growable(SIZE, 2 * SIZE);
    static const struct check before[] = {{BD_READ, 0, SIZE, 512, -ERR_INVALID}};
    static const struct check after[] = {{BD_READ, 0, SIZE, 512, 0}};
    check_all(dev, before, 1);
    memory_blockdev_grow(dev, 2 * SIZE);
    check_all(dev, after, 1);
    dev->ops->close(dev);
}

/* As a layer: what is refused does not reach the device. */
static void test_layer(void **state) {
    (void)state;
    struct blockdev *dev = bd_validate_open(memory_blockdev_open(SIZE));
    uint8_t data[512] = {1};
    struct bd_request req = {.op = BD_WRITE, .off = SIZE, .len = 512, .write_data = data};
    assert_true(bd_submit(dev, &req));
    assert_int_equal(req.rc, -ERR_NO_SPACE);
    req.off = 0;
    assert_true(bd_submit(dev, &req));
    assert_int_equal(req.rc, 0);
    assert_int_equal(bd_size_bytes(dev), SIZE);
    dev->ops->close(dev);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bounds),    cmocka_unit_test(test_shape),
        cmocka_unit_test(test_read_only), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_grown),     cmocka_unit_test(test_layer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
