/* Restore in place: a volume's content becomes what a snapshot of it holds (design §2.3; models
 * restore, restore+log).
 *
 *   ready, no node --epoch+1--> restoring --complete open, root, closed manifest--> ready
 *                                   |
 *                                   +--the snapshot is gone--> fencing --> ready, nothing changed
 *
 * Invariants:
 *   I1  The record names snapshot and epoch before anybody opens with it (trace 16), so that
 * whoever meets it finishes it: a manifest closed at that epoch says that the restore is done. I2
 * The snapshot's root is read behind the complete open: from then on no writer collects, and what
 * the root names cannot go even when the snapshot does (trace 3). I3  The new root's next_seq lies
 * behind our fence: nothing that was written since the snapshot is replayed (trace 4). I4  The
 * manifest condemns nothing: what the old writer condemned may be needed again. I5  A restore that
 * cannot be done any more turns into a fencing of the same epoch, in the record, before any
 * manifest is closed at it: else I1 would take it for done. */
#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/catalog/catalog_internal.h"

/* --- the content --- */

/* The root that the snapshot holds; `known`: its record, when it was read already. -ERR_NOT_FOUND,
 * -ERR_CORRUPT, -ERR_UNSUPPORTED: it cannot be restored, now or later. Costs 2, 3 without record.
 */
static int read_snapshot(struct catalog *c, const struct volume_record *r,
                         const struct clone_source *known, struct pin_root *ret, struct err *e) {
    struct clone_source s = {0};
    struct pin_root root;
    int rc = known ? 0 : clone_source_find(c, r->restore_snapshot, &s, e);
    if (rc == 0)
        rc = clone_source_root(c, known ? known : &s, &root, e);
    clone_source_release(&s);
    if (rc < 0)
        return rc;
    if (!volume_keys_equal(&root.root.volumes[0], &r->key)) {
        pin_root_release(&root);
        return err_set(e, -ERR_CORRUPT, "snapshot '%s' holds the root of another volume than '%s'",
                       r->restore_snapshot, r->name);
    }
    *ret = root;
    return 0;
}

/* The manifest behind a takeover's: the snapshot's root (moved), closed. -ERR_FENCED. */
static int put_restored(struct catalog *c, const struct volume_record *r, struct takeover *t,
                        struct pin_root *from, struct err *e) {
    struct manifest *m = &t->manifest;
    CHECK(epoch_publish(m->epoch) == r->publish_epoch);
    CHECK(t->first_seq > from->root.next_seq);
    root_release(&m->root);
    m->root = from->root;
    from->root = (struct root){0};
    if (!MUTANT("restore-replays-the-tail"))
        m->root.next_seq = t->first_seq;                  /* I3 */
    m->size_bytes = MAX(m->size_bytes, from->size_bytes); /* a device never shrinks */
    m->depth = from->depth;
    if (!MUTANT("restore-keeps-condemned")) { /* I4 */
        free(m->condemned);
        m->condemned = NULL;
        m->condemned_count = 0;
    }
    m->number++;
    m->closed = true;
    catalog_new_id(c, &m->nonce);
    int rc = manifest_put(c->store, &r->key, m, e);
    if (rc == -ERR_EXISTS || rc == -ERR_STALE)
        return err_set(e, -ERR_FENCED, "volume '%s': manifest %llu is another writer's", r->name,
                       (unsigned long long)m->number);
    return rc < 0 ? rc : manifest_check_newest(c->store, &r->key, m->number, e);
}

static bool is_lost(int rc) {
    return rc == -ERR_NOT_FOUND || rc == -ERR_CORRUPT || rc == -ERR_UNSUPPORTED;
}

/* Complete open, root, manifest. *ret_lost: the error is about the snapshot, which cannot be
 * restored; nothing but a manifest of ours that is not closed has come of it. -ERR_FENCED: another
 * one is at it, or was. Costs 10, 11 without `known`. */
static int restore_content(struct catalog *c, const struct volume_record *r,
                           const struct clone_source *known, struct manifest *ret, bool *ret_lost,
                           struct err *e) {
    struct takeover t;
    struct pin_root root = {0};
    bool early = MUTANT("restore-reads-root-first");
    int early_rc = early ? read_snapshot(c, r, known, &root, e) : 0;
    *ret_lost = false;
    int rc =
        volume_takeover(c->env, c->store, &r->key, (uint32_t)r->publish_epoch, NULL, false, &t, e);
    if (rc < 0) {
        pin_root_release(&root);
        return rc;
    }
    rc = early ? early_rc : read_snapshot(c, r, known, &root, e); /* I2 */
    if (rc == 0 && root.root.next_seq >= t.first_seq)
        rc = err_set(e, -ERR_CORRUPT, "snapshot '%s' is ahead of the log of volume '%s'",
                     r->restore_snapshot, r->name);
    *ret_lost = is_lost(rc);
    if (rc == 0)
        rc = put_restored(c, r, &t, &root, e);
    if (rc == 0) {
        *ret = t.manifest;
        t.manifest = (struct manifest){0};
    }
    pin_root_release(&root);
    takeover_release(&t);
    return rc;
}

