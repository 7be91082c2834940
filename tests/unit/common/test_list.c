/* The intrusive list. */
#include "tests/support/test.h"

#include "common/list.h"

struct item {
    int value;
    struct list_node node;
};

static struct list_node head;
static struct item items[4];

static int setup(void **state) {
    (void)state;
    list_init(&head);
    for (int i = 0; i < 4; i++)
        items[i] = (struct item){.value = i};
    return 0;
}

/* The values in order, as one decimal number. */
static int in_order(void) {
    int sum = 0;
    list_for_each (&head, node)
        sum = sum * 10 + list_entry(node, struct item, node)->value;
    return sum;
}

static void test_push_and_pop(void **state) {
    (void)state;
    assert_true(list_empty(&head));
    assert_null(list_pop_front(&head));
    list_push_back(&head, &items[1].node);
    list_push_back(&head, &items[2].node);
    list_push_front(&head, &items[3].node);
    assert_int_equal(in_order(), 312);
    assert_ptr_equal(list_pop_front(&head), &items[3].node);
    assert_false(list_linked(&items[3].node));
    assert_true(list_linked(&items[1].node));
    assert_int_equal(in_order(), 12);
}

static void test_remove_while_walking(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++)
        list_push_back(&head, &items[i].node);
    list_for_each (&head, node)
        if (list_entry(node, struct item, node)->value % 2 == 1)
            list_remove(node);
    assert_int_equal(in_order(), 2);
    assert_false(list_linked(&items[1].node));
    list_push_back(&head, &items[1].node);
    assert_int_equal(in_order(), 21);
    list_for_each (&head, node)
        list_remove(node);
    assert_true(list_empty(&head));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_push_and_pop, setup),
        cmocka_unit_test_setup(test_remove_while_walking, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
