/* Records of the pool: bytes <-> structs.
 *
 * Names and parameters come from users, so what cannot be encoded is -ERR_INVALID, not a CHECK.
 *
 * I1  Owned strings of a decoded record are never NULL.
 * I2  A string_map that came out of a decoder is sorted by key. */
#include "portalbd/format/records.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/format/json_internal.h"
#include "portalbd/format/sizes_internal.h"

enum {
    TEXT_MAX = 256,    /* bytes of fingerprints, versions, cluster ids, file system types */
    NODE_ID_MAX = 128, /* bytes */
    PARAMETERS_COUNT_MAX = 256,
};

/* --- string maps --- */

void string_map_release(struct string_map *m) {
    for (size_t i = 0; i < m->count; i++) {
        free(m->items[i].key);
        free(m->items[i].value);
    }
    free(m->items);
    *m = (struct string_map){0};
}

void string_map_copy(struct string_map *to, const struct string_map *from) {
    *to = (struct string_map){0};
    if (from->count == 0)
        return;
    to->items = xcalloc(from->count, sizeof *to->items);
    to->count = from->count;
    for (size_t i = 0; i < from->count; i++) {
        to->items[i].key = xstrdup(from->items[i].key);
        to->items[i].value = xstrdup(from->items[i].value);
    }
}

const char *string_map_get(const struct string_map *m, const char *key) {
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->items[i].key, key) == 0)
            return m->items[i].value;
    return NULL;
}

void string_map_set(struct string_map *m, const char *key, const char *value) {
    size_t at = 0;
    while (at < m->count && strcmp(m->items[at].key, key) < 0)
        at++;
    if (at < m->count && strcmp(m->items[at].key, key) == 0) {
        char *copy = xstrdup(value); /* value may be the old one */
        free(m->items[at].value);
        m->items[at].value = copy;
        return;
    }
    struct string_pair pair = {.key = xstrdup(key), .value = xstrdup(value)};
    m->items = xrealloc(m->items, (m->count + 1) * sizeof *m->items);
    memmove(&m->items[at + 1], &m->items[at], (m->count - at) * sizeof *m->items);
    m->items[at] = pair;
    m->count++;
}

static int check_parameters(const struct string_map *m, struct err *e) {
    size_t bytes = 0;
    for (size_t i = 0; i < m->count; i++)
        bytes += strlen(m->items[i].key) + strlen(m->items[i].value);
    if (bytes > RECORD_PARAMETERS_MAX || m->count > PARAMETERS_COUNT_MAX)
        return err_set(e, -ERR_INVALID, "%zu parameters of %zu bytes are too many (%d of %d)",
                       m->count, bytes, PARAMETERS_COUNT_MAX, RECORD_PARAMETERS_MAX);
    return 0;
}

static void put_map(struct json_writer *w, const char *name, const struct string_map *m) {
    struct json_writer o = {.object = json_object()};
    for (size_t i = 0; i < m->count; i++)
        json_put_string(&o, m->items[i].key, m->items[i].value);
    w->bad |= o.bad;
    json_put(w, name, o.object);
}

static int compare_pairs(const void *a, const void *b) {
    return strcmp(((const struct string_pair *)a)->key, ((const struct string_pair *)b)->key);
}

static void get_map(struct json_reader *r, const char *name, struct string_map *ret) {
    const json_t *object = json_member(r, name);
    size_t count = json_object_size(object);
    if (!json_is_object(object) || count > PARAMETERS_COUNT_MAX) {
        json_bad(r, name);
        return;
    }
    ret->items = xcalloc(MAX(count, 1), sizeof *ret->items);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        const char *text = json_string_value(value);
        if (!text) {
            json_bad(r, name);
            return;
        }
        ret->items[ret->count++] = (struct string_pair){xstrdup(key), xstrdup(text)};
    }
    qsort(ret->items, ret->count, sizeof *ret->items, compare_pairs);
    if (check_parameters(ret, NULL) < 0)
        json_bad(r, name);
}

/* --- strings --- */

static char *get_text(struct json_reader *r, const char *name, size_t len_max) {
    return xstrdup(json_get_string(r, name, len_max));
}

static int check_text(const char *what, const char *text, size_t len_min, size_t len_max,
                      struct err *e) {
    size_t len = text ? strlen(text) : 0;
    if (len < len_min || len > len_max)
        return err_set(e, -ERR_INVALID, "%s of %zu bytes; %zu to %zu are allowed", what, len,
                       len_min, len_max);
    return 0;
}

