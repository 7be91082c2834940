/* Manifests and pins: bytes <-> structs.
 *
 * I1  Sizes are multiples of 4096, at most 2^60; only a deleted volume has none.
 * I2  A commit key is the key of a snapshot record or of a first manifest, and nothing else: the
 *     sweeper puts a tombstone there. */
#include <stdlib.h>

#include "portalbd/format/root_internal.h"
#include "portalbd/format/sizes_internal.h"

enum { DEPTH_MAX = 64 }; /* clones between a volume and one that stands alone */

void manifest_release(struct manifest *m) {
    root_release(&m->root);
    free(m->held_pins);
    free(m->condemned);
    *m = (struct manifest){0};
}

struct manifest manifest_next(const struct manifest *m) {
    struct manifest next = *m;
    next.number++;
    root_copy(&next.root, &m->root);
    next.held_pins = NULL;
    next.condemned = NULL;
    if (m->held_pin_count > 0) {
        next.held_pins = xcalloc(m->held_pin_count, sizeof *next.held_pins);
        memcpy(next.held_pins, m->held_pins, m->held_pin_count * sizeof *next.held_pins);
    }
    if (m->condemned_count > 0) {
        next.condemned = xcalloc(m->condemned_count, sizeof *next.condemned);
        memcpy(next.condemned, m->condemned, m->condemned_count * sizeof *next.condemned);
    }
    return next;
}

/* --- manifests --- */

static bool condemned_valid(const struct condemned_range *c) {
    if (c->kind == OBJ_LOG)
        return c->first >= 1 && c->count >= 1 && c->first <= JSON_INTEGER_MAX &&
               c->count <= JSON_INTEGER_MAX - c->first;
    return c->kind <= OBJ_MAP && !random_id_is_zero(&c->id);
}

static bool manifest_valid(const struct manifest *m) {
    if (!size_valid(m->size_bytes) || !block_size_valid(m->block_size) || m->depth > DEPTH_MAX)
        return false;
    if (m->size_bytes == 0 && !m->deleted)
        return false;
    for (size_t i = 0; i < m->held_pin_count; i++)
        if (!volume_key_valid(m->held_pins[i].volume.text, ID_VOLUME) ||
            random_id_is_zero(&m->held_pins[i].pin))
            return false;
    for (size_t i = 0; i < m->condemned_count; i++)
        if (!condemned_valid(&m->condemned[i]))
            return false;
    return root_valid(&m->root);
}

static json_t *held_pin_json(struct json_writer *w, const struct held_pin *p) {
    json_t *a = json_array();
    json_add(w, a, json_string(p->volume.text));
    json_add(w, a, json_of_id(&p->pin));
    return a;
}

static json_t *condemned_json(struct json_writer *w, const struct condemned_range *c) {
    json_t *a = json_array();
    if (c->kind == OBJ_LOG) {
        json_add(w, a, json_string("log"));
        json_add(w, a, json_of_u64(c->first));
        json_add(w, a, json_of_u64(c->count));
    } else {
        json_add(w, a, json_string(c->kind == OBJ_MOVED ? "moved" : "map"));
        json_add(w, a, json_of_id(&c->id));
    }
    return a;
}

int manifest_encode(struct buf *out, const struct manifest *m, struct err *e) {
    int rc = root_check_limits(&m->root, e);
    if (rc < 0)
        return rc;
    if (m->held_pin_count > HELD_PINS_MAX || m->condemned_count > ROOT_LIST_MAX)
        return err_set(e, -ERR_OVERLOAD, "a manifest with %zu held pins and %zu condemned ranges",
                       m->held_pin_count, m->condemned_count);
    CHECK(manifest_valid(m));
    CLEANUP(json_release) struct json_writer w;
    json_start(&w, "manifest");
    json_put_u64(&w, "publish_epoch", epoch_publish(m->epoch));
    json_put_u64(&w, "open_count", m->epoch & UINT32_MAX);
    json_put_id(&w, "nonce", &m->nonce);
    json_put_u64(&w, "size", m->size_bytes);
    json_put_u64(&w, "block_size", m->block_size);
    json_put_id(&w, "journal", &m->journal);
    json_put_u64(&w, "last_write", m->last_write);
    json_put_bool(&w, "closed", m->closed);
    json_put_bool(&w, "deleted", m->deleted);
    json_put_u64(&w, "depth", m->depth);
    root_put(&w, "root", &m->root);
    json_t *pins = json_array(), *condemned = json_array();
    for (size_t i = 0; i < m->held_pin_count; i++)
        json_add(&w, pins, held_pin_json(&w, &m->held_pins[i]));
    for (size_t i = 0; i < m->condemned_count; i++)
        json_add(&w, condemned, condemned_json(&w, &m->condemned[i]));
    json_put(&w, "held_pins", pins);
    json_put(&w, "condemned", condemned);
    return json_finish(&w, out, MANIFEST_SIZE_MAX, e);
}