/* --- the record --- */

/* The restore is done at r's epoch: the record says so. 0 also when it has moved on: somebody else
 * has seen the same. -ERR_STALE: the record changed, and still says restoring. */
static int record_ready(struct catalog *c, struct volume_record *r, struct err *e) {
    uint64_t epoch = r->publish_epoch;
    r->state = VOLUME_READY;
    catalog_set_text(&r->restore_snapshot, "");
    int rc = volume_record_advance(c, r, e);
    if (rc != -ERR_STALE)
        return rc;
    char hash[33];
    name_hash(hash, r->name);
    struct volume_record now;
    rc = volume_record_newest(c, hash, &now, e);
    if (rc < 0)
        return rc;
    bool same = volume_keys_equal(&now.key, &r->key) && now.state == VOLUME_RESTORING &&
                now.publish_epoch == epoch;
    volume_record_release(&now);
    return same ? -ERR_STALE : 0;
}

/* The snapshot is lost (*e): nothing has changed, and the record says so in the end. Returns the
 * reason. */
static int turn_into_fencing(struct catalog *c, struct volume_record *r, bool *ret_reverted,
                             struct err *e) {
    struct err why = *e;
    r->state = VOLUME_FENCING; /* I5 */
    catalog_set_text(&r->restore_snapshot, "");
    int rc = volume_record_advance(c, r, e);
    if (rc == 0)
        rc = catalog_finish_fencing(c, r, e);
    if (rc < 0)
        return rc;
    *ret_reverted = true;
    return err_copy(e, &why);
}

/* `begun`: by this very call, from this source, and nobody can have finished it yet. NULL: found.
 */
static int finish(struct catalog *c, struct volume_record *r, const struct clone_source *begun,
                  struct manifest *ret, bool *ret_reverted, struct err *e) {
    CHECK(r->state == VOLUME_RESTORING);
    CHECK(r->restore_snapshot[0] != '\0');
    struct manifest m = {0};
    *ret_reverted = false;
    bool lost = false;
    int rc = begun ? 0 : manifest_newest(c->store, &r->key, &m, e);
    bool done = rc == 0 && m.closed && epoch_publish(m.epoch) == r->publish_epoch;
    if (rc == 0 && !done) {
        manifest_release(&m);
        rc = restore_content(c, r, begun, &m, &lost, e);
    }
    if (rc == -ERR_FENCED) /* somebody else finishes it, or the record is an old one by now */
        return -ERR_STALE;
    if (rc < 0)
        return lost ? turn_into_fencing(c, r, ret_reverted, e) : rc;
    rc = record_ready(c, r, e);
    if (rc < 0)
        manifest_release(&m);
    else
        *ret = m;
    return rc;
}

int catalog_finish_restore(struct catalog *c, struct volume_record *r, struct err *e) {
    struct manifest m;
    bool reverted;
    int rc = finish(c, r, NULL, &m, &reverted, e);
    if (rc < 0)
        return reverted ? 0 : rc;
    manifest_release(&m);
    return 0;
}

int catalog_restored_record(struct catalog *c, const char *id, struct volume_record *ret,
                            struct err *e) {
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        struct volume_record r;
        int rc = volume_record_by_id(c, id, &r, e);
        if (rc < 0)
            return rc;
        if (r.state != VOLUME_RESTORING) {
            *ret = r;
            return 0;
        }
        rc = catalog_finish_restore(c, &r, e);
        volume_record_release(&r);
        if (rc < 0 && rc != -ERR_STALE)
            return rc;
    }
    return catalog_busy(e, "volume", id);
}

/* --- the call --- */

/* The call ends with rc while the record names the restore, or may: people must know that it is not
 * off. */
static int left_to_others(struct err *e, const struct volume_record *r, int rc) {
    return rc == -ERR_STALE ? rc
                            : err_wrap(e,
                                       "the restore of volume '%s' may have begun, and whoever "
                                       "uses the volume next finishes it",
                                       r->name);
}

/* The record says restoring, for this or another snapshot: that first. -ERR_STALE: start over. */
static int go_on(struct catalog *c, struct volume_record *r, const char *snapshot_id,
                 struct volume_info *ret, struct err *e) {
    bool ours = strcmp(r->restore_snapshot, snapshot_id) == 0, reverted;
    struct manifest m;
    int rc = finish(c, r, NULL, &m, &reverted, e);
    if (rc < 0 && reverted)
        return ours ? rc : -ERR_STALE;
    if (rc < 0)
        return left_to_others(e, r, rc);
    if (ours)
        volume_info_make(ret, c, r, &m);
    manifest_release(&m);
    return ours ? 0 : -ERR_STALE;
}