static char *copy_text(const char *text) {
    return xstrdup(text ? text : "");
}

static int check_sizes(uint64_t size_bytes, uint32_t block_size, struct err *e) {
    if (!size_valid(size_bytes) || !block_size_valid(block_size))
        return err_set(e, -ERR_INVALID,
                       "size %llu with blocks of %u; a multiple of 4096 up to 2^60 bytes, with "
                       "blocks of 512 or 4096, is wanted",
                       (unsigned long long)size_bytes, block_size);
    return 0;
}

/* Whoever decodes damaged content says so, whatever the check that saw it calls it. */
static int decoded(struct json_reader *r, int check_rc) {
    int rc = json_end(r);
    return rc == 0 && check_rc < 0 ? json_bad(r, "its content") : rc;
}

/* --- volumes --- */

static const char *const volume_states[] = {
    [VOLUME_READY] = "ready",
    [VOLUME_FENCING] = "fencing",
    [VOLUME_RESTORING] = "restoring",
    [VOLUME_DELETED] = "deleted",
};
static const char *const source_kinds[] = {
    [SOURCE_NONE] = "none",
    [SOURCE_SNAPSHOT] = "snapshot",
    [SOURCE_VOLUME] = "volume",
};

/* The index of the text in a table of names; sets the reader's error when it is none of them. */
static unsigned get_name(struct json_reader *r, const char *member, const char *const *names,
                         size_t count) {
    const char *text = json_get_string(r, member, TEXT_MAX);
    for (size_t i = 0; i < count; i++)
        if (strcmp(text, names[i]) == 0)
            return (unsigned)i;
    json_bad(r, member);
    return 0;
}

void volume_record_release(struct volume_record *r) {
    free(r->name);
    free(r->fingerprint);
    free(r->source);
    free(r->node);
    free(r->restore_snapshot);
    string_map_release(&r->parameters);
    *r = (struct volume_record){0};
}

void volume_record_copy(struct volume_record *to, const struct volume_record *from) {
    *to = *from;
    to->name = copy_text(from->name);
    to->fingerprint = copy_text(from->fingerprint);
    to->source = copy_text(from->source);
    to->node = copy_text(from->node);
    to->restore_snapshot = copy_text(from->restore_snapshot);
    string_map_copy(&to->parameters, &from->parameters);
}

static int volume_record_check(const struct volume_record *r, struct err *e) {
    int rc;
    if ((rc = check_text("a volume's name", r->name, 1, ENTITY_NAME_MAX, e)) < 0 ||
        (rc = check_text("a fingerprint", r->fingerprint, 0, TEXT_MAX, e)) < 0 ||
        (rc = check_text("a source", r->source, 0, ENTITY_NAME_MAX, e)) < 0 ||
        (rc = check_text("a node id", r->node, 0, NODE_ID_MAX, e)) < 0 ||
        (rc = check_text("a snapshot", r->restore_snapshot, 0, ENTITY_NAME_MAX, e)) < 0 ||
        (rc = check_sizes(r->size_bytes, r->block_size, e)) < 0 ||
        (rc = check_parameters(&r->parameters, e)) < 0)
        return rc;
    if (!volume_key_valid(r->key.text, ID_VOLUME) || r->publish_epoch > UINT32_MAX)
        return err_set(e, -ERR_INVALID, "volume record: key '%s', publish epoch %llu", r->key.text,
                       (unsigned long long)r->publish_epoch);
    return 0;
}

int volume_record_encode(struct buf *out, const struct volume_record *r, struct err *e) {
    int rc = volume_record_check(r, e);
    if (rc < 0)
        return rc;
    CHECK(r->state < ARRAY_LEN(volume_states));
    CHECK(r->source_kind < ARRAY_LEN(source_kinds));
    CLEANUP(json_release) struct json_writer w;
    json_start(&w, "volume");
    json_put_id(&w, "nonce", &r->nonce);
    json_put_string(&w, "name", r->name);
    json_put_string(&w, "key", r->key.text);
    json_put_u64(&w, "size", r->size_bytes);
    json_put_u64(&w, "block_size", r->block_size);
    json_put_string(&w, "fingerprint", r->fingerprint);
    put_map(&w, "parameters", &r->parameters);
    json_put_string(&w, "source_kind", source_kinds[r->source_kind]);
    json_put_string(&w, "source", r->source);
    json_put_string(&w, "node", r->node);
    json_put_bool(&w, "read_only", r->read_only);
    json_put_u64(&w, "publish_epoch", r->publish_epoch);
    json_put_string(&w, "state", volume_states[r->state]);
    json_put_string(&w, "restore_snapshot", r->restore_snapshot);
    json_put_u64(&w, "created_ms", r->created_ms);
    return json_finish(&w, out, RECORD_SIZE_MAX, e);
}

