/* Deleting a volume's content.
 *
 *   volume_destroy           newest manifest -> complete open -> manifest "deleted": empty root,
 *                            everything condemned
 *   volume_collect_deleted   pins (two equal listings) -> is that manifest still the newest? ->
 *                            delete what is condemned and not pinned -> something was not condemned
 *                            (a long list, or a zombie wrote it): open, condemn, once more
 *                            -> no pin left: release the pins held in others
 *
 * A deleted volume stays deleted: its root is empty for ever, nobody cuts a new pin of it (makers
 * read the newest manifest after their claim), so anybody may run the rounds, several at once.
 *
 * Invariants (protocol I7, I13):
 *   I1  DELETE only of what the newest manifest condemns, after two equal pin listings and a look
 * at the newest manifest behind them; nothing at all while a claim has no root. I2  Never deleted:
 * fence segments, the first and the newest manifest, pins of others' making. I3  A pin in another
 * volume is released only when this one has neither claim nor real root left: whatever they hold
 * may lie behind that pin. */
#include "portalbd/volume/destroy.h"

#include "portalbd/volume/garbage.h"

enum {
    DESTROY_ATTEMPTS_MAX = 16,
    COLLECT_ROUNDS_MAX = 1024, /* of ROOT_LIST_MAX ranges each; then the next pass goes on */
};

static int condemn_page(void *arg, const struct obj_list *page, size_t prefix_len, struct err *e) {
    (void)e;
    struct condemned_list *l = arg;
    for (size_t i = 0; i < page->count; i++) {
        struct object_name n = object_classify(&page->entries[i], prefix_len);
        if (n.class == CLASS_CONTENT)
            condemned_list_add(l, &n);
    }
    return 0;
}

/* --- the manifest that says deleted --- */

void manifest_tombstone_init(struct manifest *m, struct env *env, const struct volume_key *v) {
    *m = (struct manifest){.number = 1, .block_size = 4096, .closed = true, .deleted = true};
    env_random(env, m->nonce.bytes, sizeof m->nonce.bytes);
    root_init(&m->root, v);
    m->root.next_seq = 1;
}

/* Puts the manifest behind a takeover's: deleted, empty root, `l` condemned. -ERR_STALE: another
 * opener came in between, start over. */
static int put_deleted(struct objstore *s, const struct volume_key *v, struct takeover *t,
                       struct condemned_list *l, struct err *e) {
    struct manifest *m = &t->manifest;
    m->number++;
    m->deleted = true;
    m->closed = true;
    m->last_write = 0;
    m->journal = (struct random_id){0};
    condemned_list_move(l, m);
    root_release(&m->root);
    root_init(&m->root, v);
    m->root.next_seq = t->first_seq; /* behind our fence, outside of every gap */
    int rc = manifest_put(s, v, m, e);
    if (rc == 0)
        rc = manifest_check_newest(s, v, m->number, e);
    if (rc == -ERR_EXISTS || rc == -ERR_FENCED)
        return err_set(e, -ERR_STALE, "volume %s: another opener came in between", v->text);
    return rc;
}

static int put_tombstone(struct env *env, struct objstore *s, const struct volume_key *v,
                         struct err *e) {
    struct manifest m;
    manifest_tombstone_init(&m, env, v);
    int rc = manifest_put(s, v, &m, e);
    manifest_release(&m);
    return rc == -ERR_EXISTS ? err_set(e, -ERR_STALE, "volume %s has come to be", v->text) : rc;
}

/* -ERR_STALE: raced, start over. */
static int destroy_once(struct env *env, struct objstore *s, const struct volume_key *v,
                        uint32_t publish_epoch, struct err *e) {
    struct manifest m;
    int rc = manifest_newest(s, v, &m, e);
    if (rc == -ERR_NOT_FOUND)
        return put_tombstone(env, s, v, e);
    if (rc < 0)
        return rc;
    bool deleted = m.deleted;
    uint32_t stored = epoch_publish(m.epoch);
    manifest_release(&m);
    if (deleted)
        return 0;
    if (stored > publish_epoch) {
        if (stored == UINT32_MAX)
            return err_set(e, -ERR_CORRUPT, "volume %s: its publish epoch is at its end", v->text);
        publish_epoch = stored + 1;
    }
    struct takeover t;
    rc = volume_takeover(env, s, v, publish_epoch, NULL, true, &t, e);
    if (rc < 0)
        return rc == -ERR_FENCED ? -ERR_STALE : rc;
    if (!t.manifest.deleted) {
        struct condemned_list l = {0};
        rc = prefix_for_each_page(s, v, condemn_page, &l, e);
        if (rc == 0)
            rc = put_deleted(s, v, &t, &l, e);
        condemned_list_release(&l);
    }
    takeover_release(&t);
    return rc;
}

