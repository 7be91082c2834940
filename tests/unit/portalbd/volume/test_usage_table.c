/* Numbers of objects in a run that is being made: kept, freed, given out again. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/volume/usage_table.h"

enum { OBJECTS = 1000 };

static struct volume_key key_of(uint64_t n) {
    struct volume_key key;
    id_format_key(&key, ID_VOLUME, "0123456789abcdef0123456789abcdef", n);
    return key;
}

static uint16_t volume(struct usage_table *t, uint64_t n) {
    struct volume_key key = key_of(n);
    uint16_t v;
    assert_int_equal(usage_table_volume(t, &key, &v, NULL), 0);
    return v;
}

static uint32_t number(struct usage_table *t, uint16_t v, uint64_t seq) {
    struct obj_ref ref = {.kind = seq % 3 ? OBJ_LOG : OBJ_MOVED, .volume = v};
    uint32_t n;
    if (ref.kind == OBJ_LOG)
        ref.seq = seq;
    else
        memcpy(ref.id.bytes, &seq, sizeof seq);
    assert_int_equal(usage_table_number(t, &ref, &n, NULL), 0);
    assert_true(obj_ref_equal(&t->index->usage[n].ref, &ref));
    return n;
}

static void fill(struct usage_table *t, uint16_t v, uint64_t from, uint64_t to) {
    for (uint64_t seq = from; seq < to; seq++) {
        uint32_t n = number(t, v, seq);
        t->index->usage[n].bytes += seq;
    }
}

static void test_numbers(void **state) {
    (void)state;
    struct run_index x = {0};
    struct usage_table t;
    usage_table_init(&t, &x);
    uint16_t a = volume(&t, 1), b = volume(&t, 2);
    assert_int_equal(volume(&t, 1), a);
    for (uint64_t seq = 1; seq < OBJECTS; seq++) {
        assert_int_equal(number(&t, a, seq), 2 * (seq - 1));
        assert_int_equal(number(&t, b, seq), 2 * (seq - 1) + 1);
    }
    for (uint64_t seq = 1; seq < OBJECTS; seq++)
        assert_int_equal(number(&t, b, seq), 2 * (seq - 1) + 1);
    usage_table_release(&t);
    run_index_release(&x);
}

/* The numbers of a base stay; those that are free there go to new objects, the lowest first. */
static void test_inherit(void **state) {
    (void)state;
    struct run_index base = {0}, x = {0};
    struct usage_table t;
    usage_table_init(&t, &base);
    uint16_t a = volume(&t, 1);
    fill(&t, a, 1, 11);
    base.usage[3].bytes = 0;
    base.usage[5].bytes = 0;
    base.usage[9].bytes = 0;
    usage_table_finish(&t);
    assert_int_equal(base.usage_count, 9); /* the last one goes */
    assert_true(run_usage_is_free(&base.usage[3]));
    assert_int_equal(base.usage[3].ref.seq, 0);
    usage_table_release(&t);

    usage_table_init(&t, &x);
    usage_table_inherit(&t, &base);
    assert_int_equal(x.usage_count, 9);
    assert_true(x.usage[0].bytes == 1);
    assert_int_equal(number(&t, a, 1), 0);
    assert_int_equal(number(&t, a, 9), 8);
    assert_int_equal(number(&t, a, 10), 3);
    assert_int_equal(number(&t, a, 50), 5);
    assert_int_equal(number(&t, a, 51), 9);
    assert_int_equal(number(&t, a, 10), 3);
    usage_table_release(&t);
    run_index_release(&x);
    run_index_release(&base);
}

/* Volumes that neither an object nor a part names any more go, and the rest is renumbered. */
static void test_volumes(void **state) {
    (void)state;
    struct run_index x = {0};
    struct usage_table t;
    usage_table_init(&t, &x);
    for (uint64_t v = 1; v <= 5; v++)
        fill(&t, volume(&t, v), v, v + 1);
    x.usage[0].bytes = x.usage[2].bytes = x.usage[3].bytes = 0;
    x.parts = xcalloc(1, sizeof *x.parts);
    x.part_count = 1;
    x.parts[0] = (struct run_part){.ref = {.kind = OBJ_MAP, .volume = 3}, .page_count = 1};
    usage_table_finish(&t);
    struct volume_key two = key_of(2), four = key_of(4), five = key_of(5);
    assert_int_equal(x.volume_count, 3);
    assert_true(volume_key_equal(&x.volumes[0], &two));
    assert_true(volume_key_equal(&x.volumes[1], &four));
    assert_true(volume_key_equal(&x.volumes[2], &five));
    assert_int_equal(x.usage[1].ref.volume, 0);
    assert_int_equal(x.usage[4].ref.volume, 2);
    assert_int_equal(x.parts[0].ref.volume, 1);
    usage_table_release(&t);
    run_index_release(&x);
}

static void test_limits(void **state) {
    (void)state;
    struct run_index x = {0};
    struct usage_table t;
    struct err e;
    usage_table_init(&t, &x);
    uint16_t v;
    for (uint64_t n = 1; n <= RUN_VOLUMES_MAX; n++)
        volume(&t, n);
    struct volume_key more = key_of(RUN_VOLUMES_MAX + 1);
    assert_int_equal(usage_table_volume(&t, &more, &v, &e), -ERR_OVERLOAD);
    struct obj_ref ref = {.kind = OBJ_LOG};
    uint32_t n;
    for (ref.seq = 1; ref.seq <= RUN_USAGE_MAX; ref.seq++)
        if (usage_table_number(&t, &ref, &n, NULL) < 0)
            fail();
    assert_int_equal(usage_table_number(&t, &ref, &n, &e), -ERR_OVERLOAD);
    ref.seq = 7;
    assert_int_equal(usage_table_number(&t, &ref, &n, &e), 0);
    assert_int_equal(n, 6);
    usage_table_release(&t);
    run_index_release(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_inherit),
        cmocka_unit_test(test_volumes),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
