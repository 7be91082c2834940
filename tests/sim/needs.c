/* See needs.h. A root needs the indexes and parts of its runs, what their entries name and is not
 * evacuated, and its whole tail. */
#include "tests/sim/needs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

static int compare_keys(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool has_key(char *const *keys, size_t count, const char *key) {
    return count > 0 && bsearch(&key, keys, count, sizeof keys[0], compare_keys) != NULL;
}

static void keys_free(char **keys, size_t count) {
    for (size_t i = 0; i < count; i++)
        free(keys[i]);
    free(keys);
}

static void run_needs_free(struct run_needs *r) {
    keys_free(r->parts, r->part_count);
    keys_free(r->used, r->used_count);
    free(r->index);
    free(r);
}

void needs_release(struct needs *n) {
    for (size_t i = 0; i < n->run_count; i++)
        run_needs_free(n->runs[i]);
    free(n->runs);
    *n = (struct needs){0};
}

/* Takes the key over. */
static struct run_needs *make_run_needs(char *index, const struct run_index *x) {
    struct run_needs *r = NEW(struct run_needs);
    char key[KEY_MAX];
    *r = (struct run_needs){.index = index, .part_count = x->part_count};
    r->parts = xcalloc(MAX(x->part_count, (size_t)1), sizeof *r->parts);
    for (size_t i = 0; i < x->part_count; i++) {
        key_of_ref(key, &x->volumes[x->parts[i].ref.volume], &x->parts[i].ref);
        r->parts[i] = xstrdup(key);
    }
    r->used = xcalloc(MAX(x->usage_count, (size_t)1), sizeof *r->used);
    for (size_t i = 0; i < x->usage_count; i++) {
        if (run_usage_is_free(&x->usage[i]))
            continue;
        key_of_ref(key, &x->volumes[x->usage[i].ref.volume], &x->usage[i].ref);
        r->used[r->used_count++] = xstrdup(key);
    }
    qsort(r->parts, r->part_count, sizeof *r->parts, compare_keys);
    qsort(r->used, r->used_count, sizeof *r->used, compare_keys);
    return r;
}

static size_t lower_bound(const struct needs *n, const char *index) {
    size_t low = 0, high = n->run_count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(n->runs[mid]->index, index) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static void index_key(const struct root *root, size_t run, char key[KEY_MAX]) {
    const struct obj_ref *ref = &root->runs[run].index;
    key_of_ref(key, &root->volumes[ref->volume], ref);
}

const struct run_needs *needs_of_run(struct needs *n, const struct root *root, size_t run,
                                     struct err *e) {
    char key[KEY_MAX];
    index_key(root, run, key);
    size_t i = lower_bound(n, key);
    if (i < n->run_count && strcmp(n->runs[i]->index, key) == 0)
        return n->runs[i];
    struct view body;
    struct run_index x;
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
    n->runs[i] = make_run_needs(xstrdup(key), &x);
    n->run_count++;
    run_index_release(&x);
    return n->runs[i];
}

static bool is_evacuated(const struct root *root, const char *key) {
    for (size_t i = 0; i < root->evacuated_count; i++) {
        char own[KEY_MAX];
        key_of_ref(own, &root->volumes[root->evacuated[i].volume], &root->evacuated[i]);
        if (strcmp(own, key) == 0)
            return true;
    }
    return false;
}

static bool tail_has(const struct root *root, const char *key) {
    uint64_t seq;
    if (!strstr(key, "/log/") || key_parse_log(key, &seq) < 0)
        return false;
    for (size_t i = 0; i < root->tail_count; i++) {
        const struct root_tail *t = &root->tail[i];
        char own[KEY_MAX];
        key_log(own, &root->volumes[t->volume], seq);
        if (seq - t->first < t->count && strcmp(own, key) == 0)
            return true;
    }
    return false;
}

bool needs_has(struct needs *n, const struct root *root, const char *key) {
    if (tail_has(root, key))
        return true;
    for (size_t i = 0; i < root->run_count; i++) {
        const struct run_needs *r = needs_of_run(n, root, i, NULL);
        if (!r)
            continue;
        if (strcmp(r->index, key) == 0 || has_key(r->parts, r->part_count, key))
            return true;
        if (has_key(r->used, r->used_count, key) && !is_evacuated(root, key))
            return true;
    }
    return false;
}

static bool has_run(const struct root *root, const char *index) {
    for (size_t i = 0; root && i < root->run_count; i++) {
        char key[KEY_MAX];
        index_key(root, i, key);
        if (strcmp(key, index) == 0)
            return true;
    }
    return false;
}

/* A fence in the place of a segment is none. */
static bool is_there(const struct needs *n, const char *key, char missing[KEY_MAX]) {
    struct view body;
    if (sim_bucket_find(n->bucket, key, &body) &&
        (body.len != SEGMENT_FENCE_SIZE || !strstr(key, "/log/")))
        return true;
    snprintf(missing, KEY_MAX, "%s", key);
    return false;
}

/* What `known` had evacuated, and this root has not, counts as new. */
static bool evacuated_by(const struct root *known, const char *key) {
    return known && is_evacuated(known, key);
}

bool needs_complete(struct needs *n, const struct root *root, const struct root *known,
                    char missing[KEY_MAX]) {
    for (size_t i = 0; i < root->run_count; i++) {
        index_key(root, i, missing);
        bool is_known = has_run(known, missing);
        const struct run_needs *r = needs_of_run(n, root, i, NULL);
        if (!r)
            return false;
        for (size_t k = 0; !is_known && k < r->part_count; k++)
            if (!is_there(n, r->parts[k], missing))
                return false;
        for (size_t k = 0; k < r->used_count; k++) {
            bool looked_after = is_known && !evacuated_by(known, r->used[k]);
            if (!looked_after && !is_evacuated(root, r->used[k]) &&
                !is_there(n, r->used[k], missing))
                return false;
        }
    }
    for (size_t i = 0; i < root->tail_count; i++) {
        for (uint64_t k = 0; k < root->tail[i].count; k++) {
            char key[KEY_MAX];
            key_log(key, &root->volumes[root->tail[i].volume], root->tail[i].first + k);
            if (!is_there(n, key, missing))
                return false;
        }
    }
    return true;
}

bool needs_for_each(struct needs *n, const struct root *root,
                    void (*fn)(void *arg, const char *key), void *arg, struct err *e) {
    for (size_t i = 0; i < root->run_count; i++) {
        const struct run_needs *r = needs_of_run(n, root, i, e);
        if (!r)
            return false;
        fn(arg, r->index);
        for (size_t k = 0; k < r->part_count; k++)
            fn(arg, r->parts[k]);
        for (size_t k = 0; k < r->used_count; k++)
            if (!is_evacuated(root, r->used[k]))
                fn(arg, r->used[k]);
    }
    for (size_t i = 0; i < root->tail_count; i++) {
        for (uint64_t k = 0; k < root->tail[i].count; k++) {
            char key[KEY_MAX];
            key_log(key, &root->volumes[root->tail[i].volume], root->tail[i].first + k);
            fn(arg, key);
        }
    }
    return true;
}
