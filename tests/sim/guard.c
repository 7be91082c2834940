/* Watches the bucket all the time: nothing that a live root needs is ever deleted, nothing that no
 * manifest has condemned, and no root comes to live that needs what is not there (I7, I12).
 *
 * Live are the newest manifest of each volume that is not deleted, and the pins of snapshots whose
 * newest record names them. (What a clone's pin holds is needed by the clone's own root, as far as
 * it is needed.) The list of them is made anew when a manifest, a pin or a record has changed and
 * somebody asks; what an unchanged holder was decoded to is kept. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

struct live_root {
    char *holder; /* owned; key of the manifest or pin */
    struct root root;
    bool found; /* in the pass under way */
};

/* What some manifest of a volume has condemned. */
struct condemned {
    struct volume_key volume;
    struct condemned_range range;
};

struct guard {
    struct needs needs;
    struct condemned *condemned; /* owned */
    size_t condemned_count;
    struct live_root *roots; /* owned */
    size_t count;
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

static void drop(struct live_root *r) {
    free(r->holder);
    root_release(&r->root);
}

void guard_free(struct guard *g) {
    for (size_t i = 0; i < g->count; i++)
        drop(&g->roots[i]);
    free(g->roots);
    free(g->condemned);
    needs_release(&g->needs);
    free(g);
}

static struct live_root *find_root(struct guard *g, const char *holder) {
    for (size_t i = 0; i < g->count; i++)
        if (strcmp(g->roots[i].holder, holder) == 0)
            return &g->roots[i];
    return NULL;
}

static void add_root(struct guard *g, const char *holder, const struct root *root) {
    g->roots = xrealloc(g->roots, (g->count + 1) * sizeof *g->roots);
    struct live_root *r = &g->roots[g->count++];
    *r = (struct live_root){.holder = xstrdup(holder), .found = true};
    root_copy(&r->root, root);
}

/* --- who lives --- */

static bool read_manifest(struct sim *s, const char *key, struct view body, struct manifest *ret) {
    uint64_t n;
    struct err e = {0};
    if (key_parse_numbered(key, &n) == 0 && manifest_decode(ret, n, body, &e) == 0)
        return true;
    sim_fail(s, "%s does not decode: %s", key, e.text);
    return false;
}

static bool manifest_root(struct sim *s, const char *key, struct view body, struct root *ret) {
    struct manifest m;
    if (!read_manifest(s, key, body, &m))
        return false;
    bool live = !m.deleted;
    if (live)
        root_copy(ret, &m.root);
    manifest_release(&m);
    return live;
}

/* Is this snapshot record the newest of its name, and no tombstone? */
static bool record_names(struct sim *s, const char *key, const struct random_id *pin) {
    char folder[KEY_MAX];
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(key, '/') + 1 - key), key);
    size_t i = sim_bucket_lower_bound(s->bucket, folder);
    if (i == sim_bucket_count(s->bucket))
        return false;
    const char *newest;
    struct view body;
    uint64_t n;
    struct snapshot_record r;
    sim_bucket_at(s->bucket, i, &newest, &body);
    if (strcmp(newest, key) != 0 || key_parse_numbered(key, &n) < 0 ||
        snapshot_record_decode(&r, n, body, NULL) < 0)
        return false;
    bool live = !r.deleted && random_id_equal(&r.pin, pin);
    snapshot_record_release(&r);
    return live;
}

static bool pin_root(struct sim *s, const char *key, struct view body, struct root *ret) {
    struct pin_root p;
    struct err e = {0};
    if (pin_root_decode(&p, body, &e) < 0) {
        sim_fail(s, "%s does not decode: %s", key, e.text);
        return false;
    }
    bool live = !p.expired && !p.commit.is_clone && record_names(s, p.commit.key, &p.pin);
    if (live)
        root_copy(ret, &p.root);
    pin_root_release(&p);
    return live;
}

