/* Pages of lists: the newest record of each folder, fetched several at a time, in the order of the
 * folders' names. */
#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"

enum { TOKEN_LEN = 32 }; /* of name_hash */

int catalog_check_token(const char *token, struct err *e) {
    if (!token || token[0] == '\0')
        return 0;
    if (strlen(token) != TOKEN_LEN || strspn(token, "0123456789abcdef") != TOKEN_LEN)
        return err_set(e, -ERR_STALE, "'%.80s' is not a token of a list", token);
    return 0;
}

struct fetch {
    struct catalog *c;
    const struct list_page *page;
    char folder[KEY_MAX];
    uint64_t n;
    void *item;
    int rc; /* 1: filled */
    struct err err;
};

static void fetch_run(void *arg) {
    struct fetch *f = arg;
    struct list_record record = {0};
    numbered_key(record.key, f->folder, f->n);
    f->rc = objstore_get(f->c->store, record.key, RECORD_SIZE_MAX, &record.body, &f->err);
    if (f->rc == -ERR_NOT_FOUND) { /* pruned since the LIST */
        buf_clear(&record.body);
        f->rc = numbered_newest(f->c->store, f->folder, &f->n, &record.body, &f->err);
        if (f->rc == 0 && f->n > 0)
            numbered_key(record.key, f->folder, f->n);
    }
    if (f->rc >= 0)
        f->rc = f->page->fetch(f->c, f->page->arg, &record, f->item, &f->err);
    buf_release(&record.body);
}

/* Runs all of them at once, keeps what they found. */
static int fetch_batch(struct catalog *c, struct list_page *p, struct fetch *batch, size_t count,
                       struct err *e) {
    struct fiber_group group;
    fiber_group_init(&group, c->env);
    for (size_t i = 0; i < count; i++) {
        batch[i].c = c;
        batch[i].page = p;
        batch[i].item = xcalloc(1, p->item_size);
        batch[i].rc = 0;
        fiber_group_start(&group, fetch_run, &batch[i]);
    }
    int rc = fiber_group_wait(&group);
    if (rc < 0)
        err_set_text(e, rc, "the list was cancelled");
    for (size_t i = 0; i < count; i++) {
        bool skip = p->damage && (batch[i].rc == -ERR_CORRUPT || batch[i].rc == -ERR_UNSUPPORTED);
        if (skip && p->damage->code == 0)
            *p->damage = batch[i].err;
        if (batch[i].rc < 0 && !skip && rc == 0)
            rc = err_copy(e, &batch[i].err);
        if (batch[i].rc == 1)
            memcpy((char *)p->items + p->count++ * p->item_size, batch[i].item, p->item_size);
        free(batch[i].item);
    }
    return rc;
}

/* "records/<h>/" -> "<h>" */
static void folder_name(char ret[CATALOG_TOKEN_MAX], const char *folder, const char *root) {
    size_t skip = strlen(root), len = strlen(folder) - skip - 1;
    CHECK(len < CATALOG_TOKEN_MAX);
    memcpy(ret, folder + skip, len);
    ret[len] = '\0';
}

static int fill(struct catalog *c, struct list_page *p, struct numbered_walk *walk,
                struct fetch *batch, size_t max, struct err *e) {
    char last[CATALOG_TOKEN_MAX] = "";
    for (;;) {
        size_t count = 0, room = MIN((size_t)CATALOG_PARALLEL_MAX, max - p->count);
        int rc = 1;
        while (count < MAX(room, 1)) {
            rc = numbered_walk_next(walk, batch[count].folder, &batch[count].n, e);
            if (rc <= 0)
                break;
            count++;
        }
        if (rc < 0)
            return rc;
        if (room == 0) { /* full: is there anything behind it? */
            if (count > 0)
                memcpy(p->next_token, last, sizeof last);
            return 0;
        }
        if (count == 0)
            return 0;
        folder_name(last, batch[count - 1].folder, p->root);
        rc = fetch_batch(c, p, batch, count, e);
        if (rc < 0)
            return rc;
    }
}

int catalog_list_page(struct catalog *c, struct list_page *p, const char *token, size_t max,
                      struct err *e) {
    int rc = catalog_check_token(token, e);
    if (rc < 0)
        return rc;
    if (max == 0 || max > CATALOG_PAGE_MAX)
        max = CATALOG_PAGE_MAX;
    struct numbered_walk walk;
    numbered_walk_init(&walk, c->store, p->root, token);
    p->items = xcalloc(max, p->item_size);
    struct fetch *batch = xcalloc(CATALOG_PARALLEL_MAX, sizeof *batch);
    rc = fill(c, p, &walk, batch, max, e);
    free(batch);
    numbered_walk_release(&walk);
    if (rc < 0) {
        for (size_t i = 0; i < p->count; i++)
            p->release((char *)p->items + i * p->item_size);
        free(p->items);
        p->items = NULL;
        p->count = 0;
    }
    return rc;
}
