/* fsck of a pool that somebody's hand was in: what is lost, misplaced, swapped or in the way is
 * told by its key, and changing it back makes all good again. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/volume/destroy.h"
#include "tests/support/fsck_story.h"
#include "tests/support/pool_test.h"

POOL_TEST_SETUP(7)

/* What was changed, and what was there before. */
struct undo {
    struct pool_fixture *f;
    char *keys[64];
    uint8_t *bodies[64]; /* NULL: there was none */
    size_t lens[64];
    size_t count;
};

/* body.data NULL: deletes it. */
static void set(struct undo *u, const char *key, struct view body) {
    struct view before;
    bool there = memory_store_find(u->f->memory, key, &before);
    assert_true(u->count < ARRAY_LEN(u->keys));
    u->keys[u->count] = xstrdup(key);
    u->bodies[u->count] = there ? view_copy(before) : NULL;
    u->lens[u->count++] = there ? before.len : 0;
    if (!body.data)
        assert_true(memory_store_remove(u->f->memory, u->keys[u->count - 1]));
    else if (there)
        memory_store_replace(u->f->memory, key, body);
    else
        ok(objstore_put(u->f->store, key, body, NULL, NULL), NULL);
}

static void undo(struct undo *u) {
    while (u->count-- > 0) {
        const char *key = u->keys[u->count];
        (void)memory_store_remove(u->f->memory, key);
        if (u->bodies[u->count])
            ok(objstore_put(u->f->store, key, view_of(u->bodies[u->count], u->lens[u->count]), NULL,
                            NULL),
               NULL);
        free(u->bodies[u->count]);
        free(u->keys[u->count]);
    }
    u->count = 0;
}

static void set_text(struct undo *u, const char *folder, const char *name, const char *text) {
    char key[2 * KEY_MAX];
    snprintf(key, sizeof key, "%s%s", folder, name);
    set(u, key, view_of_str(text));
}

static void swap(struct undo *u, const char *a, const char *b) {
    struct view body;
    assert_true(memory_store_find(u->f->memory, a, &body));
    size_t a_len = body.len;
    CLEANUP_FREE uint8_t *of_a = view_copy(body);
    assert_true(memory_store_find(u->f->memory, b, &body));
    size_t b_len = body.len;
    CLEANUP_FREE uint8_t *of_b = view_copy(body);
    set(u, a, view_of(of_b, b_len));
    set(u, b, view_of(of_a, a_len));
}

/* All below a prefix. */
static void drop(struct undo *u, const char *prefix) {
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(u->f->memory, i, &key, &body);) {
        if (strncmp(key, prefix, strlen(prefix)) == 0)
            set(u, key, (struct view){0});
        else
            i++;
    }
    assert_true(u->count > 0);
}

/* The n-th key that has both. */
static char *nth(struct pool_fixture *f, const char *prefix, const char *part, size_t n) {
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++)
        if (strncmp(key, prefix, strlen(prefix)) == 0 && strstr(key, part) && n-- == 0)
            return xstrdup(key);
    fail_msg("no '%s...%s'", prefix, part);
    return NULL;
}

/* Undoes it, when the whole pool's check has told this of this key. */
static void expect(struct undo *u, enum fsck_kind kind, const char *key, const char *text) {
    static struct findings l;
    struct fsck_result r = fsck_story_check(u->f, NULL, false, &l);
    assert_true((kind == FSCK_DAMAGE ? r.damaged : r.leaked) > 0);
    if (!findings_name(&l, key))
        fail_msg("'%s' is not told, but '%s': %s", key, l.keys[0], l.texts[0]);
    findings_tell(&l, text);
    undo(u);
    assert_int_equal(fsck_story_check(u->f, NULL, true, &l).damaged, 0);
}

struct folders {
    char volume[KEY_MAX], records[KEY_MAX], manifests[KEY_MAX];
    struct volume_key key;
};

