/* Catalog and engine together: what was written before a snapshot or a clone is what it holds,
 * through chains, growth, checkpoints, and the deletion of everything it came from. */
#include "tests/support/test.h"

#include <stdlib.h>

#include "portalbd/blockdev/blockdev_fiber.h"
#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/volume/volume.h"
#include "tests/support/pool_test.h"

enum { BLOCK = 4096, BLOCKS = 256 };
static const uint64_t SIZE = BLOCK * BLOCKS;

POOL_TEST_SETUP(10)

static struct volume_info create(struct pool_fixture *f, const char *name, const char *source) {
    struct err e;
    struct volume_info info;
    struct volume_create req = {.name = name, .size_bytes = SIZE, .source = source};
    ok(catalog_volume_create(&f->catalog, &req, &info, &e), &e);
    return info;
}

static struct snapshot_info cut(struct pool_fixture *f, const char *name, const char *source) {
    struct err e;
    struct snapshot_info s;
    ok(catalog_snapshot_create(&f->catalog, name, source, &s, &e), &e);
    return s;
}

static struct volume *attach(struct pool_fixture *f, const struct volume_info *info) {
    struct err e;
    struct volume_info v;
    ok(catalog_volume_publish(&f->catalog, info->id, "node-a", false, false, &v, &e), &e);
    struct volume_config config = {.env = f->env,
                                   .store = f->store,
                                   .key = info->record.key,
                                   .publish_epoch = (uint32_t)v.record.publish_epoch,
                                   .journal_size = 4 << 20,
                                   .cache_size = 1 << 20,
                                   .checkpoint_segments = 16,
                                   .runs_max = 3};
    volume_info_release(&v);
    struct volume *ret;
    ok(volume_open(&config, &ret, &e), &e);
    return ret;
}

static void freed(void *arg) {
    fiber_done_set(arg);
}

static void drop(struct pool_fixture *f, struct volume *v) {
    struct fiber_done done;
    fiber_done_init(&done);
    volume_free(v, freed, &done);
    fiber_done_wait_always(f->env, &done);
}

static void detach(struct pool_fixture *f, struct volume *v, const struct volume_info *info,
                   bool clean) {
    struct err e;
    if (clean)
        ok(volume_close(v, &e), &e);
    drop(f, v);
    ok(catalog_volume_unpublish(&f->catalog, info->id, "node-a", &e), &e);
}

/* Block i holds version `stamp` where i % step == 0. */
static void write_some(struct pool_fixture *f, struct volume *v, uint32_t *image, uint32_t stamp,
                       uint32_t step) {
    struct err e;
    uint32_t block[BLOCK / 4];
    for (uint32_t i = 0; i < BLOCKS; i += step) {
        for (size_t j = 0; j < ARRAY_LEN(block); j++)
            block[j] = stamp * 1000 + i;
        image[i] = stamp * 1000 + i;
        assert_int_equal(
            bd_write(f->env, volume_blockdev(v), (uint64_t)i * BLOCK, block, sizeof block, 0), 0);
        if (i % 64 == 0)
            ok(volume_flush(v, &e), &e);
    }
    ok(volume_flush(v, &e), &e);
}

static void check(struct pool_fixture *f, struct volume *v, const uint32_t *image) {
    uint32_t block[BLOCK / 4];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(
            bd_read(f->env, volume_blockdev(v), (uint64_t)i * BLOCK, block, sizeof block), 0);
        if (block[0] != image[i] || block[ARRAY_LEN(block) - 1] != image[i])
            fail_msg("block %u holds %u, not %u", i, block[0], image[i]);
    }
}

static void check_volume(struct pool_fixture *f, const struct volume_info *info,
                         const uint32_t *image) {
    struct volume *v = attach(f, info);
    check(f, v, image);
    detach(f, v, info, true);
}

static void check_pin(struct pool_fixture *f, const struct snapshot_info *s,
                      const uint32_t *image) {
    struct volume_config config = {.env = f->env,
                                   .store = f->store,
                                   .key = s->record.source,
                                   .journal_size = 4 << 20,
                                   .cache_size = 1 << 20};
    struct err e;
    struct volume *v;
    ok(volume_open_pin(&config, &s->record.pin, &v, &e), &e);
    check(f, v, image);
    drop(f, v);
}

static void pass(struct background *b) {
    struct err e;
    struct background_result r;
    ok(background_pass(b, &r, &e), &e);
    if (r.failures > 0)
        fail_msg("%s", r.first_failure.text);
}

