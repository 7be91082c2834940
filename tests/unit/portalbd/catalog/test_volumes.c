/* Volumes through the catalog: create, find, list, expand, delete, and what that costs. */
#include "tests/support/test.h"

#include <stdio.h>

#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/pool_test.h"

POOL_TEST_SETUP(1)

static const uint64_t GIB = UINT64_C(1) << 30;

static void in_fiber(void **state, void (*fn)(void *arg)) {
    pool_fixture_run(*state, fn, *state);
}

static struct volume_info create(struct pool_fixture *f, const char *name, uint64_t size) {
    struct err e;
    struct volume_info info;
    ok(catalog_volume_create(&f->catalog, &(struct volume_create){.name = name, .size_bytes = size},
                             &info, &e),
       &e);
    return info;
}

static void create_and_find(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    uint64_t before = pool_fixture_requests(f);
    struct volume_info a = create(f, "a", GIB);
    assert_int_equal(pool_fixture_requests(f) - before, 4);
    assert_int_equal(a.size_bytes, GIB);
    assert_true(a.closed);
    assert_string_equal(a.record.name, "a");

    before = pool_fixture_requests(f);
    struct volume_info again = create(f, "a", GIB);
    assert_int_equal(pool_fixture_requests(f) - before, 4);
    assert_string_equal(again.id, a.id);

    struct volume_info found;
    ok(catalog_volume_find(&f->catalog, "a", &found, &e), &e);
    assert_string_equal(found.id, a.id);
    volume_info_release(&found);
    ok(catalog_volume_get(&f->catalog, a.id, &found, &e), &e);
    assert_string_equal(found.record.name, "a");
    volume_info_release(&found);

    struct volume_create other = {.name = "a", .size_bytes = 2 * GIB};
    assert_int_equal(catalog_volume_create(&f->catalog, &other, &found, &e), -ERR_EXISTS);
    volume_info_release(&a);
    volume_info_release(&again);
}

static void test_create_and_find(void **state) {
    in_fiber(state, create_and_find);
}

