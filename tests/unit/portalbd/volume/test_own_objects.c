/* The table of own objects against a plain array. */
#include "tests/support/test.h"

#include "portalbd/volume/own_objects.h"

enum { NAMES = 3000, STEPS = 60000 };

static uint64_t seed = 42;

static uint32_t next_random(void) {
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static struct object_name name_at(uint32_t i) {
    struct object_name n = {.class = CLASS_CONTENT, .kind = (uint8_t)(i % 3)};
    if (n.kind == OBJ_LOG)
        n.number = i;
    else
        memcpy(n.id.bytes + 3, &i, sizeof i);
    return n;
}

static void test_against_array(void **state) {
    (void)state;
    static bool there[NAMES];
    static uint32_t size[NAMES];
    struct own_objects t;
    own_objects_init(&t);
    uint64_t bytes = 0;
    size_t count = 0;
    for (int step = 0; step < STEPS; step++) {
        uint32_t i = next_random() % NAMES, add = next_random() % 100;
        struct object_name n = name_at(i);
        if (next_random() % 5 < 2) {
            own_objects_remove(&t, &n);
            count -= there[i];
            bytes -= there[i] ? size[i] : 0;
            there[i] = false;
        } else {
            struct own_object *o = own_objects_add(&t, &n, add);
            if (!there[i] || size[i] == 0) {
                size[i] = add;
                bytes += add;
            }
            count += !there[i];
            there[i] = true;
            assert_int_equal(o->size, size[i]);
            assert_int_equal(o->state, OBJECT_LIVE);
        }
        assert_int_equal(t.count, count);
        assert_int_equal(t.bytes, bytes);
        i = next_random() % NAMES;
        n = name_at(i);
        struct own_object *o = own_objects_find(&t, &n);
        assert_int_equal(o != NULL, there[i]);
        if (o) {
            struct object_name back = own_object_name(o);
            assert_int_equal(object_name_compare(&back, &n), 0);
        }
    }
    own_objects_release(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_array),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
