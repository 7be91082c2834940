/* The pools of the pool file, open. Everything runs on the loop's thread.
 *
 * I1 A store is closed only when no call uses it.
 * I2 At most one entry for a configuration (the file's lines with a call's credentials in place).
 */
#include "csi/pools.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "portalbd/objstore/url.h"

struct entry {
    struct pool pool;
    struct list_node node;
    struct pool_config config; /* owned */
    struct objstore *store;    /* owned */
    struct fiber_mutex checking;
    bool checked;       /* the pool exists and is ours */
    unsigned failures;  /* checks that failed, ... */
    struct err failure; /* ... and the last one's error */
    bool with_secrets;  /* made for the credentials of a call */
    bool stale;         /* the file says something else by now */
    unsigned users;
    uint64_t last_used; /* turn of `clock` */
};

struct pools {
    struct pools_config config;
    struct list_node entries;
    struct pool_file file;
    bool file_read;
    uint64_t clock;
};

struct pools *pools_new(const struct pools_config *config) {
    struct pools *p = NEW(struct pools);
    p->config = *config;
    if (p->config.give_up_us == 0)
        p->config.give_up_us = POOLS_GIVE_UP_US;
    list_init(&p->entries);
    return p;
}

static void entry_free(struct entry *entry) {
    CHECK(entry->users == 0);
    list_remove(&entry->node);
    objstore_close(entry->store);
    pool_config_release(&entry->config);
    free(entry);
}

void pools_free(struct pools *p) {
    list_for_each (&p->entries, node)
        entry_free(list_entry(node, struct entry, node));
    pool_file_release(&p->file);
    free(p);
}

/* --- the file --- */

/* Entries whose lines are no longer in the file are not given out again. */
static void mark_stale(struct pools *p) {
    list_for_each (&p->entries, node) {
        struct entry *entry = list_entry(node, struct entry, node);
        const struct pool_config *now = pool_file_find(&p->file, entry->config.name);
        entry->stale = !now || (!entry->with_secrets && !pool_config_equal(now, &entry->config));
        if (entry->stale && entry->users == 0)
            entry_free(entry);
    }
}

struct read_job {
    const char *path;
    struct pool_file seen; /* only its stamp */
    bool read_before;
    struct pool_file file;
    bool changed;
    int rc;
    struct err error;
};

static void read_file(void *arg) {
    struct read_job *job = arg;
    job->changed = !job->read_before || pool_file_changed(job->path, &job->seen);
    if (job->changed)
        job->rc = pool_file_read(job->path, &job->file, &job->error);
}

/* A file that cannot be read leaves the pools as they were, unless there are none yet. */
static int refresh(struct pools *p, struct err *e) {
    struct read_job job = {
        .path = p->config.path, .read_before = p->file_read, .seen.stamp = p->file.stamp};
    fiber_run_job(loop_env(p->config.loop), read_file, &job);
    if (!job.changed)
        return 0;
    if (job.rc)
        return p->file_read ? 0 : err_copy(e, &job.error);
    pool_file_release(&p->file);
    p->file = job.file;
    p->file_read = true;
    mark_stale(p);
    return 0;
}

/* --- entries --- */

static int apply_secrets(struct pool_config *config, const struct string_map *secrets,
                         struct err *e) {
    static const char *const known[] = {"access_key_id", "secret_access_key", "session_token"};
    for (size_t i = 0; i < secrets->count; i++) {
        bool found = false;
        for (size_t k = 0; k < ARRAY_LEN(known); k++)
            found = found || strcmp(secrets->items[i].key, known[k]) == 0;
        if (!found)
            return err_set(e, -ERR_INVALID,
                           "secret '%.64s' is not known: access_key_id, secret_access_key and "
                           "session_token are",
                           secrets->items[i].key);
    }
    const char *key_id = string_map_get(secrets, "access_key_id");
    const char *key = string_map_get(secrets, "secret_access_key");
    const char *token = string_map_get(secrets, "session_token");
    if (!key_id || !key)
        return err_set(e, -ERR_INVALID,
                       "secrets hold only one of access_key_id and secret_access_key");
    free(config->access_key_id);
    config->access_key_id = xstrdup(key_id);
    if (!secret_set(&config->secret_access_key, view_of_str(key)) ||
        !secret_set(&config->session_token, view_of_str(token ? token : "")))
        return err_set(e, -ERR_INVALID, "a secret is longer than %d bytes", SECRET_MAX);
    return 0;
}

static const char *or_null(const char *s) {
    return s && *s ? s : NULL;
}

