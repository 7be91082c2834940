/* Numbered records: LIST for the newest, put if absent, LIST again.
 *
 * Invariants:
 *   I1  numbered_put returns 0 only when its record was the newest at a moment after the PUT; since
 *       the newest never goes down, a record that was passed once never comes back.
 *   I2  the newest NUMBERED_KEEP of a folder are never deleted, so "empty" is final: nothing was
 *       ever there. */
#include "portalbd/volume/numbered.h"

#include <stdio.h>
#include <stdlib.h>

void numbered_key(char key[KEY_MAX], const char *folder, uint64_t n) {
    CHECK(n >= 1);
    int len =
        snprintf(key, KEY_MAX, "%s%016llx.json", folder, (unsigned long long)(UINT64_MAX - n));
    CHECK(len > 0 && len < KEY_MAX);
}

int numbered_newest_number(struct objstore *s, const char *folder, uint64_t *ret_n, struct err *e) {
    CHECK(folder[0] != '\0' && folder[strlen(folder) - 1] == '/');
    struct obj_list list = {0};
    int rc = objstore_list(s, folder, NULL, 1, &list, e);
    if (rc < 0)
        return rc;
    uint64_t n = 0;
    if (list.count > 0 && key_parse_numbered(list.entries[0].key, &n) < 0)
        rc = err_set(e, -ERR_CORRUPT, "'%s' is not the key of a numbered record",
                     list.entries[0].key);
    obj_list_release(&list);
    if (rc == 0)
        *ret_n = n;
    return rc;
}

int numbered_newest(struct objstore *s, const char *folder, uint64_t *ret_n, struct buf *ret_body,
                    struct err *e) {
    for (int attempt = 0; attempt < NUMBERED_ATTEMPTS_MAX; attempt++) {
        uint64_t n = 0;
        int rc = numbered_newest_number(s, folder, &n, e);
        if (rc < 0)
            return rc;
        buf_clear(ret_body);
        if (n > 0) {
            char key[KEY_MAX];
            numbered_key(key, folder, n);
            rc = objstore_get(s, key, MANIFEST_SIZE_MAX, ret_body, e);
            if (rc == -ERR_NOT_FOUND)
                continue; /* pruned since the LIST: there are newer ones */
            if (rc < 0)
                return rc;
        }
        *ret_n = n;
        return 0;
    }
    return err_set(e, -ERR_BUSY, "'%s' changes faster than it can be read", folder);
}

int numbered_put(struct objstore *s, const char *folder, uint64_t n, struct view body,
                 struct err *e) {
    char key[KEY_MAX];
    numbered_key(key, folder, n);
    int rc = objstore_put(s, key, body, NULL, e);
    if (rc == -ERR_EXISTS || rc == -ERR_STALE)
        return err_set(e, -ERR_STALE, "'%s' was written by somebody else", key);
    if (rc < 0)
        return rc;
    uint64_t newest = 0;
    rc = numbered_newest_number(s, folder, &newest, e);
    if (rc < 0)
        return rc;
    if (newest < n) /* I2: what we put is there, or newer ones are */
        return err_set(e, -ERR_CORRUPT, "this store does not list '%s', which it has stored", key);
    if (newest != n)
        return err_set(e, -ERR_STALE, "'%s' was passed by a newer record", key);
    return 0;
}

/* --- walks --- */

enum { WALK_PAGE = 1000 }; /* keys */

void numbered_walk_init(struct numbered_walk *w, struct objstore *s, const char *root,
                        const char *behind) {
    CHECK(root[0] != '\0' && root[strlen(root) - 1] == '/');
    *w = (struct numbered_walk){.store = s, .root = root};
    if (behind && behind[0] != '\0') {
        /* '0' follows '/': behind every key of that folder. */
        int len = snprintf(w->after, sizeof w->after, "%s%s0", root, behind);
        CHECK(len > 0 && (size_t)len < sizeof w->after);
    }
}

void numbered_walk_release(struct numbered_walk *w) {
    obj_list_release(&w->page);
}

