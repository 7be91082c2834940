/* The sweeper: takes pins away that nothing live names (design §2.3; models snaprec and pins).
 *
 *   seen unnamed --(10 minutes, still unnamed)--> tombstone at the commit key, if absent
 *       --> look again: named now? leave it
 *       --> "expired" as the root, if there is none --> delete the claim --> delete a real root
 *
 * What makes a pin live: the newest snapshot record in the folder of its commit key names it, or
 * the newest manifest of the clone does. Not its first: that names for ever what the clone has
 * given up since, and a claim or a root whose PUT came once more behind their deletion would stay.
 *
 * Invariants:
 *   I1  Nothing of a pin is touched before its commit key holds an object that is not going to make
 *       it live: either the tombstone, or what others put there (traces 6, 13, 14).
 *   I2  The look after the tombstone decides (trace 18): the put may have been refused by the live
 *       record itself, or have succeeded into a hole of the records.
 *   I3  The newest record of a folder only goes forward, and a pin is named by one record number
 *       only: once passed it is dead for ever.
 *   I4  Tombstones and "expired" stay. */
#include "portalbd/volume/sweep.h"

#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/format/records.h"
#include "portalbd/volume/destroy.h"
#include "portalbd/volume/numbered.h"

void pin_sweeper_release(struct pin_sweeper *w) {
    free(w->items);
    free(w->expired);
    *w = (struct pin_sweeper){0};
}

void pin_sweeper_begin(struct pin_sweeper *w) {
    w->round++;
}

void pin_sweeper_end(struct pin_sweeper *w) {
    size_t kept = 0;
    for (size_t i = 0; i < w->count; i++)
        if (w->items[i].round == w->round)
            w->items[kept++] = w->items[i];
    w->count = kept;
}

/* --- what earlier rounds saw --- */

static struct pin_suspect *suspect_find(const struct pin_sweeper *w, const struct volume_key *v,
                                        const struct random_id *pin) {
    for (size_t i = 0; i < w->count; i++)
        if (random_id_equal(&w->items[i].pin, pin) && strcmp(w->items[i].volume.text, v->text) == 0)
            return &w->items[i];
    return NULL;
}

static void suspect_forget(struct pin_sweeper *w, struct pin_suspect *p) {
    if (p)
        *p = w->items[--w->count];
}

/* True when this pin was seen unnamed long enough ago, by an earlier round; else it is remembered.
 */
static bool suspect_is_due(struct pin_sweeper *w, struct env *env, const struct volume_key *v,
                           const struct random_id *pin) {
    struct pin_suspect *p = suspect_find(w, v, pin);
    uint64_t now = env_now_us(env);
    if (p) {
        bool due = p->round != w->round && now - p->since_us >= SWEEP_INTERVAL_US;
        p->round = w->round;
        return due;
    }
    if (w->count == PIN_SUSPECTS_MAX)
        return false;
    if ((w->count & (w->count - 1)) == 0) /* at powers of two */
        w->items = xrealloc(w->items, MAX(2 * w->count, (size_t)16) * sizeof *w->items);
    w->items[w->count++] =
        (struct pin_suspect){.volume = *v, .pin = *pin, .since_us = now, .round = w->round};
    return false;
}

static bool expired_known(const struct pin_sweeper *w, const struct random_id *pin) {
    for (size_t i = 0; i < w->expired_count; i++)
        if (random_id_equal(&w->expired[i], pin))
            return true;
    return false;
}

static void expired_remember(struct pin_sweeper *w, const struct random_id *pin) {
    if (w->expired_count == PIN_EXPIRED_MAX)
        return;
    if ((w->expired_count & (w->expired_count - 1)) == 0)
        w->expired =
            xrealloc(w->expired, MAX(2 * w->expired_count, (size_t)16) * sizeof *w->expired);
    w->expired[w->expired_count++] = *pin;
}

/* --- is it named? --- */

/* The folder of a snapshot's commit key and its number, or the volume of a clone's. */
struct commit_target {
    char folder[KEY_MAX]; /* snapshot */
    uint64_t number;
    struct volume_key clone; /* clone */
};