static void life(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct background b;
    background_init(&b, c);
    uint32_t image_v[BLOCKS] = {0}, image_s[BLOCKS], image_w[BLOCKS], image_x[BLOCKS],
             image_y[BLOCKS];
    ok(catalog_node_register(c, "node-a", "1", &e), &e);
    struct volume_info v = create(f, "v", NULL);
    struct volume *dev = attach(f, &v);
    write_some(f, dev, image_v, 1, 1);
    ok(volume_checkpoint(dev, &e), &e);         /* a run ... */
    write_some(f, dev, image_v, 2, 3);          /* ... and a tail */
    struct snapshot_info s = cut(f, "s", v.id); /* while it is in use */
    memcpy(image_s, image_v, sizeof image_s);
    write_some(f, dev, image_v, 3, 5);
    check_pin(f, &s, image_s);
    detach(f, dev, &v, true);

    struct volume_info w = create(f, "w", s.id);
    memcpy(image_w, image_s, sizeof image_w);
    check_volume(f, &w, image_w);
    dev = attach(f, &w);
    write_some(f, dev, image_w, 4, 7);
    ok(volume_checkpoint(dev, &e), &e);
    write_some(f, dev, image_w, 5, 11);
    struct snapshot_info s2 = cut(f, "s2", w.id);
    detach(f, dev, &w, false); /* as a crash: fenced by the controller */
    memcpy(image_x, image_w, sizeof image_x);
    struct volume_info x = create(f, "x", s2.id), y = create(f, "y", w.id);
    memcpy(image_y, image_w, sizeof image_y);
    dev = attach(f, &y);
    write_some(f, dev, image_y, 6, 13);
    detach(f, dev, &y, true);
    check_volume(f, &v, image_v);
    check_volume(f, &w, image_w);

    ok(catalog_snapshot_delete(c, s.id, &e), &e);
    ok(catalog_volume_delete(c, v.id, false, &e), &e);
    pass(&b);
    ok(catalog_volume_delete(c, w.id, false, &e), &e);
    pass(&b);
    check_pin(f, &s2, image_x);
    ok(catalog_snapshot_delete(c, s2.id, &e), &e);
    pass(&b);
    check_volume(f, &x, image_x);
    check_volume(f, &y, image_y);

    /* Growth of a clone, then its end and that of the other: nothing is left. */
    bool needs_node;
    struct volume_info grown;
    ok(catalog_volume_expand(c, x.id, 2 * SIZE, 0, &grown, &needs_node, &e), &e);
    assert_false(needs_node);
    volume_info_release(&grown);
    check_volume(f, &x, image_x);
    ok(catalog_volume_delete(c, x.id, false, &e), &e);
    pass(&b);
    check_volume(f, &y, image_y);
    ok(catalog_volume_delete(c, y.id, false, &e), &e);
    for (int i = 0; i < 4; i++)
        pass(&b);
    assert_int_equal(pool_fixture_count(f, "/pins/") + pool_fixture_count(f, "/map/"), 0);
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++)
        if (strstr(key, "/log/") && body.len != SEGMENT_FENCE_SIZE)
            fail_msg("'%s' is left", key);
    background_release(&b);
    volume_info_release(&v);
    volume_info_release(&w);
    volume_info_release(&x);
    volume_info_release(&y);
    snapshot_info_release(&s);
    snapshot_info_release(&s2);
}

static void test_life(void **state) {
    pool_fixture_run(*state, life, *state);
}

static int read_block(struct pool_fixture *f, struct volume *v) {
    uint8_t block[BLOCK];
    return bd_read(f->env, volume_blockdev(v), 0, block, sizeof block);
}

/* Data that is missing under a reader is damage as long as its snapshot is there, even if nobody
 * can read the snapshot's root any more; only a snapshot that was deleted takes its data along. */
static void missing_under_reader(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    uint32_t image[BLOCKS] = {0};
    ok(catalog_node_register(&f->catalog, "node-a", "1", &e), &e);
    struct volume_info v = create(f, "v", NULL);
    struct volume *dev = attach(f, &v), *reader;
    write_some(f, dev, image, 1, 1);
    struct snapshot_info s = cut(f, "s", v.id);
    detach(f, dev, &v, true);
    struct volume_config config = {.env = f->env, .store = f->store, .key = v.record.key};
    ok(volume_open_pin(&config, &s.record.pin, &reader, &e), &e);

    char root[KEY_MAX];
    key_pin_root(root, &v.record.key, &s.record.pin);
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body);)
        if (strstr(key, "/log/"))
            assert_true(memory_store_remove(f->memory, key));
        else
            i++;
    assert_int_equal(read_block(f, reader), -ERR_CORRUPT);
    memory_store_replace(f->memory, root, view_of_str("rubbish"));
    assert_int_equal(read_block(f, reader), -ERR_CORRUPT);
    assert_true(memory_store_remove(f->memory, root));
    assert_int_equal(read_block(f, reader), -ERR_SHUTDOWN);
    drop(f, reader);
    volume_info_release(&v);
    snapshot_info_release(&s);
}

static void test_missing_under_reader(void **state) {
    pool_fixture_run(*state, missing_under_reader, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life, setup, teardown),
        cmocka_unit_test_setup_teardown(test_missing_under_reader, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