/* May this snapshot be restored into the volume? A look before anything is changed; the one behind
 * the open decides. Costs 2. */
static int find_source(struct catalog *c, const struct volume_record *r, const char *snapshot_id,
                       struct clone_source *ret, struct err *e) {
    int rc = clone_source_find(c, snapshot_id, ret, e);
    if (rc == 0)
        rc = clone_source_check(c, ret, e);
    if (rc == 0 && !volume_keys_equal(&ret->snapshot.source, &r->key))
        rc = err_set(e, -ERR_INVALID,
                     "snapshot '%s' is of volume '%s': only a volume's own snapshots can be "
                     "restored in place; clone it instead",
                     ret->snapshot.name, ret->snapshot.source_name);
    return rc;
}

/* The record with which a call has begun, or may have: the answer to its put was a lost race. */
struct beginning {
    uint64_t number; /* 0: not begun */
    struct random_id nonce;
};

/* What became of a restore that others finished: the records behind its own tell. 0: restored.
 * -ERR_STALE: it did not begin, or is not finished. Costs about 3. */
static int outcome(struct catalog *c, const struct beginning *b, const char *volume_id,
                   struct err *e) {
    struct parsed_id p;
    int rc = catalog_parse_id(c, ID_VOLUME, volume_id, &p, e);
    enum volume_state state = VOLUME_RESTORING;
    for (uint64_t n = b->number; rc == 0 && state == VOLUME_RESTORING; n++) {
        struct volume_record r;
        rc = volume_record_at(c, p.name_hash, n, &r, e);
        if (rc < 0) /* none yet, or pruned: so much has happened since */
            return rc == -ERR_NOT_FOUND ? -ERR_STALE : rc;
        bool ours = n > b->number || random_id_equal(&r.nonce, &b->nonce);
        state = r.state;
        volume_record_release(&r);
        if (!ours)
            return -ERR_STALE;
    }
    if (rc == 0 && state != VOLUME_READY)
        rc = err_set(e, -ERR_NOT_FOUND, "volume '%s' or its snapshot was deleted meanwhile",
                     volume_id);
    return rc;
}

/* -ERR_STALE: start over. */
static int restore_once(struct catalog *c, const char *snapshot_id, const char *volume_id,
                        struct beginning *b, struct volume_info *ret, struct err *e) {
    CLEANUP(volume_record_release) struct volume_record r = {0};
    CLEANUP(clone_source_release) struct clone_source source = {0};
    int rc = volume_record_by_id(c, volume_id, &r, e);
    if (rc < 0)
        return rc;
    if (r.state == VOLUME_RESTORING)
        return go_on(c, &r, snapshot_id, ret, e);
    rc = catalog_settle(c, &r, e);
    if (rc < 0)
        return rc;
    if (b->number > 0) { /* others may have finished it since we last asked */
        rc = outcome(c, b, volume_id, e);
        if (rc != -ERR_STALE)
            return rc < 0 ? rc : catalog_volume_get(c, volume_id, ret, e);
    }
    if (r.node[0] != '\0')
        return err_set(e, -ERR_IN_USE,
                       "volume '%s' is published to node '%s': unmount and detach it there, or "
                       "stop the pods that use it, then restore it",
                       r.name, r.node);
    rc = find_source(c, &r, snapshot_id, &source, e);
    if (rc < 0)
        return rc;
    r.state = VOLUME_RESTORING; /* I1 */
    catalog_set_text(&r.restore_snapshot, snapshot_id);
    rc = volume_record_next_epoch(&r, e);
    if (rc < 0)
        return rc;
    struct manifest m;
    bool reverted = false;
    rc = volume_record_advance(c, &r, e);
    if (rc == 0 || rc == -ERR_STALE)
        *b = (struct beginning){.number = r.number, .nonce = r.nonce};
    if (rc == 0)
        rc = finish(c, &r, &source, &m, &reverted, e);
    if (rc < 0)
        return reverted ? rc : left_to_others(e, &r, rc);
    volume_info_make(ret, c, &r, &m);
    manifest_release(&m);
    return 0;
}

int catalog_snapshot_restore(struct catalog *c, const char *snapshot_id, const char *volume_id,
                             struct volume_info *ret, struct err *e) {
    struct parsed_id p;
    int rc = catalog_parse_id(c, ID_SNAPSHOT, snapshot_id, &p, e);
    if (rc < 0)
        return rc;
    struct beginning b = {0};
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        rc = restore_once(c, snapshot_id, volume_id, &b, ret, e);
        if (rc != -ERR_STALE)
            return rc;
        rc = b.number > 0 ? outcome(c, &b, volume_id, e) : -ERR_STALE;
        if (rc == 0)
            return catalog_volume_get(c, volume_id, ret, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return catalog_busy(e, "volume", volume_id);
}
