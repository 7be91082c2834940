/* The pool's record: the probe, whose it is, a store that cannot be trusted. */
#include "tests/support/test.h"

#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/pool_fixture.h"

static struct pool_fixture fixture;

static int setup(void **state) {
    pool_fixture_init(&fixture, 4);
    *state = &fixture;
    return 0;
}

static int teardown(void **state) {
    pool_fixture_release(*state);
    return 0;
}

static void create_and_check(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct pool_record r, again;
    assert_int_equal(catalog_pool_check(&f->catalog, NULL, &r, &e), -ERR_NOT_FOUND);
    struct pool_create ours = {.cluster_id = "one"}, theirs = {.cluster_id = "two"};
    assert_int_equal(catalog_pool_create(&f->catalog, &ours, &r, &e), 0);
    assert_true(r.conditional_put);
    assert_string_equal(r.cluster_id, "one");
    assert_int_equal(pool_fixture_count(f, ""), 1); /* nothing of the probe */
    assert_int_equal(catalog_pool_create(&f->catalog, &ours, &again, &e), 0);
    assert_true(random_id_equal(&r.uuid, &again.uuid));
    pool_record_release(&again);
    assert_int_equal(catalog_pool_check(&f->catalog, NULL, &again, &e), 0);
    pool_record_release(&again);
    assert_int_equal(catalog_pool_check(&f->catalog, &theirs, &again, &e), -ERR_IN_USE);
    assert_int_equal(catalog_pool_create(&f->catalog, &theirs, &again, &e), -ERR_IN_USE);
    theirs.allow_other_cluster = true;
    assert_int_equal(catalog_pool_check(&f->catalog, &theirs, &again, &e), 0);
    pool_record_release(&again);
    pool_record_release(&r);
    memory_store_replace(f->memory, "portalbd.json", view_of_str("rubbish"));
    assert_int_equal(catalog_pool_check(&f->catalog, NULL, &r, &e), -ERR_CORRUPT);
    assert_int_equal(catalog_pool_create(&f->catalog, &ours, &r, &e), -ERR_CORRUPT);
}

static void test_create_and_check(void **state) {
    pool_fixture_run(*state, create_and_check, *state);
}

/* Two that create it at once have one pool. */
static struct pool_record racing[2];
static void create_racing(void *arg) {
    static int turn;
    struct err e;
    struct pool_fixture *f = arg;
    assert_int_equal(catalog_pool_create(&f->catalog, NULL, &racing[turn++ % 2], &e), 0);
}

static void test_create_at_once(void **state) {
    struct pool_fixture *f = *state;
    pool_fixture_jitter(f);
    fiber_start(f->env, create_racing, f);
    fiber_start(f->env, create_racing, f);
    virtual_env_run(&f->venv);
    assert_true(random_id_equal(&racing[0].uuid, &racing[1].uuid));
    pool_record_release(&racing[0]);
    pool_record_release(&racing[1]);
}

/* --- a store that ignores the condition --- */

struct careless {
    struct objstore store;
    struct pool_fixture *f;
};

static void careless_submit(struct objstore *store, struct obj_request *req) {
    struct careless *c = container_of(store, struct careless, store);
    if (req->verb == OBJ_PUT)
        memory_store_remove(c->f->memory, req->key);
    objstore_submit(c->f->store, req);
}

static void careless_cancel(struct objstore *store, struct obj_request *req) {
    objstore_cancel(container_of(store, struct careless, store)->f->store, req);
}

static void careless_run(void *arg) {
    struct pool_fixture *f = arg;
    static const struct objstore_ops ops = {.submit = careless_submit, .cancel = careless_cancel};
    struct careless careless = {.store = {.ops = &ops, .env = f->env}, .f = f};
    struct catalog c;
    struct err e;
    struct pool_record r;
    catalog_init(&c, f->env, &careless.store, "pool");
    assert_int_equal(catalog_pool_create(&c, NULL, &r, &e), -ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "If-None-Match"));
    assert_int_equal(pool_fixture_count(f, ""), 0);
}

static void test_careless_store(void **state) {
    pool_fixture_run(*state, careless_run, *state);
}

/* --- nodes --- */

static void nodes(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct node_record n;
    struct node_list l;
    char long_id[200];
    memset(long_id, 'n', sizeof long_id - 1);
    long_id[sizeof long_id - 1] = '\0';
    assert_int_equal(catalog_node_register(c, "", "1", &e), -ERR_INVALID);
    assert_int_equal(catalog_node_register(c, long_id, "1", &e), -ERR_INVALID);
    assert_int_equal(catalog_node_get(c, long_id, &n, &e), -ERR_NOT_FOUND);
    const char *ids[] = {"a", "a.b", "a-b", "a/../b", "ünïcode"};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        assert_int_equal(catalog_node_register(c, ids[i], "1", &e), 0);
    uint64_t before = pool_fixture_requests(f);
    assert_int_equal(catalog_node_register(c, "a", "1", &e), 0); /* says so already */
    assert_int_equal(pool_fixture_requests(f) - before, 2);
    assert_int_equal(catalog_node_register(c, "a", "2", &e), 0);
    assert_int_equal(catalog_node_get(c, "a", &n, &e), 0);
    assert_string_equal(n.version, "2");
    assert_int_equal(n.number, 2);
    node_record_release(&n);
    assert_int_equal(catalog_node_list(c, &l, &e), 0);
    assert_int_equal(l.count, ARRAY_LEN(ids));
    node_list_release(&l);
    assert_int_equal(catalog_node_delete(c, "a", &e), 0);
    assert_int_equal(catalog_node_delete(c, "a", &e), 0);
    assert_int_equal(catalog_node_delete(c, "never", &e), 0);
    assert_int_equal(catalog_node_get(c, "a", &n, &e), -ERR_NOT_FOUND);
    assert_int_equal(catalog_node_list(c, &l, &e), 0);
    assert_int_equal(l.count, ARRAY_LEN(ids) - 1);
    node_list_release(&l);
}

static void test_nodes(void **state) {
    pool_fixture_run(*state, nodes, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_create_and_check, setup, teardown),
        cmocka_unit_test_setup_teardown(test_create_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_careless_store, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nodes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
