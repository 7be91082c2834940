/* The checker can fail: each promise is broken once, in small, and must be found. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/sim/checker.h"

enum { PLACES = 64, SIZE = PLACES * SECTOR_SIZE };

struct bench {
    struct checker c;
    struct model_volume *v;
    struct reign *r;
    uint32_t now[PLACES];
};

static void setup(struct bench *b) {
    memset(b, 0, sizeof *b);
    checker_init(&b->c);
    checker_add_span(&b->c, 0, PLACES);
    b->v = model_volume_new(&b->c, "v", NULL, SIZE);
    b->r = model_open(b->v, "a", 1, b->now, NULL, false, SIZE, SIZE);
    assert_non_null(b->r);
}

/* Submits and acknowledges; the stamps are multiples of 4: data without zeroes. */
static size_t put(struct bench *b, uint64_t sector, uint64_t count, uint32_t stamp) {
    size_t n, at = model_submit(b->r, sector, count, stamp * 4, &n);
    model_answer(b->r, at, n, 0, false);
    return at;
}

static void set(struct bench *b, uint64_t sector, uint64_t count, uint32_t stamp) {
    for (uint64_t s = sector; s < sector + count; s++)
        b->now[s] = stamp * 4;
}

static void flush(struct bench *b) {
    model_flush_acked(b->r, model_flush_begin(b->r));
}

static void expect(struct bench *b, bool finding) {
    if (checker_failed(&b->c) != finding)
        print_error("finding: '%s'\n", b->c.finding);
    assert_true(checker_failed(&b->c) == finding);
    checker_release(&b->c);
}

static void test_stamps(void **state) {
    (void)state;
    uint8_t sector[SECTOR_SIZE];
    for (uint32_t stamp = 1; stamp < 100; stamp++) {
        for (uint64_t s = 0; s < 50; s++) {
            stamp_fill(sector, stamp, s);
            assert_int_equal(stamp_read(sector, s), stamp_value(stamp, s));
            if (stamp_value(stamp, s) == 0)
                continue;
            assert_int_equal(stamp_read(sector, s + 1), STAMP_GARBAGE); /* in the wrong place */
            sector[300] ^= 1;
            assert_int_equal(stamp_read(sector, s), STAMP_GARBAGE);
        }
    }
}

static void test_a_prefix_is_accepted(void **state) {
    (void)state;
    for (unsigned cut = 1; cut <= 3; cut++) {
        struct bench b;
        setup(&b);
        put(&b, 0, 8, 1);
        flush(&b);
        put(&b, 4, 8, 2);
        put(&b, 20, 4, 3);
        set(&b, 0, 8, 1);
        if (cut > 1)
            set(&b, 4, 8, 2);
        if (cut > 2)
            set(&b, 20, 4, 3);
        struct reign *next = model_open(b.v, "b", 2, b.now, NULL, false, b.v->size_acked, SIZE);
        assert_non_null(next);
        assert_int_equal(next->cut, cut);
        expect(&b, false);
    }
}

static void test_a_lost_flush_is_found(void **state) {
    (void)state;
    struct bench b;
    setup(&b);
    put(&b, 0, 8, 1);
    flush(&b);
    assert_null(model_open(b.v, "b", 2, b.now, NULL, false, b.v->size_acked, SIZE));
    expect(&b, true);
}

static void test_a_mix_is_found(void **state) {
    (void)state;
    struct bench b;
    setup(&b);
    put(&b, 0, 8, 1);
    put(&b, 20, 4, 2);
    set(&b, 20, 4, 2); /* the second without the first */
    assert_null(model_open(b.v, "b", 2, b.now, NULL, false, b.v->size_acked, SIZE));
    expect(&b, true);
}

static void test_half_a_record_is_found(void **state) {
    (void)state;
    struct bench b;
    setup(&b);
    put(&b, 0, 8, 1);
    set(&b, 0, 4, 1);
    assert_null(model_open(b.v, "b", 2, b.now, NULL, false, b.v->size_acked, SIZE));
    expect(&b, true);
}

static void test_a_trim_that_takes_a_neighbour_is_found(void **state) {
    (void)state;
    struct bench b;
    setup(&b);
    put(&b, 0, 16, 1);
    put(&b, 4, 2, 0);
    set(&b, 0, 16, 1);
    set(&b, 0, 8, 0);
    assert_null(model_open(b.v, "b", 2, b.now, NULL, false, b.v->size_acked, SIZE));
    expect(&b, true);
}

static void test_an_old_writers_flush_is_found(void **state) {
    (void)state;
    struct bench b;
    setup(&b);
    put(&b, 0, 8, 1);
    assert_non_null(model_open(b.v, "b", 2, b.now, NULL, false, b.v->size_acked, SIZE));
    expect(&b, false);

    setup(&b);
    put(&b, 0, 8, 1);
    assert_non_null(model_open(b.v, "b", 2, b.now, NULL, false, b.v->size_acked, SIZE));
    flush(&b);
    expect(&b, true);
}

