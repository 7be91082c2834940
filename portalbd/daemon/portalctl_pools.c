/* portalctl: the pool file that the node agent of this run folder reads.
 *
 * An agent that portalctl starts lives longer than the shell that it was started from: what the
 * shell's options and AWS_* variables say about the store goes into <run folder>/pools.conf, mode
 * 0600, where the agent, its daemons and later commands find it. A run folder is a tmpfs, so
 * secrets reach no disk.
 *
 * An agent that somebody else started (a systemd unit, Kubernetes) has a pool file of its own. It
 * is never written; but before a volume is attached both must mean the same store by the pool's
 * name: a volume's id says which pool of the file it is in, and nothing else. */
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/catalog/pool_file.h"
#include "portalbd/daemon/portalctl_internal.h"

#define POOLS_FILE "pools.conf"

char *ctl_run_pools(const struct ctl *c) {
    return xasprintf("%s/" POOLS_FILE, c->config.run_dir);
}

/* --- what this command says about its pool --- */

static char *first_of(const char *option, const char *const variables[]) {
    for (size_t i = 0; (!option || !option[0]) && variables[i]; i++)
        option = getenv(variables[i]);
    return xstrdup(option ? option : "");
}

/* What of the environment only this shell knows. Without a key in it the agent looks where AWS's
 * tools do: it has our environment when we start it. */
