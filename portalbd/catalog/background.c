/* One pass over the pool: every volume that has any object, found by LISTs that skip from one
 * prefix to the next; then the records.
 *
 *   prefix volumes/<id>/ --> newest record of its name says: this id, not deleted --> sweep its
 * pins
 *                       \--> deleted, or another id has the name --> end it, sweep, collect
 *                        \-> no record at all: not the catalog's, left alone
 *
 * An id whose name went on to another one is dead for ever, so a deletion that died half way is
 * found here even when its record is long pruned. */
#include "portalbd/catalog/background.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/volume/destroy.h"

enum {
    DONE_RECHECK_PASSES = 32, /* a deleted volume that is empty is looked at again: zombies */
    DONE_MAX = 65536,
};

void background_init(struct background *b, const struct catalog *c) {
    *b = (struct background){.catalog = *c};
}

void background_release(struct background *b) {
    pin_sweeper_release(&b->sweeper);
    free(b->done);
    b->done = NULL;
    b->done_count = 0;
}

/* --- deleted volumes that have nothing left --- */

static bool is_done(const struct background *b, const struct volume_key *v) {
    if (b->sweeper.round % DONE_RECHECK_PASSES == 0)
        return false;
    for (size_t i = 0; i < b->done_count; i++)
        if (volume_keys_equal(&b->done[i], v))
            return true;
    return false;
}

static void remember_done(struct background *b, const struct volume_key *v) {
    for (size_t i = 0; i < b->done_count; i++)
        if (volume_keys_equal(&b->done[i], v))
            return;
    if (b->done_count == DONE_MAX)
        return;
    if ((b->done_count & (b->done_count - 1)) == 0) /* at powers of two */
        b->done = xrealloc(b->done, MAX(2 * b->done_count, (size_t)16) * sizeof *b->done);
    b->done[b->done_count++] = *v;
}

/* --- one volume --- */

enum fate { FATE_LIVE, FATE_DEAD, FATE_UNKNOWN };

static int volume_fate(struct catalog *c, const struct volume_key *v, enum fate *ret,
                       uint32_t *ret_publish_epoch, struct err *e) {
    char id[ID_MAX];
    struct parsed_id p;
    id_format(id, v, c->pool);
    int rc = id_parse(&p, id, e);
    if (rc < 0)
        return rc;
    struct volume_record r;
    rc = volume_record_newest(c, p.name_hash, &r, e);
    if (rc < 0)
        return rc;
    bool same = volume_keys_equal(&r.key, v);
    *ret = r.number == 0 ? FATE_UNKNOWN : same && r.state != VOLUME_DELETED ? FATE_LIVE : FATE_DEAD;
    *ret_publish_epoch = same ? (uint32_t)r.publish_epoch : 0;
    volume_record_release(&r);
    return 0;
}

static int end_volume(struct background *b, const struct volume_key *v, uint32_t publish_epoch,
                      struct background_result *ret, struct err *e) {
    struct catalog *c = &b->catalog;
    struct manifest m;
    int rc = manifest_newest(c->store, v, &m, e);
    bool finished = rc == 0 && m.deleted;
    if (rc == 0)
        manifest_release(&m);
    else if (rc != -ERR_NOT_FOUND)
        return rc;
    if (!finished) {
        rc = volume_destroy(c->env, c->store, v, publish_epoch, e);
        if (rc < 0)
            return rc;
        ret->volumes_finished++;
    }
    struct volume_collected collected = {0};
    rc = volume_collect_deleted(c->env, c->store, v, &collected, e);
    if (rc < 0)
        return rc;
    ret->objects_deleted += collected.objects_deleted;
    if (collected.waiting)
        ret->volumes_waiting++;
    else
        remember_done(b, v);
    return 0;
}

static int look_at_volume(struct background *b, const struct volume_key *v,
                          struct background_result *ret, struct err *e) {
    struct catalog *c = &b->catalog;
    if (is_done(b, v))
        return 0;
    enum fate fate;
    uint32_t publish_epoch;
    int rc = volume_fate(c, v, &fate, &publish_epoch, e);
    if (rc < 0 || fate == FATE_UNKNOWN)
        return rc;
    rc = pin_sweep_volume(&b->sweeper, c->env, c->store, v, &ret->pins_swept, &ret->pins_suspected,
                          e);
    if (rc == 0 && fate == FATE_DEAD)
        rc = end_volume(b, v, publish_epoch, ret, e);
    return rc;
}

/* --- all of them --- */

int catalog_next_volume(struct catalog *c, char after[CATALOG_AFTER_MAX], struct volume_key *ret,
                        struct err *e) {
    static const char root[] = "volumes/";
    for (;;) {
        struct obj_list list = {0};
        int rc = objstore_list(c->store, root, after[0] != '\0' ? after : NULL, 1, &list, e);
        if (rc < 0)
            return rc;
        if (list.count == 0) {
            obj_list_release(&list);
            return 0;
        }
        const char *name = list.entries[0].key + sizeof root - 1;
        size_t len = strcspn(name, "/");
        struct volume_key v = {0};
        bool ours = false;
        if (name[len] == '/' && len < sizeof v.text) {
            memcpy(v.text, name, len);
            struct parsed_id p;
            char id[ID_MAX + POOL_NAME_MAX];
            snprintf(id, sizeof id, "%s.%s", v.text, c->pool);
            ours = id_parse(&p, id, NULL) == 0 && p.kind == ID_VOLUME;
        }
        /* '0' follows '/': behind every key of this prefix. */
        int n = snprintf(after, CATALOG_AFTER_MAX, "%s%.*s0", root, (int)len, name);
        CHECK(n > 0 && n < CATALOG_AFTER_MAX);
        obj_list_release(&list);
        if (ours) {
            *ret = v;
            return 1;
        }
    }
}

static int prune_records(struct background *b, struct background_result *ret, struct err *e) {
    static const char *const roots[] = {"records/", "snapshots/", "nodes/"};
    for (size_t i = 0; i < ARRAY_LEN(roots); i++) {
        size_t deleted = 0;
        int rc = numbered_prune(b->catalog.store, roots[i], &deleted, e);
        if (rc < 0)
            return rc;
        ret->records_pruned += deleted;
    }
    return 0;
}

int background_pass(struct background *b, struct background_result *ret, struct err *e) {
    struct background_result result = {0};
    char after[CATALOG_AFTER_MAX] = "";
    struct volume_key v;
    int rc;
    pin_sweeper_begin(&b->sweeper);
    while ((rc = catalog_next_volume(&b->catalog, after, &v, e)) > 0) {
        struct err why;
        result.volumes++;
        int failed = look_at_volume(b, &v, &result, &why);
        if (failed == -ERR_CANCELLED)
            return err_copy(e, &why);
        if (failed < 0 && result.failures++ == 0)
            err_copy(&result.first_failure, &why);
    }
    if (rc < 0)
        return rc;
    pin_sweeper_end(&b->sweeper);
    rc = prune_records(b, &result, e);
    if (rc == 0)
        *ret = result;
    return rc;
}
