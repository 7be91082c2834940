/* Volumes: create, get, find, list, delete, expand.
 *
 * A volume is there when its newest record does not say deleted and its newest manifest does not
 * either. Creation puts the record first (it reserves the name and makes the id), then the first
 * manifest; deletion puts the record first, too, then ends the content.
 *
 *            record ready            first manifest
 *   (none) ----------------> named ----------------> there
 *      ^                       |                       |
 *      +------ deleted <-------+-----------------------+
 *
 * Invariants:
 *   I1  An id is the number of the record that made it, and names one volume for ever.
 *   I2  Content is put only under an id whose record was seen to be the newest.
 *   I3  A first manifest that says deleted (a sweeper took the maker of a clone for dead) burns the
 *       id, not the name: creation goes on with a new record. */
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/volume/destroy.h"

/* *ret: size rounded up to blocks. */
static int round_size(uint64_t size_bytes, uint64_t limit_bytes, uint64_t *ret, struct err *e) {
    if (size_bytes > VOLUME_SIZE_MAX)
        return err_set(e, -ERR_NO_SPACE, "%llu bytes are more than the largest volume has, %llu",
                       (unsigned long long)size_bytes, (unsigned long long)VOLUME_SIZE_MAX);
    uint64_t size = ALIGN_UP(size_bytes, (uint64_t)VOLUME_BLOCK_SIZE);
    if (limit_bytes > 0 && size > limit_bytes)
        return err_set(
            e, -ERR_NO_SPACE, "%llu bytes, in blocks of %d, are above the limit of %llu bytes",
            (unsigned long long)size, VOLUME_BLOCK_SIZE, (unsigned long long)limit_bytes);
    *ret = size;
    return 0;
}

/* --- create --- */

static void fingerprint_text(struct buf *b, const char *text) {
    buf_printf(b, "%zu:%s,", strlen(text), text);
}

/* What makes two requests for one name equal: a hash over everything that was asked for. */
static void make_fingerprint(char ret[33], const struct volume_create *req) {
    CLEANUP_BUF struct buf b = {0};
    buf_printf(&b, "v1,%llu,%llu,", (unsigned long long)req->size_bytes,
               (unsigned long long)req->limit_bytes);
    fingerprint_text(&b, req->source ? req->source : "");
    struct string_map sorted = {0};
    for (size_t i = 0; req->parameters && i < req->parameters->count; i++)
        string_map_set(&sorted, req->parameters->items[i].key, req->parameters->items[i].value);
    for (size_t i = 0; i < sorted.count; i++) {
        fingerprint_text(&b, sorted.items[i].key);
        fingerprint_text(&b, sorted.items[i].value);
    }
    string_map_release(&sorted);
    name_hash(ret, buf_cstr(&b));
}

struct creation {
    struct catalog *c;
    const struct volume_create *req;
    char hash[33];
    char fingerprint[33];
    bool has_source;
    bool source_found;
    struct clone_source source;
};

/* Looks the source up, once. */
static int creation_source(struct creation *k, struct err *e) {
    if (!k->has_source || k->source_found)
        return 0;
    int rc = clone_source_find(k->c, k->req->source, &k->source, e);
    if (rc < 0)
        return err_wrap(e, "the source of volume '%s'", k->req->name);
    k->source_found = true;
    if (k->source.depth > CATALOG_DEPTH_MAX)
        return err_set(
            e, -ERR_UNSUPPORTED,
            "volume '%s' would be %u clones away from a volume of its own, and %d are the "
            "most; copy the data instead",
            k->req->name, k->source.depth, CATALOG_DEPTH_MAX);
    return 0;
}

/* Puts the record behind number `newest`. -ERR_STALE. */
static int put_new_record(struct creation *k, uint64_t newest, struct volume_record *ret,
                          struct err *e) {
    uint64_t size = 0;
    int rc = creation_source(k, e);
    if (rc == 0 && k->has_source && newest > 0) /* so that retries leave no trail of burnt ids */
        rc = clone_source_check(k->c, &k->source, e);
    if (rc == 0)
        rc = round_size(MAX(k->req->size_bytes, k->source.size_bytes), k->req->limit_bytes, &size,
                        e);
    if (rc < 0)
        return rc;
    struct volume_record r = {
        .number = newest,
        .name = xstrdup(k->req->name),
        .size_bytes = size,
        .block_size = VOLUME_BLOCK_SIZE,
        .fingerprint = xstrdup(k->fingerprint),
        .source_kind = !k->has_source          ? SOURCE_NONE
                       : k->source.is_snapshot ? SOURCE_SNAPSHOT
                                               : SOURCE_VOLUME,
        .source = xstrdup(k->has_source ? k->req->source : ""),
        .node = xstrdup(""),
        .restore_snapshot = xstrdup(""),
        .state = VOLUME_READY,
        .created_ms = env_wall_ms(k->c->env),
    };
    if (k->req->parameters)
        string_map_copy(&r.parameters, k->req->parameters);
    id_format_key(&r.key, ID_VOLUME, k->hash, newest + 1);
    rc = volume_record_advance(k->c, &r, e);
    if (rc == 0)
        *ret = r;
    else
        volume_record_release(&r);
    return rc;
}

