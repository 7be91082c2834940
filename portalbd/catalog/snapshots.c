/* Snapshots: create, get, find, list, delete (design §2.3, Snapshot; model snaprec).
 *
 *   newest record n of the name -> claim, which names n+1 -> cut -> root -> record n+1: the commit
 *   -> is it the newest?
 *
 * Invariants:
 *   I1  The number is chosen before the claim and is in it (trace 14).
 *   I2  A pin is named by one record number only. Whoever does not see that record become the
 *       newest gives the pin up and starts again with a new one.
 *   I3  Tombstone first, then the claim, then the root. */
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"

static int decode(void *ret, const char *key, struct view body, struct err *e) {
    return snapshot_record_decode_at(ret, key, body, e);
}

int snapshot_record_newest(struct catalog *c, const char *hash, struct snapshot_record *ret,
                           struct err *e) {
    char folder[KEY_MAX];
    key_snapshots_prefix(folder, hash);
    return catalog_newest(c, folder, decode, ret, sizeof *ret, e);
}

static bool is_live(const struct snapshot_record *r) {
    return r->number > 0 && !r->deleted;
}

int snapshot_record_by_id(struct catalog *c, const char *id, struct snapshot_record *ret,
                          struct err *e) {
    struct parsed_id p;
    int rc = catalog_parse_id(c, ID_SNAPSHOT, id, &p, e);
    if (rc < 0)
        return rc;
    struct snapshot_record r;
    rc = snapshot_record_newest(c, p.name_hash, &r, e);
    if (rc < 0)
        return rc;
    if (!is_live(&r) || !volume_keys_equal(&r.key, &p.key)) {
        snapshot_record_release(&r);
        return err_set(e, -ERR_NOT_FOUND, "snapshot '%s' does not exist", id);
    }
    *ret = r;
    return 0;
}

/* --- what is told about one --- */

void snapshot_info_release(struct snapshot_info *i) {
    snapshot_record_release(&i->record);
    *i = (struct snapshot_info){0};
}

/* *r is moved. */
static void info_make(struct snapshot_info *ret, const struct catalog *c,
                      struct snapshot_record *r) {
    *ret = (struct snapshot_info){.record = *r};
    id_format(ret->id, &r->key, c->pool);
    id_format(ret->source_id, &r->source, c->pool);
    *r = (struct snapshot_record){0};
}

int catalog_snapshot_get(struct catalog *c, const char *id, struct snapshot_info *ret,
                         struct err *e) {
    struct snapshot_record r;
    int rc = snapshot_record_by_id(c, id, &r, e);
    if (rc == 0)
        info_make(ret, c, &r);
    return rc;
}

int catalog_snapshot_find(struct catalog *c, const char *name, struct snapshot_info *ret,
                          struct err *e) {
    char hash[33];
    name_hash(hash, name);
    struct snapshot_record r;
    int rc = snapshot_record_newest(c, hash, &r, e);
    if (rc < 0)
        return rc;
    if (!is_live(&r)) {
        snapshot_record_release(&r);
        return err_set(e, -ERR_NOT_FOUND, "snapshot '%.128s' does not exist", name);
    }
    info_make(ret, c, &r);
    return 0;
}

void snapshot_list_release(struct snapshot_list *l) {
    for (size_t i = 0; i < l->count; i++)
        snapshot_info_release(&l->items[i]);
    free(l->items);
    *l = (struct snapshot_list){0};
}

/* arg: the volume_key whose snapshots are wanted, or NULL. */
static int fetch_snapshot(struct catalog *c, void *arg, const struct list_record *record,
                          void *item, struct err *e) {
    const struct volume_key *source = arg;
    struct snapshot_record r;
    int rc = snapshot_record_decode_at(&r, record->key, buf_view(&record->body), e);
    if (rc < 0)
        return err_wrap(e, "%s", record->key);
    bool wanted = is_live(&r) && (!source || volume_keys_equal(&r.source, source));
    if (wanted)
        info_make(item, c, &r);
    snapshot_record_release(&r);
    return wanted;
}

static void release_snapshot(void *item) {
    snapshot_info_release(item);
}

int catalog_snapshot_list(struct catalog *c, const char *source_id, const char *token, size_t max,
                          struct snapshot_list *ret, struct err *ret_damage, struct err *e) {
    struct parsed_id source;
    struct list_page p = {.root = "snapshots/",
                          .item_size = sizeof(struct snapshot_info),
                          .fetch = fetch_snapshot,
                          .release = release_snapshot,
                          .damage = ret_damage};
    int rc = catalog_check_token(token, e);
    if (rc < 0)
        return rc;
    *ret = (struct snapshot_list){0};
    if (source_id && source_id[0] != '\0') {
        if (catalog_parse_id(c, ID_VOLUME, source_id, &source, NULL) < 0)
            return 0; /* it names nothing, so nothing was cut from it */
        p.arg = &source.key;
    }
    rc = catalog_list_page(c, &p, token, max, e);
    if (rc < 0)
        return rc;
    *ret = (struct snapshot_list){.items = p.items, .count = p.count};
    memcpy(ret->next_token, p.next_token, sizeof ret->next_token);
    return 0;
}

