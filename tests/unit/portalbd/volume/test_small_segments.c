/* Tables of small segments: kept in order, bounded, forgotten. */
#include "tests/support/test.h"

#include "portalbd/volume/small_segments.h"

static bool is_even(void *arg, uint64_t seq) {
    (void)arg;
    return seq % 2 == 0;
}

static void test_list(void **state) {
    (void)state;
    struct small_segments l = {0};
    for (uint64_t i = 0; i < SMALL_SEGMENTS_MAX + 10; i++) {
        uint64_t seq = i ^ 3; /* not quite in order */
        struct segment_extent x = {.sector = seq, .count = 1};
        uint16_t len = (uint16_t)(seq % 1000);
        struct segment_table t = {.extents = &x, .extent_count = 1, .lens = &len, .len_count = 1};
        small_segments_note(&l, seq, &t);
    }
    assert_int_equal(l.count, SMALL_SEGMENTS_MAX);
    for (uint64_t seq = 0; seq < SMALL_SEGMENTS_MAX; seq++) {
        const struct segment_table *t = small_segments_find(&l, seq);
        assert_non_null(t);
        assert_int_equal(t->extents[0].sector, seq);
        assert_int_equal(t->lens[0], seq % 1000);
    }
    assert_null(small_segments_find(&l, SMALL_SEGMENTS_MAX + 20));
    small_segments_prune(&l, is_even, NULL);
    assert_int_equal(l.count, SMALL_SEGMENTS_MAX / 2);
    assert_null(small_segments_find(&l, 5));
    assert_non_null(small_segments_find(&l, 6));
    static struct segment_extent many[SMALL_EXTENTS_MAX + 1];
    struct segment_table large = {.extents = many, .extent_count = ARRAY_LEN(many)};
    small_segments_note(&l, SMALL_SEGMENTS_MAX + 50, &large);
    assert_null(small_segments_find(&l, SMALL_SEGMENTS_MAX + 50));
    small_segments_release(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
