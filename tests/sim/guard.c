/* Watches the bucket all the time: nothing that a live root needs is ever deleted, nothing that no
 * manifest has condemned, and no root comes to live that needs what is not there (I7, I12).
 *
 * Live are the newest manifest of each volume that is not deleted, and the pins of snapshots whose
 * newest record names them. (What a clone's pin holds is needed by the clone's own root, as far as
 * it is needed.) Who holds a root is listed anew when a manifest, a pin or a record has changed and
 * somebody asks; an object never changes, so what it was decoded to is kept while it is there. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

/* A manifest that was the newest of its volume, or a pin. */
struct holder {
    char *key;        /* owned */
    struct root root; /* none: of a deleted volume, of an expired pin, of a clone's pin */
    bool has_root;
    char *record;         /* owned; of the snapshot that must name it; NULL: a manifest's root */
    struct random_id pin; /* ... as this */
    bool found;           /* in the pass under way */
    bool live;
};

/* What some manifest of a volume has condemned. */
struct condemned {
    struct volume_key volume;
    struct condemned_range range;
};

/* What a snapshot's record names. */
struct named {
    char *key; /* owned */
    struct random_id pin;
    bool deleted;
};

struct guard {
    struct needs needs;
    struct condemned *condemned; /* owned */
    size_t condemned_count;
    struct holder *holders; /* owned; sorted by key */
    size_t count;
    struct named *records; /* owned; sorted by key */
    size_t record_count;
    bool stale;
};

struct guard *guard_new(struct sim *s) {
    struct guard *g = NEW(struct guard);
    *g = (struct guard){.needs.bucket = s->bucket, .stale = true};
    return g;
}

struct needs *guard_needs(struct sim *s) {
    return &s->guard->needs;
}

static void drop(struct holder *h) {
    free(h->key);
    free(h->record);
    if (h->has_root)
        root_release(&h->root);
}

void guard_free(struct guard *g) {
    for (size_t i = 0; i < g->count; i++)
        drop(&g->holders[i]);
    for (size_t i = 0; i < g->record_count; i++)
        free(g->records[i].key);
    free(g->holders);
    free(g->records);
    free(g->condemned);
    needs_release(&g->needs);
    free(g);
}

/* --- what is kept of objects --- */

/* Of `count` items of `size` bytes, each of which begins with its key. */
static size_t lower_bound(const void *items, size_t count, size_t size, const char *key) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(*(char *const *)((const uint8_t *)items + mid * size), key) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static struct holder *find_holder(struct guard *g, const char *key) {
    size_t i = lower_bound(g->holders, g->count, sizeof g->holders[0], key);
    return i < g->count && strcmp(g->holders[i].key, key) == 0 ? &g->holders[i] : NULL;
}

static struct holder *add_holder(struct guard *g, const char *key) {
    size_t i = lower_bound(g->holders, g->count, sizeof g->holders[0], key);
    if ((g->count & (g->count - 1)) == 0)
        g->holders = xrealloc(g->holders, MAX(2 * g->count, (size_t)16) * sizeof g->holders[0]);
    memmove(&g->holders[i + 1], &g->holders[i], (g->count - i) * sizeof g->holders[0]);
    g->count++;
    g->holders[i] = (struct holder){.key = xstrdup(key)};
    return &g->holders[i];
}

/* The object was deleted; what comes there later is another. */
static void forget(struct guard *g, const char *key) {
    size_t i = lower_bound(g->records, g->record_count, sizeof g->records[0], key);
    if (i < g->record_count && strcmp(g->records[i].key, key) == 0) {
        free(g->records[i].key);
        memmove(&g->records[i], &g->records[i + 1], (--g->record_count - i) * sizeof g->records[0]);
    }
    i = lower_bound(g->holders, g->count, sizeof g->holders[0], key);
    if (i < g->count && strcmp(g->holders[i].key, key) == 0) {
        drop(&g->holders[i]); /* with it the key may go */
        memmove(&g->holders[i], &g->holders[i + 1], (--g->count - i) * sizeof g->holders[0]);
    }
}

