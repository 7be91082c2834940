/* fsck: one volume. Its roots (newest manifest, pins), what they need, what nobody needs.
 *
 *   newest manifest -> LIST its objects -> pins -> runs -> the same manifest and pins? -> bytes
 *                        ^                                       | no, or something has gone
 *                        +---------------------------------------+
 *
 * A live writer puts, condemns and deletes all the while. So nothing that is missing is told unless
 * the manifest and the pins that name it are still the newest afterwards, and it is asked for by
 * its own name once more. What was read once is not read again in the next attempt: objects are
 * immutable. Nothing is called garbage unless the manifest is closed and has not moved, no maker of
 * a pin is at work, and the volume's record is at rest. */
#include "portalbd/catalog/fsck_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/volume/garbage.h"
#include "portalbd/volume/sweep.h"

enum { ATTEMPTS_MAX = 16 };

/* What one attempt has seen. */
struct attempt {
    struct manifest manifest;
    struct pin_list pins;
    bool pins_rest;   /* each has its root, and something names it */
    bool gone;        /* something went while we looked */
    uint64_t pending; /* pins that a sweeper is to deal with */
};

static bool is_damage(int rc) {
    return rc == -ERR_CORRUPT || rc == -ERR_UNSUPPORTED;
}

/* --- roots --- */

static void roots_release(struct fsck_check *c) {
    for (size_t i = 0; i < c->root_count; i++) {
        free(c->roots[i].runs);
        free(c->roots[i].volumes);
        free(c->roots[i].evacuated);
    }
    free(c->roots);
    c->roots = NULL;
    c->root_count = 0;
}

static int compare_names(const void *a, const void *b) {
    return fsck_name_compare(a, b);
}

static struct fsck_root *root_append(struct fsck_check *c) {
    if ((c->root_count & (c->root_count - 1)) == 0) /* at powers of two */
        c->roots = xrealloc(c->roots, MAX(2 * c->root_count, (size_t)16) * sizeof *c->roots);
    struct fsck_root *r = &c->roots[c->root_count++];
    *r = (struct fsck_root){0};
    return r;
}

static void add_run(struct fsck_check *c, const struct fsck_name *index) {
    for (size_t i = 0; i < c->run_count; i++)
        if (fsck_name_compare(&c->runs[i].index, index) == 0)
            return;
    if ((c->run_count & (c->run_count - 1)) == 0)
        c->runs = xrealloc(c->runs, MAX(2 * c->run_count, (size_t)16) * sizeof *c->runs);
    c->runs[c->run_count++] = (struct fsck_run){.index = *index};
}

/* The order of runs and tail. What the decoder refuses is not looked at again. */
static void check_numbers(struct fsck_check *c, const struct root *root, const char *key) {
    for (size_t i = 0; i < root->run_count; i++) {
        if (i > 0 && root->runs[i].age > root->runs[i - 1].age)
            fsck_report(c->f, FSCK_DAMAGE, key, "its runs are not in order of age");
        if (root->runs[i].age > root->next_seq && root->runs[i].index.volume == 0)
            fsck_report(c->f, FSCK_DAMAGE, key, "a run is newer than next_seq");
    }
}

/* key: of the manifest or pin that has this root. */
static int add_root(struct fsck_check *c, const struct root *root, const struct random_id *pin,
                    const char *key, struct err *e) {
    uint16_t volumes[ROOT_VOLUMES_MAX];
    char who[64];
    snprintf(who, sizeof who, "%s", strrchr(key, '/') + 1);
    CHECK(root->volume_count <= ROOT_VOLUMES_MAX);
    CHECK(volume_keys_equal(&root->volumes[0], c->volume)); /* readers see to it */
    for (size_t i = 0; i < root->volume_count; i++)
        volumes[i] = fsck_table_volume(&c->table, &root->volumes[i]);
    int rc = fsck_table_fill(&c->table, c->store, e);
    if (rc < 0)
        return rc;
    check_numbers(c, root, key);
    struct fsck_root *r = root_append(c);
    if (pin)
        r->pin = *pin;
    r->is_pin = pin != NULL;
    r->volumes = xcalloc(root->volume_count, sizeof *r->volumes);
    memcpy(r->volumes, root->volumes, root->volume_count * sizeof *r->volumes);
    r->volume_count = root->volume_count;
    r->runs = xcalloc(root->run_count + 1, sizeof *r->runs);
    r->evacuated = xcalloc(root->evacuated_count + 1, sizeof *r->evacuated);
    r->run_count = root->run_count;
    r->evacuated_count = root->evacuated_count;
    for (size_t i = 0; i < root->run_count; i++) {
        const struct obj_ref *index = &root->runs[i].index;
        r->runs[i] = (struct fsck_root_run){.index = fsck_name_of(volumes[index->volume], index),
                                            .entry_count = root->runs[i].entry_count,
                                            .size = root->runs[i].size};
        fsck_need(c, &r->runs[i].index, FSCK_NEEDED | FSCK_HELD, who);
        add_run(c, &r->runs[i].index);
    }
    for (size_t i = 0; i < root->evacuated_count; i++)
        r->evacuated[i] = fsck_name_of(volumes[root->evacuated[i].volume], &root->evacuated[i]);
    if (r->evacuated_count > 0)
        qsort(r->evacuated, r->evacuated_count, sizeof *r->evacuated, compare_names);
    for (size_t i = 0; i < root->tail_count; i++)
        for (uint64_t k = 0; k < root->tail[i].count; k++) {
            struct fsck_name n =
                fsck_name_of_log(volumes[root->tail[i].volume], root->tail[i].first + k);
            fsck_need(c, &n, FSCK_NEEDED | FSCK_HELD, who);
        }
    return 0;
}

