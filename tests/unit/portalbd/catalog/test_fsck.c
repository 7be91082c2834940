/* fsck: a pool that the real engine wrote has nothing to be told; every object of it that goes, or
 * in which a bit turns, is told; beside a writer nothing is told that is not so. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/catalog/fsck.h"
#include "portalbd/catalog/inspect.h"
#include "portalbd/volume/run_writer.h"
#include "tests/support/engine_writer.h"
#include "tests/support/pool_test.h"

enum { SIZE = 4 * 1024 * 1024 };

POOL_TEST_SETUP(7)

/* --- the pool --- */

struct story {
    char volume[ID_MAX], clone[ID_MAX], chained[ID_MAX];
};

static uint64_t publish(struct pool_fixture *f, const char *id, struct volume_key *ret) {
    struct err e;
    struct volume_info i;
    ok(catalog_volume_publish(&f->catalog, id, "node-a", false, false, &i, &e), &e);
    uint64_t epoch = i.record.publish_epoch;
    *ret = i.record.key;
    volume_info_release(&i);
    return epoch;
}

static void write_volume(struct pool_fixture *f, const char *id, int writes) {
    struct err e;
    struct volume_key key;
    uint64_t epoch = publish(f, id, &key);
    struct volume *v = engine_open(f, &key, epoch);
    engine_write(f, v, SIZE, writes);
    engine_end(f, v, true);
    ok(catalog_volume_unpublish(&f->catalog, id, "node-a", &e), &e);
}

