/* A golden pool: what a release wrote is readable for ever. A volume with merged runs, moved
 * objects and a snapshot whose objects it does not need any more, a clone, a clone of the clone, a
 * volume that lives on in a snapshot only, a writer that crashed.
 *
 *   test_golden_pool                  reads tests/golden/pool-*: fsck finds nothing, each volume
 * and snapshot has the content of old, and can be written to test_golden_pool --write FOLDER writes
 * such a pool; a folder that is there stays as it is */
#include "tests/support/test.h"

#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "common/crc32c.h"
#include "common/log.h"
#include "portalbd/catalog/fsck.h"
#include "portalbd/objstore/file.h"
#include "tests/support/engine_writer.h"

enum { SIZE = 256 * 1024, OBJECTS_MAX = 1000, LISTED_MAX = 32 };
static const char folders[] = "tests/golden/pool-*";

/* --- writing --- */

static struct volume *attach(struct pool_fixture *f, const char *id) {
    struct err e;
    struct volume_info i;
    ok(catalog_volume_publish(&f->catalog, id, "node-a", false, false, &i, &e), &e);
    struct volume *v = engine_open(f, &i.record.key, i.record.publish_epoch);
    volume_info_release(&i);
    return v;
}

static void detach(struct pool_fixture *f, struct volume *v, const char *id) {
    struct err e;
    engine_end(f, v, true);
    ok(catalog_volume_unpublish(&f->catalog, id, "node-a", &e), &e);
}

/* Small writes, so that the pool stays small, in its first `size` bytes. */
static void scribble(struct pool_fixture *f, struct volume *v, uint64_t size, unsigned writes) {
    struct err e;
    for (unsigned i = 0; i < writes; i++) {
        uint8_t data[4096];
        uint64_t count = 1 + env_random_u64(f->env) % 8;
        uint64_t sector = env_random_u64(f->env) % (size / SECTOR_SIZE - count);
        env_random(f->env, data, sizeof data);
        if (i % 6 > 0)
            memset(data, (int)(i % 50), sizeof data); /* compresses; zeroes too */
        engine_put(f, v, sector * SECTOR_SIZE, count * SECTOR_SIZE, data);
        if (i % 4 == 3)
            ok(volume_flush(v, &e), &e);
    }
}

static void make(struct pool_fixture *f, const char *name, const char *source, char ret[ID_MAX]) {
    struct err e;
    struct volume_info i;
    struct volume_create req = {.name = name, .size_bytes = SIZE, .source = source};
    ok(catalog_volume_create(&f->catalog, &req, &i, &e), &e);
    memcpy(ret, i.id, ID_MAX);
    volume_info_release(&i);
}

static void cut(struct pool_fixture *f, const char *name, const char *volume, char ret[ID_MAX]) {
    struct err e;
    struct snapshot_info i;
    ok(catalog_snapshot_create(&f->catalog, name, volume, &i, &e), &e);
    memcpy(ret, i.id, ID_MAX);
    snapshot_info_release(&i);
}

static void write_pool(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct pool_record pool;
    struct pool_create options = {.cluster_id = NULL};
    char volume[ID_MAX], clone[ID_MAX], chained[ID_MAX], shell[ID_MAX], snapshot[ID_MAX];
    ok(catalog_pool_create(&f->catalog, &options, &pool, &e), &e);
    pool_record_release(&pool);
    ok(catalog_node_register(&f->catalog, "node-a", "1", &e), &e);
    make(f, "volume", NULL, volume);
    struct volume *v = attach(f, volume);
    scribble(f, v, SIZE, 60);
    cut(f, "volume@live", volume, snapshot); /* with a log behind its runs */
    scribble(f, v, SIZE, 40);
    engine_trim(f, v, SIZE / 16);
    detach(f, v, volume);
    cut(f, "volume@closed", volume, snapshot);
    make(f, "clone", snapshot, clone);
    v = attach(f, clone);
    scribble(f, v, SIZE, 20);
    detach(f, v, clone);
    make(f, "chained", clone, chained);
    v = attach(f, chained);
    scribble(f, v, SIZE, 10);
    detach(f, v, chained);
    make(f, "shell", NULL, shell);
    v = attach(f, shell);
    scribble(f, v, SIZE, 12);
    detach(f, v, shell);
    cut(f, "shell@last", shell, snapshot);
    ok(catalog_volume_delete(&f->catalog, shell, false, &e), &e);
    v = attach(f, volume);
    for (int i = 0; i < 4; i++) { /* until objects that no snapshot needs are mostly dead */
        scribble(f, v, SIZE / 8, 40);
        ok(volume_checkpoint(v, &e), &e);
        ok(volume_collect(v, &e), &e);
    }
    scribble(f, v, SIZE, 20);
    ok(volume_flush(v, &e), &e);
    engine_end(f, v, false); /* its manifest is open, its log has a tail */
}