/* NULL: it is no record that decodes. */
static const struct named *record_of(struct guard *g, const char *key, struct view body) {
    size_t i = lower_bound(g->records, g->record_count, sizeof g->records[0], key);
    if (i < g->record_count && strcmp(g->records[i].key, key) == 0)
        return &g->records[i];
    uint64_t n;
    struct snapshot_record r;
    if (key_parse_numbered(key, &n) < 0 || snapshot_record_decode(&r, n, body, NULL) < 0)
        return NULL;
    if ((g->record_count & (g->record_count - 1)) == 0)
        g->records =
            xrealloc(g->records, MAX(2 * g->record_count, (size_t)16) * sizeof g->records[0]);
    memmove(&g->records[i + 1], &g->records[i], (g->record_count - i) * sizeof g->records[0]);
    g->record_count++;
    g->records[i] = (struct named){.key = xstrdup(key), .pin = r.pin, .deleted = r.deleted};
    snapshot_record_release(&r);
    return &g->records[i];
}

/* --- who lives --- */

/* The first object in the folder of this key: of numbered records the newest. */
static void newest_beside(struct sim *s, const char *key, const char **ret_key, struct view *ret) {
    char folder[KEY_MAX];
    size_t len = (size_t)(strrchr(key, '/') + 1 - key);
    memcpy(folder, key, len);
    folder[len] = '\0';
    size_t i = sim_bucket_lower_bound(s->bucket, folder);
    *ret_key = "";
    if (i < sim_bucket_count(s->bucket))
        sim_bucket_at(s->bucket, i, ret_key, ret);
}

/* Is this snapshot record the newest of its name, and no tombstone? */
static bool record_names(struct sim *s, const char *key, const struct random_id *pin) {
    const char *newest;
    struct view body;
    newest_beside(s, key, &newest, &body);
    if (strcmp(newest, key) != 0)
        return false;
    const struct named *r = record_of(s->guard, key, body);
    return r && !r->deleted && random_id_equal(&r->pin, pin);
}

static bool read_manifest(struct sim *s, const char *key, struct view body, struct manifest *ret) {
    uint64_t n;
    struct err e = {0};
    if (key_parse_numbered(key, &n) == 0 && manifest_decode(ret, n, body, &e) == 0)
        return true;
    sim_fail(s, "%s does not decode: %s", key, e.text);
    return false;
}

static struct holder *add_manifest(struct guard *g, const char *key, const struct manifest *m) {
    struct holder *h = add_holder(g, key);
    h->has_root = h->live = !m->deleted;
    if (h->has_root)
        root_copy(&h->root, &m->root);
    return h;
}

static struct holder *read_pin(struct sim *s, const char *key, struct view body) {
    struct pin_root p;
    struct err e = {0};
    if (pin_root_decode(&p, body, &e) < 0) {
        sim_fail(s, "%s does not decode: %s", key, e.text);
        return NULL;
    }
    struct holder *h = add_holder(s->guard, key);
    h->has_root = !p.expired && !p.commit.is_clone;
    h->pin = p.pin;
    h->record = xstrdup(p.commit.key);
    if (h->has_root)
        root_copy(&h->root, &p.root);
    pin_root_release(&p);
    return h;
}

static struct holder *holder_at(struct sim *s, const char *key, struct view body, bool is_pin) {
    struct holder *h = find_holder(s->guard, key);
    struct manifest m;
    if (!h && is_pin) {
        h = read_pin(s, key, body);
    } else if (!h && read_manifest(s, key, body, &m)) {
        h = add_manifest(s->guard, key, &m);
        manifest_release(&m);
    }
    if (h && is_pin)
        h->live = h->has_root && record_names(s, h->record, &h->pin);
    return h;
}

static void look_at(struct sim *s, size_t index, bool is_pin) {
    const char *key;
    struct view body;
    sim_bucket_at(s->bucket, index, &key, &body);
    struct holder *h = holder_at(s, key, body, is_pin);
    if (h)
        h->found = true;
}

/* The volume whose prefix this is. */
static void look_at_volume(struct sim *s, const char *prefix) {
    char folder[KEY_MAX + sizeof "manifest/"];
    const char *key;
    struct view body;
    snprintf(folder, sizeof folder, "%smanifest/", prefix);
    size_t i = sim_bucket_lower_bound(s->bucket, folder);
    if (i < sim_bucket_count(s->bucket)) {
        sim_bucket_at(s->bucket, i, &key, &body);
        if (strncmp(key, folder, strlen(folder)) == 0)
            look_at(s, i, false);
    }
    snprintf(folder, sizeof folder, "%spins/", prefix);
    for (i = sim_bucket_lower_bound(s->bucket, folder); i < sim_bucket_count(s->bucket); i++) {
        sim_bucket_at(s->bucket, i, &key, &body);
        if (strncmp(key, folder, strlen(folder)) != 0)
            return;
        if (strstr(key, ".root"))
            look_at(s, i, true);
    }
}

