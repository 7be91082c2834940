/* fsck: the pool. Records, snapshots, nodes, and which volumes there are; fsck_volume.c has the
 * rest. */
#include "portalbd/catalog/fsck.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/fsck_internal.h"

enum { VOLUMES_AT_ONCE = 8 };

void fsck_report(struct fsck *f, enum fsck_kind kind, const char *key, const char *format, ...) {
    char text[ERR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ++*(kind == FSCK_DAMAGE ? &f->result.damaged
        : kind == FSCK_LEAK ? &f->result.leaked
                            : &f->result.garbage);
    if (f->on_finding)
        f->on_finding(f->arg, &(struct fsck_finding){.kind = kind, .key = key, .text = text});
}

int fsck_get(struct fsck *f, const char *key, size_t size_max, struct buf *ret, struct err *e) {
    int rc = objstore_get(f->catalog->store, key, size_max, ret, e);
    f->result.bytes_read += ret->len;
    return rc;
}

static bool is_damage(int rc) {
    return rc == -ERR_CORRUPT || rc == -ERR_UNSUPPORTED;
}

/* --- records --- */

/* Decodes one record, and says what is wrong with it in *e. `hash`: of its folder. */
typedef int record_check(struct fsck *f, const char *hash, uint64_t n, struct view body,
                         struct err *e);

static int check_volume_record(struct fsck *f, const char *hash, uint64_t n, struct view body,
                               struct err *e) {
    struct volume_record r;
    struct parsed_id p;
    char id[ID_MAX], own[33];
    int rc = volume_record_decode(&r, n, body, e);
    if (rc < 0)
        return rc;
    id_format(id, &r.key, f->catalog->pool);
    name_hash(own, r.name);
    if (id_parse(&p, id, NULL) < 0 || strcmp(p.name_hash, hash) != 0 || p.number > n)
        rc = err_set(e, -ERR_CORRUPT, "its id %s is not of this folder", r.key.text);
    else if (strcmp(own, hash) != 0)
        rc = err_set(e, -ERR_CORRUPT, "its name '%s' belongs into another folder", r.name);
    volume_record_release(&r);
    return rc;
}

static int check_snapshot_record(struct fsck *f, const char *hash, uint64_t n, struct view body,
                                 struct err *e) {
    struct snapshot_record r;
    struct parsed_id p;
    char id[ID_MAX], own[33];
    int rc = snapshot_record_decode(&r, n, body, e);
    if (rc < 0)
        return rc;
    id_format(id, &r.key, f->catalog->pool);
    name_hash(own, r.name);
    if (!r.deleted && (id_parse(&p, id, NULL) < 0 || strcmp(p.name_hash, hash) != 0 ||
                       p.number != n || strcmp(own, hash) != 0))
        rc = err_set(e, -ERR_CORRUPT, "snapshot '%s' does not belong here", r.name);
    snapshot_record_release(&r);
    return rc;
}

static int check_node_record(struct fsck *f, const char *hash, uint64_t n, struct view body,
                             struct err *e) {
    (void)f;
    (void)hash;
    struct node_record r;
    int rc = node_record_decode(&r, n, body, e);
    if (rc == 0)
        node_record_release(&r);
    return rc;
}

static int check_record(struct fsck *f, const char *key, record_check *check, struct err *e) {
    const char *end = strrchr(key, '/'), *start = strchr(key, '/') + 1;
    char hash[2 * KEY_MAX];
    uint64_t n;
    if (end < start || key_parse_numbered(key, &n) < 0)
        return 0; /* not ours */
    snprintf(hash, sizeof hash, "%.*s", (int)(end - start), start);
    CLEANUP_BUF struct buf body = {0};
    int rc = fsck_get(f, key, RECORD_SIZE_MAX, &body, e);
    if (rc == 0)
        rc = check(f, hash, n, buf_view(&body), e);
    f->result.records += rc == 0;
    if (is_damage(rc))
        fsck_report(f, FSCK_DAMAGE, key, "%s", e->text);
    return rc == -ERR_NOT_FOUND || is_damage(rc) ? 0 : rc; /* old records are pruned */
}

/* All records below a root; quick: the newest of each folder. */
static int check_records(struct fsck *f, const char *root, record_check *check, struct err *e) {
    char after[OBJ_KEY_MAX + 1] = "", folder[OBJ_KEY_MAX + 1] = "";
    for (bool more = true; more;) {
        struct obj_list page = {0};
        int rc =
            objstore_list(f->catalog->store, root, after[0] ? after : NULL, OBJ_LIST_MAX, &page, e);
        for (size_t i = 0; rc == 0 && i < page.count; i++) {
            const char *key = page.entries[i].key;
            size_t len = (size_t)(strrchr(key, '/') - key);
            bool newest = strncmp(folder, key, len) != 0 || folder[len] != '\0';
            snprintf(folder, sizeof folder, "%.*s", (int)len, key);
            if (newest || !f->quick)
                rc = check_record(f, key, check, e);
            snprintf(after, sizeof after, "%s", key);
        }
        more = rc == 0 && page.more && page.count > 0;
        obj_list_release(&page);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int check_pool_record(struct fsck *f, struct err *e) {
    char key[KEY_MAX];
    CLEANUP_BUF struct buf body = {0};
    struct pool_record r;
    key_pool(key);
    int rc = fsck_get(f, key, RECORD_SIZE_MAX, &body, e);
    if (rc == 0)
        rc = pool_record_decode(&r, buf_view(&body), e);
    if (rc == 0)
        pool_record_release(&r);
    f->result.records += rc == 0;
    if (!is_damage(rc) && rc != -ERR_NOT_FOUND)
        return rc;
    fsck_report(f, FSCK_DAMAGE, key, "%s", e->text);
    return 0;
}

/* --- snapshots: each has a root in its source (I11) --- */

/* -ERR_CORRUPT: *e says what is wrong with the pin. */
static int check_snapshot_pin(struct fsck *f, const struct snapshot_info *i, char key[KEY_MAX],
                              struct err *e) {
    const struct snapshot_record *r = &i->record;
    char commit[KEY_MAX], hash[33];
    struct pin_root p;
    key_pin_root(key, &r->source, &r->pin);
    name_hash(hash, r->name);
    key_snapshot(commit, hash, r->number);
    int rc = pin_root_get(f->catalog->store, &r->source, &r->pin, &p, e);
    if (rc == -ERR_NOT_FOUND)
        return err_set(e, -ERR_CORRUPT, "it is lost; snapshot '%s' needs it", r->name);
    if (rc < 0)
        return rc;
    if (p.expired)
        rc = err_set(e, -ERR_CORRUPT, "it was swept; snapshot '%s' needs it", r->name);
    else if (p.commit.is_clone || strcmp(p.commit.key, commit) != 0)
        rc = err_set(e, -ERR_CORRUPT, "it is not of snapshot '%s', which names it", r->name);
    else if (p.size_bytes != r->size_bytes)
        rc = err_set(e, -ERR_CORRUPT, "it has another size than snapshot '%s'", r->name);
    pin_root_release(&p);
    return rc;
}

static int check_snapshot(struct fsck *f, const struct snapshot_info *i, struct err *e) {
    char key[KEY_MAX];
    int rc = check_snapshot_pin(f, i, key, e);
    f->result.snapshots++;
    if (!is_damage(rc))
        return rc;
    struct err why = *e;
    struct snapshot_info now; /* deleted meanwhile? */
    rc = catalog_snapshot_get(f->catalog, i->id, &now, e);
    if (rc == 0) {
        snapshot_info_release(&now);
        fsck_report(f, FSCK_DAMAGE, key, "%s", why.text);
    }
    return rc == -ERR_NOT_FOUND || is_damage(rc) ? 0 : rc;
}

static int check_snapshots(struct fsck *f, const char *source_id, struct err *e) {
    char token[CATALOG_TOKEN_MAX] = "";
    do {
        struct snapshot_list page;
        int rc = catalog_snapshot_list(f->catalog, source_id, token, 0, &page, e);
        if (is_damage(rc))
            return 0; /* told with the records */
        if (rc < 0)
            return rc;
        for (size_t i = 0; rc == 0 && i < page.count; i++)
            rc = check_snapshot(f, &page.items[i], e);
        memcpy(token, page.next_token, sizeof token);
        snapshot_list_release(&page);
        if (rc < 0)
            return rc;
    } while (token[0]);
    return 0;
}

/* --- volumes --- */

/* Is there nothing after all? Others may have finished a creation meanwhile. */
static int confirm_no_manifest(struct fsck *f, const struct volume_record *r, struct err *e) {
    uint64_t number;
    int rc = manifest_newest_number(f->catalog->store, &r->key, &number, e);
    if (rc < 0 || number > 0)
        return rc;
    char first[KEY_MAX];
    key_manifest(first, &r->key, 1);
    fsck_report(f, FSCK_DAMAGE, first, "volume '%s' has no manifest", r->name);
    return 0;
}

/* What its record says of a volume that has a prefix, or a record. The manifest is read first: an
 * epoch is on record before anybody opens with it. */
static int check_against_record(struct fsck *f, const struct volume_key *v, struct err *e) {
    char id[ID_MAX], key[KEY_MAX];
    struct parsed_id p;
    struct volume_record r;
    struct manifest m = {0};
    id_format(id, v, f->catalog->pool);
    int rc = manifest_newest(f->catalog->store, v, &m, e);
    bool none = rc == -ERR_NOT_FOUND, known = rc == 0;
    if (rc < 0 && !none && !is_damage(rc))
        return rc;
    rc = id_parse(&p, id, e);
    if (rc == 0)
        rc = volume_record_newest(f->catalog, p.name_hash, &r, e);
    if (rc < 0) {
        manifest_release(&m);
        return is_damage(rc) ? 0 : rc; /* told with the records */
    }
    bool live = volume_keys_equal(&r.key, v) && r.state != VOLUME_DELETED;
    if (r.number == 0) {
        key_manifest(key, v, 1);
        fsck_report(f, FSCK_LEAK, key, "no record has ever named this volume");
    } else if (known && live && !m.deleted && epoch_publish(m.epoch) > r.publish_epoch) {
        key_record(key, p.name_hash, r.number);
        fsck_report(f, FSCK_DAMAGE, key, "publish epoch %llu, but volume %s was opened with %u",
                    (unsigned long long)r.publish_epoch, v->text, epoch_publish(m.epoch));
    } else if (none && live && r.publish_epoch > 0) {
        rc = confirm_no_manifest(f, &r, e);
    } else if (none || (known && !live && !m.deleted)) {
        f->result.pending++; /* created or deleted in part */
    }
    manifest_release(&m);
    volume_record_release(&r);
    return rc;
}

/* Several at a time, for the sake of the many deleted ones: of these there is little to read, in
 * one small request after the other. */
struct volume_check {
    struct fsck *f;
    struct volume_key volume;
    int rc;
    struct err err;
};

static void check_one_volume(void *arg) {
    struct volume_check *c = arg;
    c->rc = check_against_record(c->f, &c->volume, &c->err);
    if (c->rc == 0)
        c->rc = fsck_check_volume(c->f, &c->volume, true, &c->err);
    if (c->rc == -ERR_NOT_FOUND)
        c->rc = 0; /* no manifest: told, or not there yet */
}

/* fiber. Carries out a batch. */
static int run_checks(struct fsck *f, struct volume_check *batch, size_t count, struct err *e) {
    struct fiber_group group;
    fiber_group_init(&group, f->catalog->env);
    for (size_t i = 0; i < count; i++)
        fiber_group_start(&group, check_one_volume, &batch[i]);
    int rc = fiber_group_wait(&group);
    if (rc < 0)
        return err_set(e, rc, "cancelled");
    for (size_t i = 0; i < count; i++)
        if (batch[i].rc < 0)
            return err_copy(e, &batch[i].err);
    return 0;
}

static int check_volumes(struct fsck *f, struct err *e) {
    char after[CATALOG_AFTER_MAX] = "";
    struct volume_check *batch = xcalloc(VOLUMES_AT_ONCE, sizeof *batch);
    int rc = 1;
    while (rc > 0) {
        size_t count = 0;
        for (; count < VOLUMES_AT_ONCE; count++) {
            batch[count] = (struct volume_check){.f = f};
            rc = catalog_next_volume(f->catalog, after, &batch[count].volume, e);
            if (rc <= 0)
                break;
        }
        int checked = rc < 0 ? 0 : run_checks(f, batch, count, e);
        if (checked < 0)
            rc = checked;
    }
    free(batch);
    return rc;
}

int fsck_pool(struct fsck *f, struct err *e) {
    fiber_mutex_init(&f->reading);
    int rc = check_pool_record(f, e);
    if (rc == 0)
        rc = check_records(f, "records/", check_volume_record, e);
    if (rc == 0)
        rc = check_records(f, "snapshots/", check_snapshot_record, e);
    if (rc == 0)
        rc = check_records(f, "nodes/", check_node_record, e);
    if (rc == 0)
        rc = check_snapshots(f, NULL, e);
    return rc == 0 ? check_volumes(f, e) : rc;
}

int fsck_volume(struct fsck *f, const char *id, struct err *e) {
    struct volume_info i;
    char folder[KEY_MAX], hash[33];
    fiber_mutex_init(&f->reading);
    int rc = catalog_volume_get(f->catalog, id, &i, e);
    if (rc < 0)
        return rc;
    struct volume_key key = i.record.key;
    name_hash(hash, i.record.name);
    key_records_prefix(folder, hash);
    volume_info_release(&i);
    rc = check_records(f, folder, check_volume_record, e);
    if (rc == 0)
        rc = check_against_record(f, &key, e);
    if (rc == 0)
        rc = check_snapshots(f, id, e);
    return rc == 0 ? fsck_check_volume(f, &key, false, e) : rc;
}