static int commit_resolve(const struct commit_key *k, struct commit_target *ret, struct err *e) {
    struct commit_target t = {0};
    const char *slash = strrchr(k->key, '/');
    bool ok = slash && key_parse_numbered(k->key, &t.number) == 0;
    if (ok && !k->is_clone) {
        size_t len = (size_t)(slash - k->key) + 1;
        memcpy(t.folder, k->key, len);
        ok = strncmp(t.folder, "snapshots/", 10) == 0;
    } else if (ok) {
        static const char head[] = "volumes/", tail[] = "/manifest/";
        size_t head_len = sizeof head - 1;
        const char *id = k->key + head_len, *end = strchr(id, '/');
        ok = strncmp(k->key, head, head_len) == 0 && end && (size_t)(end - id) < ID_MAX &&
             strncmp(end, tail, sizeof tail - 1) == 0 && t.number == 1;
        if (ok)
            memcpy(t.clone.text, id, (size_t)(end - id));
    }
    if (!ok)
        return err_set(e, -ERR_CORRUPT,
                       "a pin's commit key '%s' is neither a snapshot's nor a clone's", k->key);
    *ret = t;
    return 0;
}

static int named_by_snapshot(struct objstore *s, const struct volume_key *v,
                             const struct random_id *pin, const struct commit_target *t,
                             bool *ret_named, struct err *e) {
    CLEANUP_BUF struct buf body = {0};
    uint64_t n;
    int rc = numbered_newest(s, t->folder, &n, &body, e);
    if (rc < 0)
        return rc;
    *ret_named = false;
    if (n == 0)
        return 0;
    char key[KEY_MAX];
    struct snapshot_record r;
    numbered_key(key, t->folder, n);
    rc = snapshot_record_decode_at(&r, key, buf_view(&body), e);
    if (rc < 0)
        return err_wrap(e, "%s", key);
    *ret_named = !r.deleted && random_id_equal(&r.pin, pin) && strcmp(r.source.text, v->text) == 0;
    snapshot_record_release(&r);
    return 0;
}

static int named_by_clone(struct objstore *s, const struct volume_key *v,
                          const struct random_id *pin, const struct commit_target *t,
                          bool *ret_named, struct err *e) {
    struct manifest m;
    int rc = MUTANT("pin-named-by-first") ? manifest_get(s, &t->clone, 1, &m, e)
                                          : manifest_newest(s, &t->clone, &m, e);
    *ret_named = false;
    if (rc == -ERR_NOT_FOUND)
        return 0;
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < m.held_pin_count; i++)
        if (random_id_equal(&m.held_pins[i].pin, pin) &&
            strcmp(m.held_pins[i].volume.text, v->text) == 0)
            *ret_named = true;
    manifest_release(&m);
    return 0;
}

int pin_is_named(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                 const struct commit_key *k, bool *ret_named, struct err *e) {
    struct commit_target t;
    int rc = commit_resolve(k, &t, e);
    if (rc < 0)
        return rc;
    return k->is_clone ? named_by_clone(s, v, pin, &t, ret_named, e)
                       : named_by_snapshot(s, v, pin, &t, ret_named, e);
}

/* --- sweeping --- */

/* Step 1: an object at the commit key that does not make the pin live, unless something is there.
 */
static int put_tombstone(struct env *env, struct objstore *s, const struct volume_key *v,
                         const struct random_id *pin, const struct commit_key *k, struct err *e) {
    struct commit_target t;
    int rc = commit_resolve(k, &t, e);
    if (rc < 0)
        return rc;
    CLEANUP_BUF struct buf body = {0};
    if (k->is_clone) {
        struct manifest m;
        manifest_tombstone_init(&m, env, &t.clone);
        rc = manifest_encode(&body, &m, e);
        manifest_release(&m);
    } else {
        struct snapshot_record r = {.number = t.number, .deleted = true, .source = *v, .pin = *pin};
        env_random(env, r.nonce.bytes, sizeof r.nonce.bytes);
        r.name = xstrdup("");
        r.source_name = xstrdup("");
        r.fstype = xstrdup("");
        rc = snapshot_record_encode(&body, &r, e);
        snapshot_record_release(&r);
    }
    if (rc < 0)
        return rc;
    rc = objstore_put(s, k->key, buf_view(&body), NULL, e);
    if (rc == -ERR_STALE && k->is_clone) /* a first manifest is never deleted */
        return err_set(e, -ERR_BUSY, "'%s' is there and is not", k->key);
    return rc == -ERR_EXISTS || rc == -ERR_STALE ? 0 : rc; /* the look afterwards decides */
}