static void create(struct pool_fixture *f, const char *name, const char *source, char ret[ID_MAX]) {
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

/* A volume with snapshots, a clone, a clone of the clone, a deleted snapshot, a volume that lives
 * on in a snapshot only, one that is gone. */
static void tell(struct pool_fixture *f, struct story *s) {
    struct err e;
    char snapshot[ID_MAX], other[ID_MAX];
    struct catalog *c = &f->catalog;
    struct pool_record pool;
    struct pool_create options = {.cluster_id = NULL};
    ok(catalog_pool_create(c, &options, &pool, &e), &e);
    pool_record_release(&pool);
    ok(catalog_node_register(c, "node-a", "1", &e), &e);
    create(f, "v", NULL, s->volume);
    write_volume(f, s->volume, 120);
    cut(f, "v@one", s->volume, snapshot);
    write_volume(f, s->volume, 60);
    cut(f, "v@two", s->volume, other);
    create(f, "clone", snapshot, s->clone);
    ok(catalog_snapshot_delete(c, other, &e), &e);
    write_volume(f, s->clone, 30);
    create(f, "chained", s->clone, s->chained);
    write_volume(f, s->chained, 10);
    write_volume(f, s->volume, 5);
    create(f, "shell", NULL, other);
    write_volume(f, other, 20);
    cut(f, "shell@last", other, snapshot);
    ok(catalog_volume_delete(c, other, false, &e), &e);
    create(f, "gone", NULL, other);
    write_volume(f, other, 20);
    ok(catalog_volume_delete(c, other, false, &e), &e);
}

/* --- findings --- */

struct findings {
    size_t count;
    char keys[256][KEY_MAX];
    char texts[256][ERR_TEXT_MAX];
};

static void on_finding(void *arg, const struct fsck_finding *f) {
    struct findings *l = arg;
    if (getenv("VERBOSE"))
        printf("  %s %s: %s\n", f->kind == FSCK_DAMAGE ? "damage" : "garbage", f->key, f->text);
    if (l->count < ARRAY_LEN(l->keys)) {
        snprintf(l->keys[l->count], KEY_MAX, "%s", f->key);
        snprintf(l->texts[l->count], sizeof l->texts[0], "%s", f->text);
    }
    l->count++;
}

static struct fsck_result check(struct pool_fixture *f, const char *volume, bool quick,
                                struct findings *l) {
    struct err e;
    memset(l, 0, sizeof *l);
    struct fsck k = {.catalog = &f->catalog, .quick = quick, .on_finding = on_finding, .arg = l};
    ok(volume ? fsck_volume(&k, volume, &e) : fsck_pool(&k, &e), &e);
    assert_int_equal(l->count, k.result.damaged + k.result.leaked + k.result.garbage);
    assert_int_equal(k.result.unsettled, 0);
    for (size_t i = 0; i < MIN(l->count, ARRAY_LEN(l->keys)); i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(l->keys[i], l->keys[j]) == 0 && strcmp(l->texts[i], l->texts[j]) == 0)
                fail_msg("'%s' is told twice: %s", l->keys[i], l->texts[i]);
    return k.result;
}

static void healthy(void *arg) {
    struct pool_fixture *f = arg;
    struct story s;
    static struct findings l;
    tell(f, &s);
    size_t objects = memory_store_count(f->memory);
    struct fsck_result r = check(f, NULL, false, &l);
    assert_int_equal(r.damaged, 0);
    assert_int_equal(r.volumes, 5);
    assert_int_equal(r.snapshots, 2);
    assert_int_equal(r.unsettled, 0);
    assert_true(r.objects > 50 && r.frames > 200 && r.entries > 200 && r.runs > 4 && r.roots > 8);
    const char *each[] = {s.volume, s.clone, s.chained};
    for (size_t i = 0; i < ARRAY_LEN(each); i++) {
        r = check(f, each[i], false, &l);
        assert_int_equal(r.damaged, 0);
        assert_int_equal(r.volumes, 1);
        assert_true(r.objects > 10);
        r = check(f, each[i], true, &l);
        assert_int_equal(r.damaged, 0);
        assert_int_equal(r.objects, 0);
    }
    assert_int_equal(check(f, NULL, true, &l).damaged, 0);
    assert_int_equal(memory_store_count(f->memory), objects); /* it changes nothing */
    struct fsck k = {.catalog = &f->catalog};
    struct err e;
    assert_int_equal(fsck_volume(&k, "pv-x", &e), -ERR_NOT_FOUND);
}

static void test_healthy(void **state) {
    pool_fixture_run(*state, healthy, *state);
}

/* --- damage --- */

static uint8_t *copy(struct view body) {
    uint8_t *bytes = xmalloc(body.len + 1);
    memcpy(bytes, body.data, body.len);
    return bytes;
}

static bool names(const struct findings *l, const char *key) {
    for (size_t i = 0; i < MIN(l->count, ARRAY_LEN(l->keys)); i++)
        if (strcmp(l->keys[i], key) == 0)
            return true;
    return false;
}

/* What may go without anybody missing it. Records before the newest are history. */
static bool may_go(struct pool_fixture *f, const char *key) {
    char folder[KEY_MAX];
    uint64_t n, newest = 0;
    struct err e;
    if (strncmp(key, "nodes/", 6) == 0)
        return true;
    if (strstr(key, ".claim")) { /* of a clone: it may be about to be given up */
        struct view body;
        struct pin_claim claim;
        assert_true(memory_store_find(f->memory, key, &body));
        ok(pin_claim_decode(&claim, body, &e), &e);
        return claim.commit.is_clone;
    }
    if (strstr(key, "/log/")) {
        struct view body;
        return memory_store_find(f->memory, key, &body) && body.len == SEGMENT_FENCE_SIZE;
    }
    if (key_parse_numbered(key, &n) < 0)
        return false;
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(key, '/') + 1 - key), key);
    if (strncmp(key, "volumes/", 8) == 0)
        return n != 1; /* an older one is as good as a restored backup: records tell below */
    ok(numbered_newest_number(f->store, folder, &newest, &e), &e);
    return n != newest || strncmp(key, "snapshots/", 10) == 0 || n > 1;
}