static void refusals(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info v;
    char long_name[200];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    struct {
        struct volume_create req;
        int rc;
    } cases[] = {
        {{.name = "", .size_bytes = GIB}, -ERR_INVALID},
        {{.name = NULL, .size_bytes = GIB}, -ERR_INVALID},
        {{.name = long_name, .size_bytes = GIB}, -ERR_INVALID},
        {{.name = "a"}, -ERR_INVALID},
        {{.name = "a", .size_bytes = 5000, .limit_bytes = 6000}, -ERR_NO_SPACE},
        {{.name = "a", .size_bytes = UINT64_MAX}, -ERR_NO_SPACE},
        {{.name = "a", .size_bytes = GIB, .source = "rubbish"}, -ERR_NOT_FOUND},
        {{.name = "a", .size_bytes = GIB, .source = "snap-00000000000000000000000000000000-1.pool"},
         -ERR_NOT_FOUND},
        {{.name = "a", .size_bytes = GIB, .source = "pv-00000000000000000000000000000000-1.other"},
         -ERR_INVALID},
        {{.name = "\xff\xfe", .size_bytes = GIB}, -ERR_INVALID},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_int_equal(catalog_volume_create(c, &cases[i].req, &v, &e), cases[i].rc);
    assert_int_equal(pool_fixture_count(f, ""), 0); /* nothing stays behind */
    assert_int_equal(catalog_volume_get(c, "rubbish", &v, &e), -ERR_NOT_FOUND);
    assert_int_equal(catalog_volume_find(c, "a", &v, &e), -ERR_NOT_FOUND);
    assert_int_equal(catalog_volume_delete(c, "rubbish", false, &e), 0);
    assert_int_equal(
        catalog_volume_delete(c, "pv-00000000000000000000000000000000-1.pool", false, &e), 0);

    ok(catalog_volume_create(c, &(struct volume_create){.name = "odd", .size_bytes = 5000}, &v, &e),
       &e);
    assert_int_equal(v.size_bytes, 8192);
    volume_info_release(&v);
}

static void test_refusals(void **state) {
    in_fiber(state, refusals);
}

static void parameters_count(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct string_map p = {0}, q = {0};
    string_map_set(&p, "pool", "pool");
    string_map_set(&p, "csi.storage.k8s.io/fstype", "xfs");
    struct volume_create req = {.name = "a", .size_bytes = GIB, .parameters = &p};
    struct volume_info v, w;
    ok(catalog_volume_create(&f->catalog, &req, &v, &e), &e);
    assert_string_equal(string_map_get(&v.record.parameters, "csi.storage.k8s.io/fstype"), "xfs");
    string_map_set(&q, "csi.storage.k8s.io/fstype", "ext4");
    req.parameters = &q;
    assert_int_equal(catalog_volume_create(&f->catalog, &req, &w, &e), -ERR_EXISTS);
    string_map_release(&p);
    string_map_release(&q);
    volume_info_release(&v);
}

static void test_parameters_count(void **state) {
    in_fiber(state, parameters_count);
}

static void delete_and_create_again(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f, "a", GIB), gone;
    pool_fixture_write(f, &a.record.key, 0, 5, true);
    assert_int_equal(pool_fixture_count(f, "/log/"), 6);
    ok(catalog_volume_delete(c, a.id, false, &e), &e);
    assert_int_equal(pool_fixture_count(f, "/log/"), 2); /* fences stay */
    assert_int_equal(pool_fixture_count(f, "/manifest/"), 2);
    assert_int_equal(catalog_volume_get(c, a.id, &gone, &e), -ERR_NOT_FOUND);
    uint64_t before = pool_fixture_requests(f);
    ok(catalog_volume_delete(c, a.id, false, &e), &e);
    assert_int_equal(pool_fixture_requests(f) - before, 4);

    struct volume_info b = create(f, "a", GIB);
    assert_string_not_equal(a.id, b.id);
    assert_int_equal(catalog_volume_get(c, a.id, &gone, &e), -ERR_NOT_FOUND);
    ok(catalog_volume_delete(c, a.id, false, &e), &e); /* the old id: touches nothing */
    ok(catalog_volume_get(c, b.id, &gone, &e), &e);
    volume_info_release(&gone);
    volume_info_release(&a);
    volume_info_release(&b);
}

static void test_delete_and_create_again(void **state) {
    in_fiber(state, delete_and_create_again);
}

static void expand(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f, "a", GIB), v;
    bool needs_node;
    ok(catalog_volume_expand(c, a.id, 2 * GIB, 0, &v, &needs_node, &e), &e);
    assert_int_equal(v.size_bytes, 2 * GIB);
    assert_false(needs_node);
    volume_info_release(&v);
    ok(catalog_volume_expand(c, a.id, GIB, 0, &v, &needs_node, &e), &e); /* never shrinks */
    assert_int_equal(v.size_bytes, 2 * GIB);
    volume_info_release(&v);
    assert_int_equal(catalog_volume_expand(c, a.id, 0, 0, &v, &needs_node, &e), -ERR_INVALID);
    assert_int_equal(catalog_volume_expand(c, a.id, 3 * GIB, GIB, &v, &needs_node, &e),
                     -ERR_NO_SPACE);
    assert_int_equal(catalog_volume_expand(c, "x", GIB, 0, &v, &needs_node, &e), -ERR_NOT_FOUND);

    ok(catalog_node_register(c, "node-a", "1", &e), &e);
    ok(catalog_volume_publish(c, a.id, "node-a", false, false, &v, &e), &e);
    volume_info_release(&v);
    pool_fixture_write(f, &a.record.key, 1, 1, false); /* a writer has it open */
    ok(catalog_volume_expand(c, a.id, 4 * GIB, 0, &v, &needs_node, &e), &e);
    assert_int_equal(v.size_bytes, 2 * GIB);
    assert_int_equal(v.record.size_bytes, 4 * GIB);
    assert_true(needs_node);
    volume_info_release(&v);
    volume_info_release(&a);
    a = create(f, "a", GIB); /* still the one that this request made */
    volume_info_release(&a);
}