int volume_record_decode(struct volume_record *ret, uint64_t number, struct view in,
                         struct err *e) {
    CLEANUP_JSON json_t *object = NULL;
    int rc = json_parse(&object, in, "volume", RECORD_SIZE_MAX, e);
    if (rc < 0)
        return rc;
    CLEANUP(volume_record_release) struct volume_record v = {.number = number};
    struct json_reader r = json_reader_of(object, "volume", e);
    json_get_id(&r, "nonce", &v.nonce);
    v.name = get_text(&r, "name", ENTITY_NAME_MAX);
    json_get_volume_key(&r, "key", ID_VOLUME, &v.key);
    v.size_bytes = json_get_u64(&r, "size", JSON_INTEGER_MAX);
    v.block_size = (uint32_t)json_get_u64(&r, "block_size", UINT32_MAX);
    v.fingerprint = get_text(&r, "fingerprint", TEXT_MAX);
    get_map(&r, "parameters", &v.parameters);
    v.source_kind = get_name(&r, "source_kind", source_kinds, ARRAY_LEN(source_kinds));
    v.source = get_text(&r, "source", ENTITY_NAME_MAX);
    v.node = get_text(&r, "node", NODE_ID_MAX);
    v.read_only = json_get_bool(&r, "read_only");
    v.publish_epoch = json_get_u64(&r, "publish_epoch", UINT32_MAX);
    v.state = (enum volume_state)get_name(&r, "state", volume_states, ARRAY_LEN(volume_states));
    v.restore_snapshot = get_text(&r, "restore_snapshot", ENTITY_NAME_MAX);
    v.created_ms = json_get_u64(&r, "created_ms", JSON_INTEGER_MAX);
    rc = decoded(&r, r.rc < 0 ? 0 : volume_record_check(&v, NULL));
    if (rc < 0)
        return rc;
    *ret = v;
    v = (struct volume_record){0};
    return 0;
}

/* --- snapshots --- */

void snapshot_record_release(struct snapshot_record *r) {
    free(r->name);
    free(r->source_name);
    free(r->fstype);
    *r = (struct snapshot_record){0};
}

void snapshot_record_copy(struct snapshot_record *to, const struct snapshot_record *from) {
    *to = *from;
    to->name = copy_text(from->name);
    to->source_name = copy_text(from->source_name);
    to->fstype = copy_text(from->fstype);
}

/* The sweeper, which makes tombstones too, does not know names. */
static int snapshot_record_check(const struct snapshot_record *r, struct err *e) {
    int rc = check_text("a snapshot's name", r->name, r->deleted ? 0 : 1, ENTITY_NAME_MAX, e);
    if (rc < 0 || r->deleted)
        return rc;
    if ((rc = check_text("a volume's name", r->source_name, 0, ENTITY_NAME_MAX, e)) < 0 ||
        (rc = check_text("a file system", r->fstype, 0, TEXT_MAX, e)) < 0 ||
        (rc = check_sizes(r->size_bytes, r->block_size, e)) < 0)
        return rc;
    if (!volume_key_valid(r->key.text, ID_SNAPSHOT) ||
        !volume_key_valid(r->source.text, ID_VOLUME) || random_id_is_zero(&r->pin))
        return err_set(e, -ERR_INVALID, "snapshot record: key '%s' of '%s'", r->key.text,
                       r->source.text);
    return 0;
}

int snapshot_record_encode(struct buf *out, const struct snapshot_record *r, struct err *e) {
    int rc = snapshot_record_check(r, e);
    if (rc < 0)
        return rc;
    CLEANUP(json_release) struct json_writer w;
    json_start(&w, "snapshot");
    json_put_id(&w, "nonce", &r->nonce);
    json_put_bool(&w, "deleted", r->deleted);
    json_put_string(&w, "name", r->name);
    if (!r->deleted) {
        json_put_string(&w, "key", r->key.text);
        json_put_string(&w, "source", r->source.text);
        json_put_string(&w, "source_name", r->source_name);
        json_put_id(&w, "pin", &r->pin);
        json_put_u64(&w, "size", r->size_bytes);
        json_put_u64(&w, "block_size", r->block_size);
        json_put_u64(&w, "created_ms", r->created_ms);
        json_put_string(&w, "fstype", r->fstype);
    }
    return json_finish(&w, out, RECORD_SIZE_MAX, e);
}