/* --- content --- */

struct content {
    char name[64];
    uint64_t size;
    uint32_t crc;
};
struct contents {
    struct content items[LISTED_MAX];
    size_t count;
};

static void add(struct pool_fixture *f, struct contents *l, const char *name, struct volume *v) {
    uint8_t data[4096];
    struct content *c = &l->items[l->count++];
    assert_true(l->count < LISTED_MAX);
    *c = (struct content){.size = bd_size_bytes(volume_blockdev(v))};
    snprintf(c->name, sizeof c->name, "%s", name);
    for (uint64_t at = 0; at < c->size; at += sizeof data) {
        engine_read(f, v, at, sizeof data, data);
        c->crc = crc32c_extend(c->crc, view_of(data, sizeof data));
    }
}

static void read_snapshots(struct pool_fixture *f, struct contents *l) {
    struct err e;
    struct snapshot_list list;
    ok(catalog_snapshot_list(&f->catalog, NULL, NULL, 0, &list, NULL, &e), &e);
    for (size_t i = 0; i < list.count; i++) {
        const struct snapshot_record *r = &list.items[i].record;
        struct volume_config config = {.env = f->env, .store = f->store, .key = r->source};
        struct volume *v;
        ok(volume_open_pin(&config, &r->pin, &v, &e), &e);
        add(f, l, r->name, v);
        engine_end(f, v, false);
    }
    snapshot_list_release(&list);
}

static void read_volumes(struct pool_fixture *f, struct contents *l) {
    struct err e;
    struct volume_list list;
    ok(catalog_volume_list(&f->catalog, NULL, 0, &list, NULL, &e), &e);
    for (size_t i = 0; i < list.count; i++) {
        struct volume *v = attach(f, list.items[i].id);
        add(f, l, list.items[i].record.name, v);
        detach(f, v, list.items[i].id);
    }
    volume_list_release(&list);
}

/* --- files --- */

static void save(struct pool_fixture *f, const char *folder) {
    struct err e;
    const char *key;
    struct view body;
    struct objstore *s = objstore_file_open(f->env, folder);
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++)
        ok(objstore_put(s, key, body, NULL, &e), &e);
    objstore_close(s);
}

static void load(struct pool_fixture *f, const char *folder) {
    struct err e;
    struct obj_list list;
    struct objstore *s = objstore_file_open(f->env, folder);
    ok(objstore_list(s, "", NULL, OBJECTS_MAX, &list, &e), &e);
    assert_true(list.count > 50 && list.count < OBJECTS_MAX);
    for (size_t i = 0; i < list.count; i++) {
        CLEANUP_BUF struct buf body = {0};
        ok(objstore_get(s, list.entries[i].key, OBJ_SIZE_MAX, &body, &e), &e);
        memory_store_replace(f->memory, list.entries[i].key, buf_view(&body));
    }
    obj_list_release(&list);
    objstore_close(s);
}

static FILE *open_contents(const char *folder, const char *mode) {
    CLEANUP_FREE char *path = xasprintf("%s.txt", folder);
    FILE *file = fopen(path, mode);
    if (!file)
        fail_msg("%s cannot be opened: run from the root of the repository", path);
    return file;
}