static void test_expand(void **state) {
    in_fiber(state, expand);
}

/* No node has it, but it is not closed: what a controller left that died while another one fenced
 * too. Whoever meets it closes it, with an epoch of its own. */
static void expand_abandoned(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f, "a", GIB), v;
    bool needs_node;
    pool_fixture_write(f, &a.record.key, 1, 1, false);
    ok(catalog_volume_expand(c, a.id, 2 * GIB, 0, &v, &needs_node, &e), &e);
    assert_int_equal(v.size_bytes, 2 * GIB);
    assert_false(needs_node);
    assert_true(v.closed);
    assert_int_equal(v.record.state, VOLUME_READY);
    assert_true(v.record.publish_epoch > a.record.publish_epoch);
    volume_info_release(&v);
    volume_info_release(&a);
}

static void test_expand_abandoned(void **state) {
    in_fiber(state, expand_abandoned);
}

static void lists(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    enum { VOLUMES = 57 };
    for (int i = 0; i < VOLUMES; i++) {
        char name[16];
        snprintf(name, sizeof name, "v%d", i);
        struct volume_info v = create(f, name, GIB);
        bool needs_node;
        struct volume_info w;
        for (int j = 0; i < 20 && j < 30; j++) { /* several records each */
            ok(catalog_volume_expand(c, v.id, GIB + 4096 * (uint64_t)(j + 1), 0, &w, &needs_node,
                                     &e),
               &e);
            volume_info_release(&w);
        }
        if (i % 10 == 9)
            ok(catalog_volume_delete(c, v.id, false, &e), &e);
        volume_info_release(&v);
    }
    for (size_t max = 1; max < 70; max += 17) {
        size_t seen = 0, pages = 0;
        char token[CATALOG_TOKEN_MAX] = "", last[ID_MAX] = "";
        do {
            struct volume_list l;
            ok(catalog_volume_list(c, token, max, &l, NULL, &e), &e);
            assert_true(l.count <= max);
            for (size_t i = 0; i < l.count; i++) {
                assert_true(strcmp(l.items[i].id, last) > 0);
                memcpy(last, l.items[i].id, sizeof last);
            }
            seen += l.count;
            pages++;
            memcpy(token, l.next_token, sizeof token);
            volume_list_release(&l);
        } while (token[0] != '\0');
        assert_int_equal(seen, VOLUMES - 5);
        assert_true(pages <= DIV_UP(VOLUMES, max) + 1);
    }
    struct volume_list l;
    assert_int_equal(catalog_volume_list(c, "rubbish", 10, &l, NULL, &e), -ERR_STALE);

    /* One that cannot be read ends the list, or is left out and told. */
    const char *key;
    struct view body;
    char bad[KEY_MAX] = "";
    for (size_t i = 0; !bad[0] && memory_store_at(f->memory, i, &key, &body); i++)
        if (strncmp(key, "records/", 8) == 0)
            snprintf(bad, sizeof bad, "%s", key);
    memory_store_replace(f->memory, bad, view_of_str("rubbish"));
    struct err damage = {0};
    assert_int_equal(catalog_volume_list(c, NULL, 0, &l, NULL, &e), -ERR_CORRUPT);
    assert_non_null(strstr(e.text, bad));
    ok(catalog_volume_list(c, NULL, 0, &l, &damage, &e), &e);
    assert_int_equal(l.count, VOLUMES - 6);
    assert_int_equal(damage.code, -ERR_CORRUPT);
    assert_non_null(strstr(damage.text, bad));
    volume_list_release(&l);
}

static void test_lists(void **state) {
    in_fiber(state, lists);
}

