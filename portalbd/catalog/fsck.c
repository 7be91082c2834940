/* fsck: the pool. Records, snapshots, nodes, and which volumes there are; fsck_volume.c has the
 * rest. */
#include "portalbd/catalog/fsck.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/fsck_internal.h"

enum { VOLUMES_AT_ONCE = 8 };

/* FNV-1a. */
static uint64_t hash_text(uint64_t hash, const char *text) {
    for (; *text; text++)
        hash = (hash ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    return hash;
}

static bool was_told(struct fsck *f, const char *key, const char *text) {
    uint64_t hash = hash_text(hash_text(UINT64_C(0xcbf29ce484222325), key), text);
    for (size_t i = 0; i < FSCK_TOLD; i++)
        if (f->told[i] == hash)
            return true;
    f->told[f->told_next++ % FSCK_TOLD] = hash;
    return false;
}

void fsck_report(struct fsck *f, enum fsck_kind kind, const char *key, const char *format, ...) {
    char buffer[ERR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(buffer, sizeof buffer, format, args);
    va_end(args);
    size_t len = strlen(key);
    bool has_key = strncmp(buffer, key, len) == 0 && strncmp(buffer + len, ": ", 2) == 0;
    const char *text = has_key ? buffer + len + 2 : buffer;
    if (kind == FSCK_DAMAGE && was_told(f, key, text))
        return;
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

/* A record that is looked at. */
struct fsck_record {
    const char *key;
    bool newest;
    struct view body;
};

/* What to do with the records of one kind. */
struct record_check {
    const char *root;
    /* fiber. Decodes one. -ERR_CORRUPT: *e says what is wrong with it. */
    int (*check)(struct fsck *f, const struct record_check *how, const struct fsck_record *r,
                 struct err *e);
    const struct volume_key *volume; /* snapshots: only those of this one; NULL: all */
};

/* Is there nothing after all? Others may have finished a creation meanwhile. */
static int confirm_no_manifest(struct fsck *f, const struct volume_record *r, struct err *e) {
    uint64_t number;
    int rc = manifest_newest_number(f->catalog->store, &r->key, &number, e);
    if (is_damage(rc))
        return 0; /* told with the manifests */
    if (rc < 0 || number > 0)
        return rc;
    char first[KEY_MAX];
    key_manifest(first, &r->key, 1);
    fsck_report(f, FSCK_DAMAGE, first, "volume '%s' has no manifest", r->name);
    return 0;
}

static int check_volume_record(struct fsck *f, const struct record_check *how,
                               const struct fsck_record *record, struct err *e) {
    (void)how;
    struct volume_record r;
    int rc = volume_record_decode_at(&r, record->key, record->body, e);
    if (rc < 0)
        return rc;
    f->result.records++;
    if (record->newest && r.state != VOLUME_DELETED && r.publish_epoch > 0)
        rc = confirm_no_manifest(f, &r, e);
    volume_record_release(&r);
    return rc;
}

static int check_node_record(struct fsck *f, const struct record_check *how,
                             const struct fsck_record *record, struct err *e) {
    (void)how;
    struct node_record r;
    int rc = node_record_decode_at(&r, record->key, record->body, e);
    f->result.records += rc == 0;
    if (rc == 0)
        node_record_release(&r);
    return rc;
}

static int check_record(struct fsck *f, const struct record_check *how, struct fsck_record *r,
                        struct err *e) {
    CLEANUP_BUF struct buf body = {0};
    if (f->on_progress)
        f->on_progress(f->arg, &f->result, how->root);
    int rc = fsck_get(f, r->key, RECORD_SIZE_MAX, &body, e);
    r->body = buf_view(&body);
    if (rc == 0)
        rc = how->check(f, how, r, e);
    if (is_damage(rc))
        fsck_report(f, FSCK_DAMAGE, r->key, "%s", e->text);
    return rc == -ERR_NOT_FOUND || is_damage(rc) ? 0 : rc; /* old records are pruned */
}

/* "records/<hash>/..." and nothing deeper. */
static bool is_in_folder(const char *key) {
    const char *name = strchr(key, '/') + 1;
    return strspn(name, "0123456789abcdef") == 32 && name[32] == '/' && !strchr(name + 33, '/');
}

/* All records below a root; quick, or of one volume: the newest of each folder. */
static int check_records(struct fsck *f, const struct record_check *how, struct err *e) {
    char after[OBJ_KEY_MAX + 1] = "", folder[OBJ_KEY_MAX + 1] = "";
    for (bool more = true; more;) {
        struct obj_list page = {0};
        int rc = objstore_list(f->catalog->store, how->root, after[0] ? after : NULL, OBJ_LIST_MAX,
                               &page, e);
        for (size_t i = 0; rc == 0 && i < page.count; i++) {
            struct fsck_record r = {.key = page.entries[i].key};
            size_t len = (size_t)(strrchr(r.key, '/') - r.key);
            r.newest = strncmp(folder, r.key, len) != 0 || folder[len] != '\0';
            uint64_t n;
            bool ours = key_parse_numbered(r.key, &n) == 0;
            if (ours)
                snprintf(folder, sizeof folder, "%.*s", (int)len, r.key);
            if (ours && (r.newest || !(f->quick || how->volume)))
                rc = check_record(f, how, &r, e);
            else if (!ours && r.newest && is_in_folder(r.key))
                fsck_report(f, FSCK_DAMAGE, r.key, FSCK_IN_THE_WAY);
            snprintf(after, sizeof after, "%s", r.key);
        }
        more = rc == 0 && page.more && page.count > 0;
        obj_list_release(&page);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Is there anything of ours but the pool's own record? */
static int is_empty(struct fsck *f, bool *ret, struct err *e) {
    static const char *const roots[] = {"records/", "volumes/", "snapshots/"};
    *ret = true;
    for (size_t i = 0; i < ARRAY_LEN(roots) && *ret; i++) {
        struct obj_list list = {0};
        int rc = objstore_list(f->catalog->store, roots[i], NULL, 1, &list, e);
        if (rc < 0)
            return rc;
        *ret = list.count == 0;
        obj_list_release(&list);
    }
    return 0;
}

static int check_pool_record(struct fsck *f, struct err *e) {
    char key[KEY_MAX];
    struct pool_record r;
    struct pool_create any = {.allow_other_cluster = true};
    bool empty = false;
    key_pool(key);
    int rc = catalog_pool_check(f->catalog, &any, &r, e);
    if (rc == 0) {
        f->result.records++;
        pool_record_release(&r);
    } else if (is_damage(rc)) {
        fsck_report(f, FSCK_DAMAGE, key, "%s", e->text);
        rc = 0;
    } else if (rc == -ERR_NOT_FOUND) {
        struct err why = *e;
        rc = is_empty(f, &empty, e);
        if (rc == 0 && empty)
            return err_copy(e, &why);
        if (rc == 0)
            fsck_report(f, FSCK_DAMAGE, key, "it is lost, and there are volumes");
    }
    return rc;
}

/* --- snapshots: each has a root in its source (I11) --- */

/* -ERR_CORRUPT: *e says what is wrong with the pin. */
static int check_snapshot_pin(struct fsck *f, const struct snapshot_record *r, char key[KEY_MAX],
                              struct err *e) {
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

static int check_snapshot(struct fsck *f, const struct snapshot_record *r, struct err *e) {
    char key[KEY_MAX], id[ID_MAX];
    int rc = check_snapshot_pin(f, r, key, e);
    f->result.snapshots++;
    if (!is_damage(rc))
        return rc;
    struct err why = *e;
    struct snapshot_info now; /* deleted meanwhile? */
    id_format(id, &r->key, f->catalog->pool);
    rc = catalog_snapshot_get(f->catalog, id, &now, e);
    if (rc == 0) {
        snapshot_info_release(&now);
        fsck_report(f, FSCK_DAMAGE, key, "%s", why.text);
    }
    return rc == -ERR_NOT_FOUND || is_damage(rc) ? 0 : rc;
}

static int check_snapshot_record(struct fsck *f, const struct record_check *how,
                                 const struct fsck_record *record, struct err *e) {
    struct snapshot_record r;
    int rc = snapshot_record_decode_at(&r, record->key, record->body, e);
    if (rc < 0)
        return rc;
    bool wanted = !how->volume || (!r.deleted && volume_keys_equal(&r.source, how->volume));
    f->result.records += wanted;
    if (!r.deleted && record->newest && wanted)
        rc = check_snapshot(f, &r, e);
    snapshot_record_release(&r);
    return rc;
}

/* --- volumes --- */

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
        key_volume_prefix(key, v);
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
    if (c->f->on_progress)
        c->f->on_progress(c->f->arg, &c->f->result, c->volume.text);
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
    static const struct record_check checks[] = {
        {.root = "records/", .check = check_volume_record},
        {.root = "snapshots/", .check = check_snapshot_record},
        {.root = "nodes/", .check = check_node_record}};
    fiber_mutex_init(&f->reading);
    int rc = check_pool_record(f, e);
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(checks); i++)
        rc = check_records(f, &checks[i], e);
    return rc == 0 ? check_volumes(f, e) : rc;
}

/* *ret: of the volume that has this name now; key: it must be this one, or NULL. */
static int find_volume(struct fsck *f, const char *hash, const struct volume_key *key,
                       struct volume_key *ret, struct err *e) {
    struct volume_record r;
    struct manifest m = {0};
    int rc = volume_record_newest(f->catalog, hash, &r, e);
    if (rc < 0)
        return rc;
    bool there =
        r.number > 0 && r.state != VOLUME_DELETED && (!key || volume_keys_equal(&r.key, key));
    if (there) {
        *ret = r.key;
        rc = manifest_newest(f->catalog->store, &r.key, &m, e);
        there = rc == -ERR_NOT_FOUND ? r.publish_epoch > 0 : !m.deleted;
    }
    manifest_release(&m);
    volume_record_release(&r);
    if (rc < 0 && rc != -ERR_NOT_FOUND && !is_damage(rc)) /* of the manifest: told later */
        return rc;
    return there ? 0 : err_set(e, -ERR_NOT_FOUND, "no such volume");
}

static int check_volume(struct fsck *f, const char *hash, const struct volume_key *wanted,
                        struct err *e) {
    char folder[KEY_MAX];
    struct volume_key key;
    uint64_t damaged = f->result.damaged;
    key_records_prefix(folder, hash);
    fiber_mutex_init(&f->reading);
    int rc = check_pool_record(f, e);
    if (rc == 0)
        rc = check_records(f, &(struct record_check){.root = folder, .check = check_volume_record},
                           e);
    if (rc == 0)
        rc = find_volume(f, hash, wanted, &key, e);
    if (is_damage(rc) && f->result.damaged > damaged)
        return 0; /* of the record: told, and which volume is it? */
    if (rc == 0)
        rc = check_against_record(f, &key, e);
    if (rc == 0)
        rc =
            check_records(f,
                          &(struct record_check){
                              .root = "snapshots/", .check = check_snapshot_record, .volume = &key},
                          e);
    if (rc < 0)
        return rc;
    rc = fsck_check_volume(f, &key, false, e);
    return rc == -ERR_NOT_FOUND && f->result.damaged > damaged ? 0 : rc; /* no manifest: told */
}

int fsck_volume(struct fsck *f, const char *id, struct err *e) {
    struct parsed_id p;
    int rc = catalog_parse_id(f->catalog, ID_VOLUME, id, &p, e);
    if (rc == 0)
        rc = check_volume(f, p.name_hash, &p.key, e);
    return rc == -ERR_NOT_FOUND ? err_set(e, rc, "volume '%s' does not exist", id) : rc;
}

int fsck_volume_named(struct fsck *f, const char *name, struct err *e) {
    char hash[33];
    name_hash(hash, name);
    int rc = check_volume(f, hash, NULL, e);
    return rc == -ERR_NOT_FOUND ? err_set(e, rc, "volume '%s' does not exist", name) : rc;
}
