/* What an earlier `serve` of this node left behind: journals of volumes that it had open when it
 * died.
 *
 * Clients were told that those writes are safe, and need not come back: so the volumes are opened
 * without being asked for, and are closed at the end like all others. A journal of a daemon of
 * `attach` is left to its successor, which has the device: the lock's file says who it was. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/daemon/resolve.h"

#define SUFFIX ".journal"

struct leftover {
    char id[ID_MAX];
    bool done; /* open here since, or nothing of ours */
};

struct recovery {
    struct daemon *daemon;
    struct leftover *items;
    size_t count;
};

/* --- what there is --- */

static bool id_of_file(const char *name, char ret[ID_MAX]) {
    struct parsed_id id;
    size_t len = strlen(name), suffix = strlen(SUFFIX);
    if (len <= suffix || len - suffix >= ID_MAX || strcmp(name + len - suffix, SUFFIX) != 0)
        return false;
    memcpy(ret, name, len - suffix);
    ret[len - suffix] = '\0';
    return id_parse(&id, ret, NULL) == 0 && id.kind == ID_VOLUME;
}

/* Daemons of several pools may share the folder. */
static bool is_of_our_pool(const struct daemon *d, const char *id) {
    struct parsed_id parsed;
    return id_parse(&parsed, id, NULL) == 0 && strcmp(parsed.pool, d->pool.name) == 0;
}

struct recovery *recovery_new(struct daemon *d) {
    struct recovery *r = NEW(struct recovery);
    r->daemon = d;
    DIR *dir = d->served_config.journal_dir ? opendir(d->served_config.journal_dir) : NULL;
    char id[ID_MAX];
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        if (!id_of_file(entry->d_name, id) || !served_is_left_over(&d->served_config, id))
            continue;
        r->items = xrealloc(r->items, (r->count + 1) * sizeof *r->items);
        memcpy(r->items[r->count].id, id, sizeof id);
        r->items[r->count++].done = false;
    }
    if (dir)
        closedir(dir);
    return r;
}

void recovery_free(struct recovery *r) {
    if (r)
        free(r->items);
    free(r);
}

void recovery_opened(struct recovery *r, const char *id) {
    for (size_t i = 0; r && i < r->count; i++) {
        if (strcmp(r->items[i].id, id) == 0)
            r->items[i].done = true;
    }
}

/* --- doing it --- */

/* 0: nothing is left to do. */
static int recover(struct daemon *d, const char *id, struct err *e) {
    struct resolved found;
    int rc = resolve(d, id, &found, e);
    if (rc == -ERR_NOT_FOUND || (rc == 0 && !found.was_ours)) {
        log_warn("a journal is left of a volume that this node does not have any more: nothing of "
                 "it is replayed",
                 LOG_STR("volume", id));
        return 0;
    }
    if (rc < 0)
        return rc;
    if (!exports_allows(d, found.target.name) && !exports_allows(d, id))
        return 0; /* another daemon's */
    log_info("an earlier daemon left the volume open: what its journal holds goes to the store",
             LOG_STR("volume", id), LOG_STR("name", found.target.name));
    rc = exports_recover(d->exports, &found, e);
    return rc == -ERR_IN_USE ? 0 : rc; /* another daemon of this node was faster */
}

void recovery_run(struct recovery *r) {
    struct daemon *d = r->daemon;
    CHECK(d->exports);
    for (size_t i = 0; i < r->count && !fiber_cancelled(d->env); i++) {
        struct err e;
        if (r->items[i].done || !is_of_our_pool(d, r->items[i].id))
            continue;
        if (recover(d, r->items[i].id, &e) == 0)
            r->items[i].done = true;
        else if (e.code != -ERR_CANCELLED)
            log_error("a volume that an earlier daemon left open was not opened",
                      LOG_STR("volume", r->items[i].id), LOG_ERR(&e));
    }
}

bool recovery_report(const struct recovery *r) {
    const struct served_config *config = &r->daemon->served_config;
    bool complete = true;
    for (size_t i = 0; i < r->count; i++) {
        CLEANUP_FREE char *path = xasprintf("%s/%s" SUFFIX, config->journal_dir, r->items[i].id);
        if (r->items[i].done || !is_of_our_pool(r->daemon, r->items[i].id) ||
            access(path, F_OK) < 0)
            continue;
        log_error("the volume is not closed: what an earlier daemon acknowledged and did not store "
                  "is in its journal alone",
                  LOG_STR("volume", r->items[i].id), LOG_STR("journal", path));
        complete = false;
    }
    return complete;
}
