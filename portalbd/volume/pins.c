/* Pins: claim, root, release; the cut of a snapshot; a root seen from a clone.
 *
 * Invariants:
 *   I1  A claim is stored before anything that its root will name is read; GC, which deletes
 * nothing while a claim has no root, therefore sees the pin or has deleted before we looked. I2 The
 * newest manifest is read again after the log was listed: a restore in between would mix two
 * histories (trace 5). I3  A pin's id is used once. Its root is put once; who finds another there
 * ("expired") gives the pin up. I4  Claim before root when a pin goes (trace 8). */
#include "portalbd/volume/pins.h"

#include <stdlib.h>

static void new_id(struct env *env, struct random_id *ret) {
    env_random(env, ret->bytes, sizeof ret->bytes);
}

int pin_claim_new(struct env *env, struct objstore *s, const struct volume_key *v,
                  const struct commit_key *commit, struct random_id *ret_pin, struct err *e) {
    CHECK(commit->key[0] != '\0');
    struct pin_claim claim = {.commit = *commit, .created_ms = env_wall_ms(env)};
    new_id(env, &claim.pin);
    new_id(env, &claim.nonce);
    CLEANUP_BUF struct buf body = {0};
    pin_claim_encode(&body, &claim);
    char key[KEY_MAX];
    key_pin_claim(key, v, &claim.pin);
    int rc = objstore_put(s, key, buf_view(&body), NULL, e);
    if (rc == -ERR_STALE) /* stored, the answer lost, and swept before it was repeated */
        return err_set(e, -ERR_STALE, "'%s': a sweeper took its maker for dead", key);
    if (rc == -ERR_EXISTS) /* 128 random bits: not by chance */
        return err_set(e, -ERR_CORRUPT, "'%s', a new random key, is taken", key);
    if (rc < 0)
        return rc;
    *ret_pin = claim.pin;
    return 0;
}

int pin_root_put(struct env *env, struct objstore *s, const struct volume_key *v,
                 const struct random_id *pin, const struct commit_key *commit,
                 struct pin_root *root, struct err *e) {
    CHECK(!root->expired);
    CHECK(root->root.volume_count > 0);
    root->pin = *pin;
    root->commit = *commit;
    new_id(env, &root->nonce);
    CLEANUP_BUF struct buf body = {0};
    int rc = pin_root_encode(&body, root, e);
    if (rc < 0)
        return rc;
    char key[KEY_MAX];
    key_pin_root(key, v, pin);
    rc = objstore_put(s, key, buf_view(&body), NULL, e);
    if (rc == -ERR_EXISTS || rc == -ERR_STALE)
        return err_set(e, -ERR_STALE, "'%s': a sweeper took its maker for dead", key);
    return rc;
}

/* The cut itself: hint, log, manifest again, root (design: Snapshot, step 2). -ERR_STALE: things
 * moved on too far between the two looks, look again. */
static int cut_once(struct objstore *s, const struct volume_key *v, struct pin_root *ret,
                    struct err *e) {
    struct manifest m;
    int rc = manifest_newest(s, v, &m, e);
    if (rc < 0)
        return rc;
    struct obj_list list = {0};
    struct log_walk walk = {0};
    uint64_t listed_from = m.root.next_seq, number = 0;
    if (!m.deleted) {
        rc = log_list(&list, s, v, listed_from, e);
        if (rc == 0)
            rc = manifest_newest_number(s, v, &number, e);
    }
    if (rc == 0 && !m.deleted && number != m.number) {
        manifest_release(&m);
        rc = manifest_get(s, v, number, &m, e);
        if (rc < 0) {
            obj_list_release(&list);
            return rc == -ERR_NOT_FOUND ? err_set(e, -ERR_STALE, "manifest %llu is gone already",
                                                  (unsigned long long)number)
                                        : rc;
        }
    }
    if (rc == 0 && m.deleted)
        rc = err_set(e, -ERR_NOT_FOUND, "volume %s is deleted", v->text);
    if (rc == 0 && (list.more || m.root.next_seq < listed_from))
        rc = err_set(e, -ERR_STALE, "volume %s: its log does not fit one listing", v->text);
    if (rc == 0)
        rc = log_walk_snapshot(&walk, &list, m.root.next_seq, e);
    if (rc == 0) {
        struct pin_root root = {
            .size_bytes = m.size_bytes, .block_size = m.block_size, .depth = m.depth};
        root_copy(&root.root, &m.root);
        rc = log_walk_to_root(&walk, &root.root, walk.end, e);
        if (rc == 0)
            *ret = root;
        else
            pin_root_release(&root);
    }
    log_walk_release(&walk);
    obj_list_release(&list);
    manifest_release(&m);
    return rc;
}

int pin_cut(struct env *env, struct objstore *s, const struct volume_key *v,
            const struct random_id *pin, const struct commit_key *commit, struct pin_root *ret,
            struct err *e) {
    struct pin_root root;
    int rc = -ERR_STALE;
    for (int attempt = 0; rc == -ERR_STALE; attempt++) {
        if (attempt == PIN_ATTEMPTS_MAX)
            return err_set(e, -ERR_BUSY,
                           "volume %s: its manifests change faster than they can be read", v->text);
        rc = cut_once(s, v, &root, e);
    }
    if (rc < 0)
        return rc;
    rc = pin_root_put(env, s, v, pin, commit, &root, e);
    if (rc == 0)
        *ret = root;
    else
        pin_root_release(&root);
    return rc;
}

