/* What a new volume begins with: its first manifest, empty or a clone's (design §2.3, Clone; models
 * chain and pins).
 *
 *   of a snapshot   its record -> claim in its volume -> record and root, both must stand ->
 *                   the pin's root (a copy) -> first manifest: the commit
 *   of a volume     claim -> cut (Snapshot's steps 2 and 3) -> first manifest: the commit
 *
 * Invariants:
 *   I1  The first manifest is put once in a volume's life and never deleted; whoever finds one
 * there gives its own pin up. I2  A clone holds one pin, in its direct source. What lies behind
 * that is held by the source's own pins, which are not released while ours is there. */
#include "portalbd/catalog/catalog_internal.h"

#include <stdlib.h>

void clone_source_release(struct clone_source *s) {
    snapshot_record_release(&s->snapshot);
    *s = (struct clone_source){0};
}

/* The record at the number that is in the id. Whether it is the newest is looked at behind the
 * claim, when it matters. Costs 1. */
static int find_snapshot(struct catalog *c, const struct parsed_id *id, struct clone_source *ret,
                         struct err *e) {
    char key[KEY_MAX];
    key_snapshot(key, id->name_hash, id->number);
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(c->store, key, RECORD_SIZE_MAX, &body, e);
    if (rc == 0)
        rc = snapshot_record_decode_at(&ret->snapshot, key, buf_view(&body), e);
    if (rc < 0 && rc != -ERR_NOT_FOUND)
        return err_wrap(e, "%s", key);
    if (rc < 0 || ret->snapshot.deleted || !volume_keys_equal(&ret->snapshot.key, &id->key)) {
        snapshot_record_release(&ret->snapshot);
        return err_set(e, -ERR_NOT_FOUND, "snapshot '%s.%s' does not exist", id->key.text,
                       id->pool);
    }
    ret->is_snapshot = true;
    ret->volume = ret->snapshot.source;
    ret->size_bytes = ret->snapshot.size_bytes;
    return 0;
}

static int find_volume(struct catalog *c, const char *id, struct clone_source *ret, struct err *e) {
    struct volume_record r;
    struct volume_info info;
    int rc = catalog_restored_record(c, id, &r, e);
    if (rc < 0)
        return rc;
    rc = volume_info_read(c, &r, &info, e);
    volume_record_release(&r);
    if (rc < 0)
        return rc;
    ret->volume = info.record.key;
    ret->size_bytes = info.size_bytes;
    ret->depth = info.depth + 1;
    volume_info_release(&info);
    return 0;
}

int clone_source_find(struct catalog *c, const char *id, struct clone_source *ret, struct err *e) {
    struct parsed_id p;
    int rc = id_parse(&p, id, e);
    if (rc < 0)
        return rc;
    if (strcmp(p.pool, c->pool) != 0)
        return err_set(e, -ERR_INVALID, "the source '%s' is in another pool than '%s'", id,
                       c->pool);
    struct clone_source s = {0};
    rc = p.kind == ID_SNAPSHOT ? find_snapshot(c, &p, &s, e) : find_volume(c, id, &s, e);
    if (rc == 0)
        *ret = s;
    return rc;
}

int clone_source_check(struct catalog *c, const struct clone_source *s, struct err *e) {
    if (!s->is_snapshot)
        return 0;
    char hash[33], folder[KEY_MAX];
    name_hash(hash, s->snapshot.name);
    key_snapshots_prefix(folder, hash);
    uint64_t n;
    int rc = numbered_newest_number(c->store, folder, &n, e);
    if (rc == 0 &&
        n != s->snapshot.number) /* records are immutable: the newest is not the one read */
        rc = err_set(e, -ERR_NOT_FOUND, "snapshot '%s' was deleted", s->snapshot.name);
    return rc;
}

/* --- the first manifest --- */

static int put_first(struct catalog *c, const struct volume_record *r, struct manifest *m,
                     struct err *e) {
    CHECK(m->size_bytes > 0 && m->size_bytes % VOLUME_BLOCK_SIZE == 0);
    m->number = 1;
    m->epoch = 0; /* publish epoch 0, open count 0 */
    m->closed = true;
    catalog_new_id(c, &m->nonce);
    int rc = manifest_put(c->store, &r->key, m, e);
    if (rc == -ERR_EXISTS || rc == -ERR_STALE)
        return err_set(e, -ERR_EXISTS, "volume '%s' has a first manifest already", r->name);
    return rc;
}

