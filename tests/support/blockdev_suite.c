/* The conformance suite of block devices.
 *
 * A case runs in a fiber of the device's loop. It cannot use cmocka's assertions there (they jump
 * off the stack), so it says what is wrong with EXPECT and returns. */
#include "tests/support/blockdev_suite.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "portalbd/blockdev/blockdev_fiber.h"

struct suite {
    struct blockdev_factory *factory;
    struct env *env;
    struct blockdev *dev;
    const char *failed; /* the condition that did not hold */
    int line;
};

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            s->failed = #cond;                                                                     \
            s->line = __LINE__;                                                                    \
            return;                                                                                \
        }                                                                                          \
    } while (0)
/* After a call of a helper that uses EXPECT. */
#define HOLDS()                                                                                    \
    do {                                                                                           \
        if (s->failed)                                                                             \
            return;                                                                                \
    } while (0)

enum { KIB = 1024, MIB = 1024 * 1024 };

/* Byte i of a pattern: differs between patterns, sectors and places in a sector. */
static uint8_t pattern_at(unsigned pattern, uint64_t off) {
    uint64_t x = (off + 1) * 0x9e3779b97f4a7c15u + pattern * 0x2545f4914f6cdd1du;
    return (uint8_t)(x >> 56) | 1; /* never zero */
}

static uint8_t *make_pattern(unsigned pattern, uint64_t off, size_t len) {
    uint8_t *p = xmalloc(len);
    for (size_t i = 0; i < len; i++)
        p[i] = pattern_at(pattern, off + i);
    return p;
}

static int put(struct suite *s, unsigned pattern, uint64_t off, size_t len, unsigned flags) {
    CLEANUP_FREE uint8_t *p = make_pattern(pattern, off, len);
    return bd_write(s->env, s->dev, off, p, len, flags);
}

static int span(struct suite *s, enum bd_op op, uint64_t off, uint64_t len, unsigned flags) {
    struct bd_request req = {.op = op, .flags = flags, .off = off, .len = len};
    return bd_submit_wait(s->env, s->dev, &req);
}

/* pattern 0: zeroes. */
static void check(struct suite *s, unsigned pattern, uint64_t off, size_t len) {
    CLEANUP_FREE uint8_t *p = xmalloc(len);
    memset(p, 0xee, len);
    EXPECT(bd_read(s->env, s->dev, off, p, len) == 0);
    for (size_t i = 0; i < len; i++) {
        uint8_t want = pattern ? pattern_at(pattern, off + i) : 0;
        if (p[i] != want)
            printf("  byte %" PRIu64 " is 0x%02x, not 0x%02x\n", off + i, p[i], want);
        EXPECT(p[i] == want);
    }
}

/* --- cases --- */

static void fresh_reads_zero(struct suite *s) {
    uint64_t size = bd_size_bytes(s->dev);
    EXPECT(size == s->factory->size_bytes);
    check(s, 0, 0, 128 * KIB);
    HOLDS();
    check(s, 0, size - 4 * KIB, 4 * KIB);
    HOLDS();
    check(s, 0, size / 2 + 512, 512);
}

static void reads_what_was_written(struct suite *s) {
    uint64_t size = bd_size_bytes(s->dev);
    static const size_t lens[] = {512, 1536, 4 * KIB, 12 * KIB + 512, 64 * KIB, MIB};
    for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
        EXPECT(put(s, i + 1, i * 2 * (uint64_t)MIB + 512 * i, lens[i], 0) == 0);
    }
    EXPECT(put(s, 9, size - 4 * KIB, 4 * KIB, 0) == 0);
    for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
        check(s, i + 1, i * 2 * (uint64_t)MIB + 512 * i, lens[i]);
        HOLDS();
        check(s, 0, i * 2 * (uint64_t)MIB + 512 * i + lens[i], 4 * KIB);
        HOLDS();
    }
    check(s, 9, size - 4 * KIB, 4 * KIB);
}

