/* See fsck_story.h. */
#include "tests/support/fsck_story.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/engine_writer.h"
#include "tests/support/test.h"

uint64_t fsck_story_publish(struct pool_fixture *f, const char *id, struct volume_key *ret) {
    struct err e;
    struct volume_info i;
    ok(catalog_volume_publish(&f->catalog, id, "node-a", false, false, &i, &e), &e);
    uint64_t epoch = i.record.publish_epoch;
    *ret = i.record.key;
    volume_info_release(&i);
    return epoch;
}

void fsck_story_write(struct pool_fixture *f, const char *id, int writes) {
    struct err e;
    struct volume_key key;
    uint64_t epoch = fsck_story_publish(f, id, &key);
    struct volume *v = engine_open(f, &key, epoch);
    engine_write(f, v, FSCK_STORY_SIZE, writes);
    engine_end(f, v, true);
    ok(catalog_volume_unpublish(&f->catalog, id, "node-a", &e), &e);
}

void fsck_story_create(struct pool_fixture *f, const char *name, const char *source,
                       char ret[ID_MAX]) {
    struct err e;
    struct volume_info i;
    struct volume_create req = {.name = name, .size_bytes = FSCK_STORY_SIZE, .source = source};
    ok(catalog_volume_create(&f->catalog, &req, &i, &e), &e);
    memcpy(ret, i.id, ID_MAX);
    volume_info_release(&i);
}

void fsck_story_cut(struct pool_fixture *f, const char *name, const char *volume,
                    char ret[ID_MAX]) {
    struct err e;
    struct snapshot_info i;
    ok(catalog_snapshot_create(&f->catalog, name, volume, &i, &e), &e);
    memcpy(ret, i.id, ID_MAX);
    snapshot_info_release(&i);
}

void fsck_story_tell(struct pool_fixture *f, struct fsck_story *s) {
    struct err e;
    char snapshot[ID_MAX], other[ID_MAX];
    struct catalog *c = &f->catalog;
    struct pool_record pool;
    struct pool_create options = {.cluster_id = NULL};
    ok(catalog_pool_create(c, &options, &pool, &e), &e);
    pool_record_release(&pool);
    ok(catalog_node_register(c, "node-a", "1", &e), &e);
    fsck_story_create(f, "v", NULL, s->volume);
    fsck_story_write(f, s->volume, 120);
    fsck_story_cut(f, "v@one", s->volume, snapshot);
    fsck_story_write(f, s->volume, 60);
    fsck_story_cut(f, "v@two", s->volume, other);
    fsck_story_create(f, "clone", snapshot, s->clone);
    ok(catalog_snapshot_delete(c, other, &e), &e);
    fsck_story_write(f, s->clone, 30);
    fsck_story_create(f, "chained", s->clone, s->chained);
    fsck_story_write(f, s->chained, 10);
    fsck_story_write(f, s->volume, 5);
    fsck_story_create(f, "shell", NULL, other);
    fsck_story_write(f, other, 20);
    fsck_story_cut(f, "shell@last", other, snapshot);
    ok(catalog_volume_delete(c, other, false, &e), &e);
    fsck_story_create(f, "gone", NULL, other);
    fsck_story_write(f, other, 20);
    ok(catalog_volume_delete(c, other, false, &e), &e);
}

void findings_add(void *arg, const struct fsck_finding *f) {
    struct findings *l = arg;
    if (getenv("VERBOSE"))
        printf("  %s %s: %s\n", f->kind == FSCK_DAMAGE ? "damage" : "garbage", f->key, f->text);
    if (l->count < ARRAY_LEN(l->keys)) {
        snprintf(l->keys[l->count], KEY_MAX, "%s", f->key);
        snprintf(l->texts[l->count], sizeof l->texts[0], "%s", f->text);
    }
    l->count++;
}

struct fsck_result fsck_story_check(struct pool_fixture *f, const char *volume, bool quick,
                                    struct findings *l) {
    struct err e;
    memset(l, 0, sizeof *l);
    struct fsck k = {.catalog = &f->catalog, .quick = quick, .on_finding = findings_add, .arg = l};
    ok(volume ? fsck_volume(&k, volume, &e) : fsck_pool(&k, &e), &e);
    assert_int_equal(l->count, k.result.damaged + k.result.leaked + k.result.garbage);
    assert_int_equal(k.result.unsettled, 0);
    for (size_t i = 0; i < MIN(l->count, ARRAY_LEN(l->keys)); i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(l->keys[i], l->keys[j]) == 0 && strcmp(l->texts[i], l->texts[j]) == 0)
                fail_msg("'%s' is told twice: %s", l->keys[i], l->texts[i]);
    return k.result;
}

uint8_t *view_copy(struct view body) {
    uint8_t *bytes = xmalloc(body.len + 1);
    memcpy(bytes, body.data, body.len);
    return bytes;
}

bool findings_name(const struct findings *l, const char *key) {
    for (size_t i = 0; i < MIN(l->count, ARRAY_LEN(l->keys)); i++)
        if (strcmp(l->keys[i], key) == 0)
            return true;
    return false;
}

void findings_tell(const struct findings *l, const char *text) {
    for (size_t i = 0; i < MIN(l->count, ARRAY_LEN(l->texts)); i++)
        if (strstr(l->texts[i], text))
            return;
    fail_msg("'%s' is not told, but '%s'", text, l->count > 0 ? l->texts[0] : "");
}