static void look_at(struct sim *s, size_t index, bool is_pin) {
    struct guard *g = s->guard;
    const char *key;
    struct view body;
    sim_bucket_at(s->bucket, index, &key, &body);
    struct live_root *known = find_root(g, key);
    if (known && !is_pin) {
        known->found = true;
        return;
    }
    struct root root;
    if (!(is_pin ? pin_root(s, key, body, &root) : manifest_root(s, key, body, &root)))
        return;
    if (known)
        known->found = true;
    else
        add_root(g, key, &root);
    root_release(&root);
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
        g->roots[i].found = false;
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
        if (g->roots[i].found)
            g->roots[kept++] = g->roots[i];
        else
            drop(&g->roots[i]);
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

static bool condemns(const struct condemned *c, const char *key) {
    char own[KEY_MAX];
    uint64_t seq;
    struct random_id id;
    if (c->range.kind == OBJ_LOG) {
        if (key_parse_log(key, &seq) < 0 || seq - c->range.first >= c->range.count)
            return false;
        key_log(own, &c->volume, seq);
        return strcmp(own, key) == 0;
    }
    if (key_parse_random(key, &id) < 0 || !random_id_equal(&id, &c->range.id))
        return false;
    if (c->range.kind == OBJ_MOVED)
        key_moved(own, &c->volume, &id);
    else
        key_map(own, &c->volume, &id);
    return strcmp(own, key) == 0;
}

static bool is_condemned(const struct guard *g, const char *key) {
    for (size_t i = g->condemned_count; i > 0; i--) /* most likely it was done lately */
        if (condemns(&g->condemned[i - 1], key))
            return true;
    return false;
}

struct own_need {
    const struct manifest *m;
    char key[KEY_MAX]; /* needed and condemned; "" while there is none */
};

static void look_if_condemned(void *arg, const char *key) {
    struct own_need *o = arg;
    for (size_t i = 0; i < o->m->condemned_count; i++) {
        struct condemned c = {.volume = o->m->root.volumes[0], .range = o->m->condemned[i]};
        if (condemns(&c, key))
            snprintf(o->key, sizeof o->key, "%s", key);
    }
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
    char folder[KEY_MAX];
    const char *newest;
    struct view body;
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(x->key, '/') + 1 - x->key), x->key);
    sim_bucket_at(s->bucket, sim_bucket_lower_bound(s->bucket, folder), &newest, &body);
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
    if (!is_condemned(g, x->key))
        sim_fail(s, "I7: %s deletes %s, which no manifest has condemned", x->client, x->key);
    for (size_t i = 0; i < g->count; i++)
        if (needs_has(&g->needs, &g->roots[i].root, x->key))
            sim_fail(s, "I7: %s deletes %s, which %s needs", x->client, x->key, g->roots[i].holder);
}

static void check_new_root(struct sim *s, const char *holder, const struct root *root,
                           const struct root *known, const char *client) {
    char missing[KEY_MAX];
    if (!needs_complete(&s->guard->needs, root, known, missing))
        sim_fail(s, "I12: %s makes %s live, which needs %s: that is not in the store", client,
                 holder, missing);
}

/* The newest root of the same volume before this one. */
static const struct root *predecessor(struct guard *g, const char *key) {
    size_t folder = (size_t)(strrchr(key, '/') + 1 - key);
    for (size_t i = 0; i < g->count; i++)
        if (strncmp(g->roots[i].holder, key, folder) == 0)
            return &g->roots[i].root;
    return NULL;
}

static void check_new_manifest(struct sim *s, const struct sim_effect *x) {
    struct manifest m;
    if (!read_manifest(s, x->key, x->body, &m))
        return;
    note_condemned(s->guard, &m);
    struct own_need o = {.m = &m};
    if (m.condemned_count > 0)
        needs_for_each(&s->guard->needs, &m.root, look_if_condemned, &o, NULL);
    if (o.key[0] != '\0')
        sim_fail(s, "I7: %s of %s condemns %s, which its own root needs", x->key, x->client, o.key);
    manifest_release(&m);
    char folder[KEY_MAX];
    const char *newest;
    struct view body;
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(x->key, '/') + 1 - x->key), x->key);
    sim_bucket_at(s->bucket, sim_bucket_lower_bound(s->bucket, folder), &newest, &body);
    struct root root;
    if (strcmp(newest, x->key) != 0 || !manifest_root(s, x->key, x->body, &root))
        return;
    check_new_root(s, x->key, &root, predecessor(s->guard, x->key), x->client);
    root_release(&root);
}

static void check_new_snapshot(struct sim *s, const struct sim_effect *x) {
    uint64_t n;
    struct snapshot_record r;
    if (key_parse_numbered(x->key, &n) < 0 || snapshot_record_decode(&r, n, x->body, NULL) < 0)
        return;
    char key[KEY_MAX];
    struct view body;
    struct root root;
    bool live = !r.deleted && record_names(s, x->key, &r.pin);
    key_pin_root(key, &r.source, &r.pin);
    if (live && !sim_bucket_find(s->bucket, key, &body)) {
        sim_fail(s, "I11: %s commits %s, but %s is not in the store", x->client, x->key, key);
    } else if (live && pin_root(s, key, body, &root)) {
        check_new_root(s, key, &root, NULL, x->client);
        root_release(&root);
    } else if (live) {
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
    if (is_manifest || is_record || in_folder(x->key, "/pins/"))
        s->guard->stale = true;
}