static void later_writes_win(struct suite *s) {
    EXPECT(put(s, 1, 0, 64 * KIB, 0) == 0);
    EXPECT(put(s, 2, 16 * KIB + 512, 8 * KIB, 0) == 0);
    EXPECT(put(s, 3, 20 * KIB, 512, 0) == 0);
    check(s, 1, 0, 16 * KIB + 512);
    HOLDS();
    check(s, 2, 16 * KIB + 512, 3 * KIB + 512);
    HOLDS();
    check(s, 3, 20 * KIB, 512);
    HOLDS();
    check(s, 2, 20 * KIB + 512, 4 * KIB);
    HOLDS();
    check(s, 1, 24 * KIB + 512, 64 * KIB - 24 * KIB - 512);
}

static void big_requests(struct suite *s) {
    size_t len = (size_t)MIN(bd_size_bytes(s->dev), (uint64_t)BD_REQUEST_MAX) / 2;
    EXPECT(put(s, 1, 0, len, 0) == 0);
    check(s, 1, 0, len);
}

/* TRIM and WRITE_ZEROES are exact: the neighbours keep every byte. */
static void zeroing_is_exact(struct suite *s) {
    static const struct {
        enum bd_op op;
        unsigned flags;
    } ways[] = {{BD_TRIM, 0},
                {BD_TRIM, BD_FUA},
                {BD_WRITE_ZEROES, 0},
                {BD_WRITE_ZEROES, BD_NO_HOLE},
                {BD_WRITE_ZEROES, BD_FAST_ZERO | BD_FUA}};
    static const size_t lens[] = {512, 1024, 4 * KIB, 9 * KIB + 512, 100 * KIB, 700 * KIB + 512};
    for (unsigned w = 0; w < ARRAY_LEN(ways); w++) {
        for (unsigned i = 0; i < ARRAY_LEN(lens); i++) {
            uint64_t off = 512 * (uint64_t)(3 + 7 * i);
            EXPECT(put(s, 1 + i, 0, MIB, 0) == 0);
            EXPECT(span(s, ways[w].op, off, lens[i], ways[w].flags) == 0);
            check(s, 1 + i, 0, off);
            HOLDS();
            check(s, 0, off, lens[i]);
            HOLDS();
            check(s, 1 + i, off + lens[i], MIB - off - lens[i]);
            HOLDS();
            EXPECT(put(s, 8, off, 512, 0) == 0); /* and can be written again */
            check(s, 8, off, 512);
            HOLDS();
        }
    }
}

/* Whatever the length. */
static void zeroing_everything(struct suite *s) {
    uint64_t size = bd_size_bytes(s->dev);
    uint64_t len = MIN(size, (uint64_t)UINT32_MAX - 511);
    EXPECT(put(s, 1, 0, 64 * KIB, 0) == 0);
    EXPECT(put(s, 2, len - 4 * KIB, 4 * KIB, 0) == 0);
    EXPECT(span(s, BD_TRIM, 0, len, 0) == 0);
    check(s, 0, 0, 64 * KIB);
    HOLDS();
    check(s, 0, len - 4 * KIB, 4 * KIB);
}

static void flush_fua_cache(struct suite *s) {
    EXPECT(bd_flush(s->env, s->dev) == 0);
    EXPECT(put(s, 1, 4 * KIB, 4 * KIB, BD_FUA) == 0);
    EXPECT(put(s, 2, 8 * KIB, 4 * KIB, 0) == 0);
    EXPECT(bd_flush(s->env, s->dev) == 0);
    EXPECT(span(s, BD_CACHE, 0, MIB, 0) == 0);
    check(s, 1, 4 * KIB, 4 * KIB);
    HOLDS();
    check(s, 2, 8 * KIB, 4 * KIB);
}

/* --- block status --- */