static void every_object(void *arg) {
    struct pool_fixture *f = arg;
    struct story s;
    static struct findings l;
    tell(f, &s);
    static struct findings garbage; /* what nothing needs is not read */
    size_t unneeded = (size_t)check(f, NULL, false, &garbage).garbage;
    size_t count = memory_store_count(f->memory);
    assert_true(unneeded <= ARRAY_LEN(garbage.keys));
    for (size_t i = 0; i < count; i++) {
        const char *at;
        struct view body;
        assert_true(memory_store_at(f->memory, i, &at, &body));
        CLEANUP_FREE char *key = xstrdup(at);
        CLEANUP_FREE uint8_t *whole = copy(body);
        size_t len = body.len;

        if (!may_go(f, key)) {
            assert_true(memory_store_remove(f->memory, key));
            struct fsck_result r = check(f, NULL, true, &l);
            if (r.damaged == 0 && r.leaked == 0 && r.garbage == unneeded)
                fail_msg("'%s' is lost and nothing is told", key);
            memory_store_replace(f->memory, key, view_of(whole, len));
        }
        for (size_t bit = 0; bit < 3 && !names(&garbage, key);
             bit++) { /* at the start, the middle, the end */
            CLEANUP_FREE uint8_t *bad = copy(view_of(whole, len));
            size_t off = bit == 0 ? len / 50 : bit == 1 ? len / 2 : len - 2;
            bad[off] ^= 0x10;
            memory_store_replace(f->memory, key, view_of(bad, len));
            struct fsck_result r = check(f, NULL, false, &l);
            if (r.damaged == 0)
                fail_msg("'%s' is bad at %zu of %zu and nothing is told", key, off, len);
            if (!names(&l, key))
                fail_msg("'%s' is bad and '%s' is told (%s)", key, l.keys[0], l.texts[0]);
        }
        memory_store_replace(f->memory, key, view_of(whole, len));
    }
    assert_int_equal(check(f, NULL, false, &l).damaged, 0);
}

static void test_every_object(void **state) {
    pool_fixture_run(*state, every_object, *state);
}

/* --- contradictions --- */

enum lie { NO_LIE, OTHER_SECTOR, NO_FRAME, OTHER_LENGTH, BEHIND_OBJECT, LIES };

/* A run of one entry, about the first frame of a segment, on top of the volume's runs. */
static void lay_run(struct pool_fixture *f, const struct volume_key *v, enum lie lie) {
    struct err e;
    struct manifest m;
    ok(manifest_newest(f->store, v, &m, &e), &e);
    struct segment_meta meta;
    struct segment_table t = {0};
    size_t need, i = 0;
    uint64_t seq = 0, size = 0;
    struct view body;
    const char *key;
    char log[KEY_MAX];
    key_log_prefix(log, v);
    for (size_t k = 0; seq == 0 && memory_store_at(f->memory, k, &key, &body); k++) {
        if (!strstr(key, log) || body.len == SEGMENT_FENCE_SIZE)
            continue;
        ok(key_parse_log(key, &seq), &e);
        ok(segment_decode_tail(body, body.len, &meta, &t, &need, &e), &e);
        size = body.len;
    }
    while (t.extents[i].kind != EXTENT_DATA)
        i++;
    const struct segment_extent *x = &t.extents[i];
    uint16_t len = t.lens[x->first_len];
    struct map_entry entry = {.sector = x->sector + (lie == OTHER_SECTOR),
                              .count = 1,
                              .kind = EXTENT_DATA,
                              .len_count = 1,
                              .off = lie == BEHIND_OBJECT ? (uint32_t)size - 20
                                                          : x->off + (lie == NO_FRAME),
                              .ref = {.kind = OBJ_LOG, .seq = seq},
                              .lens = &len};
    len = (uint16_t)(len - (lie == OTHER_LENGTH));
    struct run_writer *w = run_writer_new(f->env, f->store, v, (struct run_shape){0});
    struct root_run run;
    ok(run_writer_add(w, &entry, v, &e), &e);
    ok(run_writer_finish(w, &run, &e), &e);
    run_writer_free(w);
    run.age = m.root.next_seq;
    m.root.runs = xrealloc(m.root.runs, (m.root.run_count + 1) * sizeof *m.root.runs);
    memmove(m.root.runs + 1, m.root.runs, m.root.run_count++ * sizeof *m.root.runs);
    m.root.runs[0] = run;
    m.number++;
    ok(manifest_put(f->store, v, &m, &e), &e);
    segment_table_release(&t);
    manifest_release(&m);
}

static void told(const struct findings *l, const char *text) {
    for (size_t i = 0; i < MIN(l->count, ARRAY_LEN(l->texts)); i++)
        if (strstr(l->texts[i], text))
            return;
    fail_msg("'%s' is not told, but '%s'", text, l->count > 0 ? l->texts[0] : "");
}

