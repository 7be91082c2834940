/* Volume records: the newest, the next, and what is told about a volume from record and manifest.
 */
#include "portalbd/catalog/catalog_internal.h"

#include <stdio.h>
#include <stdlib.h>

void catalog_init(struct catalog *c, struct env *env, struct objstore *store, const char *pool) {
    size_t len = strlen(pool);
    CHECK(len >= 1 && len < POOL_NAME_MAX);
    *c = (struct catalog){.env = env, .store = store};
    memcpy(c->pool, pool, len);
}

void catalog_new_id(struct catalog *c, struct random_id *ret) {
    env_random(c->env, ret->bytes, sizeof ret->bytes);
}

void catalog_set_text(char **text, const char *value) {
    char *copy = xstrdup(value);
    free(*text);
    *text = copy;
}

int catalog_check_name(const char *what, const char *name, struct err *e) {
    if (!name || name[0] == '\0')
        return err_set(e, -ERR_INVALID, "a %s needs a name", what);
    if (strlen(name) > ENTITY_NAME_MAX)
        return err_set(e, -ERR_INVALID, "a %s's name has at most %d bytes", what, ENTITY_NAME_MAX);
    return 0;
}

int catalog_parse_id(const struct catalog *c, enum id_kind kind, const char *id,
                     struct parsed_id *ret, struct err *e) {
    struct parsed_id p;
    if (!id || id_parse(&p, id, NULL) < 0 || p.kind != kind || strcmp(p.pool, c->pool) != 0)
        return err_set(e, -ERR_NOT_FOUND, "%s '%.80s' does not exist",
                       kind == ID_VOLUME ? "volume" : "snapshot", id ? id : "");
    *ret = p;
    return 0;
}

int catalog_busy(struct err *e, const char *what, const char *name) {
    return err_set(e, -ERR_BUSY, "%s '%.128s': others change it at the same time, try again", what,
                   name);
}

int catalog_newest(struct catalog *c, const char *folder,
                   int (*decode)(void *ret, const char *key, struct view body, struct err *e),
                   void *ret, size_t size, struct err *e) {
    CLEANUP_BUF struct buf body = {0};
    uint64_t n;
    int rc = numbered_newest(c->store, folder, &n, &body, e);
    if (rc < 0)
        return rc;
    if (n == 0) {
        memset(ret, 0, size);
        return 0;
    }
    char key[KEY_MAX];
    numbered_key(key, folder, n);
    rc = decode(ret, key, buf_view(&body), e);
    return rc < 0 ? err_wrap(e, "%s", key) : 0;
}

/* --- identities --- */

static struct catalog_identity *identity_find(struct catalog *c, const struct volume_key *key) {
    for (size_t i = 0; i < CATALOG_IDENTITIES; i++)
        if (volume_keys_equal(&c->identities[i].key, key))
            return &c->identities[i];
    return NULL;
}

/* A restore is half done: whoever cuts next has to look at the record. */
static void identity_forget(struct catalog *c, const struct volume_record *r) {
    struct catalog_identity *known = identity_find(c, &r->key);
    if (known)
        *known = (struct catalog_identity){0};
}

static const struct catalog_identity *identity_remember(struct catalog *c,
                                                        const struct volume_record *r) {
    const struct catalog_identity *known = identity_find(c, &r->key);
    CHECK(r->state != VOLUME_RESTORING);
    if (known)
        return known;
    const char *fstype = string_map_get(&r->parameters, "csi.storage.k8s.io/fstype");
    struct catalog_identity *i = &c->identities[c->identity_next++ % CATALOG_IDENTITIES];
    *i = (struct catalog_identity){.key = r->key};
    snprintf(i->name, sizeof i->name, "%s", r->name);
    snprintf(i->fstype, sizeof i->fstype, "%s", fstype ? fstype : "");
    return i;
}

/* --- records --- */

static int decode(void *ret, const char *key, struct view body, struct err *e) {
    return volume_record_decode_at(ret, key, body, e);
}