/* Fences stay for ever; behind next_seq lies what the next open's walk will visit. */
static void mark_log(struct fsck_check *c, bool deleted) {
    uint64_t end = deleted ? UINT64_MAX : c->next_seq;
    for (size_t i = 0; i < c->table.count; i++) {
        struct fsck_object *o = &c->table.items[i];
        if (o->name.volume != 0 || o->name.kind != OBJ_LOG)
            continue;
        bool fence = o->size == SEGMENT_FENCE_SIZE, visited = fsck_name_seq(&o->name) == end;
        if (visited)
            end += fence ? FENCE_JUMP : 1;
        if (fence || visited)
            o->flags |= FSCK_NEEDED | FSCK_HELD;
    }
}

/* --- pins --- */

static int is_there(struct fsck_check *c, const char *key, bool *ret, struct err *e) {
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(c->store, key, MANIFEST_SIZE_MAX, &body, e);
    *ret = rc == 0;
    return rc == -ERR_NOT_FOUND ? 0 : rc;
}

/* A pin was listed without its root, or without its claim: is that so? Who gives a snapshot's up
 * puts a tombstone first. A clone's needs none: it may be given up just now, or have been, and a
 * PUT of its maker came once more. What a clone lacks is told when it is looked at itself. */
static int confirm_pin(struct fsck_check *c, const struct pin_entry *p,
                       const struct commit_key *commit, struct attempt *a, struct err *e) {
    char claim_key[KEY_MAX], root_key[KEY_MAX];
    bool claim = false, root = false, named = false;
    key_pin_claim(claim_key, c->volume, &p->pin);
    key_pin_root(root_key, c->volume, &p->pin);
    int rc = is_there(c, root_key, &root, e);
    if (rc == 0)
        rc = is_there(c, claim_key, &claim, e);
    if (rc == 0)
        rc = pin_is_named(c->store, c->volume, &p->pin, commit, &named, e);
    if (rc < 0)
        return rc;
    if (named && claim != root && !commit->is_clone)
        fsck_report(c->f, FSCK_DAMAGE, root ? claim_key : root_key, "it is lost; %s needs it",
                    commit->key);
    else if (named && claim != root)
        a->pending++;
    else
        a->gone = true;
    return 0;
}