/* The state of `off`, and checks that the answer to [off, off + len) is well formed. */
static void status_at(struct suite *s, uint64_t off, uint64_t len, unsigned flags,
                      struct bd_extent *ret_first, uint64_t *ret_total) {
    CLEANUP_FREE struct bd_extent *items = xcalloc(BD_STATUS_EXTENTS_MAX, sizeof *items);
    struct bd_request req = {.op = BD_BLOCK_STATUS, .flags = flags, .off = off, .len = len};
    req.extents.items = items;
    EXPECT(bd_submit_wait(s->env, s->dev, &req) == 0);
    EXPECT(req.extents.count >= 1 && req.extents.count <= BD_STATUS_EXTENTS_MAX);
    EXPECT(!(flags & BD_REQ_ONE) || req.extents.count == 1);
    uint64_t total = 0;
    for (size_t i = 0; i < req.extents.count; i++) {
        EXPECT(items[i].len > 0 && items[i].len % SECTOR_SIZE == 0);
        EXPECT((items[i].state & ~(uint32_t)(BD_EXTENT_HOLE | BD_EXTENT_ZERO)) == 0);
        EXPECT(items[i].len <= len - total);
        total += items[i].len;
    }
    *ret_first = items[0];
    *ret_total = total;
}

/* The answers tile the range without a gap, and what they call zero reads as zero. */
static void status_tiles(struct suite *s) {
    struct bd_extent first;
    uint64_t total;
    EXPECT(put(s, 1, 0, 8 * KIB, 0) == 0);
    EXPECT(put(s, 2, 64 * KIB + 512, 1024, 0) == 0);
    EXPECT(span(s, BD_TRIM, 4 * KIB, 512, 0) == 0);
    EXPECT(span(s, BD_WRITE_ZEROES, 128 * KIB, 4 * KIB, BD_NO_HOLE) == 0);
    CLEANUP_FREE uint8_t *bytes = xmalloc(256 * KIB);
    EXPECT(bd_read(s->env, s->dev, 0, bytes, 256 * KIB) == 0);
    for (uint64_t off = 0; off < 256 * KIB;) {
        status_at(s, off, 256 * KIB - off, off % 1024 ? BD_REQ_ONE : 0, &first, &total);
        HOLDS();
        for (uint64_t i = off; first.state & BD_EXTENT_ZERO && i < off + first.len; i++)
            EXPECT(bytes[i] == 0);
        if (s->factory->exact_status && bytes[off] != 0)
            EXPECT(first.state == 0);
        off += first.len;
    }
    if (!s->factory->exact_status)
        return;
    static const struct {
        uint64_t off, len;
        uint32_t state;
    } want[] = {{0, 4 * KIB, 0},         {4 * KIB, 512, 3},         {4 * KIB + 512, 3584, 0},
                {64 * KIB, 512, 3},      {64 * KIB + 512, 1024, 0}, {128 * KIB, 4 * KIB, 2},
                {200 * KIB, 56 * KIB, 3}};
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        status_at(s, want[i].off, want[i].len, 0, &first, &total);
        HOLDS();
        EXPECT(first.state == want[i].state);
        EXPECT(first.len == want[i].len);
    }
}

static void status_of_many_extents(struct suite *s) {
    struct bd_extent first;
    uint64_t total;
    for (unsigned i = 0; i < 300; i++)
        EXPECT(put(s, 1, i * 2 * 512, 512, 0) == 0);
    status_at(s, 0, 600 * 512, 0, &first, &total);
    HOLDS();
    EXPECT(total > 0);
    status_at(s, 0, MIN(bd_size_bytes(s->dev), (uint64_t)UINT32_MAX - 511), 0, &first, &total);
}

/* --- many at a time --- */

enum { PARALLEL = 64 };
struct writer {
    struct suite *s;
    unsigned index;
    int rc;
};

static void writer_fiber(void *arg) {
    struct writer *w = arg;
    uint64_t off = w->index * (uint64_t)(12 * KIB);
    for (unsigned round = 1; round <= 4 && w->rc == 0; round++)
        w->rc = put(w->s, round, off, 12 * KIB, round == 3 ? BD_FUA : 0);
    if (w->rc == 0 && w->index % 4 == 0)
        w->rc = bd_flush(w->s->env, w->s->dev);
}

