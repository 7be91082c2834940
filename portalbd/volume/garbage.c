/* The parts of GC rounds (protocol I7): what is there, what is condemned, what pins need.
 *
 * Invariants:
 *   I1  Fences, pins and keys that are not ours are never CONTENT, so no list names them.
 *   I2  A pin needs the whole tail of its root, and of its runs index, parts and every object that
 *       they reference and that this root does not evacuate. What another root evacuates says
 *       nothing: that root has the moved copy, this one has not. */
#include "portalbd/volume/garbage.h"

#include <stdlib.h>

#include "portalbd/volume/run_reader.h"

enum { SORT_AT = 64 * 1024 }; /* needed objects, before what is there twice goes */

/* --- what a volume's prefix holds --- */

static bool in_folder(const char *key, size_t prefix_len, const char *folder) {
    return strncmp(key + prefix_len, folder, strlen(folder)) == 0;
}

struct object_name object_classify(const struct obj_entry *o, size_t prefix_len) {
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

int object_name_compare(const struct object_name *a, const struct object_name *b) {
    CHECK(a->class == CLASS_CONTENT && b->class == CLASS_CONTENT);
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    if (a->number != b->number)
        return a->number < b->number ? -1 : 1;
    return memcmp(a->id.bytes, b->id.bytes, RANDOM_ID_SIZE);
}

void object_key(char key[KEY_MAX], const struct volume_key *v, const struct object_name *n) {
    CHECK(n->class == CLASS_CONTENT);
    struct obj_ref ref = {.kind = n->kind, .id = n->id};
    if (n->kind == OBJ_LOG)
        ref.seq = n->number;
    key_of_ref(key, v, &ref);
}

int prefix_for_each_page(struct objstore *s, const struct volume_key *v,
                         int (*fn)(void *arg, const struct obj_list *page, size_t prefix_len,
                                   struct err *e),
                         void *arg, struct err *e) {
    char prefix[KEY_MAX], after[OBJ_KEY_MAX + 1] = "";
    key_volume_prefix(prefix, v);
    for (bool more = true; more;) {
        struct obj_list page = {0};
        int rc = objstore_list(s, prefix, after[0] != '\0' ? after : NULL, PREFIX_PAGE, &page, e);
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

/* --- condemned ranges --- */

void condemned_list_release(struct condemned_list *l) {
    free(l->items);
    *l = (struct condemned_list){0};
}

bool condemned_list_add(struct condemned_list *l, const struct object_name *n) {
    CHECK(n->class == CLASS_CONTENT);
    struct condemned_range *last = l->count > 0 ? &l->items[l->count - 1] : NULL;
    if (n->kind == OBJ_LOG && last && last->kind == OBJ_LOG &&
        last->first + last->count == n->number) {
        last->count++;
        return true;
    }
    if (l->count == ROOT_LIST_MAX)
        return false;
    if (!l->items)
        l->items = xcalloc(ROOT_LIST_MAX, sizeof *l->items);
    l->items[l->count++] = (struct condemned_range){
        .kind = n->kind, .first = n->kind == OBJ_LOG ? n->number : 0, .count = 1, .id = n->id};
    return true;
}

void condemned_list_move(struct condemned_list *l, struct manifest *m) {
    CHECK(l->count <= ROOT_LIST_MAX);
    free(m->condemned);
    m->condemned = l->items;
    m->condemned_count = l->count;
    *l = (struct condemned_list){0};
}

bool manifest_condemns(const struct manifest *m, const struct object_name *n) {
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

/* --- what pins need of this volume's own prefix --- */

static void pinned_run_release(struct pinned_run *r) {
    free(r->volumes);
    free(r->evacuated);
}

void pin_needs_release(struct pin_needs *n) {
    free(n->log);
    free(n->ids);
    for (size_t i = 0; i < n->run_count; i++)
        pinned_run_release(&n->runs[i]);
    free(n->runs);
    *n = (struct pin_needs){0};
}

void *grown_array(void *items, size_t count, size_t size) {
    return (count & (count - 1)) == 0 ? xrealloc(items, MAX(2 * count, (size_t)16) * size) : items;
}

static void need_log(struct pin_needs *n, uint64_t first, uint64_t count) {
    n->log = grown_array(n->log, n->log_count, sizeof *n->log);
    n->log[n->log_count++] = (struct needed_range){.first = first, .count = count};
}

static void need_ref(struct pin_needs *n, const struct obj_ref *ref) {
    if (ref->kind == OBJ_LOG) {
        need_log(n, ref->seq, 1);
        return;
    }
    n->ids = grown_array(n->ids, n->id_count, sizeof *n->ids);
    n->ids[n->id_count++] = ref->id;
}

static int compare_ids(const void *a, const void *b) {
    return memcmp(a, b, RANDOM_ID_SIZE);
}

static int compare_ranges(const void *a, const void *b) {
    const struct needed_range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

static void sort_ids(struct pin_needs *n) {
    if (n->id_count == 0)
        return;
    qsort(n->ids, n->id_count, sizeof *n->ids, compare_ids);
    size_t last = 0;
    for (size_t i = 1; i < n->id_count; i++)
        if (!random_id_equal(&n->ids[i], &n->ids[last]))
            n->ids[++last] = n->ids[i];
    n->id_count = last + 1;
}

/* Sorts, drops what is there twice, and joins ranges that touch, so that a search needs to look at
 * one. */
static void needed_sort(struct pin_needs *n) {
    sort_ids(n);
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

bool pin_needs_object(const struct pin_needs *n, const struct object_name *o) {
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

static int compare_names(const void *a, const void *b) {
    return object_name_compare(a, b);
}

static struct object_name name_of_ref(const struct obj_ref *ref) {
    return (struct object_name){
        .class = CLASS_CONTENT, .kind = ref->kind, .number = ref->seq, .id = ref->id};
}

/* The volume's own objects among those that a root evacuates, sorted. */
static struct object_name *own_evacuated(const struct root *root, const struct volume_key *v,
                                         size_t *ret_count) {
    struct object_name *names = xcalloc(root->evacuated_count + 1, sizeof *names);
    size_t n = 0;
    for (size_t i = 0; i < root->evacuated_count; i++)
        if (is_own(root->volumes, root->evacuated[i].volume, v))
            names[n++] = name_of_ref(&root->evacuated[i]);
    qsort(names, n, sizeof *names, compare_names);
    *ret_count = n;
    return names;
}

static bool in_names(const struct object_name *names, size_t count, const struct object_name *n) {
    return count > 0 && bsearch(n, names, count, sizeof *names, compare_names) != NULL;
}

static struct pinned_run *find_run(const struct pin_needs *n, const struct random_id *id) {
    for (size_t i = 0; i < n->run_count; i++)
        if (random_id_equal(&n->runs[i].index.id, id))
            return &n->runs[i];
    return NULL;
}

/* A root names this run: of what it references, only what all such roots evacuate is not needed. */
static void need_run(struct pin_needs *n, const struct root *root, const struct root_run *run,
                     const struct object_name *evacuated, size_t evacuated_count) {
    struct pinned_run *r = find_run(n, &run->index.id);
    if (r) {
        size_t kept = 0;
        for (size_t i = 0; i < r->evacuated_count; i++)
            if (in_names(evacuated, evacuated_count, &r->evacuated[i]))
                r->evacuated[kept++] = r->evacuated[i];
        r->evacuated_count = kept;
        return;
    }
    n->runs = grown_array(n->runs, n->run_count, sizeof *n->runs);
    r = &n->runs[n->run_count++];
    *r = (struct pinned_run){.owner = root->volumes[run->index.volume],
                             .index = run->index,
                             .entry_count = run->entry_count,
                             .volumes = xcalloc(root->volume_count, sizeof *r->volumes),
                             .volume_count = root->volume_count};
    memcpy(r->volumes, root->volumes, root->volume_count * sizeof *r->volumes);
    if (evacuated_count == 0)
        return;
    r->evacuated = xcalloc(evacuated_count, sizeof *evacuated);
    memcpy(r->evacuated, evacuated, evacuated_count * sizeof *evacuated);
    r->evacuated_count = evacuated_count;
}

static void need_tail(struct pin_needs *n, const struct root_tail *t) {
    need_log(n, t->first, t->count);
    for (uint64_t i = 0; n->note && i < t->count; i++) {
        struct object_name name = {.class = CLASS_CONTENT, .kind = OBJ_LOG, .number = t->first + i};
        n->note(n->note_arg, &name, UINT64_MAX);
    }
}

static void need_root(struct pin_needs *n, const struct volume_key *v, const struct root *root) {
    for (size_t i = 0; i < root->tail_count; i++) {
        if (is_own(root->volumes, root->tail[i].volume, v))
            need_tail(n, &root->tail[i]);
        else
            n->foreign = true;
    }
    size_t count;
    struct object_name *evacuated = own_evacuated(root, v, &count);
    for (size_t i = 0; i < root->run_count; i++)
        need_run(n, root, &root->runs[i], evacuated, count);
    free(evacuated);
}

/* fiber. What a pinned run needs: its index, parts, and the objects that its entries name. */
static int load_run(struct pin_needs *n, struct objstore *s, const struct volume_key *v,
                    const struct pinned_run *r, struct err *e) {
    bool own = strcmp(r->owner.text, v->text) == 0;
    n->foreign |= !own;
    if (own)
        need_ref(n, &r->index);
    char key[KEY_MAX];
    key_of_ref(key, &r->owner, &r->index);
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(s, key, RUN_INDEX_SIZE_MAX, &body, e);
    if (rc < 0)
        return rc;
    struct run_index x;
    rc = run_index_decode(&x, buf_view(&body), e);
    if (rc < 0)
        return err_wrap(e, "%s", key);
    rc = run_index_check(&x, r->entry_count, r->volumes, r->volume_count, e);
    if (rc < 0) {
        run_index_release(&x);
        return err_wrap(e, "%s", key);
    }
    for (size_t i = 0; i < x.part_count; i++) {
        if (is_own(x.volumes, x.parts[i].ref.volume, v))
            need_ref(n, &x.parts[i].ref);
        else
            n->foreign = true;
    }
    for (size_t i = 0; i < x.usage_count; i++) {
        struct object_name name = name_of_ref(&x.usage[i].ref);
        if (run_usage_is_free(&x.usage[i]))
            continue;
        if (!is_own(x.volumes, x.usage[i].ref.volume, v))
            n->foreign = true;
        else if (!in_names(r->evacuated, r->evacuated_count, &name)) {
            need_ref(n, &x.usage[i].ref);
            if (n->note)
                n->note(n->note_arg, &name, x.usage[i].bytes);
        }
    }
    run_index_release(&x);
    return 0;
}

/* fiber. Reads the roots of all pins. */
static int load_roots(struct pin_needs *n, struct objstore *s, const struct volume_key *v,
                      const struct pin_list *pins, bool *ret_blocked, size_t *ret_real,
                      struct err *e) {
    for (size_t i = 0; i < pins->count; i++) {
        *ret_blocked = !pins->items[i].has_root;
        if (*ret_blocked)
            return 0;
        struct pin_root p;
        int rc = pin_root_get(s, v, &pins->items[i].pin, &p, e);
        if (rc < 0)
            return rc;
        if (!p.expired)
            need_root(n, v, &p.root);
        if (!p.expired || pins->items[i].has_claim)
            ++*ret_real;
        pin_root_release(&p);
    }
    return 0;
}

int pin_needs_load(struct pin_needs *n, struct objstore *s, const struct volume_key *v,
                   const struct pin_list *pins, bool *ret_blocked, size_t *ret_real,
                   struct err *e) {
    *ret_blocked = false;
    *ret_real = 0;
    int rc = load_roots(n, s, v, pins, ret_blocked, ret_real, e);
    size_t sorted = 0;
    for (size_t i = 0; rc == 0 && !*ret_blocked && i < n->run_count; i++) {
        rc = load_run(n, s, v, &n->runs[i], e);
        if (n->log_count + n->id_count <= 2 * sorted + SORT_AT)
            continue;
        needed_sort(n); /* runs of one volume name mostly the same */
        sorted = n->log_count + n->id_count;
    }
    if (rc == -ERR_NOT_FOUND) {
        *ret_blocked = true;
        rc = 0;
    }
    if (rc == 0 && !*ret_blocked)
        needed_sort(n);
    return rc;
}