/* What lies under another pin's key, or another volume's, would hold something else. */
static int check_place(struct pin_root *p, const struct volume_key *v, const struct random_id *pin,
                       struct err *e) {
    int rc = 0;
    if (!random_id_equal(&p->pin, pin))
        rc = err_set(e, -ERR_CORRUPT, "it is another pin's");
    else if (!p->expired && !volume_key_equal(&p->root.volumes[0], v))
        rc = err_set(e, -ERR_CORRUPT, "its root is of another volume");
    if (rc < 0)
        pin_root_release(p);
    return rc;
}

int pin_root_get(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                 struct pin_root *ret, struct err *e) {
    char key[KEY_MAX];
    key_pin_root(key, v, pin);
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(s, key, MANIFEST_SIZE_MAX, &body, e);
    if (rc < 0)
        return rc;
    rc = pin_root_decode(ret, buf_view(&body), e);
    if (rc == 0)
        rc = check_place(ret, v, pin, e);
    return rc < 0 ? err_wrap(e, "%s", key) : 0;
}

int pin_claim_get(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                  struct pin_claim *ret, struct err *e) {
    char key[KEY_MAX];
    key_pin_claim(key, v, pin);
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(s, key, MANIFEST_SIZE_MAX, &body, e);
    if (rc < 0)
        return rc;
    rc = pin_claim_decode(ret, buf_view(&body), e);
    if (rc == 0 && !random_id_equal(&ret->pin, pin))
        rc = err_set(e, -ERR_CORRUPT, "it is another pin's");
    return rc < 0 ? err_wrap(e, "%s", key) : 0;
}

int pin_release_claim(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                      struct err *e) {
    char key[KEY_MAX];
    key_pin_claim(key, v, pin);
    return objstore_delete_one(s, key, e);
}

int pin_release(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                struct err *e) {
    int rc = pin_release_claim(s, v, pin, e); /* I4 */
    if (rc < 0)
        return rc;
    char key[KEY_MAX];
    key_pin_root(key, v, pin);
    return objstore_delete_one(s, key, e);
}

/* --- a root, seen from a clone --- */

static bool same_volume(const struct volume_key *a, const struct volume_key *b) {
    return strcmp(a->text, b->text) == 0;
}

int root_rebase(struct root *to, const struct root *from, const struct volume_key *own,
                struct err *e) {
    CHECK(from->volume_count > 0 && from->volume_count <= ROOT_VOLUMES_MAX);
    if (from->volume_count == ROOT_VOLUMES_MAX)
        return err_set(e, -ERR_OVERLOAD, "the root names %d volumes already", ROOT_VOLUMES_MAX);
    for (size_t i = 0; i < from->volume_count; i++)
        if (same_volume(&from->volumes[i], own)) /* ids are never reused */
            return err_set(e, -ERR_CORRUPT, "the root of the source of %s names it", own->text);
    struct root r;
    root_copy(&r, from);
    r.volumes = xrealloc(r.volumes, (r.volume_count + 1) * sizeof r.volumes[0]);
    memmove(r.volumes + 1, r.volumes, r.volume_count * sizeof r.volumes[0]);
    r.volumes[0] = *own;
    r.volume_count++;
    for (size_t i = 0; i < r.run_count; i++)
        r.runs[i].index.volume++;
    for (size_t i = 0; i < r.tail_count; i++)
        r.tail[i].volume++;
    for (size_t i = 0; i < r.evacuated_count; i++)
        r.evacuated[i].volume++;
    *to = r;
    return 0;
}

/* --- the pins of a volume --- */

void pin_list_release(struct pin_list *l) {
    free(l->items);
    *l = (struct pin_list){0};
}

int pin_list_once(struct objstore *s, const struct volume_key *v, struct pin_list *ret,
                  struct err *e) {
    char prefix[KEY_MAX];
    key_pins_prefix(prefix, v);
    struct obj_list list = {0};
    int rc = objstore_list(s, prefix, NULL, 2 * (size_t)PINS_MAX, &list, e);
    if (rc < 0)
        return rc;
    struct pin_list pins = {.items = list.count ? xcalloc(list.count, sizeof *pins.items) : NULL};
    for (size_t i = 0; i < list.count; i++) {
        struct random_id id;
        bool is_root;
        if (key_parse_pin(list.entries[i].key, &id, &is_root) < 0)
            continue;
        if (pins.count == 0 || !random_id_equal(&pins.items[pins.count - 1].pin, &id))
            pins.items[pins.count++] = (struct pin_entry){.pin = id};
        struct pin_entry *p = &pins.items[pins.count - 1];
        *(is_root ? &p->has_root : &p->has_claim) = true;
    }
    bool cut = list.more;
    obj_list_release(&list);
    if (cut) {
        pin_list_release(&pins);
        return err_set(e, -ERR_OVERLOAD, "volume %s has more than %d pins", v->text, PINS_MAX);
    }
    *ret = pins;
    return 0;
}

bool pin_list_equal(const struct pin_list *a, const struct pin_list *b) {
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (!random_id_equal(&a->items[i].pin, &b->items[i].pin) ||
            a->items[i].has_claim != b->items[i].has_claim ||
            a->items[i].has_root != b->items[i].has_root)
            return false;
    return true;
}

int pin_list_stable(struct objstore *s, const struct volume_key *v, struct pin_list *ret,
                    struct err *e) {
    struct pin_list before = {0}, now;
    int rc = pin_list_once(s, v, &before, e);
    for (int attempt = 0; rc == 0; attempt++) {
        rc = pin_list_once(s, v, &now, e);
        if (rc < 0)
            break;
        bool equal = pin_list_equal(&before, &now);
        pin_list_release(&before);
        if (equal) {
            *ret = now;
            return 0;
        }
        before = now;
        if (attempt == PIN_ATTEMPTS_MAX)
            rc = err_set(e, -ERR_BUSY, "volume %s: its pins change faster than they can be listed",
                         v->text);
    }
    pin_list_release(&before);
    return rc;
}