static void check_read(struct bench *b, struct read_check *check, uint32_t stamp) {
    CLEANUP_FREE uint8_t *data = xcalloc(check->count, SECTOR_SIZE);
    for (size_t i = 0; stamp && i < check->count; i++)
        stamp_fill(data + i * SECTOR_SIZE, stamp * 4, check->sector + i);
    model_read_end(b->r, check, data);
}

static void test_reads(void **state) {
    (void)state;
    /* What is seen: before, in flight, acked before the read; 1 and 2 in that order. */
    static const struct {
        uint32_t seen;
        bool first_acked, second_acked, finding;
    } cases[] = {{0, false, false, false}, {1, false, false, false}, {2, false, false, false},
                 {0, true, false, true},   {1, true, false, false},  {2, true, false, false},
                 {0, true, true, true},    {1, true, true, true},    {2, true, true, false},
                 {0, false, true, true},   {1, false, true, true},   {3, false, false, true}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct bench b;
        setup(&b);
        size_t n, first = model_submit(b.r, 0, 8, 4, &n), second = model_submit(b.r, 0, 8, 8, &n);
        if (cases[i].first_acked)
            model_answer(b.r, first, 1, 0, false);
        if (cases[i].second_acked)
            model_answer(b.r, second, 1, 0, false);
        struct read_check check;
        model_read_begin(b.r, &check, 2, 3);
        check_read(&b, &check, cases[i].seen);
        expect(&b, cases[i].finding);
    }
}

static void test_images(void **state) {
    (void)state;
    /* An image between flushed (1) and submitted at the end (2) of three records. */
    for (unsigned k = 0; k <= 3; k++) {
        struct bench b;
        setup(&b);
        put(&b, 0, 8, 1);
        flush(&b);
        struct image *i = model_image_begin(b.v, "i");
        put(&b, 8, 8, 2);
        model_image_end(i);
        put(&b, 16, 8, 3);
        for (unsigned s = 0; s < k; s++)
            set(&b, s * 8, 8, s + 1);
        model_image_check(i, b.now, SIZE);
        expect(&b, k == 0 || k == 3);
    }
    struct bench b;
    setup(&b);
    put(&b, 0, 8, 1);
    struct image *i = model_image_begin(b.v, "i");
    model_image_end(i);
    model_image_check(i, b.now, SIZE);
    model_image_check(i, b.now, SIZE);
    assert_false(checker_failed(&b.c));
    set(&b, 0, 8, 1); /* a possible cut, but not the one that was seen first */
    model_image_check(i, b.now, SIZE);
    expect(&b, true);
}

static void test_a_lost_acknowledgement_is_found(void **state) {
    (void)state;
    for (unsigned k = 0; k <= 3; k++) {
        struct bench b;
        setup(&b);
        put(&b, 0, 8, 1);
        put(&b, 8, 8, 2);
        put(&b, 16, 8, 3);
        for (unsigned s = 0; s < k; s++)
            set(&b, s * 8, 8, s + 1);
        model_open(b.v, "b", 2, b.now, b.r, true, b.v->size_acked, SIZE);
        expect(&b, k < 3);
    }
}

/* a: 1, 2; b replays both and writes 3; c has no journal. */
static void test_what_was_replayed_may_be_lost_until_a_flush(void **state) {
    (void)state;
    for (unsigned k = 0; k <= 3; k++) {
        for (int flushed = 0; flushed <= 1; flushed++) {
            struct bench b;
            setup(&b);
            put(&b, 0, 8, 1);
            put(&b, 8, 8, 2);
            set(&b, 0, 8, 1);
            set(&b, 8, 8, 2);
            b.r = model_open(b.v, "b", 2, b.now, b.r, true, b.v->size_acked, SIZE);
            assert_non_null(b.r);
            if (flushed)
                flush(&b);
            put(&b, 16, 8, 3);
            set(&b, 0, 24, 0);
            for (unsigned s = 0; s < k; s++)
                set(&b, s * 8, 8, s + 1);
            model_open(b.v, "c", 3, b.now, NULL, false, b.v->size_acked, SIZE);
            if (!flushed && k < 2) {
                assert_false(checker_failed(&b.c));
                flush(&b); /* of b, which has lost it */
                expect(&b, true);
            } else {
                expect(&b, k < 2);
            }
        }
    }
}

static void test_sizes(void **state) {
    (void)state;
    struct bench b;
    setup(&b);
    b.v->size_wanted = b.v->size_acked = SIZE + 4096;
    assert_null(model_open(b.v, "b", 2, b.now, NULL, false, b.v->size_acked, SIZE));
    expect(&b, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stamps),
        cmocka_unit_test(test_a_prefix_is_accepted),
        cmocka_unit_test(test_a_lost_flush_is_found),
        cmocka_unit_test(test_a_mix_is_found),
        cmocka_unit_test(test_half_a_record_is_found),
        cmocka_unit_test(test_a_trim_that_takes_a_neighbour_is_found),
        cmocka_unit_test(test_an_old_writers_flush_is_found),
        cmocka_unit_test(test_a_lost_acknowledgement_is_found),
        cmocka_unit_test(test_what_was_replayed_may_be_lost_until_a_flush),
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_images),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
