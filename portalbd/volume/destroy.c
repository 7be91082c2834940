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

#include <stdlib.h>

enum {
    DESTROY_ATTEMPTS_MAX = 16,
    COLLECT_ROUNDS_MAX = 1024, /* of ROOT_LIST_MAX ranges each; then the next pass goes on */
    COLLECT_PAGE = 1000,       /* keys listed, and deleted, at a time */
};

/* --- what a volume's prefix holds --- */

enum object_class {
    CLASS_KEEP,     /* fence, pin, or a key that is not ours */
    CLASS_CONTENT,  /* segment, moved segment, part or index of a run */
    CLASS_MANIFEST, /* number is set */
};

struct object_name {
    enum object_class class;
    uint8_t kind; /* obj_kind of CONTENT */
    uint64_t number;
    struct random_id id;
};

static bool in_folder(const char *key, size_t prefix_len, const char *folder) {
    return strncmp(key + prefix_len, folder, strlen(folder)) == 0;
}

/* prefix_len: of "volumes/<id>/", which key starts with. */
static struct object_name classify(const struct obj_entry *o, size_t prefix_len) {
    struct object_name n = {.class = CLASS_KEEP};
    if (in_folder(o->key, prefix_len, "log/")) {
        n.kind = OBJ_LOG;
        if (o->size != SEGMENT_FENCE_SIZE && key_parse_log(o->key, &n.number) == 0)
            n.class = CLASS_CONTENT;
    } else if (in_folder(o->key, prefix_len, "map/") || in_folder(o->key, prefix_len, "moved/")) {
        n.kind = in_folder(o->key, prefix_len, "map/") ? OBJ_MAP : OBJ_MOVED;
        if (key_parse_random(o->key, &n.id) == 0)
            n.class = CLASS_CONTENT;
    } else if (in_folder(o->key, prefix_len, "manifest/")) {
        if (key_parse_numbered(o->key, &n.number) == 0)
            n.class = CLASS_MANIFEST;
    }
    return n;
}

/* --- condemned ranges --- */

struct condemned_list {
    struct condemned_range *items; /* owned */
    size_t count;
    bool full; /* there would be more than ROOT_LIST_MAX */
};

static void condemn(struct condemned_list *l, const struct object_name *n) {
    CHECK(n->class == CLASS_CONTENT);
    struct condemned_range *last = l->count > 0 ? &l->items[l->count - 1] : NULL;
    if (n->kind == OBJ_LOG && last && last->kind == OBJ_LOG &&
        last->first + last->count == n->number) {
        last->count++;
        return;
    }
    if (l->count == ROOT_LIST_MAX) {
        l->full = true;
        return;
    }
    if (!l->items)
        l->items = xcalloc(ROOT_LIST_MAX, sizeof *l->items);
    l->items[l->count++] = (struct condemned_range){
        .kind = n->kind, .first = n->kind == OBJ_LOG ? n->number : 0, .count = 1, .id = n->id};
}

static bool is_condemned(const struct manifest *m, const struct object_name *n) {
    for (size_t i = 0; i < m->condemned_count; i++) {
        const struct condemned_range *c = &m->condemned[i];
        if (c->kind != n->kind)
            continue;
        if (c->kind == OBJ_LOG ? n->number >= c->first && n->number - c->first < c->count
                               : random_id_equal(&c->id, &n->id))
            return true;
    }
    return false;
}

static void set_condemned(struct manifest *m, struct condemned_list *l) {
    free(m->condemned);
    m->condemned = l->items;
    m->condemned_count = l->count;
    *l = (struct condemned_list){0};
}