/* Makes sure that the volume of record r never gets any content: a first manifest that says
 * deleted. 0; -ERR_STALE: another creator was faster, and the volume is there. */
static int burn(struct creation *k, const struct volume_record *r, struct err *e) {
    struct manifest m;
    manifest_tombstone_init(&m, k->c->env, &r->key);
    int rc = manifest_put(k->c->store, &r->key, &m, e);
    manifest_release(&m);
    return rc == -ERR_EXISTS ? -ERR_STALE : rc;
}

/* The end of a creation that cannot succeed any more for the reason in *e; the name is free again.
 * Returns that reason, or -ERR_STALE: another creator has succeeded. */
static int abandon(struct creation *k, struct volume_record *r, struct err *e) {
    struct err why = *e;
    int rc = burn(k, r, e);
    if (rc < 0)
        return rc;
    r->state = VOLUME_DELETED;
    if (volume_record_next_epoch(r, NULL) == 0)
        (void)volume_record_advance(k->c, r, NULL); /* not needed: a burnt id holds no name */
    return err_copy(e, &why);
}

/* Gives the volume of record *r its first manifest. -ERR_EXISTS: it has one. */
static int create_content(struct creation *k, struct volume_record *r, struct volume_info *ret,
                          struct err *e) {
    struct manifest m;
    int rc = creation_source(k, e);
    for (int attempt = 0; rc == 0 && attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        rc = volume_content_create(k->c, r, k->has_source ? &k->source : NULL, &m, e);
        if (rc == 0) {
            volume_info_make(ret, k->c, r, &m);
            manifest_release(&m);
            return 0;
        }
        if (rc == -ERR_STALE)
            rc = 0; /* a sweeper was faster: a new pin */
    }
    if (rc == -ERR_NOT_FOUND || rc == -ERR_UNSUPPORTED)
        return abandon(k, r, e);
    return rc == 0 ? catalog_busy(e, "volume", k->req->name) : rc;
}

enum existing { EXISTING_NONE, EXISTING_THERE, EXISTING_EMPTY };

/* What the newest record r means for this request: a free name, this very volume (*ret, *r moved),
 * or one whose content is not there yet. A volume that was asked for differently and never got its
 * content does not hold the name: its id is burnt. */
static int look_at_existing(struct creation *k, struct volume_record *r, enum existing *what,
                            struct volume_info *ret, struct err *e) {
    *what = EXISTING_NONE;
    if (r->number == 0 || r->state == VOLUME_DELETED)
        return 0;
    bool equal = strcmp(r->name, k->req->name) == 0 && strcmp(r->fingerprint, k->fingerprint) == 0;
    struct manifest m;
    int rc = manifest_newest(k->c->store, &r->key, &m, e);
    if (rc == -ERR_NOT_FOUND) {
        *what = equal ? EXISTING_EMPTY : EXISTING_NONE;
        return equal ? 0 : burn(k, r, e);
    }
    if (rc < 0)
        return rc;
    if (!m.deleted && !equal) {
        rc = err_set(e, -ERR_EXISTS,
                     "there is a volume '%s' already, with another size, source or parameters",
                     r->name);
    } else if (!m.deleted) { /* else: I3 */
        *what = EXISTING_THERE;
        volume_info_make(ret, k->c, r, &m);
    }
    manifest_release(&m);
    return rc;
}

