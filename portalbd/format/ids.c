/* Names of things in a pool: ids, object references, keys.
 *
 * Everything that becomes part of a key comes from a closed alphabet (lower-case hex, "pv-",
 * "snap-", or a node id that key_node has looked at), so no key can leave its folder.
 *
 *   I1  A volume_key that id_parse or id_format_key made is "pv-" or "snap-", 32 hex digits, "-",
 *       1 to 14 hex digits without a leading zero.
 *   I2  Such a key and ".<pool>" fit ID_MAX. */
#include "portalbd/format/ids_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "portalbd/format/sha256_internal.h"

enum {
    NAME_HASH_LEN = 32,      /* hex digits of <h> */
    ID_NUMBER_DIGITS = 14,   /* of n in an id: what ID_MAX leaves beside the longest pool name */
    KEY_NUMBER_DIGITS = 16,  /* of a number in a key */
    KEY_PLAIN_NODE_MAX = 128 /* bytes of a node id that stands in a key as it is */
};

/* --- hex --- */

static int hex_value(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

static size_t hex_span(const char *s, size_t max) {
    size_t n = 0;
    while (n < max && hex_value(s[n]) >= 0)
        n++;
    return n;
}

/* digits hex digits, which the caller has looked at. */
static uint64_t hex_number(const char *s, size_t digits) {
    CHECK(digits <= 16);
    uint64_t v = 0;
    for (size_t i = 0; i < digits; i++)
        v = v << 4 | (uint64_t)hex_value(s[i]);
    return v;
}

static void hex_of_bytes(char *hex, const uint8_t *bytes, size_t len) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < len; i++) {
        hex[2 * i] = digits[bytes[i] >> 4];
        hex[2 * i + 1] = digits[bytes[i] & 15];
    }
    hex[2 * len] = '\0';
}

bool random_id_is_zero(const struct random_id *id) {
    static const struct random_id zero;
    return random_id_equal(id, &zero);
}

void random_id_to_hex(const struct random_id *id, char hex[RANDOM_ID_HEX]) {
    hex_of_bytes(hex, id->bytes, RANDOM_ID_SIZE);
}

/* The first 32 characters of hex, which must be hex digits. */
static bool random_id_from_digits(struct random_id *ret, const char *hex) {
    if (hex_span(hex, 2 * RANDOM_ID_SIZE) != 2 * RANDOM_ID_SIZE)
        return false;
    for (size_t i = 0; i < RANDOM_ID_SIZE; i++)
        ret->bytes[i] = (uint8_t)(hex_value(hex[2 * i]) << 4 | hex_value(hex[2 * i + 1]));
    return true;
}

int random_id_from_hex(struct random_id *ret, const char *hex, struct err *e) {
    struct random_id id;
    if (strnlen(hex, RANDOM_ID_HEX) != RANDOM_ID_HEX - 1 || !random_id_from_digits(&id, hex))
        return err_set(e, -ERR_INVALID, "an id of %d lower-case hex digits is wanted",
                       RANDOM_ID_HEX - 1);
    *ret = id;
    return 0;
}

/* --- ids --- */

void name_hash(char ret[33], const char *name) {
    uint8_t digest[SHA256_SIZE];
    sha256(digest, view_of_str(name));
    hex_of_bytes(ret, digest, NAME_HASH_LEN / 2);
}

static const char *kind_prefix(enum id_kind kind) {
    return kind == ID_VOLUME ? "pv-" : "snap-";
}

/* The local part at the start of text. Returns its length, or 0 when there is none. */
static size_t parse_local(struct parsed_id *ret, const char *text) {
    enum id_kind kind = strncmp(text, "pv-", 3) == 0 ? ID_VOLUME : ID_SNAPSHOT;
    const char *prefix = kind_prefix(kind);
    size_t at = strlen(prefix);
    if (strncmp(text, prefix, at) != 0)
        return 0;
    if (hex_span(text + at, NAME_HASH_LEN) != NAME_HASH_LEN || text[at + NAME_HASH_LEN] != '-')
        return 0;
    const char *hash = text + at;
    const char *number = hash + NAME_HASH_LEN + 1;
    size_t digits = hex_span(number, ID_NUMBER_DIGITS + 1);
    if (digits == 0 || digits > ID_NUMBER_DIGITS || number[0] == '0')
        return 0;

    size_t len = (size_t)(number - text) + digits;
    CHECK(len < ID_MAX);
    *ret = (struct parsed_id){.kind = kind, .number = hex_number(number, digits)};
    memcpy(ret->key.text, text, len);
    memcpy(ret->name_hash, hash, NAME_HASH_LEN);
    return len;
}

static bool pool_name_valid(const char *pool) {
    size_t len = strspn(pool, "abcdefghijklmnopqrstuvwxyz0123456789-");
    return len >= 1 && len < POOL_NAME_MAX && pool[len] == '\0';
}

