/* Names of things in a pool: volume and snapshot ids, object references, keys. Pure; any thread. */
#pragma once

#include "common/buf.h"
#include "common/err.h"

enum {
    ID_MAX = 64,           /* bytes of a volume or snapshot id, the final NUL included */
    POOL_NAME_MAX = 11,    /* bytes of a pool's name, the NUL included: 1 to 10 of a-z 0-9 - */
    RANDOM_ID_SIZE = 16,   /* bytes of nonces and of run, moved-segment, journal and pin ids */
    RANDOM_ID_HEX = 33,    /* the same in hex, the NUL included */
    KEY_MAX = 256,         /* bytes of a key below the pool's prefix, the NUL included */
    ENTITY_NAME_MAX = 128, /* bytes of a volume's or snapshot's name, without NUL */
};

struct random_id {
    uint8_t bytes[RANDOM_ID_SIZE];
};

static inline bool random_id_equal(const struct random_id *a, const struct random_id *b) {
    return memcmp(a->bytes, b->bytes, RANDOM_ID_SIZE) == 0;
}
bool random_id_is_zero(const struct random_id *id);
void random_id_to_hex(const struct random_id *id, char hex[RANDOM_ID_HEX]);
int random_id_from_hex(struct random_id *ret, const char *hex, struct err *e);

/* An id as users see it is "<local>.<pool>": "pv-<h>-<hex n>.<pool>" or "snap-<h>-<hex n>.<pool>",
 * where h are the first 32 hex digits of sha256(name) and n is the number of the record that made
 * it. Keys and objects use the local part, which is what `struct volume_key` holds. */
struct volume_key {
    char text[ID_MAX]; /* "pv-..." or "snap-..." without ".<pool>"; NUL-terminated */
};

bool volume_key_equal(const struct volume_key *a, const struct volume_key *b);

enum id_kind { ID_VOLUME, ID_SNAPSHOT };
struct parsed_id {
    enum id_kind kind;
    struct volume_key key; /* the local part */
    char name_hash[33];    /* <h> */
    uint64_t number;       /* n */
    char pool[POOL_NAME_MAX];
};
/* An id that does not parse is -ERR_NOT_FOUND, never -ERR_INVALID: it names nothing that exists. */
int id_parse(struct parsed_id *ret, const char *id, struct err *e);
void id_format_key(struct volume_key *ret, enum id_kind kind, const char *name_hash,
                   uint64_t number);
void id_format(char ret[ID_MAX], const struct volume_key *key, const char *pool);
void name_hash(char ret[33], const char *name); /* first 32 hex digits of sha256 */

/* What an object reference points at. */
enum obj_kind { OBJ_LOG, OBJ_MOVED, OBJ_MAP };
struct obj_ref {
    uint16_t volume;     /* index into the table of volume keys that comes with the root or run */
    uint8_t store;       /* index of the store; 0 in format 1 */
    uint8_t kind;        /* obj_kind */
    uint64_t seq;        /* OBJ_LOG */
    struct random_id id; /* OBJ_MOVED, OBJ_MAP; zero otherwise */
};
bool obj_ref_equal(const struct obj_ref *a, const struct obj_ref *b);
int obj_ref_compare(const struct obj_ref *a,
                    const struct obj_ref *b); /* a total order: volume, store, kind, seq, id */

/* Keys below the pool's prefix. Each writes a NUL-terminated key. */
void key_pool(char key[KEY_MAX]);
void key_records_prefix(char key[KEY_MAX], const char *hash); /* "records/<h>/"; NULL: "records/" */
void key_record(char key[KEY_MAX], const char *hash, uint64_t n); /* "records/<h>/<n>.json" */
void key_snapshots_prefix(char key[KEY_MAX], const char *hash);
void key_snapshot(char key[KEY_MAX], const char *hash, uint64_t n);
void key_nodes_prefix(char key[KEY_MAX], const char *node_id); /* NULL: "nodes/" */
void key_node(char key[KEY_MAX], const char *node_id, uint64_t n);
void key_volume_prefix(char key[KEY_MAX], const struct volume_key *v); /* "volumes/<id>/" */
void key_manifests_prefix(char key[KEY_MAX],
                          const struct volume_key *v); /* "volumes/<id>/manifest/" */
void key_manifest(char key[KEY_MAX], const struct volume_key *v, uint64_t n);
void key_log_prefix(char key[KEY_MAX], const struct volume_key *v);
void key_log(char key[KEY_MAX], const struct volume_key *v,
             uint64_t seq); /* "volumes/<id>/log/%016x" */
void key_moved(char key[KEY_MAX], const struct volume_key *v, const struct random_id *id);
void key_map(char key[KEY_MAX], const struct volume_key *v, const struct random_id *id);
void key_pins_prefix(char key[KEY_MAX], const struct volume_key *v);
void key_pin_claim(char key[KEY_MAX], const struct volume_key *v, const struct random_id *id);
void key_pin_root(char key[KEY_MAX], const struct volume_key *v, const struct random_id *id);
void key_of_ref(char key[KEY_MAX], const struct volume_key *v, const struct obj_ref *ref);

/* The number in the last component of a numbered record's key ("<16 hex of 2^64-1-n>.json" -> n) or
 * of a log key
 * ("%016x" -> seq), the id in that of a pin, map or moved key. -ERR_INVALID for anything else: such
 * keys are not ours. */
int key_parse_numbered(const char *key, uint64_t *ret_n);
int key_parse_log(const char *key, uint64_t *ret_seq);
int key_parse_pin(const char *key, struct random_id *ret_id, bool *ret_is_root);
int key_parse_random(const char *key, struct random_id *ret_id);