/* Step 3: "expired" as the root if there is none. *ret_real: a real one is there. */
static int put_expired(struct env *env, struct objstore *s, const struct volume_key *v,
                       const struct random_id *pin, const struct commit_key *k, bool *ret_real,
                       struct err *e) {
    struct pin_root p = {.pin = *pin, .commit = *k, .expired = true, .block_size = 4096};
    root_init(&p.root, v);
    env_random(env, p.nonce.bytes, sizeof p.nonce.bytes);
    CLEANUP_BUF struct buf body = {0};
    int rc = pin_root_encode(&body, &p, e);
    pin_root_release(&p);
    if (rc < 0)
        return rc;
    char key[KEY_MAX];
    key_pin_root(key, v, pin);
    rc = objstore_put(s, key, buf_view(&body), NULL, e);
    *ret_real = false;
    if (rc == 0 || rc == -ERR_STALE) /* -ERR_STALE: it was there and went: nothing real is left */
        return 0;
    if (rc != -ERR_EXISTS)
        return rc;
    rc = pin_root_get(s, v, pin, &p, e);
    if (rc == -ERR_NOT_FOUND)
        return 0;
    if (rc < 0)
        return rc;
    *ret_real = !p.expired;
    pin_root_release(&p);
    return 0;
}

static int sweep_pin(struct env *env, struct objstore *s, const struct volume_key *v,
                     const struct random_id *pin, const struct commit_key *k, bool *ret_swept,
                     struct err *e) {
    *ret_swept = false;
    int rc = put_tombstone(env, s, v, pin, k, e);
    bool named = true;
    if (rc == 0)
        rc = pin_is_named(s, v, pin, k, &named, e); /* I2 */
    if (rc < 0 || named)
        return rc;
    bool real;
    rc = put_expired(env, s, v, pin, k, &real, e);
    if (rc < 0)
        return rc;
    rc = real ? pin_release(s, v, pin, e) : pin_release_claim(s, v, pin, e);
    *ret_swept = rc == 0;
    return rc;
}

/* What makes the pin live, from its claim, or from its root when the claim went first. 0 with
 * *ret_gone: there is nothing to sweep (any more). */
static int pin_commit_key(struct pin_sweeper *w, struct objstore *s, const struct volume_key *v,
                          const struct pin_entry *p, struct commit_key *ret, bool *ret_gone,
                          struct err *e) {
    *ret_gone = false;
    if (p->has_claim) {
        struct pin_claim claim;
        int rc = pin_claim_get(s, v, &p->pin, &claim, e);
        if (rc == 0)
            *ret = claim.commit;
        *ret_gone = rc == -ERR_NOT_FOUND;
        return *ret_gone ? 0 : rc;
    }
    struct pin_root root;
    int rc = pin_root_get(s, v, &p->pin, &root, e);
    if (rc < 0) {
        *ret_gone = rc == -ERR_NOT_FOUND;
        return *ret_gone ? 0 : rc;
    }
    *ret = root.commit;
    *ret_gone = root.expired;
    if (root.expired)
        expired_remember(w, &p->pin);
    pin_root_release(&root);
    return 0;
}

static int look_at_pin(struct pin_sweeper *w, struct env *env, struct objstore *s,
                       const struct volume_key *v, const struct pin_entry *p, size_t *swept,
                       size_t *suspected, struct err *e) {
    if (!p->has_claim && expired_known(w, &p->pin))
        return 0;
    struct commit_key commit;
    bool gone, named, done = false;
    int rc = pin_commit_key(w, s, v, p, &commit, &gone, e);
    if (rc < 0 || gone)
        return rc;
    rc = pin_is_named(s, v, &p->pin, &commit, &named, e);
    if (rc < 0)
        return rc;
    if (named) {
        suspect_forget(w, suspect_find(w, v, &p->pin));
        return 0;
    }
    if (suspect_is_due(w, env, v, &p->pin)) {
        rc = sweep_pin(env, s, v, &p->pin, &commit, &done, e);
        if (rc < 0)
            return rc;
    }
    if (done)
        suspect_forget(w, suspect_find(w, v, &p->pin));
    ++*(done ? swept : suspected);
    return 0;
}

int pin_sweep_volume(struct pin_sweeper *w, struct env *env, struct objstore *s,
                     const struct volume_key *v, size_t *swept, size_t *suspected, struct err *e) {
    CHECK(w->round > 0); /* pin_sweeper_begin */
    struct pin_list pins;
    int rc = pin_list_once(s, v, &pins, e);
    if (rc < 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < pins.count; i++)
        rc = look_at_pin(w, env, s, v, &pins.items[i], swept, suspected, e);
    pin_list_release(&pins);
    return rc < 0 ? err_wrap(e, "volume %s: sweeping its pins", v->text) : 0;
}