int id_parse(struct parsed_id *ret, const char *id, struct err *e) {
    struct parsed_id parsed;
    size_t len = parse_local(&parsed, id);
    if (len == 0 || id[len] != '.' || !pool_name_valid(id + len + 1))
        return err_set(e, -ERR_NOT_FOUND, "there is nothing with the id '%.80s'", id);
    memcpy(parsed.pool, id + len + 1, strlen(id + len + 1) + 1);
    *ret = parsed;
    return 0;
}

bool volume_key_valid(const char *text, enum id_kind kind) {
    struct parsed_id parsed;
    size_t len = parse_local(&parsed, text);
    return len > 0 && text[len] == '\0' && parsed.kind == kind;
}

bool volume_key_equal(const struct volume_key *a, const struct volume_key *b) {
    return strncmp(a->text, b->text, sizeof a->text) == 0;
}

void id_format_key(struct volume_key *ret, enum id_kind kind, const char *hash, uint64_t number) {
    CHECK(number >= 1);
    CHECK(number >> (4 * ID_NUMBER_DIGITS) == 0);
    CHECK(hex_span(hash, NAME_HASH_LEN) == NAME_HASH_LEN && hash[NAME_HASH_LEN] == '\0');
    *ret = (struct volume_key){0};
    int n = snprintf(ret->text, sizeof ret->text, "%s%s-%llx", kind_prefix(kind), hash,
                     (unsigned long long)number);
    CHECK(n > 0 && (size_t)n < sizeof ret->text);
}

void id_format(char ret[ID_MAX], const struct volume_key *key, const char *pool) {
    CHECK(pool_name_valid(pool));
    int n = snprintf(ret, ID_MAX, "%s.%s", key->text, pool);
    CHECK(n > 0 && n < ID_MAX);
}

/* --- object references --- */

bool obj_ref_equal(const struct obj_ref *a, const struct obj_ref *b) {
    return obj_ref_compare(a, b) == 0;
}

int obj_ref_compare(const struct obj_ref *a, const struct obj_ref *b) {
    if (a->volume != b->volume)
        return a->volume < b->volume ? -1 : 1;
    if (a->store != b->store)
        return a->store < b->store ? -1 : 1;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    if (a->seq != b->seq)
        return a->seq < b->seq ? -1 : 1;
    return memcmp(a->id.bytes, b->id.bytes, RANDOM_ID_SIZE);
}

bool obj_ref_valid(const struct obj_ref *ref) {
    if (ref->store != 0 || ref->kind > OBJ_MAP)
        return false;
    return ref->kind == OBJ_LOG ? ref->seq >= 1 && random_id_is_zero(&ref->id)
                                : ref->seq == 0 && !random_id_is_zero(&ref->id);
}

/* --- keys --- */

static void key_print(char key[KEY_MAX], const char *fmt, ...) PRINTF_LIKE(2, 3);
static void key_print(char key[KEY_MAX], const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(key, KEY_MAX, fmt, ap);
    va_end(ap);
    CHECK(n > 0 && n < KEY_MAX);
}

/* "<prefix><2^64-1-n in hex>.json": the newest record comes first in a LIST. */
static void key_append_number(char key[KEY_MAX], uint64_t n) {
    CHECK(n >= 1);
    size_t len = strlen(key);
    int more =
        snprintf(key + len, KEY_MAX - len, "%016llx.json", (unsigned long long)(UINT64_MAX - n));
    CHECK(more > 0 && len + (size_t)more < KEY_MAX);
}

void key_pool(char key[KEY_MAX]) {
    key_print(key, "portalbd.json");
}

static void key_hashed_prefix(char key[KEY_MAX], const char *folder, const char *hash) {
    if (!hash) {
        key_print(key, "%s/", folder);
        return;
    }
    CHECK(hex_span(hash, NAME_HASH_LEN) == NAME_HASH_LEN && hash[NAME_HASH_LEN] == '\0');
    key_print(key, "%s/%s/", folder, hash);
}

void key_records_prefix(char key[KEY_MAX], const char *hash) {
    key_hashed_prefix(key, "records", hash);
}

void key_record(char key[KEY_MAX], const char *hash, uint64_t n) {
    CHECK(hash);
    key_records_prefix(key, hash);
    key_append_number(key, n);
}

void key_snapshots_prefix(char key[KEY_MAX], const char *hash) {
    key_hashed_prefix(key, "snapshots", hash);
}

void key_snapshot(char key[KEY_MAX], const char *hash, uint64_t n) {
    CHECK(hash);
    key_snapshots_prefix(key, hash);
    key_append_number(key, n);
}

/* Letters, digits, '.', '_' and '-', the first a letter or a digit: such a node id stands in keys
 * as it is. */
static bool node_id_plain(const char *node_id) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    static const char more[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t len = strnlen(node_id, KEY_PLAIN_NODE_MAX + 1);
    return len >= 1 && len <= KEY_PLAIN_NODE_MAX && strspn(node_id, letters) >= 1 &&
           strspn(node_id, more) == len;
}