static void take_environment(const struct pool_options *o, struct pool_config *p) {
    static const char *const endpoint[] = {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", NULL};
    static const char *const region[] = {"AWS_REGION", "AWS_DEFAULT_REGION", NULL};
    static const char *const ca_file[] = {"AWS_CA_BUNDLE", NULL};
    const char *id = getenv("AWS_ACCESS_KEY_ID"), *secret = getenv("AWS_SECRET_ACCESS_KEY");
    const char *token = getenv("AWS_SESSION_TOKEN");
    p->endpoint = first_of(o->endpoint, endpoint);
    p->region = first_of(o->region, region);
    p->ca_file = first_of(o->ca_file, ca_file);
    p->addressing = xstrdup(pool_addressing_names[o->addressing]);
    bool keys = id && id[0] && secret && secret[0];
    p->access_key_id = xstrdup(keys ? id : "");
    if (keys)
        secret_set(&p->secret_access_key, view_of_str(secret));
    if (keys && token)
        secret_set(&p->session_token, view_of_str(token));
}

static void pool_of_store(const struct ctl *c, struct pool_config *ret) {
    const struct pool_options *o = &c->config.pool;
    *ret = (struct pool_config){.url = xstrdup(o->store)};
    memcpy(ret->name, c->pool.name, sizeof ret->name);
    if (strncmp(o->store, "s3:", 3) == 0) {
        take_environment(o, ret);
        return;
    }
    ret->endpoint = xstrdup("");
    ret->region = xstrdup("");
    ret->addressing = xstrdup("");
    ret->ca_file = xstrdup("");
    ret->access_key_id = xstrdup("");
}

static int pool_of_file(const char *path, const char *name, struct pool_config *ret,
                        struct err *e) {
    struct pool_file file;
    int rc = pool_file_read(path, &file, e);
    if (rc < 0)
        return rc;
    const struct pool_config *found = pool_file_find(&file, name);
    if (found)
        pool_config_copy(ret, found);
    else
        rc = err_set(e, -ERR_NOT_FOUND, "there is no pool '%s' in %s", name, path);
    pool_file_release(&file);
    return rc;
}

/* --- the run folder's file --- */

static int write_file(const char *path, struct view content, struct err *e) {
    CLEANUP_FREE char *temporary = xasprintf("%s.XXXXXX", path);
    int fd = mkostemp(temporary, O_CLOEXEC); /* mode 0600 */
    if (fd < 0)
        return err_from_errno(e, errno, "create %s", temporary);
    ssize_t n = write(fd, content.data, content.len);
    int eno = n < 0 ? errno : ENOSPC;
    close(fd);
    if (n == (ssize_t)content.len && rename(temporary, path) == 0)
        return 0;
    if (n == (ssize_t)content.len)
        eno = errno;
    (void)unlink(temporary);
    return err_from_errno(e, eno, "write %s", path);
}

static void wipe(struct buf *b) {
    if (b->data)
        secret_wipe(b->data, b->cap);
    buf_release(b);
}

/* Appends a pool to the text, its session token to a file. */
static int encode(const struct ctl *c, const struct pool_config *p, struct buf *text,
                  struct err *e) {
    CLEANUP_FREE char *token = xasprintf("%s/pool-%s.token", c->config.run_dir, p->name);
    int rc = pool_config_encode(text, p, token, e);
    if (rc == 0 && !secret_empty(&p->session_token))
        rc = write_file(token, secret_reveal(&p->session_token), e);
    return rc;
}

/* Two stores under one name: possible as long as nothing of the first is attached. */
static int check_replaced(const struct ctl *c, const struct pool_config *was,
                          const struct pool_config *now, struct err *e) {
    if (strcmp(was->url, now->url) == 0 || !ctl_pool_is_attached(c, was->name))
        return 0;
    return err_set(e, -ERR_IN_USE,
                   "pool '%s' of run folder %s is %s, and a volume of it is attached: give %s "
                   "another name with --pool",
                   was->name, c->config.run_dir, was->url, now->url);
}

static int put_pool_locked(const struct ctl *c, const char *path, const struct pool_config *pool,
                           struct err *e) {
    CLEANUP(wipe) struct buf text = {0};
    struct pool_file file = {0};
    int rc = pool_file_read(path, &file, e);
    if (rc == -ERR_NOT_FOUND)
        rc = 0;
    for (size_t i = 0; rc == 0 && i < file.count; i++) {
        const struct pool_config *p = &file.pools[i];
        rc = strcmp(p->name, pool->name) == 0 ? check_replaced(c, p, pool, e)
                                              : encode(c, p, &text, e);
    }
    pool_file_release(&file);
    if (rc == 0)
        rc = encode(c, pool, &text, e);
    if (rc == 0)
        rc = write_file(path, buf_view(&text), e);
    return rc;
}

static int put_pool(const struct ctl *c, const char *path, const struct pool_config *pool,
                    struct err *e) {
    int lock;
    int rc = ctl_lock_run_dir(c, &lock, e);
    if (rc < 0)
        return rc;
    rc = put_pool_locked(c, path, pool, e);
    close(lock);
    return rc;
}

/* --- agreeing with the agent --- */

static bool is_same_file(const char *a, const char *b) {
    char real_a[PATH_MAX], real_b[PATH_MAX];
    return strcmp(a, b) == 0 ||
           (realpath(a, real_a) && realpath(b, real_b) && strcmp(real_a, real_b) == 0);
}

static bool means_same(const struct pool_config *a, const struct pool_config *b) {
    return strcmp(a->url, b->url) == 0 &&
           (!a->endpoint[0] || !b->endpoint[0] || strcmp(a->endpoint, b->endpoint) == 0);
}

static int compare_with(const char *agent_pools, const struct pool_config *mine, struct err *e) {
    struct pool_config theirs = {0};
    int rc = pool_of_file(agent_pools, mine->name, &theirs, e);
    if (rc < 0)
        return err_wrap(e, "the node agent that runs here reads another pool file");
    if (!means_same(mine, &theirs))
        rc = err_set(e, -ERR_CONFIG,
                     "the node agent that runs here knows pool '%s' as %s %s (%s), not as %s %s: "
                     "name that store's pool, or use another --run-dir",
                     mine->name, theirs.url, theirs.endpoint, agent_pools, mine->url,
                     mine->endpoint);
    pool_config_release(&theirs);
    return rc;
}

int ctl_agree_on_pool(const struct ctl *c, const char *agent_pools, struct err *e) {
    struct pool_config mine = {0};
    CLEANUP_FREE char *run_pools = ctl_run_pools(c);
    const struct pool_options *o = &c->config.pool;
    int rc = 0;
    CHECK(c->catalog);
    if (!o->store && is_same_file(agent_pools, o->pools))
        return 0;
    if (o->store)
        pool_of_store(c, &mine);
    else
        rc = pool_of_file(o->pools, c->pool.name, &mine, e);
    if (rc == 0)
        rc = is_same_file(agent_pools, run_pools) ? put_pool(c, run_pools, &mine, e)
                                                  : compare_with(agent_pools, &mine, e);
    pool_config_release(&mine);
    return rc;
}

/* --- commands that are not told a pool --- */

static bool has_pool(const char *path, const char *name) {
    struct pool_config p = {0};
    bool found = pool_of_file(path, name, &p, NULL) == 0;
    pool_config_release(&p);
    return found;
}

void ctl_use_run_pools(struct ctl *c, const char *pool) {
    struct pool_options *o = &c->config.pool;
    char *run_pools = ctl_run_pools(c);
    bool wanted = !o->store && (pool ? has_pool(run_pools, pool) : access(o->pools, F_OK) != 0);
    if (!wanted || access(run_pools, F_OK) != 0) {
        free(run_pools);
        return;
    }
    free(o->pools);
    o->pools = run_pools;
}