static void clones(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f, "a", GIB), b, d;
    pool_fixture_write(f, &a.record.key, 0, 3, true);
    uint64_t before = pool_fixture_requests(f);
    struct volume_create req = {.name = "b", .size_bytes = 2 * GIB, .source = a.id};
    ok(catalog_volume_create(c, &req, &b, &e), &e);
    assert_true(pool_fixture_requests(f) - before <= 14);
    assert_int_equal(b.size_bytes, 2 * GIB);
    assert_int_equal(b.depth, 1);
    struct manifest m;
    ok(manifest_newest(f->store, &b.record.key, &m, &e), &e);
    assert_int_equal(m.root.volume_count, 2);
    assert_string_equal(m.root.volumes[0].text, b.record.key.text);
    assert_string_equal(m.root.volumes[1].text, a.record.key.text);
    assert_int_equal(m.root.tail_count, 1);
    assert_int_equal(m.root.tail[0].volume, 1);
    assert_int_equal(m.root.tail[0].count, 3);
    assert_int_equal(m.held_pin_count, 1);
    manifest_release(&m);

    req = (struct volume_create){.name = "c", .limit_bytes = GIB, .source = b.id};
    assert_int_equal(catalog_volume_create(c, &req, &d, &e), -ERR_NO_SPACE);
    req.limit_bytes = 0;
    ok(catalog_volume_create(c, &req, &d, &e), &e);
    assert_int_equal(d.size_bytes, 2 * GIB);
    assert_int_equal(d.depth, 2);

    /* The source and the clone in the middle go; what the last one needs stays. */
    ok(catalog_volume_delete(c, a.id, false, &e), &e);
    ok(catalog_volume_delete(c, b.id, false, &e), &e);
    char log[KEY_MAX];
    key_log_prefix(log, &a.record.key);
    assert_int_equal(pool_fixture_count(f, log), 5); /* 3 segments, 2 fences */
    volume_info_release(&a);
    volume_info_release(&b);
    volume_info_release(&d);
}

static void test_clones(void **state) {
    in_fiber(state, clones);
}

static void too_deep(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct volume_info v = create(f, "v0", GIB);
    for (int i = 1; i <= CATALOG_DEPTH_MAX + 1; i++) {
        char name[16], source[ID_MAX];
        snprintf(name, sizeof name, "v%d", i);
        memcpy(source, v.id, sizeof source);
        volume_info_release(&v);
        struct volume_create req = {.name = name, .source = source};
        int rc = catalog_volume_create(&f->catalog, &req, &v, &e);
        assert_int_equal(rc, i > CATALOG_DEPTH_MAX ? -ERR_UNSUPPORTED : 0);
    }
}

static void test_too_deep(void **state) {
    in_fiber(state, too_deep);
}

/* A creation that died between record and content holds its name only for an equal request. */
static void half_created(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f, "a", GIB), v;
    char key[KEY_MAX], id[ID_MAX];
    key_manifest(key, &a.record.key, 1);
    memcpy(id, a.id, sizeof id);
    volume_info_release(&a);
    assert_true(memory_store_remove(f->memory, key));
    assert_int_equal(catalog_volume_get(c, id, &v, &e), -ERR_NOT_FOUND);
    a = create(f, "a", GIB);
    assert_string_equal(a.id, id);
    volume_info_release(&a);
    assert_true(memory_store_remove(f->memory, key));
    a = create(f, "a", 2 * GIB);
    assert_string_not_equal(a.id, id);
    volume_info_release(&a);
    assert_int_equal(catalog_volume_get(c, id, &v, &e), -ERR_NOT_FOUND);
}

static void test_half_created(void **state) {
    in_fiber(state, half_created);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_create_and_find, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_parameters_count, setup, teardown),
        cmocka_unit_test_setup_teardown(test_delete_and_create_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expand, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expand_abandoned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lists, setup, teardown),
        cmocka_unit_test_setup_teardown(test_clones, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_deep, setup, teardown),
        cmocka_unit_test_setup_teardown(test_half_created, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
