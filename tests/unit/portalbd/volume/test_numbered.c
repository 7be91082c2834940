/* Numbered records: the newest, holes, pruning, walks (trace 13, model numrec). */
#include "tests/support/test.h"

#include <stdio.h>

#include "portalbd/volume/numbered.h"
#include "tests/support/pool_fixture.h"

static struct pool_fixture fixture;

static int setup(void **state) {
    pool_fixture_init(&fixture, 5);
    *state = &fixture;
    return 0;
}

static int teardown(void **state) {
    pool_fixture_release(*state);
    return 0;
}

static int put(struct pool_fixture *f, const char *folder, uint64_t n) {
    static unsigned nonce; /* equal bodies would count as one's own */
    char body[40];
    struct err e;
    snprintf(body, sizeof body, "%llu %u", (unsigned long long)n, nonce++);
    return numbered_put(f->store, folder, n, view_of_str(body), &e);
}

static void put_and_read(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    CLEANUP_BUF struct buf body = {0};
    uint64_t n = 99;
    assert_int_equal(numbered_newest(f->store, "records/x/", &n, &body, &e), 0);
    assert_int_equal(n, 0);
    for (n = 1; n <= 3; n++)
        assert_int_equal(put(f, "records/x/", n), 0);
    assert_int_equal(put(f, "records/x/", 3), -ERR_STALE);
    assert_int_equal(put(f, "records/x/", 2), -ERR_STALE);
    assert_int_equal(numbered_newest(f->store, "records/x/", &n, &body, &e), 0);
    assert_int_equal(n, 3);
    assert_memory_equal(body.data, "3 ", 2);
    memory_store_replace(f->memory, "records/y/rubbish", view_of_str("x"));
    assert_int_equal(numbered_newest(f->store, "records/y/", &n, &body, &e), -ERR_CORRUPT);
}

static void test_put_and_read(void **state) {
    pool_fixture_run(*state, put_and_read, *state);
}

/* A slow writer's record that lands in a hole does not count. */
static void holes(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    size_t deleted;
    for (uint64_t n = 1; n <= NUMBERED_KEEP + 10; n++)
        assert_int_equal(put(f, "records/x/", n), 0);
    assert_int_equal(put(f, "records/z/", 1), 0);
    assert_int_equal(numbered_prune(f->store, "records/", &deleted, &e), 0);
    assert_int_equal(deleted, 10);
    assert_int_equal(pool_fixture_count(f, "records/x/"), NUMBERED_KEEP);
    assert_int_equal(put(f, "records/x/", 5), -ERR_STALE);
    assert_int_equal(pool_fixture_count(f, "records/x/"), NUMBERED_KEEP + 1);
    assert_int_equal(numbered_prune(f->store, "records/", &deleted, &e), 0);
    assert_int_equal(deleted, 1);
}

static void test_holes(void **state) {
    pool_fixture_run(*state, holes, *state);
}

static void walks(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    /* In the order of keys "a-b/" < "a.b/" < "a/" < "a0/": folders are not told apart by prefix. */
    const char *folders[] = {"nodes/a-b/", "nodes/a.b/", "nodes/a/", "nodes/a0/", "nodes/b/"};
    for (size_t i = 0; i < ARRAY_LEN(folders); i++)
        for (uint64_t n = 1; n <= 3 + i; n++)
            assert_int_equal(put(f, folders[i], n), 0);
    for (int i = 0; i < 1500; i++) { /* more than a page of keys that are not ours */
        char key[64];
        snprintf(key, sizeof key, "nodes/a1/%d", i);
        memory_store_replace(f->memory, key, view_of_str("x"));
    }
    for (uint64_t n = 4; n <= 1200; n++)
        if (n > 5)
            assert_int_equal(put(f, "nodes/a/", n), 0);
    struct numbered_walk w;
    char folder[KEY_MAX];
    uint64_t n;
    numbered_walk_init(&w, f->store, "nodes/", NULL);
    for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
        assert_int_equal(numbered_walk_next(&w, folder, &n, &e), 1);
        assert_string_equal(folder, folders[i]);
        assert_int_equal(n, i == 2 ? 1200 : 3 + i);
    }
    assert_int_equal(numbered_walk_next(&w, folder, &n, &e), 0);
    assert_int_equal(numbered_walk_next(&w, folder, &n, &e), 0);
    numbered_walk_release(&w);

    numbered_walk_init(&w, f->store, "nodes/", "a");
    assert_int_equal(numbered_walk_next(&w, folder, &n, &e), 1);
    assert_string_equal(folder, "nodes/a0/");
    numbered_walk_release(&w);
}

static void test_walks(void **state) {
    pool_fixture_run(*state, walks, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_put_and_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_holes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_walks, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