static void find_folders(struct pool_fixture *f, const char *id, struct folders *ret) {
    struct err e;
    struct parsed_id p;
    ok(catalog_parse_id(&f->catalog, ID_VOLUME, id, &p, &e), &e);
    ret->key = p.key;
    key_volume_prefix(ret->volume, &p.key);
    key_manifests_prefix(ret->manifests, &p.key);
    key_records_prefix(ret->records, p.name_hash);
}

static void lost(struct undo *u, const struct folders *v, const struct folders *clone) {
    char key[KEY_MAX];
    drop(u, v->records); /* the only place that knows of the volume */
    expect(u, FSCK_LEAK, v->volume, "no record has ever named");
    drop(u, clone->volume);
    key_manifest(key, &clone->key, 1);
    expect(u, FSCK_DAMAGE, key, "has no manifest");
    key_pool(key);
    set(u, key, (struct view){0});
    expect(u, FSCK_DAMAGE, key, "there are volumes");
    set(u, key, view_of_str("{}"));
    expect(u, FSCK_DAMAGE, key, "format version");

    /* One bad record keeps nobody from what another one needs. */
    CLEANUP_FREE char *bad = nth(u->f, "snapshots/", "fffe.json", 0);
    CLEANUP_FREE char *good = nth(u->f, "snapshots/", "fffe.json", 1);
    for (int i = 0; i < 2; i++) {
        struct view body;
        struct snapshot_record r;
        struct err e;
        assert_true(memory_store_find(u->f->memory, i == 0 ? good : bad, &body));
        ok(snapshot_record_decode(&r, 1, body, &e), &e);
        key_pin_root(key, &r.source, &r.pin);
        if (memory_store_find(u->f->memory, key, &body)) { /* not a deleted one's */
            set(u, i == 0 ? bad : good, view_of_str("{}"));
            set(u, key, (struct view){0});
            key_pin_claim(key, &r.source, &r.pin);
            set(u, key, (struct view){0});
            key_pin_root(key, &r.source, &r.pin);
            expect(u, FSCK_DAMAGE, key, "it is lost; snapshot");
        }
        snapshot_record_release(&r);
    }
}

static void misplaced(struct undo *u, const struct folders *v, const struct folders *clone) {
    char key[2 * KEY_MAX];
    set_text(u, v->manifests, "0", "?");
    snprintf(key, sizeof key, "%s0", v->manifests);
    expect(u, FSCK_DAMAGE, key, "hides the newest");
    set_text(u, v->records, "0", "?");
    snprintf(key, sizeof key, "%s0", v->records);
    expect(u, FSCK_DAMAGE, key, "hides the newest");

    char first[KEY_MAX], other[KEY_MAX];
    key_manifest(first, &v->key, 1);
    key_manifest(other, &clone->key, 1);
    swap(u, first, other);
    expect(u, FSCK_DAMAGE, first, "of another volume");
    CLEANUP_FREE char *claim = nth(u->f, v->volume, ".claim", 0);
    CLEANUP_FREE char *another = nth(u->f, v->volume, ".claim", 1);
    swap(u, claim, another);
    expect(u, FSCK_DAMAGE, claim, "another pin's");

    CLEANUP_FREE char *record = nth(u->f, v->records, "", 0);
    CLEANUP_FREE char *of_clone = nth(u->f, clone->records, "", 0);
    swap(u, record, of_clone);
    expect(u, FSCK_DAMAGE, record, "is not of this folder");
    CLEANUP_FREE char *snapshot = nth(u->f, "snapshots/", "fffe.json", 0);
    CLEANUP_FREE char *other_one = nth(u->f, "snapshots/", "fffe.json", 1);
    swap(u, snapshot, other_one);
    expect(u, FSCK_DAMAGE, other_one, "does not belong here");
    struct err e;
    ok(catalog_node_register(&u->f->catalog, "node-z", "1", &e), &e);
    CLEANUP_FREE char *node = nth(u->f, "nodes/", "", 0);
    CLEANUP_FREE char *node_z = nth(u->f, "nodes/node-z/", "", 0);
    swap(u, node, node_z);
    expect(u, FSCK_DAMAGE, node_z, "does not belong here");
}