static void many_at_a_time(struct suite *s) {
    struct writer writers[PARALLEL];
    struct fiber_group group;
    fiber_group_init(&group, s->env);
    for (unsigned i = 0; i < PARALLEL; i++) {
        writers[i] = (struct writer){.s = s, .index = i};
        fiber_group_start(&group, writer_fiber, &writers[i]);
    }
    EXPECT(fiber_group_wait(&group) == 0);
    for (unsigned i = 0; i < PARALLEL; i++)
        EXPECT(writers[i].rc == 0);
    check(s, 4, 0, PARALLEL * 12 * KIB);
}

/* Random writes, trims and zeroes against a copy in memory. */
static void random_against_model(struct suite *s) {
    enum { SPAN = 2 * MIB, STEPS = 600 };
    CLEANUP_FREE uint8_t *model = xcalloc(1, SPAN);
    CLEANUP_FREE uint8_t *bytes = xmalloc(SPAN);
    uint64_t seed = 12345;
    for (unsigned i = 0; i < STEPS; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t off = (seed >> 20) % (SPAN / 512) * 512;
        size_t len = (size_t)MIN(((seed >> 40) % 64 + 1) * 512, SPAN - off);
        switch ((seed >> 60) % 4) {
        case 0:
            EXPECT(span(s, BD_TRIM, off, len, 0) == 0);
            memset(model + off, 0, len);
            break;
        case 1:
            EXPECT(span(s, BD_WRITE_ZEROES, off, len, BD_NO_HOLE) == 0);
            memset(model + off, 0, len);
            break;
        default:
            EXPECT(put(s, i, off, len, 0) == 0);
            for (size_t k = 0; k < len; k++)
                model[off + k] = pattern_at(i, off + k);
        }
        if (i % 50 == 0)
            EXPECT(bd_flush(s->env, s->dev) == 0);
        if (i == STEPS / 2 && s->factory->reopen) {
            EXPECT(bd_flush(s->env, s->dev) == 0);
            s->dev = s->factory->reopen(s->factory, s->env, s->dev);
        }
    }
    EXPECT(bd_read(s->env, s->dev, 0, bytes, SPAN) == 0);
    EXPECT(memcmp(bytes, model, SPAN) == 0);
}

static const struct {
    const char *name;
    void (*fn)(struct suite *s);
} cases[] = {
    {"fresh_reads_zero", fresh_reads_zero},
    {"reads_what_was_written", reads_what_was_written},
    {"later_writes_win", later_writes_win},
    {"big_requests", big_requests},
    {"zeroing_is_exact", zeroing_is_exact},
    {"zeroing_everything", zeroing_everything},
    {"flush_fua_cache", flush_fua_cache},
    {"status_tiles", status_tiles},
    {"status_of_many_extents", status_of_many_extents},
    {"many_at_a_time", many_at_a_time},
    {"random_against_model", random_against_model},
};

struct call {
    struct suite suite;
    size_t index;
};

static void run_case(void *arg) {
    struct call *c = arg;
    struct suite *s = &c->suite;
    s->dev = s->factory->open(s->factory, s->env, s->factory->size_bytes);
    cases[c->index].fn(s);
    s->factory->close(s->factory, s->env, s->dev);
}

unsigned blockdev_suite_run(struct loop *loop, struct blockdev_factory *f) {
    unsigned failures = 0;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct call c = {.suite = {.factory = f, .env = loop_env(loop)}, .index = i};
        loop_call(loop, run_case, &c);
        printf("%s %s: %s\n", f->name, cases[i].name, c.suite.failed ? "FAILED" : "ok");
        if (c.suite.failed) {
            printf("  line %d: %s\n", c.suite.line, c.suite.failed);
            failures++;
        }
    }
    return failures;
}
