/* The pool's own record, portalbd.json: what format, whose, and the proof that the store keeps
 * conditional PUTs. Everything in a pool hangs on that one property, so it is tried before the
 * first object, and the record says that it was. */
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"

enum { PROBE_RACERS = 8 };

static int check_cluster(const struct pool_create *o, const struct pool_record *r, const char *pool,
                         struct err *e) {
    const char *ours = o && o->cluster_id ? o->cluster_id : "";
    if (ours[0] == '\0' || r->cluster_id[0] == '\0' || strcmp(ours, r->cluster_id) == 0 ||
        o->allow_other_cluster)
        return 0;
    return err_set(
        e, -ERR_IN_USE,
        "pool '%s' belongs to the cluster '%s', ours is '%s': use another prefix, or allow "
        "another cluster if that one is gone",
        pool, r->cluster_id, ours);
}

int catalog_pool_check(struct catalog *c, const struct pool_create *options,
                       struct pool_record *ret, struct err *e) {
    char key[KEY_MAX];
    key_pool(key);
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(c->store, key, RECORD_SIZE_MAX, &body, e);
    if (rc == -ERR_NOT_FOUND)
        return err_set(e, -ERR_NOT_FOUND,
                       "pool '%s' is empty: create it first (portalctl pool create)", c->pool);
    if (rc < 0)
        return rc;
    struct pool_record r;
    rc = pool_record_decode(&r, buf_view(&body), e);
    if (rc < 0)
        return err_wrap(e, "pool '%s': %s", c->pool, key);
    if (!r.conditional_put)
        rc = err_set(e, -ERR_UNSUPPORTED,
                     "pool '%s': its store was found to ignore 'If-None-Match'", c->pool);
    else
        rc = check_cluster(options, &r, c->pool, e);
    if (rc < 0)
        pool_record_release(&r);
    else
        *ret = r;
    return rc;
}

/* --- the probe --- */

struct racer {
    struct objstore *store;
    const char *key;
    struct random_id body;
    int rc;
    struct err err;
};

static void racer_run(void *arg) {
    struct racer *r = arg;
    r->rc =
        objstore_put(r->store, r->key, view_of(r->body.bytes, sizeof r->body.bytes), NULL, &r->err);
}

static int refuse(struct err *e, const char *why) {
    return err_set(
        e, -ERR_UNSUPPORTED,
        "this store does not keep 'If-None-Match: *' (%s): two writers could destroy each "
        "other's data. Use a store or a gateway that does, or a newer version of it",
        why);
}

/* Several PUTs of one key at once, each with a body of its own: one wins, the others are told, a
 * later one too, and the winner's bytes are what is read. */
static int race(struct catalog *c, const char *key, struct err *e) {
    struct racer *racers = xcalloc(PROBE_RACERS + 1, sizeof *racers);
    struct fiber_group group;
    fiber_group_init(&group, c->env);
    for (size_t i = 0; i <= PROBE_RACERS; i++) {
        racers[i] = (struct racer){.store = c->store, .key = key};
        catalog_new_id(c, &racers[i].body);
        if (i < PROBE_RACERS)
            fiber_group_start(&group, racer_run, &racers[i]);
    }
    int rc = fiber_group_wait(&group);
    if (rc < 0)
        err_set_text(e, rc, "the probe was cancelled");
    else
        racer_run(&racers[PROBE_RACERS]); /* behind them all */
    const struct racer *winner = NULL;
    size_t winners = 0;
    for (size_t i = 0; rc == 0 && i <= PROBE_RACERS; i++) {
        if (racers[i].rc == 0) {
            winners++;
            winner = &racers[i];
        } else if (racers[i].rc != -ERR_EXISTS) {
            rc = err_copy(e, &racers[i].err);
        }
    }
    CLEANUP_BUF struct buf body = {0};
    if (rc == 0 && winners != 1)
        rc = refuse(e, winners ? "more than one PUT of a key succeeded"
                               : "every PUT of a new key was refused");
    if (rc == 0)
        rc = objstore_get(c->store, key, 1024, &body, e);
    if (rc == 0 &&
        !view_equal(buf_view(&body), view_of(winner->body.bytes, sizeof winner->body.bytes)))
        rc = refuse(e, "a refused PUT has changed the object");
    free(racers);
    return rc;
}

static int probe(struct catalog *c, struct err *e) {
    struct random_id id;
    catalog_new_id(c, &id);
    char hex[RANDOM_ID_HEX], key[KEY_MAX] = "probe/";
    random_id_to_hex(&id, hex);
    memcpy(key + strlen(key), hex, sizeof hex);
    int rc = race(c, key, e);
    struct err ignored;
    int deleted = objstore_delete_one(c->store, key, rc == 0 ? e : &ignored);
    return rc < 0 ? rc : deleted;
}

/* --- create --- */

int catalog_pool_create(struct catalog *c, const struct pool_create *options,
                        struct pool_record *ret, struct err *e) {
    int rc = catalog_pool_check(c, options, ret, e);
    if (rc != -ERR_NOT_FOUND)
        return rc;
    rc = probe(c, e);
    if (rc < 0)
        return err_wrap(e, "pool '%s'", c->pool);
    struct pool_record r = {
        .cluster_id = xstrdup(options && options->cluster_id ? options->cluster_id : ""),
        .conditional_put = true,
        .created_ms = env_wall_ms(c->env),
    };
    catalog_new_id(c, &r.uuid);
    CLEANUP_BUF struct buf body = {0};
    rc = pool_record_encode(&body, &r, e);
    pool_record_release(&r);
    char key[KEY_MAX];
    key_pool(key);
    if (rc == 0)
        rc = objstore_put(c->store, key, buf_view(&body), NULL, e);
    if (rc < 0 && rc != -ERR_EXISTS && rc != -ERR_STALE)
        return rc;
    return catalog_pool_check(c, options, ret, e); /* ours, or somebody else's who was faster */
}