/* The newest run's index. */
static void newest_index(struct pool_fixture *f, const struct volume_key *v, char ret[KEY_MAX]) {
    struct err e;
    struct manifest m;
    ok(manifest_newest(f->store, v, &m, &e), &e);
    assert_true(m.root.run_count > 0 && m.root.runs[0].index.volume == 0);
    key_map(ret, v, &m.root.runs[0].index.id);
    manifest_release(&m);
}

static void by_hand(void *arg) {
    struct pool_fixture *f = arg;
    struct undo u = {.f = f};
    struct fsck_story s;
    struct folders v, clone, twins[2];
    struct err e;
    static struct findings l;
    char a[KEY_MAX], b[KEY_MAX], id[ID_MAX];
    fsck_story_tell(f, &s);
    find_folders(f, s.volume, &v);
    find_folders(f, s.clone, &clone);
    lost(&u, &v, &clone);
    misplaced(&u, &v, &clone);

    /* Indexes that differ in nothing but the volume that they are about. */
    for (size_t i = 0; i < 2; i++) {
        fsck_story_create(f, i == 0 ? "twin-0" : "twin-1", NULL, id);
        fsck_story_write(f, id, 1);
        find_folders(f, id, &twins[i]);
    }
    newest_index(f, &twins[0].key, a);
    newest_index(f, &twins[1].key, b);
    swap(&u, a, b);
    expect(&u, FSCK_DAMAGE, a, "a run about volume");
    newest_index(f, &v.key, b);
    swap(&u, a, b);
    expect(&u, FSCK_DAMAGE, a, "its root says");

    /* What the run needs is no garbage while its index cannot be read. */
    uint64_t garbage = fsck_story_check(f, NULL, true, &l).garbage;
    newest_index(f, &v.key, a);
    newest_index(f, &twins[1].key, b);
    set(&u, a, view_of_str("?"));
    assert_true(fsck_story_check(f, NULL, true, &l).garbage <= garbage);
    undo(&u);
    swap(&u, a, b);
    assert_true(fsck_story_check(f, NULL, true, &l).garbage <= garbage);
    undo(&u);
    set(&u, a, (struct view){0});
    assert_true(fsck_story_check(f, NULL, true, &l).garbage <= garbage);
    undo(&u);

    /* By name, also when its record says nothing any more. */
    struct fsck k = {.catalog = &f->catalog, .on_finding = findings_add, .arg = &l};
    memset(&l, 0, sizeof l);
    ok(fsck_volume_named(&k, "v", &e), &e);
    assert_int_equal(k.result.damaged, 0);
    assert_int_equal(k.result.volumes, 1);
    assert_int_equal(fsck_volume_named(&k, "none", &e), -ERR_NOT_FOUND);
    CLEANUP_FREE char *record = nth(f, v.records, "", 0);
    set(&u, record, view_of_str("{}"));
    ok(fsck_volume_named(&k, "v", &e), &e);
    assert_int_equal(k.result.damaged, 1);
    assert_true(findings_name(&l, record));
    undo(&u);
    k.result.damaged = 0;
    CLEANUP_FREE char *manifest = nth(f, v.manifests, "", 0);
    set(&u, manifest, view_of_str("{}"));
    ok(fsck_volume(&k, s.volume, &e), &e);
    assert_int_equal(k.result.damaged, 1);
    undo(&u);
}

/* Puts that took effect once more behind the deletion: the claim of a clone that has gone, and the
 * root of a deleted snapshot that names what has gone since. */