static void refresh(struct sim *s) {
    struct guard *g = s->guard;
    if (!g->stale)
        return;
    g->stale = false;
    for (size_t i = 0; i < g->count; i++)
        g->holders[i].found = false;
    size_t i = sim_bucket_lower_bound(s->bucket, "volumes/");
    while (i < sim_bucket_count(s->bucket)) {
        const char *key;
        struct view body;
        char prefix[KEY_MAX];
        sim_bucket_at(s->bucket, i, &key, &body);
        if (strncmp(key, "volumes/", 8) != 0)
            break;
        snprintf(prefix, sizeof prefix, "%.*s", (int)(strchr(key + 8, '/') + 1 - key), key);
        look_at_volume(s, prefix);
        prefix[strlen(prefix) - 1] = '/' + 1; /* behind all its keys */
        i = sim_bucket_lower_bound(s->bucket, prefix);
    }
    size_t kept = 0;
    for (i = 0; i < g->count; i++) {
        if (g->holders[i].found)
            g->holders[kept++] = g->holders[i];
        else
            drop(&g->holders[i]);
    }
    g->count = kept;
}

/* --- what is condemned --- */

static void note_condemned(struct guard *g, const struct manifest *m) {
    for (size_t i = 0; i < m->condemned_count; i++) {
        if ((g->condemned_count & (g->condemned_count - 1)) == 0)
            g->condemned = xrealloc(g->condemned,
                                    MAX(2 * g->condemned_count, (size_t)64) * sizeof *g->condemned);
        g->condemned[g->condemned_count++] =
            (struct condemned){.volume = m->root.volumes[0], .range = m->condemned[i]};
    }
}

static bool condemns(const struct volume_key *volume, const struct condemned_range *range,
                     const struct need *x) {
    if (range->kind != x->ref.kind)
        return false;
    bool inside = range->kind == OBJ_LOG ? x->ref.seq - range->first < range->count
                                         : random_id_equal(&range->id, &x->ref.id);
    return inside && volume_key_equal(volume, &x->volume);
}

static bool is_condemned(const struct guard *g, const struct need *x) {
    for (size_t i = g->condemned_count; i > 0; i--) /* most likely it was done lately */
        if (condemns(&g->condemned[i - 1].volume, &g->condemned[i - 1].range, x))
            return true;
    return false;
}

struct own_need {
    const struct manifest *m;
    char key[KEY_MAX]; /* needed and condemned; "" while there is none */
};

static void look_if_condemned(void *arg, const struct need *x) {
    struct own_need *o = arg;
    for (size_t i = 0; i < o->m->condemned_count; i++)
        if (condemns(&o->m->root.volumes[0], &o->m->condemned[i], x))
            need_key(x, o->key);
}

/* --- what must not happen --- */

static bool in_folder(const char *key, const char *folder) {
    const char *at = strstr(key, folder);
    return at && !strchr(at + strlen(folder), '/');
}

static void check_delete_of_manifest(struct sim *s, const struct sim_effect *x) {
    uint64_t n;
    if (key_parse_numbered(x->key, &n) < 0)
        return;
    const char *newest;
    struct view body;
    newest_beside(s, x->key, &newest, &body);
    if (n == 1 || strcmp(newest, x->key) == 0)
        sim_fail(s, "%s deletes %s, the %s manifest", x->client, x->key,
                 n == 1 ? "first" : "newest");
}