int snapshot_record_decode(struct snapshot_record *ret, uint64_t number, struct view in,
                           struct err *e) {
    CLEANUP_JSON json_t *object = NULL;
    int rc = json_parse(&object, in, "snapshot", RECORD_SIZE_MAX, e);
    if (rc < 0)
        return rc;
    CLEANUP(snapshot_record_release) struct snapshot_record s = {.number = number};
    struct json_reader r = json_reader_of(object, "snapshot", e);
    json_get_id(&r, "nonce", &s.nonce);
    s.deleted = json_get_bool(&r, "deleted");
    s.name = get_text(&r, "name", ENTITY_NAME_MAX);
    if (s.deleted) {
        s.source_name = xstrdup("");
        s.fstype = xstrdup("");
    } else {
        json_get_volume_key(&r, "key", ID_SNAPSHOT, &s.key);
        json_get_volume_key(&r, "source", ID_VOLUME, &s.source);
        s.source_name = get_text(&r, "source_name", ENTITY_NAME_MAX);
        json_get_id(&r, "pin", &s.pin);
        s.size_bytes = json_get_u64(&r, "size", JSON_INTEGER_MAX);
        s.block_size = (uint32_t)json_get_u64(&r, "block_size", UINT32_MAX);
        s.created_ms = json_get_u64(&r, "created_ms", JSON_INTEGER_MAX);
        s.fstype = get_text(&r, "fstype", TEXT_MAX);
    }
    rc = decoded(&r, r.rc < 0 ? 0 : snapshot_record_check(&s, NULL));
    if (rc < 0)
        return rc;
    *ret = s;
    s = (struct snapshot_record){0};
    return 0;
}

/* --- nodes --- */

void node_record_release(struct node_record *r) {
    free(r->node_id);
    free(r->version);
    *r = (struct node_record){0};
}

static int node_record_check(const struct node_record *r, struct err *e) {
    int rc = check_text("a node id", r->node_id, 1, NODE_ID_MAX, e);
    return rc < 0 ? rc : check_text("a version", r->version, 0, TEXT_MAX, e);
}

int node_record_encode(struct buf *out, const struct node_record *r, struct err *e) {
    int rc = node_record_check(r, e);
    if (rc < 0)
        return rc;
    CLEANUP(json_release) struct json_writer w;
    json_start(&w, "node");
    json_put_id(&w, "nonce", &r->nonce);
    json_put_bool(&w, "deleted", r->deleted);
    json_put_string(&w, "node_id", r->node_id);
    json_put_string(&w, "version", r->version);
    json_put_u64(&w, "registered_ms", r->registered_ms);
    return json_finish(&w, out, RECORD_SIZE_MAX, e);
}

int node_record_decode(struct node_record *ret, uint64_t number, struct view in, struct err *e) {
    CLEANUP_JSON json_t *object = NULL;
    int rc = json_parse(&object, in, "node", RECORD_SIZE_MAX, e);
    if (rc < 0)
        return rc;
    CLEANUP(node_record_release) struct node_record n = {.number = number};
    struct json_reader r = json_reader_of(object, "node", e);
    json_get_id(&r, "nonce", &n.nonce);
    n.deleted = json_get_bool(&r, "deleted");
    n.node_id = get_text(&r, "node_id", NODE_ID_MAX);
    n.version = get_text(&r, "version", TEXT_MAX);
    n.registered_ms = json_get_u64(&r, "registered_ms", JSON_INTEGER_MAX);
    rc = decoded(&r, r.rc < 0 ? 0 : node_record_check(&n, NULL));
    if (rc < 0)
        return rc;
    *ret = n;
    n = (struct node_record){0};
    return 0;
}

/* --- what lies under a key --- */

static uint64_t number_of(const char *key) {
    uint64_t n = 0;
    CHECK(key_parse_numbered(key, &n) == 0);
    return n;
}

static bool is_in(const char *key, const char folder[KEY_MAX]) {
    return strncmp(key, folder, strlen(folder)) == 0;
}

/* Is the id of a volume or snapshot, and the name when there is one, of the key's folder? */
struct place {
    bool id_fits, name_fits;
    uint64_t number; /* in the id */
};