int volume_record_newest(struct catalog *c, const char *hash, struct volume_record *ret,
                         struct err *e) {
    char folder[KEY_MAX];
    key_records_prefix(folder, hash);
    int rc = catalog_newest(c, folder, decode, ret, sizeof *ret, e);
    if (rc == 0 && ret->state == VOLUME_RESTORING)
        identity_forget(c, ret);
    return rc;
}

int volume_record_at(struct catalog *c, const char *hash, uint64_t n, struct volume_record *ret,
                     struct err *e) {
    char key[KEY_MAX];
    key_record(key, hash, n);
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(c->store, key, RECORD_SIZE_MAX, &body, e);
    if (rc == 0)
        rc = volume_record_decode_at(ret, key, buf_view(&body), e);
    return rc < 0 && rc != -ERR_NOT_FOUND ? err_wrap(e, "%s", key) : rc;
}

int volume_record_by_id(struct catalog *c, const char *id, struct volume_record *ret,
                        struct err *e) {
    struct parsed_id p;
    int rc = catalog_parse_id(c, ID_VOLUME, id, &p, e);
    if (rc < 0)
        return rc;
    struct volume_record r;
    rc = volume_record_newest(c, p.name_hash, &r, e);
    if (rc < 0)
        return rc;
    if (r.number == 0 || r.state == VOLUME_DELETED || !volume_keys_equal(&r.key, &p.key)) {
        volume_record_release(&r);
        return err_set(e, -ERR_NOT_FOUND, "volume '%s' does not exist", id);
    }
    *ret = r;
    return 0;
}

int volume_record_advance(struct catalog *c, struct volume_record *r, struct err *e) {
    CHECK(r->publish_epoch <= UINT32_MAX);
    CHECK(r->size_bytes % VOLUME_BLOCK_SIZE == 0);
    if (r->state == VOLUME_RESTORING)
        identity_forget(c, r);
    r->number++;
    catalog_new_id(c, &r->nonce);
    CLEANUP_BUF struct buf body = {0};
    int rc = volume_record_encode(&body, r, e);
    if (rc < 0)
        return rc;
    char hash[33], folder[KEY_MAX];
    name_hash(hash, r->name);
    key_records_prefix(folder, hash);
    return numbered_put(c->store, folder, r->number, buf_view(&body), e);
}

int volume_record_next_epoch(struct volume_record *r, struct err *e) {
    if (r->publish_epoch >= UINT32_MAX)
        return err_set(e, -ERR_OVERLOAD, "volume '%s' was published too often", r->name);
    r->publish_epoch++;
    return 0;
}

int volume_identity(struct catalog *c, const struct parsed_id *id,
                    const struct catalog_identity **ret, struct err *e) {
    *ret = identity_find(c, &id->key);
    if (*ret)
        return 0;
    char text[ID_MAX];
    struct volume_record r;
    id_format(text, &id->key, id->pool);
    int rc = catalog_restored_record(c, text, &r, e);
    if (rc < 0)
        return rc;
    *ret = identity_remember(c, &r);
    volume_record_release(&r);
    return 0;
}

void volume_info_release(struct volume_info *i) {
    volume_record_release(&i->record);
    *i = (struct volume_info){0};
}

void volume_info_make(struct volume_info *ret, struct catalog *c, struct volume_record *r,
                      const struct manifest *m) {
    *ret = (struct volume_info){
        .record = *r, .size_bytes = m->size_bytes, .depth = m->depth, .closed = m->closed};
    id_format(ret->id, &r->key, c->pool);
    if (r->state != VOLUME_RESTORING)
        identity_remember(c, r);
    *r = (struct volume_record){0};
}

int volume_info_read(struct catalog *c, struct volume_record *r, struct volume_info *ret,
                     struct err *e) {
    struct manifest m;
    int rc = manifest_newest(c->store, &r->key, &m, e);
    if (rc == -ERR_NOT_FOUND)
        return err_set(e, -ERR_NOT_FOUND, "volume '%s' is not created completely", r->name);
    if (rc < 0)
        return rc;
    if (m.deleted)
        rc = err_set(e, -ERR_NOT_FOUND, "volume '%s' does not exist", r->name);
    else
        volume_info_make(ret, c, r, &m);
    manifest_release(&m);
    return rc;
}