static int create_empty(struct catalog *c, const struct volume_record *r, struct manifest *ret,
                        struct err *e) {
    struct manifest m = {.size_bytes = r->size_bytes, .block_size = r->block_size};
    root_init(&m.root, &r->key);
    m.root.next_seq = 1;
    int rc = put_first(c, r, &m, e);
    if (rc == 0)
        *ret = m;
    else
        manifest_release(&m);
    return rc;
}

/* The commit: the clone's first manifest, which names the pin. */
static int commit_clone(struct catalog *c, const struct volume_record *r,
                        const struct clone_source *src, const struct pin_root *pin,
                        struct manifest *ret, struct err *e) {
    if (pin->depth >= CATALOG_DEPTH_MAX)
        return err_set(
            e, -ERR_UNSUPPORTED,
            "the source is %u clones away from a volume of its own, and %d are the most; "
            "copy it instead",
            pin->depth, CATALOG_DEPTH_MAX);
    struct manifest m = {.size_bytes = MAX(r->size_bytes, pin->size_bytes),
                         .block_size = pin->block_size,
                         .depth = pin->depth + 1,
                         .held_pin_count = 1};
    int rc = root_rebase(&m.root, &pin->root, &r->key, e);
    if (rc < 0)
        return rc;
    m.held_pins = NEW(struct held_pin);
    m.held_pins[0] = (struct held_pin){.volume = src->volume, .pin = pin->pin};
    rc = put_first(c, r, &m, e);
    if (rc == 0)
        *ret = m;
    else
        manifest_release(&m);
    return rc;
}

/* The second look at a snapshot: behind our claim its record and its root must both stand; from
 * then on GC sees our claim or its pin. */
int clone_source_root(struct catalog *c, const struct clone_source *src, struct pin_root *ret,
                      struct err *e) {
    CHECK(src->is_snapshot);
    int rc = clone_source_check(c, src, e);
    if (rc < 0)
        return rc;
    struct pin_root root;
    rc = pin_root_get(c->store, &src->volume, &src->snapshot.pin, &root, e);
    if (rc < 0 && rc != -ERR_NOT_FOUND)
        return rc;
    if (rc == 0 && !root.expired) {
        *ret = root;
        return 0;
    }
    if (rc == 0)
        pin_root_release(&root);
    return err_set(e, -ERR_NOT_FOUND, "snapshot '%s' was deleted", src->snapshot.name);
}

/* Claim, root. A pin that failed before its commit is of no use to anybody: its claim goes, and a
 * root whose PUT may still take effect is the sweeper's. */
static int pin_source(struct catalog *c, const struct clone_source *src,
                      const struct commit_key *commit, struct pin_root *ret, struct err *e) {
    struct random_id pin;
    int rc = pin_claim_new(c->env, c->store, &src->volume, commit, &pin, e);
    if (rc < 0)
        return rc;
    if (src->is_snapshot) {
        struct pin_root root;
        rc = clone_source_root(c, src, &root, e);
        if (rc == 0) {
            rc = pin_root_put(c->env, c->store, &src->volume, &pin, commit, &root, e);
            if (rc == 0)
                *ret = root;
            else
                pin_root_release(&root);
        }
    } else {
        rc = pin_cut(c->env, c->store, &src->volume, &pin, commit, ret, e);
    }
    if (rc < 0)
        (void)pin_release_claim(c->store, &src->volume, &pin, NULL); /* else the sweeper does */
    return rc;
}

int volume_content_create(struct catalog *c, const struct volume_record *r,
                          const struct clone_source *src, struct manifest *ret, struct err *e) {
    CHECK(r->number > 0);
    CHECK(r->state != VOLUME_DELETED);
    if (!src)
        return create_empty(c, r, ret, e);
    struct commit_key commit = {.is_clone = true};
    key_manifest(commit.key, &r->key, 1);
    struct pin_root root;
    int rc = pin_source(c, src, &commit, &root, e);
    if (rc < 0)
        return rc;
    rc = commit_clone(c, r, src, &root, ret, e);
    /* With these, ours did not become the first manifest, so nothing names this pin, ever (I1).
     * After any other error the PUT may still take effect: then the pin is the sweeper's. */
    if (rc == -ERR_EXISTS || rc == -ERR_UNSUPPORTED || rc == -ERR_OVERLOAD)
        (void)pin_release(c->store, &src->volume, &root.pin, NULL);
    pin_root_release(&root);
    return rc;
}