static struct place find_place(const char *key, enum id_kind kind, const struct volume_key *id,
                               const char *name) {
    void (*prefix)(char *, const char *) =
        kind == ID_VOLUME ? key_records_prefix : key_snapshots_prefix;
    char text[ID_MAX], hash[33], folder[KEY_MAX];
    struct parsed_id p = {0};
    struct place ret = {0};
    id_format(text, id, "any"); /* the pool is not in it */
    if (id_parse(&p, text, NULL) == 0) {
        prefix(folder, p.name_hash);
        ret.id_fits = p.kind == kind && is_in(key, folder);
        ret.number = p.number;
    }
    name_hash(hash, name);
    prefix(folder, hash);
    ret.name_fits = is_in(key, folder);
    return ret;
}

int volume_record_decode_at(struct volume_record *ret, const char *key, struct view in,
                            struct err *e) {
    CLEANUP(volume_record_release) struct volume_record r = {0};
    int rc = volume_record_decode(&r, number_of(key), in, e);
    if (rc < 0)
        return rc;
    struct place place = find_place(key, ID_VOLUME, &r.key, r.name);
    if (!place.id_fits || place.number > r.number)
        return err_set(e, -ERR_CORRUPT,
                       "it is another volume's record: its id %s is not of this folder",
                       r.key.text);
    if (!place.name_fits)
        return err_set(e, -ERR_CORRUPT,
                       "it is another volume's record: its name '%s' belongs into another folder",
                       r.name);
    *ret = r;
    r = (struct volume_record){0};
    return 0;
}

int snapshot_record_decode_at(struct snapshot_record *ret, const char *key, struct view in,
                              struct err *e) {
    CLEANUP(snapshot_record_release) struct snapshot_record r = {0};
    int rc = snapshot_record_decode(&r, number_of(key), in, e);
    if (rc < 0)
        return rc;
    struct place place = find_place(key, ID_SNAPSHOT, &r.key, r.name);
    bool fits = r.deleted
                    ? place.name_fits || r.name[0] == '\0' /* a sweeper's, who knows no name */
                    : place.name_fits && place.id_fits && place.number == r.number;
    if (!fits)
        return err_set(e, -ERR_CORRUPT,
                       "it is another snapshot's record: snapshot '%s' does not belong here",
                       r.name);
    *ret = r;
    r = (struct snapshot_record){0};
    return 0;
}

int node_record_decode_at(struct node_record *ret, const char *key, struct view in, struct err *e) {
    CLEANUP(node_record_release) struct node_record r = {0};
    char folder[KEY_MAX];
    int rc = node_record_decode(&r, number_of(key), in, e);
    if (rc < 0)
        return rc;
    key_nodes_prefix(folder, r.node_id);
    if (!is_in(key, folder))
        return err_set(e, -ERR_CORRUPT,
                       "it is another node's record: node '%s' does not belong "
                       "here",
                       r.node_id);
    *ret = r;
    r = (struct node_record){0};
    return 0;
}

/* --- the pool --- */

void pool_record_release(struct pool_record *r) {
    free(r->cluster_id);
    *r = (struct pool_record){0};
}

int pool_record_encode(struct buf *out, const struct pool_record *r, struct err *e) {
    int rc = check_text("a cluster id", r->cluster_id, 0, TEXT_MAX, e);
    if (rc < 0)
        return rc;
    CHECK(!random_id_is_zero(&r->uuid));
    CLEANUP(json_release) struct json_writer w;
    json_start(&w, "pool");
    json_put_id(&w, "uuid", &r->uuid);
    json_put_string(&w, "cluster_id", r->cluster_id);
    json_put_bool(&w, "conditional_put", r->conditional_put);
    json_put_u64(&w, "created_ms", r->created_ms);
    return json_finish(&w, out, RECORD_SIZE_MAX, e);
}

int pool_record_decode(struct pool_record *ret, struct view in, struct err *e) {
    CLEANUP_JSON json_t *object = NULL;
    int rc = json_parse(&object, in, "pool", RECORD_SIZE_MAX, e);
    if (rc < 0)
        return rc;
    CLEANUP(pool_record_release) struct pool_record p = {0};
    struct json_reader r = json_reader_of(object, "pool", e);
    json_get_id(&r, "uuid", &p.uuid);
    p.cluster_id = get_text(&r, "cluster_id", TEXT_MAX);
    p.conditional_put = json_get_bool(&r, "conditional_put");
    p.created_ms = json_get_u64(&r, "created_ms", JSON_INTEGER_MAX);
    if (random_id_is_zero(&p.uuid))
        json_bad(&r, "uuid");
    rc = json_end(&r);
    if (rc < 0)
        return rc;
    *ret = p;
    p = (struct pool_record){0};
    return 0;
}