static int check_pin(struct fsck_check *c, const struct pin_entry *p, struct attempt *a,
                     struct err *e) {
    char key[KEY_MAX];
    struct pin_claim claim = {0};
    struct pin_root root = {0};
    bool named = false;
    int rc = p->has_claim ? pin_claim_get(c->store, c->volume, &p->pin, &claim, e) : 0;
    key_pin_claim(key, c->volume, &p->pin);
    if (rc == 0 && p->has_root) {
        key_pin_root(key, c->volume, &p->pin);
        rc = pin_root_get(c->store, c->volume, &p->pin, &root, e);
    }
    if (is_damage(rc)) {
        fsck_report(c->f, FSCK_DAMAGE, key, "%s", e->text);
        a->pins_rest = false; /* nobody knows what it needs */
        return 0;
    }
    if (rc == -ERR_NOT_FOUND) {
        a->gone = true;
        return 0;
    }
    if (rc < 0)
        return rc;
    const struct commit_key *commit = p->has_root ? &root.commit : &claim.commit;
    if (p->has_claim && p->has_root && strcmp(claim.commit.key, root.commit.key) != 0)
        fsck_report(c->f, FSCK_DAMAGE, key, "claim and root have different commit keys");
    rc = pin_is_named(c->store, c->volume, &p->pin, commit, &named, e);
    if (is_damage(rc)) {
        if (commit->is_clone && !c->whole_pool) /* else told with the records, or the clone */
            fsck_report(c->f, FSCK_DAMAGE, commit->key, "%s", e->text);
        named = true;
        rc = 0;
    }
    bool real = p->has_root && !root.expired;
    if (rc == 0 && (!named || !real) && !(root.expired && !p->has_claim)) {
        a->pins_rest = false;
        a->pending++;
    }
    if (rc == 0 && named && (!p->has_root || (real && !p->has_claim)))
        rc = confirm_pin(c, p, commit, a, e);
    /* Nobody's data yet, or no more: a root that came once more behind its deletion names what may
     * have gone since. */
    if (rc == 0 && real && named) {
        c->size_bytes = MAX(c->size_bytes, root.size_bytes);
        rc = add_root(c, &root.root, &p->pin, key, e);
    }
    pin_root_release(&root);
    return rc;
}

static bool pins_equal(const struct pin_list *a, const struct pin_list *b) {
    bool equal = a->count == b->count;
    for (size_t i = 0; equal && i < a->count; i++)
        equal = random_id_equal(&a->items[i].pin, &b->items[i].pin) &&
                a->items[i].has_claim == b->items[i].has_claim &&
                a->items[i].has_root == b->items[i].has_root;
    return equal;
}

/* Has anything moved since the attempt began? */
static int has_moved(struct fsck_check *c, const struct attempt *a, bool *ret, struct err *e) {
    uint64_t number;
    struct pin_list now;
    int rc = manifest_newest_number(c->store, c->volume, &number, e);
    if (rc == 0)
        rc = pin_list_once(c->store, c->volume, &now, e);
    if (rc < 0)
        return rc;
    *ret = number != a->manifest.number || !pins_equal(&now, &a->pins);
    pin_list_release(&now);
    return 0;
}

/* What is needed of another volume is protected by a pin that this one holds there. */
static int check_held_pins(struct fsck_check *c, struct attempt *a, struct err *e) {
    char own_first[KEY_MAX];
    key_manifest(own_first, c->volume, 1);
    for (size_t i = 0; i < a->manifest.held_pin_count; i++) {
        const struct held_pin *h = &a->manifest.held_pins[i];
        uint16_t volume = fsck_table_volume(&c->table, &h->volume);
        bool needed = false;
        for (size_t k = 0; k < c->table.count && !needed; k++)
            needed =
                c->table.items[k].name.volume == volume && (c->table.items[k].flags & FSCK_NEEDED);
        if (!needed)
            continue; /* given up, or about to be */
        struct pin_root p;
        char key[KEY_MAX];
        key_pin_root(key, &h->volume, &h->pin);
        int rc = pin_root_get(c->store, &h->volume, &h->pin, &p, e);
        if (rc == -ERR_NOT_FOUND || is_damage(rc)) {
            struct err why = *e;
            bool moved; /* pins, too: a deleted volume gives up what its last one needed */
            rc = has_moved(c, a, &moved, e);
            if (rc == 0 && moved)
                a->gone = true;
            else if (rc == 0)
                fsck_report(c->f, FSCK_DAMAGE, key, "%s; volume %s needs what it holds", why.text,
                            c->volume->text);
        } else if (rc == 0) {
            if (p.expired || strcmp(p.commit.key, own_first) != 0)
                fsck_report(c->f, FSCK_DAMAGE, key, "it does not hold what volume %s needs",
                            c->volume->text);
            pin_root_release(&p);
        }
        if (rc < 0)
            return rc;
    }
    return fsck_table_fill(&c->table, c->store, e);
}

/* --- one attempt --- */

static void attempt_release(struct attempt *a) {
    manifest_release(&a->manifest);
    pin_list_release(&a->pins);
}