/* -ERR_STALE: raced, start over. */
static int create_once(struct creation *k, struct volume_info *ret, struct err *e) {
    CLEANUP(volume_record_release) struct volume_record r = {0};
    enum existing what;
    int rc = volume_record_newest(k->c, k->hash, &r, e);
    if (rc == 0)
        rc = look_at_existing(k, &r, &what, ret, e);
    if (rc < 0 || what == EXISTING_THERE)
        return rc;
    if (what == EXISTING_NONE) {
        uint64_t newest = r.number;
        volume_record_release(&r);
        rc = put_new_record(k, newest, &r, e);
        if (rc < 0)
            return rc;
    }
    rc = create_content(k, &r, ret, e);
    return rc == -ERR_EXISTS ? -ERR_STALE : rc;
}

int catalog_volume_create(struct catalog *c, const struct volume_create *req,
                          struct volume_info *ret, struct err *e) {
    struct creation k = {.c = c, .req = req, .has_source = req->source && req->source[0] != '\0'};
    uint64_t size;
    int rc = catalog_check_name("volume", req->name, e);
    if (rc == 0)
        rc = round_size(req->size_bytes, req->limit_bytes, &size, e);
    if (rc < 0)
        return rc;
    if (size == 0 && !k.has_source)
        return err_set(e, -ERR_INVALID, "volume '%s' needs a size", req->name);
    name_hash(k.hash, req->name);
    make_fingerprint(k.fingerprint, req);
    rc = -ERR_STALE;
    for (int attempt = 0; rc == -ERR_STALE && attempt < CATALOG_ATTEMPTS_MAX; attempt++)
        rc = create_once(&k, ret, e);
    clone_source_release(&k.source);
    return rc == -ERR_STALE ? catalog_busy(e, "volume", req->name) : rc;
}

/* --- get, find, list --- */

int catalog_volume_get(struct catalog *c, const char *id, struct volume_info *ret, struct err *e) {
    struct volume_record r;
    int rc = volume_record_by_id(c, id, &r, e);
    if (rc < 0)
        return rc;
    rc = volume_info_read(c, &r, ret, e);
    volume_record_release(&r);
    return rc;
}

int catalog_volume_find(struct catalog *c, const char *name, struct volume_info *ret,
                        struct err *e) {
    char hash[33];
    name_hash(hash, name);
    struct volume_record r;
    int rc = volume_record_newest(c, hash, &r, e);
    if (rc < 0)
        return rc;
    if (r.number == 0 || r.state == VOLUME_DELETED)
        rc = err_set(e, -ERR_NOT_FOUND, "volume '%.128s' does not exist", name);
    else
        rc = volume_info_read(c, &r, ret, e);
    volume_record_release(&r);
    return rc;
}

void volume_list_release(struct volume_list *l) {
    for (size_t i = 0; i < l->count; i++)
        volume_info_release(&l->items[i]);
    free(l->items);
    *l = (struct volume_list){0};
}

static int fetch_volume(struct catalog *c, void *arg, const struct list_record *record, void *item,
                        struct err *e) {
    (void)arg;
    struct volume_record r;
    int rc = volume_record_decode_at(&r, record->key, buf_view(&record->body), e);
    if (rc < 0)
        return err_wrap(e, "%s", record->key);
    if (r.state != VOLUME_DELETED)
        rc = volume_info_read(c, &r, item, e);
    else
        rc = -ERR_NOT_FOUND;
    volume_record_release(&r);
    return rc == -ERR_NOT_FOUND ? 0 : rc == 0 ? 1 : rc;
}

static void release_volume(void *item) {
    volume_info_release(item);
}

int catalog_volume_list(struct catalog *c, const char *token, size_t max, struct volume_list *ret,
                        struct err *ret_damage, struct err *e) {
    struct list_page p = {.root = "records/",
                          .item_size = sizeof(struct volume_info),
                          .fetch = fetch_volume,
                          .release = release_volume,
                          .damage = ret_damage};
    int rc = catalog_list_page(c, &p, token, max, e);
    if (rc < 0)
        return rc;
    *ret = (struct volume_list){.items = p.items, .count = p.count};
    memcpy(ret->next_token, p.next_token, sizeof ret->next_token);
    return 0;
}

/* --- delete --- */

static int end_content(struct catalog *c, const struct volume_record *r, struct err *e) {
    int rc = volume_destroy(c->env, c->store, &r->key, (uint32_t)r->publish_epoch, e);
    if (rc < 0)
        return rc;
    struct volume_collected collected;
    return volume_collect_deleted(c->env, c->store, &r->key, &collected, e);
}

/* The record says deleted: was it done to its end? Objects that are left are the background job's.
 */