/* Any other node id stands there as "_<sha256>", which no plain one can be. */
void key_nodes_prefix(char key[KEY_MAX], const char *node_id) {
    if (!node_id) {
        key_print(key, "nodes/");
    } else if (node_id_plain(node_id)) {
        key_print(key, "nodes/%s/", node_id);
    } else {
        uint8_t digest[SHA256_SIZE];
        char hex[2 * SHA256_SIZE + 1];
        sha256(digest, view_of_str(node_id));
        hex_of_bytes(hex, digest, sizeof digest);
        key_print(key, "nodes/_%s/", hex);
    }
}

void key_node(char key[KEY_MAX], const char *node_id, uint64_t n) {
    CHECK(node_id);
    key_nodes_prefix(key, node_id);
    key_append_number(key, n);
}

static void key_in_volume(char key[KEY_MAX], const struct volume_key *v, const char *rest) {
    CHECK(v->text[0] != '\0');
    key_print(key, "volumes/%s/%s", v->text, rest);
}

void key_volume_prefix(char key[KEY_MAX], const struct volume_key *v) {
    key_in_volume(key, v, "");
}

void key_manifests_prefix(char key[KEY_MAX], const struct volume_key *v) {
    key_in_volume(key, v, "manifest/");
}

void key_manifest(char key[KEY_MAX], const struct volume_key *v, uint64_t n) {
    key_manifests_prefix(key, v);
    key_append_number(key, n);
}

void key_log_prefix(char key[KEY_MAX], const struct volume_key *v) {
    key_in_volume(key, v, "log/");
}

void key_log(char key[KEY_MAX], const struct volume_key *v, uint64_t seq) {
    CHECK(seq >= 1);
    key_print(key, "volumes/%s/log/%016llx", v->text, (unsigned long long)seq);
}

static void key_with_id(char key[KEY_MAX], const struct volume_key *v, const char *folder,
                        const struct random_id *id, const char *suffix) {
    char hex[RANDOM_ID_HEX];
    random_id_to_hex(id, hex);
    key_print(key, "volumes/%s/%s/%s%s", v->text, folder, hex, suffix);
}

void key_moved(char key[KEY_MAX], const struct volume_key *v, const struct random_id *id) {
    key_with_id(key, v, "moved", id, "");
}

void key_map(char key[KEY_MAX], const struct volume_key *v, const struct random_id *id) {
    key_with_id(key, v, "map", id, "");
}

void key_pins_prefix(char key[KEY_MAX], const struct volume_key *v) {
    key_in_volume(key, v, "pins/");
}

void key_pin_claim(char key[KEY_MAX], const struct volume_key *v, const struct random_id *id) {
    key_with_id(key, v, "pins", id, ".claim");
}

void key_pin_root(char key[KEY_MAX], const struct volume_key *v, const struct random_id *id) {
    key_with_id(key, v, "pins", id, ".root");
}

void key_of_ref(char key[KEY_MAX], const struct volume_key *v, const struct obj_ref *ref) {
    CHECK(obj_ref_valid(ref));
    switch (ref->kind) {
    case OBJ_LOG:
        key_log(key, v, ref->seq);
        return;
    case OBJ_MOVED:
        key_moved(key, v, &ref->id);
        return;
    default:
        key_map(key, v, &ref->id);
    }
}

static const char *last_component(const char *key) {
    const char *slash = strrchr(key, '/');
    return slash ? slash + 1 : key;
}

int key_parse_numbered(const char *key, uint64_t *ret_n) {
    const char *name = last_component(key);
    if (hex_span(name, KEY_NUMBER_DIGITS) != KEY_NUMBER_DIGITS ||
        strcmp(name + KEY_NUMBER_DIGITS, ".json") != 0)
        return -ERR_INVALID;
    uint64_t n = UINT64_MAX - hex_number(name, KEY_NUMBER_DIGITS);
    if (n == 0)
        return -ERR_INVALID;
    *ret_n = n;
    return 0;
}

int key_parse_log(const char *key, uint64_t *ret_seq) {
    const char *name = last_component(key);
    if (hex_span(name, KEY_NUMBER_DIGITS) != KEY_NUMBER_DIGITS || name[KEY_NUMBER_DIGITS] != '\0')
        return -ERR_INVALID;
    uint64_t seq = hex_number(name, KEY_NUMBER_DIGITS);
    if (seq == 0)
        return -ERR_INVALID;
    *ret_seq = seq;
    return 0;
}

int key_parse_pin(const char *key, struct random_id *ret_id, bool *ret_is_root) {
    const char *name = last_component(key);
    struct random_id id;
    if (!random_id_from_digits(&id, name))
        return -ERR_INVALID;
    const char *suffix = name + 2 * RANDOM_ID_SIZE;
    bool is_root = strcmp(suffix, ".root") == 0;
    if (!is_root && strcmp(suffix, ".claim") != 0)
        return -ERR_INVALID;
    *ret_id = id;
    *ret_is_root = is_root;
    return 0;
}

int key_parse_random(const char *key, struct random_id *ret_id) {
    const char *name = last_component(key);
    struct random_id id;
    if (!random_id_from_digits(&id, name) || name[2 * RANDOM_ID_SIZE] != '\0')
        return -ERR_INVALID;
    *ret_id = id;
    return 0;
}
