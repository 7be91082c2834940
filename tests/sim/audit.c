/* The bucket when everything has come to rest: what live roots need is there (I12), pins stand for
 * something (I11), and nothing is there that neither anybody needs nor the protocol keeps for ever:
 * fences, the first manifest and the newest, and of a live volume a few old ones. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

enum { OLD_MANIFESTS_MAX = 100 }; /* that a live volume may keep */

/* Keys that something live needs, sorted once all are in. */
struct keys {
    char **items; /* owned, each too */
    size_t count;
    size_t cap;
};

struct audit {
    struct sim *sim;
    struct keys needed;
};

static void need(struct audit *a, const char *key) {
    struct keys *k = &a->needed;
    if (k->count == k->cap) {
        k->cap = MAX(2 * k->cap, (size_t)64);
        k->items = xrealloc(k->items, k->cap * sizeof k->items[0]);
    }
    k->items[k->count++] = xstrdup(key);
}

static int compare_keys(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_needed(const struct audit *a, const char *key) {
    return a->needed.count > 0 && bsearch(&key, a->needed.items, a->needed.count,
                                          sizeof a->needed.items[0], compare_keys) != NULL;
}

static void need_object(void *arg, const struct need *x) {
    char key[KEY_MAX];
    need_key(x, key);
    need(arg, key);
}

static void check_root(struct audit *a, const struct root *root, const char *who) {
    struct needs *n = guard_needs(a->sim);
    struct err e = {0};
    char missing[KEY_MAX];
    if (!needs_for_each(n, root, need_object, a, &e))
        sim_fail(a->sim, "I12: %s: %s", who, e.text);
    else if (!needs_complete(n, root, NULL, missing))
        sim_fail(a->sim, "I12: %s needs %s, which is not in the store", who, missing);
}

/* The last component of a key's folder tells the kind. */
static bool in_folder(const char *key, const char *folder) {
    const char *at = strstr(key, folder);
    return at && !strchr(at + strlen(folder), '/');
}

static size_t volume_prefix_len(const char *key) {
    const char *id = key + strlen("volumes/");
    return (size_t)(strchr(id, '/') + 1 - key);
}

/* The newest manifest of the volume that has this prefix: the first one in the order of keys. */
static bool newest_manifest(struct sim *s, const char *prefix, size_t prefix_len,
                            struct manifest *ret) {
    char folder[KEY_MAX];
    snprintf(folder, sizeof folder, "%.*smanifest/", (int)prefix_len, prefix);
    size_t i = sim_bucket_lower_bound(s->bucket, folder);
    if (i == sim_bucket_count(s->bucket))
        return false;
    const char *key;
    struct view body;
    sim_bucket_at(s->bucket, i, &key, &body);
    uint64_t n;
    if (strncmp(key, folder, strlen(folder)) != 0 || key_parse_numbered(key, &n) < 0)
        return false;
    struct err e = {0};
    if (manifest_decode(ret, n, body, &e) == 0)
        return true;
    sim_fail(s, "%s does not decode: %s", key, e.text);
    return false;
}

bool audit_newest_manifest(struct sim *s, const struct volume_key *v, struct manifest *ret) {
    char prefix[KEY_MAX];
    key_volume_prefix(prefix, v);
    return newest_manifest(s, prefix, strlen(prefix), ret);
}

static struct sim_volume *volume_of(struct sim *s, const char *prefix, size_t prefix_len) {
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        char own[KEY_MAX];
        if (!v->key.text[0])
            continue; /* never came to be */
        key_volume_prefix(own, &v->key);
        if (strlen(own) == prefix_len && strncmp(own, prefix, prefix_len) == 0)
            return v;
    }
    return NULL;
}

static struct snap *snap_of_pin(struct sim *s, const struct random_id *pin) {
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        if (n->state == LIVE && random_id_equal(&n->pin, pin))
            return n;
    }
    return NULL;
}

/* Does the first manifest of a live clone, or of a deleted one that still holds it, name this pin?
 */
static bool clone_holds(struct audit *a, const struct commit_key *commit,
                        const struct random_id *pin) {
    struct view body;
    if (!commit->is_clone || !sim_bucket_find(a->sim->bucket, commit->key, &body))
        return false;
    struct manifest m;
    if (manifest_decode(&m, 1, body, NULL) < 0)
        return false;
    bool holds = false;
    for (size_t i = 0; i < m.held_pin_count; i++)
        holds |= random_id_equal(&m.held_pins[i].pin, pin);
    manifest_release(&m);
    return holds;
}

/* The clone died while it gave this pin up, and was deleted before it came to do it again: its
 * shell holds what it may need by the root alone, until nobody holds anything in the shell. */