static void contradictions(void *arg) {
    static const char *const texts[LIES] = {[OTHER_SECTOR] = "holds other sectors",
                                            [NO_FRAME] = "no such frame",
                                            [OTHER_LENGTH] = "no such frame",
                                            [BEHIND_OBJECT] = "behind its object"};
    struct pool_fixture *f = arg;
    struct story s;
    static struct findings l;
    struct err e;
    struct volume_info i;
    struct manifest m;
    char source[ID_MAX];
    tell(f, &s);
    for (int lie = 0; lie < LIES; lie++) {
        char name[16];
        snprintf(name, sizeof name, "lie-%d", lie);
        create(f, name, NULL, source);
        write_volume(f, source, 10);
        ok(catalog_volume_get(&f->catalog, source, &i, &e), &e);
        lay_run(f, &i.record.key, (enum lie)lie);
        struct fsck_result r = check(f, source, false, &l);
        assert_int_equal(r.damaged > 0, lie != NO_LIE);
        if (texts[lie])
            told(&l, texts[lie]);
        volume_info_release(&i);
    }

    /* A manifest that was opened with an epoch that nobody gave out. */
    ok(catalog_volume_get(&f->catalog, s.clone, &i, &e), &e);
    ok(manifest_newest(f->store, &i.record.key, &m, &e), &e);
    m.number++;
    m.epoch += UINT64_C(1) << 32;
    ok(manifest_put(f->store, &i.record.key, &m, &e), &e);
    assert_true(check(f, s.clone, true, &l).damaged > 0);
    told(&l, "was opened with");

    /* The pin that protects what the clone needs of its source. */
    char key[KEY_MAX];
    assert_int_equal(m.held_pin_count, 1);
    key_pin_root(key, &m.held_pins[0].volume, &m.held_pins[0].pin);
    assert_true(memory_store_remove(f->memory, key));
    assert_true(check(f, s.clone, true, &l).damaged > 0);
    told(&l, "needs what it holds");
    manifest_release(&m);
    volume_info_release(&i);

    /* Nobody has ever heard of this volume. */
    struct volume_key stranger;
    struct random_id id = {.bytes = {1}};
    id_format_key(&stranger, ID_VOLUME, "0123456789abcdef0123456789abcdef", 1);
    key_map(key, &stranger, &id);
    ok(objstore_put(f->store, key, view_of_str("x"), NULL, &e), &e);
    assert_int_equal(check(f, NULL, true, &l).leaked, 1);
    told(&l, "no record has ever named");
}

static void test_contradictions(void **state) {
    pool_fixture_run(*state, contradictions, *state);
}

/* --- what a hand can do to a pool --- */

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
    u->bodies[u->count] = there ? copy(before) : NULL;
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
    CLEANUP_FREE uint8_t *of_a = copy(body);
    assert_true(memory_store_find(u->f->memory, b, &body));
    size_t b_len = body.len;
    CLEANUP_FREE uint8_t *of_b = copy(body);
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
    struct fsck_result r = check(u->f, NULL, false, &l);
    assert_true((kind == FSCK_DAMAGE ? r.damaged : r.leaked) > 0);
    if (!names(&l, key))
        fail_msg("'%s' is not told, but '%s': %s", key, l.keys[0], l.texts[0]);
    told(&l, text);
    undo(u);
    assert_int_equal(check(u->f, NULL, true, &l).damaged, 0);
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
    struct story s;
    struct folders v, clone, twins[2];
    struct err e;
    static struct findings l;
    char a[KEY_MAX], b[KEY_MAX], id[ID_MAX];
    tell(f, &s);
    find_folders(f, s.volume, &v);
    find_folders(f, s.clone, &clone);
    lost(&u, &v, &clone);
    misplaced(&u, &v, &clone);

    /* Indexes that differ in nothing but the volume that they are about. */
    for (size_t i = 0; i < 2; i++) {
        create(f, i == 0 ? "twin-0" : "twin-1", NULL, id);
        write_volume(f, id, 1);
        find_folders(f, id, &twins[i]);
    }
    newest_index(f, &twins[0].key, a);
    newest_index(f, &twins[1].key, b);
    swap(&u, a, b);
    expect(&u, FSCK_DAMAGE, a, "a run about volume");
    newest_index(f, &v.key, b);
    swap(&u, a, b);
    expect(&u, FSCK_DAMAGE, a, "a root that names it says");

    /* What the run needs is no garbage while its index cannot be read. */
    uint64_t garbage = check(f, NULL, true, &l).garbage;
    newest_index(f, &v.key, a);
    newest_index(f, &twins[1].key, b);
    set(&u, a, view_of_str("?"));
    assert_true(check(f, NULL, true, &l).garbage <= garbage);
    undo(&u);
    swap(&u, a, b);
    assert_true(check(f, NULL, true, &l).garbage <= garbage);
    undo(&u);
    set(&u, a, (struct view){0});
    assert_true(check(f, NULL, true, &l).garbage <= garbage);
    undo(&u);

    /* By name, also when its record says nothing any more. */
    struct fsck k = {.catalog = &f->catalog, .on_finding = on_finding, .arg = &l};
    memset(&l, 0, sizeof l);
    ok(fsck_volume_named(&k, "v", &e), &e);
    assert_int_equal(k.result.damaged, 0);
    assert_int_equal(k.result.volumes, 1);
    assert_int_equal(fsck_volume_named(&k, "none", &e), -ERR_NOT_FOUND);
    CLEANUP_FREE char *record = nth(f, v.records, "", 0);
    set(&u, record, view_of_str("{}"));
    ok(fsck_volume_named(&k, "v", &e), &e);
    assert_int_equal(k.result.damaged, 1);
    assert_true(names(&l, record));
    undo(&u);
    k.result.damaged = 0;
    CLEANUP_FREE char *manifest = nth(f, v.manifests, "", 0);
    set(&u, manifest, view_of_str("{}"));
    ok(fsck_volume(&k, s.volume, &e), &e);
    assert_int_equal(k.result.damaged, 1);
    undo(&u);
}