static int read_roots(struct fsck_check *c, struct attempt *a, struct err *e) {
    const struct manifest *m = &a->manifest;
    char key[KEY_MAX];
    key_manifest(key, c->volume, m->number);
    c->epoch = m->epoch;
    c->next_seq = m->root.next_seq;
    c->size_bytes = m->size_bytes;
    roots_release(c);
    c->miss_count = 0;
    c->blind = false;
    fsck_table_refresh(&c->table);
    int rc = add_root(c, &m->root, NULL, key, e);
    if (rc == 0)
        mark_log(c, m->deleted);
    if (rc == 0)
        rc = pin_list_once(c->store, c->volume, &a->pins, e);
    a->pins_rest = true;
    for (size_t i = 0; rc == 0 && i < a->pins.count; i++)
        rc = check_pin(c, &a->pins.items[i], a, e);
    return rc;
}

static bool is_named(const struct fsck_check *c, const struct fsck_name *run) {
    for (size_t i = 0; i < c->root_count; i++)
        if (fsck_root_run(&c->roots[i], run))
            return true;
    return false;
}

static int read_runs(struct fsck_check *c, struct attempt *a, struct err *e) {
    size_t kept = 0;
    int rc = 0;
    for (size_t i = 0; i < c->run_count; i++) /* runs of earlier attempts may be gone */
        if (is_named(c, &c->runs[i].index))
            c->runs[kept++] = c->runs[i];
    c->run_count = kept;
    for (size_t i = 0; rc == 0 && i < c->run_count; i++) {
        if (c->f->on_progress)
            c->f->on_progress(c->f->arg, &c->f->result, c->volume->text);
        rc = fsck_check_run(c, &c->runs[i], &a->gone, e);
    }
    return rc;
}

/* Nothing has moved: what was missing is asked for by its name. */
static int tell_misses(struct fsck_check *c, struct attempt *a, struct err *e) {
    for (size_t i = 0; i < c->miss_count; i++) {
        const struct fsck_miss *m = &c->misses[i];
        char key[KEY_MAX];
        CLEANUP_BUF struct buf body = {0};
        fsck_name_key(key, &c->table, &m->name);
        int rc = objstore_get_range(c->store, key, 0, 1, &body, e);
        if (rc == -ERR_NOT_FOUND)
            fsck_report(c->f, FSCK_DAMAGE, key, "it is lost; %s needs it", m->who);
        else if (rc < 0)
            return rc;
        else
            a->gone = true; /* a LIST is not atomic */
    }
    return 0;
}

/* fiber. From here on only this volume reads runs and data. 1: that took a while. */
static int begin_reading(struct fsck_check *c, struct err *e) {
    bool waits = c->f->reading.held;
    if (c->reading)
        return 0;
    if (fiber_mutex_lock(c->f->catalog->env, &c->f->reading) < 0)
        return err_set(e, -ERR_CANCELLED, "cancelled");
    c->reading = true;
    return waits;
}

static int look(struct fsck_check *c, struct attempt *a, struct err *e) {
    bool moved = false;
    int rc = manifest_newest(c->store, c->volume, &a->manifest, e);
    if (rc == 0 && !a->manifest.deleted && (rc = begin_reading(c, e)) > 0) {
        manifest_release(&a->manifest);
        rc = manifest_newest(c->store, c->volume, &a->manifest, e);
    }
    if (rc < 0)
        return rc;
    rc = read_roots(c, a, e);
    if (rc == 0 && c->run_count > 0) /* of pins of a deleted volume */
        rc = begin_reading(c, e);
    if (rc > 0)
        rc = 0;
    if (rc == 0)
        rc = read_runs(c, a, e);
    if (rc == 0)
        rc = check_held_pins(c, a, e);
    if (rc == 0 && (c->miss_count > 0 || a->gone))
        rc = has_moved(c, a, &moved, e);
    a->gone |= moved;
    if (rc == 0 && !a->gone)
        rc = tell_misses(c, a, e);
    if (rc == 0 && !a->gone && !c->f->quick)
        rc = fsck_check_objects(c, &a->gone, e);
    return rc;
}

/* --- what nobody needs --- */

static int tell_garbage(struct fsck_check *c, const struct attempt *a, bool at_rest,
                        struct err *e) {
    bool moved = false;
    int rc = has_moved(c, a, &moved, e);
    if (rc < 0)
        return rc;
    at_rest &= a->manifest.closed && a->pins_rest && !c->blind && !moved;
    for (size_t i = 0; i < c->table.count; i++) {
        const struct fsck_object *o = &c->table.items[i];
        if (o->name.volume != 0 || (o->flags & FSCK_HELD))
            continue;
        if (o->name.kind == OBJ_LOG && o->size == SEGMENT_FENCE_SIZE)
            continue;
        struct object_name n = {.class = CLASS_CONTENT, .kind = o->name.kind};
        if (n.kind == OBJ_LOG)
            n.number = fsck_name_seq(&o->name);
        else
            n.id = o->name.id;
        if (!at_rest || manifest_condemns(&a->manifest, &n)) {
            c->f->result.pending++;
            continue;
        }
        char key[KEY_MAX];
        fsck_name_key(key, &c->table, &o->name);
        c->f->result.garbage_bytes += o->size;
        fsck_report(c->f, FSCK_GARBAGE, key, "nothing needs its %u bytes", o->size);
    }
    return 0;
}