/* The next page: behind the folder that was returned last, or behind the last page where that is
 * further. */
static int walk_page(struct numbered_walk *w, struct err *e) {
    char after[OBJ_KEY_MAX + 1];
    const char *from = w->after;
    if (w->page.count > 0 && strcmp(w->page.entries[w->page.count - 1].key, from) > 0)
        from = w->page.entries[w->page.count - 1].key;
    int len = snprintf(after, sizeof after, "%s", from);
    CHECK(len >= 0 && (size_t)len < sizeof after);
    obj_list_release(&w->page);
    w->page = (struct obj_list){0};
    w->next = 0;
    return objstore_list(w->store, w->root, after[0] != '\0' ? after : NULL, WALK_PAGE, &w->page,
                         e);
}

int numbered_walk_next(struct numbered_walk *w, char ret_folder[KEY_MAX], uint64_t *ret_n,
                       struct err *e) {
    size_t root_len = strlen(w->root);
    for (;;) {
        if (w->next == w->page.count) {
            if (w->ended)
                return 0;
            int rc = walk_page(w, e);
            if (rc < 0)
                return rc;
            w->ended = !w->page.more;
            if (w->page.count == 0)
                return 0;
        }
        const char *key = w->page.entries[w->next++].key;
        const char *slash = strchr(key + root_len, '/');
        uint64_t n;
        if (!slash || strchr(slash + 1, '/') || strlen(key) + 2 > KEY_MAX ||
            key_parse_numbered(key, &n) < 0)
            continue; /* not ours */
        size_t folder_len = (size_t)(slash - key) + 1;
        if (strncmp(key, w->after, folder_len - 1) == 0 && w->after[folder_len - 1] == '0' &&
            w->after[folder_len] == '\0')
            continue; /* an older record of the folder that was returned last */
        memcpy(ret_folder, key, folder_len);
        ret_folder[folder_len] = '\0';
        memcpy(w->after, key, folder_len - 1);
        memcpy(w->after + folder_len - 1, "0", 2);
        *ret_n = n;
        return 1;
    }
}

/* --- pruning --- */

struct prune {
    char folder[KEY_MAX]; /* that is being counted */
    size_t seen;
    const char *doomed[WALK_PAGE]; /* borrowed from the page */
    size_t doomed_count;
};

/* Keys of a folder come newest first: what follows the first NUMBERED_KEEP goes. */
static void prune_look(struct prune *p, const char *key) {
    const char *slash = strrchr(key, '/');
    uint64_t n;
    if (!slash || strlen(key) >= KEY_MAX || key_parse_numbered(key, &n) < 0)
        return;
    size_t len = (size_t)(slash - key) + 1;
    if (strncmp(p->folder, key, len) != 0 || p->folder[len] != '\0') {
        memcpy(p->folder, key, len);
        p->folder[len] = '\0';
        p->seen = 0;
    }
    if (++p->seen > NUMBERED_KEEP)
        p->doomed[p->doomed_count++] = key;
}

int numbered_prune(struct objstore *s, const char *root, size_t *ret_deleted, struct err *e) {
    struct prune *p = NEW(struct prune);
    char after[OBJ_KEY_MAX + 1] = "";
    size_t deleted = 0;
    int rc = 0;
    for (bool more = true; rc == 0 && more;) {
        struct obj_list page = {0};
        rc = objstore_list(s, root, after[0] != '\0' ? after : NULL, WALK_PAGE, &page, e);
        if (rc < 0)
            break;
        p->doomed_count = 0;
        for (size_t i = 0; i < page.count; i++)
            prune_look(p, page.entries[i].key);
        more = page.more && page.count > 0;
        if (more)
            snprintf(after, sizeof after, "%s", page.entries[page.count - 1].key);
        if (p->doomed_count > 0)
            rc = objstore_delete(s, p->doomed, p->doomed_count, e);
        if (rc == 0)
            deleted += p->doomed_count;
        obj_list_release(&page);
    }
    free(p);
    if (rc == 0)
        *ret_deleted = deleted;
    return rc;
}