/* A large pool has many records, and deleted volumes, before the first run is read. */
static void on_progress(void *arg, const struct fsck_result *so_far, const char *where) {
    size_t *calls = arg;
    (void)so_far;
    calls[strcmp(where, "records/") == 0 ? 0 : strncmp(where, "pv-", 3) == 0 ? 1 : 2]++;
}

static void progress(void *arg) {
    struct pool_fixture *f = arg;
    struct story s;
    struct err e;
    size_t calls[3] = {0};
    tell(f, &s);
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

/* --- any object, readable --- */

static void described(void *arg) {
    struct pool_fixture *f = arg;
    struct story s;
    struct err e;
    const char *key;
    struct view body;
    json_t *o = NULL;
    tell(f, &s);
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++) {
        if (object_describe(key, body, &o, &e) < 0)
            fail_msg("%s: %s", key, e.text);
        const char *type = json_string_value(json_object_get(o, "type"));
        assert_non_null(type);
        assert_int_equal(strstr(key, "/log/") != NULL, strcmp(type, "segment") == 0);
        assert_int_equal(strstr(key, "/manifest/") != NULL, strcmp(type, "manifest") == 0);
        assert_int_equal(strstr(key, ".root") != NULL, strcmp(type, "pin-root") == 0);
        json_decref(o);
        CLEANUP_FREE uint8_t *bad = copy(body);
        bad[body.len - 3] ^= 0x04;
        int rc = object_describe(key, view_of(bad, body.len), &o, &e);
        if (rc == 0)
            fail_msg("%s: damaged and described", key);
    }

    /* A segment with a bad frame: the frame is named, the rest is there. */
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++)
        if (strstr(key, "/log/") && body.len > SEGMENT_FENCE_SIZE)
            break;
    CLEANUP_FREE uint8_t *bad = copy(body);
    bad[110] ^= 0x04;
    o = NULL;
    assert_int_equal(object_describe(key, view_of(bad, body.len), &o, &e), -ERR_CORRUPT);
    assert_string_equal(json_string_value(json_object_get(o, "type")), "segment");
    json_decref(o);
    assert_int_equal(object_describe("x", view_of_str("what is this"), &o, &e), -ERR_INVALID);
    assert_int_equal(object_describe("x", view_of_str(""), &o, &e), -ERR_INVALID);
    assert_int_equal(object_describe("x", view_of_str("{}"), &o, &e), -ERR_INVALID);
}

static void test_described(void **state) {
    pool_fixture_run(*state, described, *state);
}

/* --- many deleted volumes --- */

