/* The pool that a program works on. */
#include "portalbd/daemon/pool.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/catalog/pool_file.h"
#include "portalbd/objstore/credentials.h"

/* Where a store's credentials stand. The file may change: a Secret that was mended. */
struct pool_source {
    char *path;
    char name[POOL_NAME_MAX];
};

const char *const pool_addressing_names[] = {"auto", "path", "virtual", NULL};

static int make_folder(const char *store_url, struct err *e) {
    struct objstore_url url;
    int rc = objstore_url_parse(store_url, &url, e);
    if (rc < 0 || url.scheme != OBJ_SCHEME_FILE)
        return rc;
    if (mkdir(url.path, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "folder %s", url.path);
    return 0;
}

char *pool_where(const char *url, const char *endpoint) {
    static const char *const variables[] = {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"};
    if (strncmp(url, "s3:", 3) != 0)
        return xstrdup(url);
    for (size_t i = 0; !(endpoint && endpoint[0]) && i < ARRAY_LEN(variables); i++)
        endpoint = getenv(variables[i]);
    return endpoint && endpoint[0] ? xasprintf("%s at %s", url, endpoint) : xstrdup(url);
}

static int open_store(struct loop *loop, const struct objstore_config *config, bool make,
                      struct pool *ret, struct err *e) {
    struct objstore *store;
    const char *name = config->pool;
    int rc = make ? make_folder(config->url, e) : 0;
    if (rc == 0)
        rc = objstore_open(loop, config, &store, e);
    if (rc < 0)
        return err_wrap(e, "pool %s", name);
    ret->store = store;
    ret->where = pool_where(config->url, config->endpoint);
    memcpy(ret->name, name, strlen(name) + 1);
    catalog_init(&ret->catalog, loop_env(loop), store, ret->name);
    return 0;
}

static int check_name(const char *name, struct err *e) {
    size_t len = strlen(name);
    if (len == 0 || len >= POOL_NAME_MAX ||
        strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != len)
        return err_set(e, -ERR_INVALID, "'%s' is not a pool's name: 1 to %d of a-z, 0-9 and '-'",
                       name, POOL_NAME_MAX - 1);
    return 0;
}

static int addressing_of(const char *name) {
    for (int i = 0; pool_addressing_names[i]; i++) {
        if (strcmp(pool_addressing_names[i], name) == 0)
            return i;
    }
    return OBJ_ADDRESSING_AUTO;
}

static const char *given(const char *text) {
    return text && text[0] ? text : NULL;
}

static int find_in_file(const struct pool_file *file, const char *path, const char *name,
                        const struct pool_config **ret, struct err *e) {
    if (!name && file->count != 1)
        return err_set(e, -ERR_INVALID, "pool file %s has %zu pools: say which with --pool", path,
                       file->count);
    *ret = name ? pool_file_find(file, name) : &file->pools[0];
    if (!*ret)
        return err_set(e, -ERR_NOT_FOUND, "pool file %s has no pool '%s'", path, name);
    return 0;
}

static int renew_credentials(void *arg, struct s3_credentials *ret, struct err *e) {
    const struct pool_source *source = arg;
    struct pool_file file;
    int rc = pool_file_read(source->path, &file, e);
    if (rc < 0)
        return rc;
    const struct pool_config *p = pool_file_find(&file, source->name);
    if (p && p->access_key_id[0]) {
        ret->access_key_id = xstrdup(p->access_key_id);
        secret_copy(&ret->secret_access_key, &p->secret_access_key);
        secret_copy(&ret->session_token, &p->session_token);
    } else {
        rc = err_set(e, -ERR_NOT_FOUND, "%s has no credentials for pool '%s'", source->path,
                     source->name);
    }
    pool_file_release(&file);
    return rc;
}

static struct pool_source *source_new(const char *path, const char *name) {
    struct pool_source *source = NEW(struct pool_source);
    source->path = xstrdup(path);
    memcpy(source->name, name, strlen(name) + 1);
    return source;
}

static void source_free(struct pool_source *source) {
    if (source)
        free(source->path);
    free(source);
}

static int open_from_file(struct loop *loop, const char *path, const char *name,
                          struct objstore_config *config, bool make, struct pool *ret,
                          struct err *e) {
    struct pool_file file = {0};
    const struct pool_config *p;
    int rc = pool_file_read(path, &file, e);
    if (rc == -ERR_NOT_FOUND)
        return err_set(e, rc,
                       "there is no pool file %s: name one with --pools, or a store with "
                       "--store",
                       path);
    if (rc < 0)
        return rc;
    rc = find_in_file(&file, path, name, &p, e);
    if (rc == 0) {
        config->url = p->url;
        config->endpoint = given(p->endpoint);
        config->region = given(p->region);
        config->access_key_id = given(p->access_key_id);
        config->secret_access_key = config->access_key_id ? &p->secret_access_key : NULL;
        config->session_token = secret_empty(&p->session_token) ? NULL : &p->session_token;
        config->addressing = (enum objstore_addressing)addressing_of(p->addressing);
        config->ca_file = given(p->ca_file);
        config->pool = p->name;
        ret->source = source_new(path, p->name);
        config->renew_credentials = renew_credentials;
        config->renew_arg = ret->source;
        rc = open_store(loop, config, make, ret, e);
        if (rc < 0)
            pool_close(ret);
    }
    pool_file_release(&file);
    return rc;
}

int pool_open(struct loop *loop, const struct pool_options *options, const struct pool_how *how,
              struct pool *ret, struct err *e) {
    struct objstore_config config = {.give_up_us = how->give_up_us,
                                     .metrics = how->metrics,
                                     .on_trouble = how->on_trouble,
                                     .on_trouble_arg = how->arg};
    const char *wanted = how->wanted, *name = options->pool ? options->pool : wanted;
    *ret = (struct pool){0};
    int rc = name ? check_name(name, e) : 0;
    if (rc < 0)
        return rc;
    if (options->pool && wanted && strcmp(options->pool, wanted) != 0)
        return err_set(e, -ERR_INVALID, "the volume is of pool '%s', not of '%s'", wanted,
                       options->pool);
    if (!options->store)
        return open_from_file(loop, options->pools, name, &config, how->make_folder, ret, e);
    config.url = options->store;
    config.endpoint = options->endpoint;
    config.region = options->region;
    config.addressing = (enum objstore_addressing)options->addressing;
    config.ca_file = options->ca_file;
    config.pool = name ? name : POOL_NAME_DEFAULT;
    return open_store(loop, &config, how->make_folder, ret, e);
}

/* Requests cost money: what this program sent is worth a line. */
static void log_requests(const struct pool *p) {
    const struct objstore_stats *st = objstore_open_stats(p->store);
    log_info("store closed", LOG_STR("pool", p->name),
             LOG_U64("gets", objstore_stats_requests(st, OBJ_GET)),
             LOG_U64("puts", objstore_stats_requests(st, OBJ_PUT)),
             LOG_U64("lists", objstore_stats_requests(st, OBJ_LIST)),
             LOG_U64("deletes", objstore_stats_requests(st, OBJ_DELETE)));
}

void pool_close(struct pool *p) {
    if (p->store) {
        log_requests(p);
        objstore_close(p->store);
    }
    p->store = NULL;
    source_free(p->source);
    p->source = NULL;
    free(TAKE_PTR(p->where));
}