static void get_held_pins(struct json_reader *r, struct manifest *m) {
    const json_t *a = json_get_array(r, "held_pins", HELD_PINS_MAX, &m->held_pin_count);
    m->held_pins = xcalloc(MAX(m->held_pin_count, 1), sizeof *m->held_pins);
    for (size_t i = 0; i < m->held_pin_count; i++) {
        const json_t *pair = json_array_get(a, i);
        const char *text = json_string_value(json_array_get(pair, 0));
        if (json_array_size(pair) != 2 || !text || !volume_key_valid(text, ID_VOLUME) ||
            !json_value_id(json_array_get(pair, 1), &m->held_pins[i].pin)) {
            json_bad(r, "held_pins");
            return;
        }
        memcpy(m->held_pins[i].volume.text, text, strlen(text) + 1);
    }
}

static bool get_condemned_one(const json_t *a, struct condemned_range *ret) {
    const json_t *kind = json_array_get(a, 0);
    if (json_value_is(kind, "log")) {
        ret->kind = OBJ_LOG;
        return json_array_size(a) == 3 &&
               json_value_u64(json_array_get(a, 1), JSON_INTEGER_MAX, &ret->first) &&
               json_value_u64(json_array_get(a, 2), JSON_INTEGER_MAX, &ret->count);
    }
    ret->kind = json_value_is(kind, "moved") ? OBJ_MOVED : OBJ_MAP;
    ret->count = 1;
    return json_array_size(a) == 2 && (ret->kind == OBJ_MOVED || json_value_is(kind, "map")) &&
           json_value_id(json_array_get(a, 1), &ret->id);
}

static void get_condemned(struct json_reader *r, struct manifest *m) {
    const json_t *a = json_get_array(r, "condemned", ROOT_LIST_MAX, &m->condemned_count);
    m->condemned = xcalloc(MAX(m->condemned_count, 1), sizeof *m->condemned);
    for (size_t i = 0; i < m->condemned_count; i++) {
        if (!get_condemned_one(json_array_get(a, i), &m->condemned[i])) {
            json_bad(r, "condemned");
            return;
        }
    }
}

int manifest_decode(struct manifest *ret, uint64_t number, struct view in, struct err *e) {
    CLEANUP_JSON json_t *object = NULL;
    int rc = json_parse(&object, in, "manifest", MANIFEST_SIZE_MAX, e);
    if (rc < 0)
        return rc;
    CLEANUP(manifest_release) struct manifest m = {.number = number};
    struct json_reader r = json_reader_of(object, "manifest", e);
    m.epoch = json_get_u64(&r, "publish_epoch", UINT32_MAX) << 32;
    m.epoch |= json_get_u64(&r, "open_count", UINT32_MAX);
    json_get_id(&r, "nonce", &m.nonce);
    m.size_bytes = json_get_u64(&r, "size", JSON_INTEGER_MAX);
    m.block_size = (uint32_t)json_get_u64(&r, "block_size", UINT32_MAX);
    json_get_id(&r, "journal", &m.journal);
    m.last_write = json_get_u64(&r, "last_write", JSON_INTEGER_MAX);
    m.closed = json_get_bool(&r, "closed");
    m.deleted = json_get_bool(&r, "deleted");
    m.depth = (uint32_t)json_get_u64(&r, "depth", DEPTH_MAX);
    root_get(&r, "root", &m.root);
    get_held_pins(&r, &m);
    get_condemned(&r, &m);
    rc = json_end(&r);
    if (rc == 0 && !manifest_valid(&m))
        rc = json_bad(&r, "its content");
    if (rc < 0)
        return rc;
    *ret = m;
    m = (struct manifest){0};
    return 0;
}

/* --- pins --- */

static bool snapshot_key_valid(const char *key, uint64_t n) {
    static const char folder[] = "snapshots/";
    char hash[33] = {0}, same[KEY_MAX];
    if (strncmp(key, folder, sizeof folder - 1) != 0)
        return false;
    memcpy(hash, key + sizeof folder - 1, strnlen(key + sizeof folder - 1, 32));
    if (strspn(hash, "0123456789abcdef") != 32)
        return false;
    key_snapshot(same, hash, n);
    return strcmp(key, same) == 0;
}

static bool first_manifest_key_valid(const char *key, uint64_t n) {
    static const char folder[] = "volumes/";
    struct volume_key v = {0};
    char same[KEY_MAX];
    if (n != 1 || strncmp(key, folder, sizeof folder - 1) != 0)
        return false;
    const char *id = key + sizeof folder - 1;
    size_t len = strcspn(id, "/");
    if (len >= sizeof v.text)
        return false;
    memcpy(v.text, id, len);
    if (!volume_key_valid(v.text, ID_VOLUME))
        return false;
    key_manifest(same, &v, n);
    return strcmp(key, same) == 0;
}