static void once_more(void *arg) {
    struct pool_fixture *f = arg;
    struct undo u = {.f = f};
    struct err e;
    struct fsck_story s;
    struct folders clone;
    struct manifest m;
    struct snapshot_info snapshot;
    struct volume_collected collected;
    struct pin_root root;
    struct view body;
    char id[ID_MAX], claim_key[KEY_MAX], root_key[KEY_MAX];
    static struct findings l;
    fsck_story_tell(f, &s);
    fsck_story_create(f, "short", s.volume, id);
    find_folders(f, id, &clone);
    ok(manifest_newest(f->store, &clone.key, &m, &e), &e);
    assert_int_equal(m.held_pin_count, 1);
    key_pin_claim(claim_key, &m.held_pins[0].volume, &m.held_pins[0].pin);
    manifest_release(&m);
    assert_true(memory_store_find(f->memory, claim_key, &body));
    CLEANUP_FREE uint8_t *claim = view_copy(body);
    size_t claim_len = body.len;
    ok(catalog_volume_delete(&f->catalog, id, false, &e), &e);
    ok(volume_collect_deleted(f->env, f->store, &clone.key, &collected, &e), &e);
    assert_false(memory_store_find(f->memory, claim_key, &body));

    fsck_story_cut(f, "v@three", s.volume, id);
    ok(catalog_snapshot_get(&f->catalog, id, &snapshot, &e), &e);
    struct snapshot_record *r = &snapshot.record;
    ok(pin_root_get(f->store, &r->source, &r->pin, &root, &e), &e);
    assert_true(root.root.run_count > 0);
    root.root.runs[0].index.id.bytes[0] ^= 1;
    key_pin_root(root_key, &r->source, &r->pin);
    CLEANUP_BUF struct buf bad = {0};
    ok(pin_root_encode(&bad, &root, &e), &e);
    pin_root_release(&root);
    set(&u, root_key, buf_view(&bad));
    assert_int_equal(fsck_story_check(f, NULL, true, &l).damaged, 1); /* while it is needed */
    undo(&u);
    snapshot_info_release(&snapshot);
    ok(catalog_snapshot_delete(&f->catalog, id, &e), &e);

    uint64_t pending = fsck_story_check(f, NULL, true, &l).pending;
    set(&u, claim_key, view_of(claim, claim_len));
    struct fsck_result found = fsck_story_check(f, NULL, true, &l);
    assert_int_equal(found.damaged, 0);
    assert_true(found.pending > pending);
    undo(&u);
    set(&u, root_key, buf_view(&bad));
    found = fsck_story_check(f, NULL, true, &l);
    assert_int_equal(found.damaged, 0);
    assert_true(found.pending > pending);
    undo(&u);
}

static void test_once_more(void **state) {
    pool_fixture_run(*state, once_more, *state);
}

/* A large pool has many records, and deleted volumes, before the first run is read. */
static void on_progress(void *arg, const struct fsck_result *so_far, const char *where) {
    size_t *calls = arg;
    (void)so_far;
    calls[strcmp(where, "records/") == 0 ? 0 : strncmp(where, "pv-", 3) == 0 ? 1 : 2]++;
}

static void progress(void *arg) {
    struct pool_fixture *f = arg;
    struct fsck_story s;
    struct err e;
    size_t calls[3] = {0};
    fsck_story_tell(f, &s);
    struct fsck k = {
        .catalog = &f->catalog, .quick = true, .on_progress = on_progress, .arg = calls};
    ok(fsck_pool(&k, &e), &e);
    assert_int_equal(calls[0], 5);
    assert_true(calls[1] >= k.result.volumes && calls[2] > 0);
}

static void test_progress(void **state) {
    pool_fixture_run(*state, progress, *state);
}

static void test_by_hand(void **state) {
    pool_fixture_run(*state, by_hand, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_by_hand, setup, teardown),
        cmocka_unit_test_setup_teardown(test_once_more, setup, teardown),
        cmocka_unit_test_setup_teardown(test_progress, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