/* What is left of a deleted volume is looked at beside that of others. */
static void many_deleted(void *arg) {
    enum { VOLUMES = 24, LATENCY_US = 10 * 1000 };
    struct pool_fixture *f = arg;
    static struct findings l;
    struct err e;
    struct pool_record pool;
    struct pool_create options = {.cluster_id = NULL};
    ok(catalog_pool_create(&f->catalog, &options, &pool, &e), &e);
    pool_record_release(&pool);
    for (int i = 0; i < VOLUMES; i++) {
        char name[16], id[ID_MAX];
        snprintf(name, sizeof name, "v%d", i);
        create(f, name, NULL, id);
        ok(catalog_volume_delete(&f->catalog, id, false, &e), &e);
    }
    objstore_fault_add(f->delays, &(struct fault_rule){.kind = FAULT_DELAY,
                                                       .delay_us_min = LATENCY_US,
                                                       .delay_us_max = LATENCY_US});
    uint64_t requests = pool_fixture_requests(f), from = env_now_us(f->env);
    struct fsck_result r = check(f, NULL, false, &l);
    requests = pool_fixture_requests(f) - requests;
    uint64_t one_by_one_us = requests * LATENCY_US;
    assert_int_equal(r.volumes, VOLUMES);
    assert_int_equal(l.count, 0);
    printf("%llu requests took as long as %llu, one by one\n", (unsigned long long)requests,
           (unsigned long long)((env_now_us(f->env) - from) / LATENCY_US));
    assert_true(env_now_us(f->env) - from < one_by_one_us / 2);
}

static void test_many_deleted(void **state) {
    pool_fixture_run(*state, many_deleted, *state);
}

/* --- beside a writer --- */

enum { ROUNDS = 4 };

struct live {
    struct pool_fixture f;
    struct story story;
    int running;
    size_t rounds, unsettled;
};

static void live_set_up(void *arg) {
    struct live *l = arg;
    tell(&l->f, &l->story);
}

static void live_writer(void *arg) {
    struct live *l = arg;
    for (int i = 0; i < 2 || (l->rounds < ROUNDS && i < 50); i++)
        write_volume(&l->f, l->story.volume, 50);
    l->running--;
}

static void live_cutter(void *arg) {
    struct live *l = arg;
    struct err e;
    char snapshot[ID_MAX], clone[ID_MAX];
    for (int i = 0; i < 2 || (l->rounds < ROUNDS && i < 50); i++) {
        cut(&l->f, "v@live", l->story.volume, snapshot);
        create(&l->f, "brief", snapshot, clone);
        ok(catalog_snapshot_delete(&l->f.catalog, snapshot, &e), &e);
        ok(catalog_volume_delete(&l->f.catalog, clone, false, &e), &e);
    }
    l->running--;
}

static void live_fsck(void *arg) {
    struct live *l = arg;
    static struct findings found;
    while (l->running > 0) {
        struct err e;
        memset(&found, 0, sizeof found); /* a value of it would not fit the stack of a fiber */
        struct fsck k = {.catalog = &l->f.catalog,
                         .quick = l->rounds % 2 == 1,
                         .on_finding = on_finding,
                         .arg = &found};
        int rc = l->rounds % 3 == 2 ? fsck_volume(&k, l->story.volume, &e) : fsck_pool(&k, &e);
        ok(rc, &e);
        if (k.result.damaged > 0)
            fail_msg("'%s': %s", found.keys[0], found.texts[0]);
        l->unsettled += k.result.unsettled;
        l->rounds++;
    }
}

static void test_live(void **state) {
    (void)state;
    static struct live l;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        l = (struct live){.running = 2};
        pool_fixture_init(&l.f, seed);
        pool_fixture_run(&l.f, live_set_up, &l);
        pool_fixture_jitter(&l.f);
        fiber_start(l.f.env, live_writer, &l);
        fiber_start(l.f.env, live_cutter, &l);
        fiber_start(l.f.env, live_fsck, &l);
        virtual_env_run(&l.f.venv);
        assert_int_equal(l.running, 0);
        assert_int_equal(l.unsettled, 0);
        assert_true(l.rounds >= ROUNDS);
        pool_fixture_release(&l.f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_healthy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_object, setup, teardown),
        cmocka_unit_test_setup_teardown(test_contradictions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_by_hand, setup, teardown),
        cmocka_unit_test_setup_teardown(test_progress, setup, teardown),
        cmocka_unit_test_setup_teardown(test_described, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_deleted, setup, teardown),
        cmocka_unit_test(test_live),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