static bool is_half_given_up(struct audit *a, const struct commit_key *commit) {
    if (!commit->is_clone)
        return false;
    struct manifest m;
    if (!newest_manifest(a->sim, commit->key, volume_prefix_len(commit->key), &m))
        return false;
    bool deleted = m.deleted;
    manifest_release(&m);
    return deleted;
}

static void check_pin_root(struct audit *a, const char *key, struct view body) {
    struct pin_root p;
    struct err e = {0};
    if (pin_root_decode(&p, body, &e) < 0) {
        sim_fail(a->sim, "%s does not decode: %s", key, e.text);
        return;
    }
    if (!p.expired) {
        struct snap *snap = snap_of_pin(a->sim, &p.pin);
        bool live = p.commit.is_clone ? clone_holds(a, &p.commit, &p.pin) : snap != NULL;
        if (!live)
            sim_fail(a->sim,
                     "I11: %s holds a root, but nothing live names it; its commit key is %s", key,
                     p.commit.key);
        check_root(a, &p.root, key);
        char claim[KEY_MAX];
        snprintf(claim, sizeof claim, "%.*s.claim", (int)(strrchr(key, '.') - key), key);
        struct view claim_body;
        if (!sim_bucket_find(a->sim->bucket, claim, &claim_body) && !is_half_given_up(a, &p.commit))
            sim_fail(a->sim, "I11: %s has no claim", key);
    }
    pin_root_release(&p);
}

static void check_claim(struct audit *a, const char *key) {
    char root[KEY_MAX];
    snprintf(root, sizeof root, "%.*s.root", (int)(strrchr(key, '.') - key), key);
    struct view body;
    if (!sim_bucket_find(a->sim->bucket, root, &body))
        sim_fail(a->sim, "I11: %s has no root after two rounds of the sweeper", key);
}

/* First pass: what is needed. */
static void collect_needs(struct audit *a) {
    struct sim_bucket *b = a->sim->bucket;
    size_t last_prefix = 0;
    const char *last = "";
    for (size_t i = sim_bucket_lower_bound(b, "volumes/"); i < sim_bucket_count(b); i++) {
        const char *key;
        struct view body;
        sim_bucket_at(b, i, &key, &body);
        if (strncmp(key, "volumes/", 8) != 0)
            break;
        size_t prefix = volume_prefix_len(key);
        if (prefix != last_prefix || strncmp(key, last, prefix) != 0) {
            last = key;
            last_prefix = prefix;
            struct manifest m;
            if (newest_manifest(a->sim, key, prefix, &m)) {
                struct sim_volume *v = volume_of(a->sim, key, prefix);
                if (v && m.deleted != (v->state == DEAD))
                    sim_fail(a->sim, "volume %s: its manifest says %s", v->name,
                             m.deleted ? "deleted" : "not deleted");
                char who[64];
                snprintf(who, sizeof who, "%.40s manifest %" PRIu64, key + 8, m.number);
                check_root(a, &m.root, who);
                manifest_release(&m);
            }
        }
        if (in_folder(key, "/pins/") && strstr(key, ".root"))
            check_pin_root(a, key, body);
        else if (in_folder(key, "/pins/"))
            check_claim(a, key);
    }
}

/* Second pass: what else is there. */
static void look_at_rest(struct audit *a) {
    struct sim *s = a->sim;
    for (size_t i = sim_bucket_lower_bound(s->bucket, "volumes/"); i < sim_bucket_count(s->bucket);
         i++) {
        const char *key;
        struct view body;
        sim_bucket_at(s->bucket, i, &key, &body);
        if (strncmp(key, "volumes/", 8) != 0)
            break;
        s->totals.objects_left++;
        if (in_folder(key, "/pins/") || is_needed(a, key))
            continue;
        if (in_folder(key, "/log/") && body.len == SEGMENT_FENCE_SIZE) {
            s->totals.objects_fences++;
            continue;
        }
        struct manifest m;
        if (!newest_manifest(s, key, volume_prefix_len(key), &m)) {
            sim_fail(s, "%s is in no volume", key);
            continue;
        }
        uint64_t n = 0;
        bool is_manifest = in_folder(key, "/manifest/") && key_parse_numbered(key, &n) == 0;
        bool kept = is_manifest && (n == 1 || n == m.number);
        bool old = is_manifest && !m.deleted && n + OLD_MANIFESTS_MAX >= m.number;
        manifest_release(&m);
        s->totals.objects_manifests += is_manifest;
        if (!kept && !old)
            sim_fail(s, "leak: %s is left, and nobody needs it", key);
    }
}

void audit_bucket(struct sim *s) {
    struct audit a = {.sim = s};
    collect_needs(&a);
    qsort(a.needed.items, a.needed.count, sizeof a.needed.items[0], compare_keys);
    if (!checker_failed(&s->checker))
        look_at_rest(&a);
    for (size_t i = 0; i < a.needed.count; i++)
        free(a.needed.items[i]);
    free(a.needed.items);
}