static void check_delete(struct sim *s, const struct sim_effect *x) {
    if (in_folder(x->key, "/manifest/")) {
        check_delete_of_manifest(s, x);
        return;
    }
    if (in_folder(x->key, "/pins/"))
        return;
    /* A sleeping opener's fence in the place of a deleted segment lies where nobody walks any more.
     */
    if (in_folder(x->key, "/log/") && x->body.len == SEGMENT_FENCE_SIZE && !x->was_deleted)
        sim_fail(s, "%s deletes %s, a fence", x->client, x->key);
    refresh(s);
    struct guard *g = s->guard;
    struct need object;
    if (!need_of_key(&object, x->key) || !is_condemned(g, &object)) {
        sim_fail(s, "I7: %s deletes %s, which no manifest has condemned", x->client, x->key);
        return;
    }
    for (size_t i = 0; i < g->count; i++)
        if (g->holders[i].live && needs_has(&g->needs, &g->holders[i].root, &object))
            sim_fail(s, "I7: %s deletes %s, which %s needs", x->client, x->key, g->holders[i].key);
}

static void check_new_root(struct sim *s, const char *holder, const struct root *root,
                           const struct root *known, const char *client) {
    char missing[KEY_MAX];
    if (!needs_complete(&s->guard->needs, root, known, missing))
        sim_fail(s, "I12: %s makes %s live, which needs %s: that is not in the store", client,
                 holder, missing);
}

/* The newest manifest of the same volume that was looked at before this one. */
static struct holder *predecessor(struct guard *g, const char *key) {
    size_t folder = (size_t)(strrchr(key, '/') + 1 - key);
    size_t i = lower_bound(g->holders, g->count, sizeof g->holders[0], key);
    return i < g->count && strncmp(g->holders[i].key, key, folder) == 0 ? &g->holders[i] : NULL;
}

static void check_new_manifest(struct sim *s, const struct sim_effect *x) {
    struct guard *g = s->guard;
    struct manifest m;
    if (!read_manifest(s, x->key, x->body, &m))
        return;
    note_condemned(g, &m);
    bounds_check_manifest(s, x->key, &m);
    struct own_need o = {.m = &m};
    if (m.condemned_count > 0)
        needs_for_each(&g->needs, &m.root, look_if_condemned, &o, NULL);
    if (o.key[0] != '\0')
        sim_fail(s, "I7: %s of %s condemns %s, which its own root needs", x->key, x->client, o.key);
    const char *newest;
    struct view body;
    newest_beside(s, x->key, &newest, &body);
    if (strcmp(newest, x->key) == 0) {
        const struct holder *before = predecessor(g, x->key);
        if (!m.deleted)
            check_new_root(s, x->key, &m.root, before && before->live ? &before->root : NULL,
                           x->client);
        if (before)
            forget(g, before->key);
        add_manifest(g, x->key, &m);
    }
    manifest_release(&m);
}

static void check_new_snapshot(struct sim *s, const struct sim_effect *x) {
    uint64_t n;
    struct snapshot_record r;
    if (key_parse_numbered(x->key, &n) < 0 || snapshot_record_decode(&r, n, x->body, NULL) < 0)
        return;
    char key[KEY_MAX];
    struct view body;
    bool live = !r.deleted && record_names(s, x->key, &r.pin);
    key_pin_root(key, &r.source, &r.pin);
    if (live && !sim_bucket_find(s->bucket, key, &body)) {
        sim_fail(s, "I11: %s commits %s, but %s is not in the store", x->client, x->key, key);
    } else if (live) {
        const struct holder *h = holder_at(s, key, body, true);
        if (h && h->live)
            check_new_root(s, key, &h->root, NULL, x->client);
        else
            sim_fail(s, "I11: %s commits %s, but %s holds no root for it", x->client, x->key, key);
    }
    snapshot_record_release(&r);
}

void guard_on_effect(struct sim *s, const struct sim_effect *x) {
    if (checker_failed(&s->checker))
        return;
    bool changes = x->verb == OBJ_PUT ? x->stored : x->existed;
    if (!changes)
        return;
    bool in_volume = strncmp(x->key, "volumes/", 8) == 0;
    bool is_manifest = in_volume && in_folder(x->key, "/manifest/");
    bool is_record = strncmp(x->key, "snapshots/", 10) == 0;
    if (x->verb == OBJ_DELETE && in_volume)
        check_delete(s, x);
    else if (x->verb == OBJ_PUT && is_manifest)
        check_new_manifest(s, x);
    else if (x->verb == OBJ_PUT && is_record)
        check_new_snapshot(s, x);
    if (is_manifest || is_record || in_folder(x->key, "/pins/")) {
        s->guard->stale = true;
        if (x->verb == OBJ_DELETE)
            forget(s->guard, x->key);
    }
}