static bool commit_key_valid(const struct commit_key *c) {
    uint64_t n;
    if (strnlen(c->key, KEY_MAX) == KEY_MAX || key_parse_numbered(c->key, &n) < 0)
        return false;
    return c->is_clone ? first_manifest_key_valid(c->key, n) : snapshot_key_valid(c->key, n);
}

static void put_commit(struct json_writer *w, const struct commit_key *c) {
    json_put_bool(w, "clone", c->is_clone);
    json_put_string(w, "commit", c->key);
}

static void get_commit(struct json_reader *r, struct commit_key *ret) {
    *ret = (struct commit_key){.is_clone = json_get_bool(r, "clone")};
    const char *key = json_get_string(r, "commit", KEY_MAX - 1);
    memcpy(ret->key, key, strlen(key) + 1);
    if (!commit_key_valid(ret))
        json_bad(r, "commit");
}

void pin_claim_encode(struct buf *out, const struct pin_claim *c) {
    CHECK(!random_id_is_zero(&c->pin));
    CHECK(commit_key_valid(&c->commit));
    CLEANUP(json_release) struct json_writer w;
    json_start(&w, "pin-claim");
    json_put_id(&w, "pin", &c->pin);
    put_commit(&w, &c->commit);
    json_put_id(&w, "nonce", &c->nonce);
    json_put_u64(&w, "created_ms", c->created_ms);
    int rc = json_finish(&w, out, MANIFEST_SIZE_MAX, NULL);
    CHECK(rc == 0);
}

int pin_claim_decode(struct pin_claim *ret, struct view in, struct err *e) {
    CLEANUP_JSON json_t *object = NULL;
    int rc = json_parse(&object, in, "pin-claim", MANIFEST_SIZE_MAX, e);
    if (rc < 0)
        return rc;
    struct json_reader r = json_reader_of(object, "pin-claim", e);
    struct pin_claim c;
    json_get_id(&r, "pin", &c.pin);
    get_commit(&r, &c.commit);
    json_get_id(&r, "nonce", &c.nonce);
    c.created_ms = json_get_u64(&r, "created_ms", JSON_INTEGER_MAX);
    if (random_id_is_zero(&c.pin))
        json_bad(&r, "pin");
    rc = json_end(&r);
    if (rc < 0)
        return rc;
    *ret = c;
    return 0;
}

void pin_root_release(struct pin_root *p) {
    root_release(&p->root);
    *p = (struct pin_root){0};
}

static bool pin_root_valid(const struct pin_root *p) {
    if (random_id_is_zero(&p->pin) || !commit_key_valid(&p->commit))
        return false;
    if (p->expired)
        return true;
    return size_valid(p->size_bytes) && p->size_bytes > 0 && block_size_valid(p->block_size) &&
           p->depth <= DEPTH_MAX && root_valid(&p->root);
}

int pin_root_encode(struct buf *out, const struct pin_root *p, struct err *e) {
    int rc = p->expired ? 0 : root_check_limits(&p->root, e);
    if (rc < 0)
        return rc;
    CHECK(pin_root_valid(p));
    CLEANUP(json_release) struct json_writer w;
    json_start(&w, "pin-root");
    json_put_id(&w, "pin", &p->pin);
    put_commit(&w, &p->commit);
    json_put_id(&w, "nonce", &p->nonce);
    json_put_bool(&w, "expired", p->expired);
    if (!p->expired) {
        json_put_u64(&w, "size", p->size_bytes);
        json_put_u64(&w, "block_size", p->block_size);
        json_put_u64(&w, "depth", p->depth);
        root_put(&w, "root", &p->root);
    }
    return json_finish(&w, out, MANIFEST_SIZE_MAX, e);
}

int pin_root_decode(struct pin_root *ret, struct view in, struct err *e) {
    CLEANUP_JSON json_t *object = NULL;
    int rc = json_parse(&object, in, "pin-root", MANIFEST_SIZE_MAX, e);
    if (rc < 0)
        return rc;
    CLEANUP(pin_root_release) struct pin_root p = {0};
    struct json_reader r = json_reader_of(object, "pin-root", e);
    json_get_id(&r, "pin", &p.pin);
    get_commit(&r, &p.commit);
    json_get_id(&r, "nonce", &p.nonce);
    p.expired = json_get_bool(&r, "expired");
    if (!p.expired) {
        p.size_bytes = json_get_u64(&r, "size", JSON_INTEGER_MAX);
        p.block_size = (uint32_t)json_get_u64(&r, "block_size", UINT32_MAX);
        p.depth = (uint32_t)json_get_u64(&r, "depth", DEPTH_MAX);
        root_get(&r, "root", &p.root);
    }
    rc = json_end(&r);
    if (rc == 0 && !pin_root_valid(&p))
        rc = json_bad(&r, "its content");
    if (rc < 0)
        return rc;
    *ret = p;
    p = (struct pin_root){0};
    return 0;
}
