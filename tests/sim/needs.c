/* See needs.h. A root needs the indexes and parts of its runs, what their entries name and is not
 * evacuated, and its whole tail. */
#include "tests/sim/needs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

/* --- objects --- */

static int compare(const struct need *a, const struct need *b) {
    int c = memcmp(a->ref.id.bytes, b->ref.id.bytes, RANDOM_ID_SIZE);
    if (c != 0)
        return c;
    if (a->ref.seq != b->ref.seq)
        return a->ref.seq < b->ref.seq ? -1 : 1;
    if (a->ref.kind != b->ref.kind)
        return a->ref.kind < b->ref.kind ? -1 : 1;
    return strcmp(a->volume.text, b->volume.text);
}

static int compare_items(const void *a, const void *b) {
    return compare(a, b);
}

bool need_equal(const struct need *a, const struct need *b) {
    return compare(a, b) == 0;
}

void need_key(const struct need *x, char key[KEY_MAX]) {
    key_of_ref(key, &x->volume, &x->ref);
}

bool need_of_key(struct need *ret, const char *key) {
    const char *id = key + strlen("volumes/");
    if (strncmp(key, "volumes/", strlen("volumes/")) != 0)
        return false;
    size_t id_len = strcspn(id, "/");
    const char *folder = id + id_len;
    *ret = (struct need){0};
    if (id_len >= ID_MAX)
        return false;
    memcpy(ret->volume.text, id, id_len);
    if (strncmp(folder, "/log/", 5) == 0) {
        ret->ref.kind = OBJ_LOG;
        return key_parse_log(key, &ret->ref.seq) == 0;
    }
    bool moved = strncmp(folder, "/moved/", 7) == 0;
    if (!moved && strncmp(folder, "/map/", 5) != 0)
        return false;
    ret->ref.kind = moved ? OBJ_MOVED : OBJ_MAP;
    return key_parse_random(key, &ret->ref.id) == 0;
}

static struct need of_ref(const struct volume_key *table, const struct obj_ref *ref) {
    return (struct need){.volume = table[ref->volume], .ref = *ref};
}

static bool has(const struct need *items, size_t count, const struct need *x) {
    return count > 0 && bsearch(x, items, count, sizeof items[0], compare_items) != NULL;
}

/* --- runs --- */

static void run_needs_free(struct run_needs *r) {
    free(r->parts);
    free(r->used);
    free(r);
}

void needs_release(struct needs *n) {
    for (size_t i = 0; i < n->run_count; i++)
        run_needs_free(n->runs[i]);
    free(n->runs);
    *n = (struct needs){0};
}

static struct run_needs *make_run_needs(const struct need *index, const struct run_index *x) {
    struct run_needs *r = NEW(struct run_needs);
    *r = (struct run_needs){.index = *index, .part_count = x->part_count};
    r->parts = xcalloc(MAX(x->part_count, (size_t)1), sizeof *r->parts);
    for (size_t i = 0; i < x->part_count; i++)
        r->parts[i] = of_ref(x->volumes, &x->parts[i].ref);
    r->used = xcalloc(MAX(x->usage_count, (size_t)1), sizeof *r->used);
    for (size_t i = 0; i < x->usage_count; i++)
        if (!run_usage_is_free(&x->usage[i]))
            r->used[r->used_count++] = of_ref(x->volumes, &x->usage[i].ref);
    qsort(r->parts, r->part_count, sizeof *r->parts, compare_items);
    qsort(r->used, r->used_count, sizeof *r->used, compare_items);
    return r;
}