/* Calls fn for a page of the volume's objects at a time until it fails. */
static int for_each_page(struct objstore *s, const struct volume_key *v,
                         int (*fn)(void *arg, const struct obj_list *page, size_t prefix_len,
                                   struct err *e),
                         void *arg, struct err *e) {
    char prefix[KEY_MAX], after[OBJ_KEY_MAX + 1] = "";
    key_volume_prefix(prefix, v);
    for (bool more = true; more;) {
        struct obj_list page = {0};
        int rc = objstore_list(s, prefix, after[0] != '\0' ? after : NULL, COLLECT_PAGE, &page, e);
        if (rc < 0)
            return rc;
        more = page.more && page.count > 0;
        if (more) {
            const char *last = page.entries[page.count - 1].key;
            CHECK(strlen(last) < sizeof after);
            memcpy(after, last, strlen(last) + 1);
        }
        rc = fn(arg, &page, strlen(prefix), e);
        obj_list_release(&page);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int condemn_page(void *arg, const struct obj_list *page, size_t prefix_len, struct err *e) {
    (void)e;
    struct condemned_list *l = arg;
    for (size_t i = 0; i < page->count; i++) {
        struct object_name n = classify(&page->entries[i], prefix_len);
        if (n.class == CLASS_CONTENT)
            condemn(l, &n);
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
    set_condemned(m, l);
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
        rc = for_each_page(s, v, condemn_page, &l, e);
        if (rc == 0)
            rc = put_deleted(s, v, &t, &l, e);
        free(l.items);
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

/* --- what pins need of this volume's own prefix --- */

struct needed_range {
    uint64_t first, count;
};
struct needed {
    struct needed_range *log; /* owned */
    size_t log_count;
    struct random_id *ids; /* owned; of map/ and moved/, sorted before use */
    size_t id_count;
    struct random_id *loaded; /* owned; run indexes that were read already */
    size_t loaded_count;
};

static void needed_release(struct needed *n) {
    free(n->log);
    free(n->ids);
    free(n->loaded);
    *n = (struct needed){0};
}

/* Room for one more item in an array that grows at powers of two. */
static void *grown(void *items, size_t count, size_t size) {
    return (count & (count - 1)) == 0 ? xrealloc(items, MAX(2 * count, (size_t)16) * size) : items;
}

static void need_log(struct needed *n, uint64_t first, uint64_t count) {
    n->log = grown(n->log, n->log_count, sizeof *n->log);
    n->log[n->log_count++] = (struct needed_range){.first = first, .count = count};
}

static void need_ref(struct needed *n, const struct obj_ref *ref) {
    if (ref->kind == OBJ_LOG) {
        need_log(n, ref->seq, 1);
        return;
    }
    n->ids = grown(n->ids, n->id_count, sizeof *n->ids);
    n->ids[n->id_count++] = ref->id;
}

static int compare_ids(const void *a, const void *b) {
    return memcmp(a, b, RANDOM_ID_SIZE);
}

static int compare_ranges(const void *a, const void *b) {
    const struct needed_range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Sorts, and joins ranges that touch, so that a search needs to look at one. */
static void needed_sort(struct needed *n) {
    if (n->id_count > 0)
        qsort(n->ids, n->id_count, sizeof *n->ids, compare_ids);
    if (n->log_count == 0)
        return;
    qsort(n->log, n->log_count, sizeof *n->log, compare_ranges);
    size_t last = 0;
    for (size_t i = 1; i < n->log_count; i++) {
        uint64_t end = n->log[last].first + n->log[last].count;
        if (n->log[i].first <= end)
            n->log[last].count = MAX(end, n->log[i].first + n->log[i].count) - n->log[last].first;
        else
            n->log[++last] = n->log[i];
    }
    n->log_count = last + 1;
}

static bool is_needed(const struct needed *n, const struct object_name *o) {
    if (o->kind != OBJ_LOG)
        return n->id_count > 0 &&
               bsearch(&o->id, n->ids, n->id_count, sizeof *n->ids, compare_ids) != NULL;
    size_t low = 0, high = n->log_count; /* the first range that begins behind o */
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (n->log[mid].first <= o->number)
            low = mid + 1;
        else
            high = mid;
    }
    return low > 0 && o->number - n->log[low - 1].first < n->log[low - 1].count;
}

static bool is_own(const struct volume_key *table, size_t index, const struct volume_key *v) {
    return strcmp(table[index].text, v->text) == 0;
}

/* What one run needs: its index, parts, and the objects that its entries name. Of evacuated objects
 * too: they cost space, not data. */
static int need_run(struct needed *n, struct objstore *s, const struct volume_key *v,
                    const struct root *root, const struct root_run *run, struct err *e) {
    for (size_t i = 0; i < n->loaded_count; i++)
        if (random_id_equal(&n->loaded[i], &run->index.id))
            return 0;
    if (is_own(root->volumes, run->index.volume, v))
        need_ref(n, &run->index);
    char key[KEY_MAX];
    key_of_ref(key, &root->volumes[run->index.volume], &run->index);
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(s, key, RUN_INDEX_SIZE_MAX, &body, e);
    if (rc < 0)
        return rc;
    struct run_index x;
    rc = run_index_decode(&x, buf_view(&body), e);
    if (rc < 0)
        return err_wrap(e, "%s", key);
    for (size_t i = 0; i < x.part_count; i++)
        if (is_own(x.volumes, x.parts[i].ref.volume, v))
            need_ref(n, &x.parts[i].ref);
    for (size_t i = 0; i < x.usage_count; i++)
        if (is_own(x.volumes, x.usage[i].ref.volume, v))
            need_ref(n, &x.usage[i].ref);
    run_index_release(&x);
    n->loaded = grown(n->loaded, n->loaded_count, sizeof *n->loaded);
    n->loaded[n->loaded_count++] = run->index.id;
    return 0;
}

static int need_root(struct needed *n, struct objstore *s, const struct volume_key *v,
                     const struct root *root, struct err *e) {
    for (size_t i = 0; i < root->tail_count; i++)
        if (is_own(root->volumes, root->tail[i].volume, v))
            need_log(n, root->tail[i].first, root->tail[i].count);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < root->run_count; i++)
        rc = need_run(n, s, v, root, &root->runs[i], e);
    return rc;
}

/* Reads the roots of all pins. *ret_blocked: a claim has no root, or what a root names went while
 * we looked (its pin is being released): nothing may be deleted now. *ret_real: pins that hold
 * something or may come to. */
static int needed_by_pins(struct needed *n, struct objstore *s, const struct volume_key *v,
                          const struct pin_list *pins, bool *ret_blocked, size_t *ret_real,
                          struct err *e) {
    *ret_blocked = false;
    *ret_real = 0;
    for (size_t i = 0; i < pins->count; i++) {
        if (!pins->items[i].has_root) {
            *ret_blocked = true;
            return 0;
        }
        struct pin_root p;
        int rc = pin_root_get(s, v, &pins->items[i].pin, &p, e);
        if (rc == 0) {
            if (!p.expired)
                rc = need_root(n, s, v, &p.root, e);
            if (!p.expired || pins->items[i].has_claim)
                ++*ret_real;
            pin_root_release(&p);
        }
        if (rc == -ERR_NOT_FOUND) {
            *ret_blocked = true;
            return 0;
        }
        if (rc < 0)
            return rc;
    }
    needed_sort(n);
    return 0;
}

/* --- GC rounds --- */

struct round {
    struct objstore *store;
    const struct volume_key *volume;
    const struct manifest *manifest; /* the newest: deleted */
    struct needed needed;
    struct condemned_list more; /* garbage that the manifest does not condemn */
    size_t deleted;
};

static int collect_page(void *arg, const struct obj_list *page, size_t prefix_len, struct err *e) {
    struct round *r = arg;
    const char *doomed[COLLECT_PAGE];
    size_t count = 0;
    for (size_t i = 0; i < page->count; i++) {
        struct object_name n = classify(&page->entries[i], prefix_len);
        if (n.class == CLASS_MANIFEST && n.number > 1 && n.number < r->manifest->number)
            doomed[count++] = page->entries[i].key;
        if (n.class != CLASS_CONTENT || is_needed(&r->needed, &n))
            continue;
        if (is_condemned(r->manifest, &n))
            doomed[count++] = page->entries[i].key;
        else
            condemn(&r->more, &n);
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
    rc = needed_by_pins(&r->needed, r->store, r->volume, &pins, &blocked, &real, e);
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
        rc = for_each_page(r->store, r->volume, collect_page, r, e);
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
        free(r.more.items);
        needed_release(&r.needed);
        manifest_release(&m);
        if (rc < 0)
            return rc;
    }
    *ret = done;
    return 0;
}