static void expect(const struct contents *l, const char *folder) {
    FILE *file = open_contents(folder, "r");
    struct content want;
    size_t count = 0;
    while (fscanf(file, "%63s %" SCNu64 " %" SCNx32, want.name, &want.size, &want.crc) == 3) {
        count++;
        bool found = false;
        for (size_t i = 0; i < l->count && !found; i++)
            found = strcmp(l->items[i].name, want.name) == 0 && l->items[i].size == want.size &&
                    l->items[i].crc == want.crc;
        if (!found)
            fail_msg("%s: '%s' is not what it was", folder, want.name);
    }
    fclose(file);
    assert_int_equal(count, l->count);
}

/* --- the test --- */

struct run {
    struct pool_fixture f;
    const char *folder;
    struct contents contents;
};

static void on_finding(void *arg, const struct fsck_finding *f) {
    (void)arg;
    if (f->kind != FSCK_GARBAGE)
        printf("%s: %s\n", f->key, f->text);
}

static void check(struct pool_fixture *f) {
    struct err e;
    struct fsck k = {.catalog = &f->catalog, .on_finding = on_finding};
    ok(fsck_pool(&k, &e), &e);
    assert_int_equal(k.result.damaged + k.result.leaked + k.result.unsettled, 0);
    assert_true(k.result.runs > 3 && k.result.frames > 20);
}

static void read_golden(void *arg) {
    struct run *r = arg;
    load(&r->f, r->folder);
    check(&r->f);
    read_snapshots(&r->f, &r->contents);
    read_volumes(&r->f, &r->contents);
    expect(&r->contents, r->folder);
    check(&r->f); /* what this version has written since is good beside it */
}

static void test_read(void **state) {
    (void)state;
    glob_t g;
    assert_int_equal(glob(folders, GLOB_ONLYDIR, NULL, &g), 0);
    size_t pools = 0;
    for (size_t i = 0; i < g.gl_pathc; i++) {
        struct stat st;
        if (stat(g.gl_pathv[i], &st) < 0 || !S_ISDIR(st.st_mode))
            continue;
        static struct run r;
        r = (struct run){.folder = g.gl_pathv[i]};
        pool_fixture_init(&r.f, 2);
        pool_fixture_run(&r.f, read_golden, &r);
        pool_fixture_release(&r.f);
        printf("%s: %zu volumes and snapshots\n", r.folder, r.contents.count);
        pools++;
    }
    globfree(&g);
    assert_true(pools > 0);
}

static void write_golden(void *arg) {
    struct run *r = arg;
    write_pool(&r->f);
    if (getenv("VERBOSE"))
        pool_fixture_print(&r->f);
    CHECK(pool_fixture_count(&r->f, "/moved/") > 0 && pool_fixture_count(&r->f, "/map/") > 10);
    save(&r->f, r->folder);
    read_snapshots(&r->f, &r->contents);
    read_volumes(&r->f, &r->contents);
    FILE *file = open_contents(r->folder, "w");
    for (size_t i = 0; i < r->contents.count; i++)
        fprintf(file, "%s %" PRIu64 " %08" PRIx32 "\n", r->contents.items[i].name,
                r->contents.items[i].size, r->contents.items[i].crc);
    CHECK(fclose(file) == 0);
}

static int write_new(const char *folder) {
    static struct run r;
    struct stat st;
    if (stat(folder, &st) == 0) {
        printf("%s stays\n", folder);
        return 1;
    }
    CHECK(mkdir(folder, 0755) == 0);
    r.folder = folder;
    pool_fixture_init(&r.f, 1);
    pool_fixture_run(&r.f, write_golden, &r);
    pool_fixture_release(&r.f);
    return 0;
}

int main(int argc, char **argv) {
    log_set_level(LOG_LEVEL_ERROR);
    if (argc == 3 && strcmp(argv[1], "--write") == 0)
        return write_new(argv[2]);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