static int open_store(struct pools *p, const struct pool_config *config, bool with_secrets,
                      struct objstore **ret, struct err *e) {
    struct objstore_config store = {
        .url = config->url,
        .endpoint = or_null(config->endpoint),
        .region = or_null(config->region),
        .access_key_id = or_null(config->access_key_id),
        .secret_access_key = &config->secret_access_key,
        .session_token = secret_empty(&config->session_token) ? NULL : &config->session_token,
        .ca_file = or_null(config->ca_file),
        .give_up_us = p->config.give_up_us,
        .pool = config->name,
        /* Series of one pool must not be registered twice. */
        .metrics = with_secrets ? NULL : p->config.metrics,
    };
    const char *addressing = config->addressing ? config->addressing : "";
    if (strcmp(addressing, "path") == 0)
        store.addressing = OBJ_ADDRESSING_PATH;
    else if (strcmp(addressing, "virtual") == 0)
        store.addressing = OBJ_ADDRESSING_VIRTUAL;
    if (!store.access_key_id)
        store.secret_access_key = NULL;
    int rc = objstore_open(p->config.loop, &store, ret, e);
    return rc && e ? err_wrap(e, "pool '%s'", config->name) : rc;
}

/* Closes the longest unused entry when too many with credentials of calls are idle. */
static void trim_idle(struct pools *p) {
    unsigned idle = 0;
    struct entry *oldest = NULL;
    list_for_each (&p->entries, node) {
        struct entry *entry = list_entry(node, struct entry, node);
        if (!entry->with_secrets || entry->users > 0)
            continue;
        idle++;
        if (!oldest || entry->last_used < oldest->last_used)
            oldest = entry;
    }
    if (idle > POOLS_IDLE_MAX)
        entry_free(oldest);
}

static int find_or_open(struct pools *p, const struct pool_config *config, bool with_secrets,
                        struct entry **ret, struct err *e) {
    list_for_each (&p->entries, node) {
        struct entry *entry = list_entry(node, struct entry, node);
        if (!entry->stale && entry->with_secrets == with_secrets &&
            pool_config_equal(&entry->config, config)) {
            *ret = entry;
            return 0;
        }
    }
    struct objstore *store;
    int rc = open_store(p, config, with_secrets, &store, e);
    if (rc)
        return rc;
    struct entry *entry = NEW(struct entry);
    entry->store = store;
    entry->with_secrets = with_secrets;
    pool_config_copy(&entry->config, config);
    fiber_mutex_init(&entry->checking);
    catalog_init(&entry->pool.catalog, loop_env(p->config.loop), store, config->name);
    list_push_back(&p->entries, &entry->node);
    *ret = entry;
    return 0;
}

/* fiber. Makes sure once that the pool is there and may be used. Who waited for another's check
 * that failed takes its failure: with a store that does not answer, a second check would take as
 * long. */
static int check(struct pools *p, struct entry *entry, struct err *e) {
    struct env *env = loop_env(p->config.loop);
    unsigned failures = entry->failures;
    int rc = fiber_mutex_lock(env, &entry->checking);
    if (rc)
        return err_set(e, rc, "cancelled");
    if (!entry->checked && failures != entry->failures) {
        rc = err_copy(e, &entry->failure);
    } else if (!entry->checked) {
        struct pool_create options = {.cluster_id = or_null(p->config.cluster_id)};
        struct pool_record record = {0};
        rc = catalog_pool_create(&entry->pool.catalog, &options, &record, &entry->failure);
        entry->checked = rc == 0;
        if (rc == 0)
            pool_record_release(&record);
        else if (rc != -ERR_CANCELLED)
            entry->failures++;
        if (rc)
            err_copy(e, &entry->failure);
    }
    fiber_mutex_unlock(&entry->checking);
    return rc && e ? err_wrap(e, "pool '%s'", entry->config.name) : rc;
}

int pools_get(struct pools *p, const char *name, const struct string_map *secrets,
              struct pool **ret, struct err *e) {
    int rc = refresh(p, e);
    if (rc)
        return rc;
    const struct pool_config *found = pool_file_find(&p->file, name);
    if (!found)
        return err_set(e, -ERR_CONFIG, "the pool file has no pool '%s'", name);
    bool with_secrets = secrets && secrets->count > 0;
    struct pool_config config = {0};
    struct entry *entry;
    pool_config_copy(&config, found);
    if (with_secrets)
        rc = apply_secrets(&config, secrets, e);
    if (rc == 0)
        rc = find_or_open(p, &config, with_secrets, &entry, e);
    pool_config_release(&config);
    if (rc)
        return rc;
    entry->users++;
    entry->last_used = ++p->clock;
    rc = check(p, entry, e);
    if (rc) {
        pools_put(p, &entry->pool);
        return rc;
    }
    *ret = &entry->pool;
    return 0;
}

void pools_put(struct pools *p, struct pool *pool) {
    struct entry *entry = container_of(pool, struct entry, pool);
    CHECK(entry->users > 0);
    entry->users--;
    if (entry->users > 0)
        return;
    if (entry->stale)
        entry_free(entry);
    else
        trim_idle(p);
}

int pools_names(struct pools *p, char (**ret)[POOL_NAME_MAX], size_t *ret_count, struct err *e) {
    int rc = refresh(p, e);
    if (rc)
        return rc;
    *ret = xcalloc(MAX(p->file.count, (size_t)1), POOL_NAME_MAX);
    *ret_count = p->file.count;
    for (size_t i = 0; i < p->file.count; i++)
        memcpy((*ret)[i], p->file.pools[i].name, POOL_NAME_MAX);
    return 0;
}