int volume_destroy(struct env *env, struct objstore *s, const struct volume_key *v,
                   uint32_t publish_epoch, struct err *e) {
    for (int attempt = 0; attempt < DESTROY_ATTEMPTS_MAX; attempt++) {
        int rc = destroy_once(env, s, v, publish_epoch, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return err_set(e, -ERR_BUSY, "volume %s: another opener always comes in between", v->text);
}

/* --- GC rounds --- */

struct round {
    struct objstore *store;
    const struct volume_key *volume;
    const struct manifest *manifest; /* the newest: deleted */
    struct pin_needs needed;
    struct condemned_list more; /* garbage that the manifest does not condemn */
    size_t deleted;
};

static int collect_page(void *arg, const struct obj_list *page, size_t prefix_len, struct err *e) {
    struct round *r = arg;
    const char *doomed[PREFIX_PAGE];
    size_t count = 0;
    for (size_t i = 0; i < page->count; i++) {
        struct object_name n = object_classify(&page->entries[i], prefix_len);
        if (n.class == CLASS_MANIFEST && n.number > 1 && n.number < r->manifest->number)
            doomed[count++] = page->entries[i].key;
        if (n.class != CLASS_CONTENT || pin_needs_object(&r->needed, &n))
            continue;
        if (manifest_condemns(r->manifest, &n))
            doomed[count++] = page->entries[i].key;
        else
            condemned_list_add(&r->more, &n);
    }
    if (count == 0)
        return 0;
    int rc = objstore_delete(r->store, doomed, count, e);
    if (rc == 0)
        r->deleted += count;
    return rc;
}

/* I3. */
static int release_held_pins(struct objstore *s, const struct manifest *m, size_t *deleted,
                             struct err *e) {
    for (size_t i = 0; i < m->held_pin_count; i++) {
        const struct held_pin *h = &m->held_pins[i];
        char claim[KEY_MAX];
        key_pin_claim(claim, &h->volume, &h->pin);
        claim[strlen(claim) - strlen("claim")] = '\0'; /* both: "<id>." */
        struct obj_list list = {0};
        int rc = objstore_list(s, claim, NULL, 2, &list, e);
        if (rc < 0)
            return rc;
        size_t there = list.count;
        obj_list_release(&list);
        if (there == 0)
            continue;
        rc = pin_release(s, &h->volume, &h->pin, e);
        if (rc < 0)
            return rc;
        *deleted += there;
    }
    return 0;
}

/* One round under the newest manifest. *ret_again: there is garbage that has to be condemned first:
 * r->more. */
static int collect_round(struct round *r, struct volume_collected *ret, bool *ret_again,
                         struct err *e) {
    *ret_again = false;
    struct pin_list pins;
    int rc = pin_list_stable(r->store, r->volume, &pins, e);
    if (rc < 0)
        return rc;
    bool blocked;
    size_t real;
    rc = pin_needs_load(&r->needed, r->store, r->volume, &pins, &blocked, &real, e);
    pin_list_release(&pins);
    if (rc < 0)
        return rc;
    ret->waiting = blocked || real > 0;
    if (blocked)
        return 0;
    rc = manifest_check_newest(r->store, r->volume, r->manifest->number, e);
    if (rc == -ERR_FENCED) { /* another collector condemns: its turn */
        ret->waiting = true;
        return 0;
    }
    if (rc == 0)
        rc = prefix_for_each_page(r->store, r->volume, collect_page, r, e);
    ret->objects_deleted += r->deleted;
    *ret_again = r->more.count > 0;
    if (rc == 0 && !*ret_again && real == 0)
        rc = release_held_pins(r->store, r->manifest, &ret->objects_deleted, e);
    return rc;
}

/* Opens the deleted volume once more to condemn what its newest manifest does not. */
static int condemn_more(struct env *env, struct objstore *s, const struct volume_key *v,
                        const struct manifest *m, struct condemned_list *l, struct err *e) {
    struct takeover t;
    int rc = volume_takeover(env, s, v, epoch_publish(m->epoch), NULL, true, &t, e);
    if (rc < 0)
        return rc == -ERR_FENCED ? -ERR_STALE : rc;
    rc = put_deleted(s, v, &t, l, e);
    takeover_release(&t);
    return rc;
}

int volume_collect_deleted(struct env *env, struct objstore *s, const struct volume_key *v,
                           struct volume_collected *ret, struct err *e) {
    struct volume_collected done = {0};
    bool again = true;
    for (int i = 0; again && i < COLLECT_ROUNDS_MAX; i++) {
        struct manifest m;
        int rc = manifest_newest(s, v, &m, e);
        if (rc < 0)
            return rc;
        if (!m.deleted) {
            manifest_release(&m);
            return err_set(e, -ERR_NOT_FOUND, "volume %s is not deleted", v->text);
        }
        struct round r = {.store = s, .volume = v, .manifest = &m};
        rc = collect_round(&r, &done, &again, e);
        if (rc == 0 && again)
            rc = condemn_more(env, s, v, &m, &r.more, e);
        if (rc == -ERR_STALE) { /* another collector was faster: it goes on */
            done.waiting = true;
            again = false;
            rc = 0;
        }
        condemned_list_release(&r.more);
        pin_needs_release(&r.needed);
        manifest_release(&m);
        if (rc < 0)
            return rc;
    }
    *ret = done;
    return 0;
}