static size_t lower_bound(const struct needs *n, const struct need *index) {
    size_t low = 0, high = n->run_count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (compare(&n->runs[mid]->index, index) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static struct need index_of(const struct root *root, size_t run) {
    return of_ref(root->volumes, &root->runs[run].index);
}

/* What the run needs, or NULL and why: its index is not there or does not decode. Borrowed. */
static const struct run_needs *needs_of_run(struct needs *n, const struct root *root, size_t run,
                                            struct err *e) {
    struct need index = index_of(root, run);
    size_t i = lower_bound(n, &index);
    if (i < n->run_count && need_equal(&n->runs[i]->index, &index))
        return n->runs[i];
    char key[KEY_MAX];
    struct view body;
    struct run_index x;
    need_key(&index, key);
    if (!sim_bucket_find(n->bucket, key, &body)) {
        (void)err_set(e, -ERR_NOT_FOUND, "%s is not in the store", key);
        return NULL;
    }
    if (run_index_decode(&x, body, e) < 0) {
        err_wrap(e, "%s", key);
        return NULL;
    }
    n->runs = xrealloc(n->runs, (n->run_count + 1) * sizeof(struct run_needs *));
    memmove(&n->runs[i + 1], &n->runs[i], (n->run_count - i) * sizeof(struct run_needs *));
    n->runs[i] = make_run_needs(&index, &x);
    n->run_count++;
    run_index_release(&x);
    return n->runs[i];
}

/* --- roots --- */

static bool is_evacuated(const struct root *root, const struct need *x) {
    for (size_t i = 0; i < root->evacuated_count; i++) {
        const struct obj_ref *r = &root->evacuated[i];
        if (r->seq == x->ref.seq && random_id_equal(&r->id, &x->ref.id)) {
            struct need own = of_ref(root->volumes, r);
            if (need_equal(&own, x))
                return true;
        }
    }
    return false;
}

static bool tail_has(const struct root *root, const struct need *x) {
    for (size_t i = 0; i < root->tail_count; i++) {
        const struct root_tail *t = &root->tail[i];
        if (x->ref.seq - t->first < t->count &&
            volume_key_equal(&root->volumes[t->volume], &x->volume))
            return x->ref.kind == OBJ_LOG;
    }
    return false;
}

static bool has_run(const struct root *root, const struct need *index) {
    for (size_t i = 0; i < root->run_count; i++) {
        struct need own = index_of(root, i);
        if (need_equal(&own, index))
            return true;
    }
    return false;
}

bool needs_has(struct needs *n, const struct root *root, const struct need *x) {
    if (tail_has(root, x))
        return true;
    for (size_t i = 0; i < root->run_count; i++) {
        const struct run_needs *r = needs_of_run(n, root, i, NULL);
        if (!r)
            continue;
        if (need_equal(&r->index, x) || has(r->parts, r->part_count, x))
            return true;
        if (has(r->used, r->used_count, x) && !is_evacuated(root, x))
            return true;
    }
    return false;
}

/* A fence in the place of a segment is none. */
static bool is_there(const struct needs *n, const struct need *x, char missing[KEY_MAX]) {
    struct view body;
    need_key(x, missing);
    return sim_bucket_find(n->bucket, missing, &body) &&
           (body.len != SEGMENT_FENCE_SIZE || x->ref.kind != OBJ_LOG);
}

/* What `known` had evacuated, and this root has not, counts as new. */
static bool run_complete(struct needs *n, const struct root *root, const struct root *known,
                         const struct run_needs *r, char missing[KEY_MAX]) {
    bool is_known = known && has_run(known, &r->index);
    for (size_t k = 0; !is_known && k < r->part_count; k++)
        if (!is_there(n, &r->parts[k], missing))
            return false;
    for (size_t k = 0; k < r->used_count; k++) {
        bool looked_after = is_known && !is_evacuated(known, &r->used[k]);
        if (!looked_after && !is_evacuated(root, &r->used[k]) && !is_there(n, &r->used[k], missing))
            return false;
    }
    return true;
}

static struct need of_tail(const struct root *root, const struct root_tail *t, uint64_t k) {
    return (struct need){.volume = root->volumes[t->volume],
                         .ref = {.kind = OBJ_LOG, .seq = t->first + k}};
}

bool needs_complete(struct needs *n, const struct root *root, const struct root *known,
                    char missing[KEY_MAX]) {
    for (size_t i = 0; i < root->run_count; i++) {
        const struct run_needs *r = needs_of_run(n, root, i, NULL);
        if (!r) {
            struct need index = index_of(root, i);
            need_key(&index, missing);
            return false;
        }
        if (!run_complete(n, root, known, r, missing))
            return false;
    }
    for (size_t i = 0; i < root->tail_count; i++) {
        for (uint64_t k = 0; k < root->tail[i].count; k++) {
            struct need x = of_tail(root, &root->tail[i], k);
            if (!(known && tail_has(known, &x)) && !is_there(n, &x, missing))
                return false;
        }
    }
    return true;
}

bool needs_for_each(struct needs *n, const struct root *root,
                    void (*fn)(void *arg, const struct need *x), void *arg, struct err *e) {
    for (size_t i = 0; i < root->run_count; i++) {
        const struct run_needs *r = needs_of_run(n, root, i, e);
        if (!r)
            return false;
        fn(arg, &r->index);
        for (size_t k = 0; k < r->part_count; k++)
            fn(arg, &r->parts[k]);
        for (size_t k = 0; k < r->used_count; k++)
            if (!is_evacuated(root, &r->used[k]))
                fn(arg, &r->used[k]);
    }
    for (size_t i = 0; i < root->tail_count; i++) {
        for (uint64_t k = 0; k < root->tail[i].count; k++) {
            struct need x = of_tail(root, &root->tail[i], k);
            fn(arg, &x);
        }
    }
    return true;
}