static int finish_delete(struct catalog *c, const struct volume_record *r, struct err *e) {
    struct manifest m;
    int rc = manifest_newest(c->store, &r->key, &m, e);
    if (rc == 0) {
        bool deleted = m.deleted;
        manifest_release(&m);
        if (deleted)
            return 0;
    } else if (rc != -ERR_NOT_FOUND) {
        return rc;
    }
    return end_content(c, r, e);
}

/* -ERR_STALE: raced, start over. */
static int delete_once(struct catalog *c, const struct parsed_id *id, bool force, struct err *e) {
    CLEANUP(volume_record_release) struct volume_record r = {0};
    int rc = volume_record_newest(c, id->name_hash, &r, e);
    if (rc < 0 || r.number == 0 || !volume_keys_equal(&r.key, &id->key))
        return rc; /* what another id left behind is the background job's */
    if (r.state == VOLUME_DELETED)
        return finish_delete(c, &r, e);
    if (r.state == VOLUME_READY && r.node[0] != '\0' && !force)
        return err_set(e, -ERR_IN_USE, "volume '%s' is published to node '%s'", r.name, r.node);
    r.state = VOLUME_DELETED;
    r.node[0] = '\0';
    rc = volume_record_next_epoch(&r, e);
    if (rc == 0)
        rc = volume_record_advance(c, &r, e);
    return rc < 0 ? rc : end_content(c, &r, e);
}

int catalog_volume_delete(struct catalog *c, const char *id, bool force, struct err *e) {
    struct parsed_id p;
    if (catalog_parse_id(c, ID_VOLUME, id, &p, NULL) < 0)
        return 0;
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        int rc = delete_once(c, &p, force, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return catalog_busy(e, "volume", id);
}

/* --- expand --- */

/* Puts one manifest with the new size while the newest one is closed: same root, same epoch. Who
 * has closed writes no more, and who opens builds on whatever is newest. */
static int grow_while_closed(struct catalog *c, const struct volume_record *r, struct manifest *ret,
                             struct err *e) {
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        struct manifest m;
        int rc = manifest_newest(c->store, &r->key, &m, e);
        if (rc < 0)
            return rc;
        if (m.deleted) {
            manifest_release(&m);
            return err_set(e, -ERR_NOT_FOUND, "volume '%s' does not exist", r->name);
        }
        if (!m.closed || m.size_bytes >= r->size_bytes) {
            *ret = m;
            return 0;
        }
        m.number++;
        m.size_bytes = r->size_bytes;
        catalog_new_id(c, &m.nonce);
        rc = manifest_put(c->store, &r->key, &m, e);
        manifest_release(&m);
        if (rc < 0 && rc != -ERR_EXISTS && rc != -ERR_STALE)
            return rc;
        /* Stored or not: it counts when it, or one built on it, is seen to be the newest. */
    }
    return catalog_busy(e, "volume", r->name);
}

static int expand_once(struct catalog *c, const char *id, uint64_t size, struct volume_info *ret,
                       bool *ret_needs_node, struct err *e) {
    CLEANUP(volume_record_release) struct volume_record r = {0};
    int rc = volume_record_by_id(c, id, &r, e);
    if (rc < 0)
        return rc;
    if (r.size_bytes < size) {
        r.size_bytes = size;
        rc = volume_record_advance(c, &r, e);
        if (rc < 0)
            return rc;
    }
    struct manifest m;
    rc = grow_while_closed(c, &r, &m, e);
    if (rc < 0)
        return rc;
    if (m.size_bytes < r.size_bytes && r.node[0] == '\0') { /* not closed, and nobody is at it */
        manifest_release(&m);
        rc = catalog_fence_abandoned(c, &r, e);
        return rc < 0 ? rc : -ERR_STALE;
    }
    *ret_needs_node = m.size_bytes < r.size_bytes;
    volume_info_make(ret, c, &r, &m);
    manifest_release(&m);
    return 0;
}

int catalog_volume_expand(struct catalog *c, const char *id, uint64_t size_bytes,
                          uint64_t limit_bytes, struct volume_info *ret, bool *ret_needs_node,
                          struct err *e) {
    if (size_bytes == 0)
        return err_set(e, -ERR_INVALID, "volume '%.80s': the new size is missing", id);
    uint64_t size;
    int rc = round_size(size_bytes, limit_bytes, &size, e);
    if (rc < 0)
        return rc;
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        rc = expand_once(c, id, size, ret, ret_needs_node, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return catalog_busy(e, "volume", id);
}