/* --- manifests --- */

/* The first one stays for ever; others may go while we look. */
static int check_manifests(struct fsck_check *c, struct err *e) {
    char prefix[KEY_MAX];
    key_manifests_prefix(prefix, c->volume);
    struct obj_list list = {0};
    int rc = objstore_list(c->store, prefix, NULL, SIZE_MAX, &list, e);
    uint64_t number = 0;
    if (rc == 0 && list.count == 0)
        rc = err_set(e, -ERR_NOT_FOUND, "volume %s has no manifest", c->volume->text);
    for (size_t i = 0; rc == 0 && i < list.count; i++) {
        const char *key = list.entries[i].key;
        if (key_parse_numbered(key, &number) < 0) {
            if (i == 0)
                fsck_report(c->f, FSCK_DAMAGE, key, FSCK_IN_THE_WAY);
            continue;
        }
        struct manifest m;
        bool wanted = i == 0 || number == 1 || !c->f->quick;
        rc = wanted ? manifest_get(c->store, c->volume, number, &m, e) : -ERR_NOT_FOUND;
        if (rc == 0)
            manifest_release(&m);
        else if (is_damage(rc))
            fsck_report(c->f, FSCK_DAMAGE, key, "%s", e->text);
        c->f->result.records += rc == 0;
        if (rc == -ERR_NOT_FOUND || is_damage(rc))
            rc = 0;
    }
    if (rc == 0 && number != 1) {
        char key[KEY_MAX];
        key_manifest(key, c->volume, 1);
        fsck_report(c->f, FSCK_DAMAGE, key, "the first manifest is lost");
    }
    obj_list_release(&list);
    return rc;
}

/* --- the volume --- */

/* Does its record let anybody be at work? Where there is none, nobody knows. */
static int record_at_rest(struct fsck *f, const struct volume_key *v, bool *ret, struct err *e) {
    char id[ID_MAX];
    struct parsed_id p;
    id_format(id, v, f->catalog->pool);
    int rc = id_parse(&p, id, e);
    if (rc < 0)
        return rc;
    struct volume_record r;
    rc = volume_record_newest(f->catalog, p.name_hash, &r, e);
    if (is_damage(rc)) { /* told with the records */
        *ret = false;
        return 0;
    }
    if (rc < 0)
        return rc;
    *ret = r.number > 0 &&
           (r.state == VOLUME_DELETED || (r.state == VOLUME_READY && r.node[0] == '\0') ||
            !volume_keys_equal(&r.key, v));
    volume_record_release(&r);
    return 0;
}

static int check(struct fsck_check *c, struct err *e) {
    bool at_rest;
    int rc = record_at_rest(c->f, c->volume, &at_rest, e);
    for (int attempt = 0; rc == 0; attempt++) {
        struct attempt a = {0};
        rc = look(c, &a, e);
        if (rc == 0 && !a.gone) {
            c->f->result.roots += c->root_count;
            c->f->result.pending += a.pending;
            rc = tell_garbage(c, &a, at_rest, e);
            attempt_release(&a);
            return rc;
        }
        attempt_release(&a);
        if (rc == 0 && attempt + 1 == ATTEMPTS_MAX) {
            c->f->result.unsettled++;
            return 0;
        }
    }
    return rc;
}

int fsck_check_volume(struct fsck *f, const struct volume_key *v, bool whole_pool, struct err *e) {
    struct fsck_check c = {
        .f = f, .store = f->catalog->store, .volume = v, .whole_pool = whole_pool};
    (void)fsck_table_volume(&c.table, v); /* [0] */
    int rc = check_manifests(&c, e);
    if (rc == 0)
        rc = check(&c, e);
    if (is_damage(rc)) { /* of the newest manifest: told already, and nothing else can be said */
        rc = 0;
    }
    if (rc == 0)
        f->result.volumes++;
    if (c.reading)
        fiber_mutex_unlock(&f->reading);
    roots_release(&c);
    free(c.runs);
    free(c.misses);
    fsck_table_release(&c.table);
    return rc;
}
