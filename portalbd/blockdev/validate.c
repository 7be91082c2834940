/* The checks of requests from outside, in the order that decides which of several errors is told:
 * operation and flags, read-only, length, bounds, alignment. Sums of offset and length are never
 * formed, so that nothing can overflow. */
#include "portalbd/blockdev/validate.h"

#include <inttypes.h>

#include "portalbd/blockdev/layer_internal.h"

struct op_rule {
    const char *name;
    unsigned flags;   /* bd_flags it may carry */
    bool writes;      /* refused on a read-only device */
    bool moves_bytes; /* len is bounded by BD_REQUEST_MAX */
    bool fills_space; /* behind the end is "no space", not "invalid" */
};

static const struct op_rule op_rules[BD_OPS] = {
    [BD_READ] = {.name = "read", .moves_bytes = true},
    [BD_WRITE] = {.name = "write",
                  .flags = BD_FUA,
                  .writes = true,
                  .moves_bytes = true,
                  .fills_space = true},
    [BD_FLUSH] = {.name = "flush"},
    [BD_TRIM] = {.name = "trim", .flags = BD_FUA, .writes = true},
    [BD_WRITE_ZEROES] = {.name = "write_zeroes",
                         .flags = BD_FUA | BD_NO_HOLE | BD_FAST_ZERO,
                         .writes = true,
                         .fills_space = true},
    [BD_CACHE] = {.name = "cache"},
    [BD_BLOCK_STATUS] = {.name = "block_status", .flags = BD_REQ_ONE},
};

const char *bd_op_name(enum bd_op op) {
    CHECK((unsigned)op < BD_OPS);
    return op_rules[op].name;
}

static int check_flush(const struct bd_request *req, struct err *e) {
    if (req->off || req->len)
        return err_set(e, -ERR_INVALID, "flush takes no offset and no length");
    return 0;
}

int bd_validate(struct blockdev *dev, const struct bd_request *req, struct err *e) {
    if ((unsigned)req->op >= BD_OPS)
        return err_set(e, -ERR_INVALID, "unknown operation %u", (unsigned)req->op);
    const struct op_rule *rule = &op_rules[req->op];
    if (req->flags & ~rule->flags)
        return err_set(e, -ERR_INVALID, "%s does not know the flags 0x%x", rule->name,
                       req->flags & ~rule->flags);
    if (rule->writes && dev->read_only)
        return err_set(e, -ERR_READ_ONLY, "%s refused: the device is read-only", rule->name);
    if (req->op == BD_FLUSH)
        return check_flush(req, e);

    uint64_t size = bd_size_bytes(dev);
    if (req->len == 0)
        return err_set(e, -ERR_INVALID, "%s of no bytes", rule->name);
    if (rule->moves_bytes && req->len > BD_REQUEST_MAX)
        return err_set(e, -ERR_INVALID, "%s of %" PRIu64 " bytes: the limit is %d", rule->name,
                       req->len, BD_REQUEST_MAX);
    if (req->off > size || req->len > size - req->off)
        return err_set(e, rule->fills_space ? -ERR_NO_SPACE : -ERR_INVALID,
                       "%s of %" PRIu64 " bytes at %" PRIu64 " ends behind the device's %" PRIu64,
                       rule->name, req->len, req->off, size);
    uint32_t align = dev->block_size_min;
    CHECK(align >= SECTOR_SIZE && (align & (align - 1)) == 0);
    if ((req->off | req->len) & (align - 1))
        return err_set(e, -ERR_INVALID,
                       "%s of %" PRIu64 " bytes at %" PRIu64 " is not aligned to %" PRIu32,
                       rule->name, req->len, req->off, align);
    return 0;
}

static bool validate_submit(struct blockdev *dev, struct bd_request *req) {
    struct bd_layer *l = bd_layer_of(dev);
    req->rc = bd_validate(dev, req, NULL);
    return req->rc < 0 || bd_submit(l->below, req);
}

static const struct blockdev_ops validate_ops = {
    .submit = validate_submit,
    .size_bytes = bd_layer_size_bytes,
    .close = bd_layer_close,
};

struct blockdev *bd_validate_open(struct blockdev *below) {
    struct bd_layer *l = NEW(struct bd_layer);
    bd_layer_init(l, &validate_ops, below);
    return &l->dev;
}