/* --- create --- */

/* Cuts a pin whose commit key is record n+1 of the name, and puts that record. *r has number n, its
 * name and what comes from the source. -ERR_STALE: raced, start over from the newest. */
static int cut_and_commit(struct catalog *c, const char *folder, struct snapshot_record *r,
                          struct err *e) {
    struct commit_key commit = {.is_clone = false};
    r->number++;
    numbered_key(commit.key, folder, r->number);
    int rc = pin_claim_new(c->env, c->store, &r->source, &commit, &r->pin, e);
    if (rc < 0)
        return rc;
    struct pin_root root;
    rc = pin_cut(c->env, c->store, &r->source, &r->pin, &commit, &root, e);
    if (rc < 0) {
        (void)pin_release_claim(c->store, &r->source, &r->pin, NULL); /* else the sweeper does */
        return rc;
    }
    r->size_bytes = root.size_bytes;
    r->block_size = root.block_size;
    r->created_ms = env_wall_ms(c->env);
    catalog_new_id(c, &r->nonce);
    pin_root_release(&root);
    CLEANUP_BUF struct buf body = {0};
    rc = snapshot_record_encode(&body, r, e);
    if (rc == 0)
        rc = numbered_put(c->store, folder, r->number, buf_view(&body), e);
    if (rc == -ERR_STALE || rc == -ERR_INVALID) /* I2: settled, nothing names this pin */
        (void)pin_release(c->store, &r->source, &r->pin, NULL);
    return rc;
}

/* -ERR_STALE: start over. */
static int create_once(struct catalog *c, const char *name, const char *hash,
                       const struct parsed_id *source, struct snapshot_info *ret, struct err *e) {
    CLEANUP(snapshot_record_release) struct snapshot_record r = {0};
    int rc = snapshot_record_newest(c, hash, &r, e);
    if (rc < 0)
        return rc;
    if (is_live(&r)) {
        if (!volume_keys_equal(&r.source, &source->key))
            return err_set(e, -ERR_EXISTS, "there is a snapshot '%.128s' already, of volume '%s'",
                           name, r.source_name);
        info_make(ret, c, &r);
        return 0;
    }
    const struct catalog_identity *volume;
    rc = volume_identity(c, source, &volume, e); /* whether it is there, its manifest says */
    if (rc < 0)
        return rc;
    uint64_t newest = r.number;
    snapshot_record_release(&r);
    r = (struct snapshot_record){.number = newest,
                                 .source = source->key,
                                 .name = xstrdup(name),
                                 .source_name = xstrdup(volume->name),
                                 .fstype = xstrdup(volume->fstype)};
    id_format_key(&r.key, ID_SNAPSHOT, hash, newest + 1);
    char folder[KEY_MAX];
    key_snapshots_prefix(folder, hash);
    rc = cut_and_commit(c, folder, &r, e);
    if (rc == 0)
        info_make(ret, c, &r);
    return rc;
}

int catalog_snapshot_create(struct catalog *c, const char *name, const char *source_id,
                            struct snapshot_info *ret, struct err *e) {
    struct parsed_id source;
    int rc = catalog_check_name("snapshot", name, e);
    if (rc == 0)
        rc = catalog_parse_id(c, ID_VOLUME, source_id, &source, e);
    if (rc < 0)
        return rc;
    char hash[33];
    name_hash(hash, name);
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        rc = create_once(c, name, hash, &source, ret, e);
        if (rc != -ERR_STALE)
            return rc < 0 ? err_wrap(e, "snapshot '%.128s'", name) : 0;
    }
    return catalog_busy(e, "snapshot", name);
}

/* --- delete --- */

/* -ERR_STALE: start over. */
static int delete_once(struct catalog *c, const char *id, const struct parsed_id *p,
                       struct err *e) {
    CLEANUP(snapshot_record_release) struct snapshot_record r = {0};
    int rc = snapshot_record_by_id(c, id, &r, e);
    if (rc == -ERR_NOT_FOUND)
        return 0; /* a pin that its deleter left is the sweeper's */
    if (rc < 0)
        return rc;
    struct snapshot_record tombstone = {.number = r.number + 1,
                                        .deleted = true,
                                        .name = xstrdup(r.name),
                                        .source_name = xstrdup(""),
                                        .fstype = xstrdup("")};
    catalog_new_id(c, &tombstone.nonce);
    CLEANUP_BUF struct buf body = {0};
    rc = snapshot_record_encode(&body, &tombstone, e);
    snapshot_record_release(&tombstone);
    char folder[KEY_MAX];
    key_snapshots_prefix(folder, p->name_hash);
    if (rc == 0)
        rc = numbered_put(c->store, folder, r.number + 1, buf_view(&body), e);
    return rc < 0 ? rc : pin_release(c->store, &r.source, &r.pin, e);
}

int catalog_snapshot_delete(struct catalog *c, const char *id, struct err *e) {
    struct parsed_id p;
    if (catalog_parse_id(c, ID_SNAPSHOT, id, &p, NULL) < 0)
        return 0;
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        int rc = delete_once(c, id, &p, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return catalog_busy(e, "snapshot", id);
}
