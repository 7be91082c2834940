/* Records of the pool: volumes, snapshots, nodes and the pool itself. JSON <-> structs, pure, at
 * most RECORD_SIZE_MAX bytes each. Strings are owned. Any thread. */
#pragma once

#include "portalbd/format/root.h"

enum {
    RECORD_SIZE_MAX = 64 * 1024,
    RECORD_PARAMETERS_MAX = 4096 /* bytes of all keys and values */
};

struct string_pair {
    char *key;   /* owned */
    char *value; /* owned */
};
struct string_map {
    struct string_pair *items; /* owned; sorted by key when it comes out of a decoder */
    size_t count;
};
void string_map_release(struct string_map *m);
void string_map_copy(struct string_map *to, const struct string_map *from);
const char *string_map_get(const struct string_map *m, const char *key); /* borrowed, or NULL */
void string_map_set(struct string_map *m, const char *key, const char *value);

enum volume_state { VOLUME_READY, VOLUME_FENCING, VOLUME_RESTORING, VOLUME_DELETED };

struct volume_record {
    uint64_t number; /* n, from the key */
    struct random_id nonce;
    char *name;            /* owned */
    struct volume_key key; /* pv-<h>-<hex n of the record that created it> */
    uint64_t size_bytes;   /* what is wanted; the manifest's is the truth */
    uint32_t block_size;
    char *fingerprint; /* owned; of the request that created it */
    struct string_map parameters;
    enum { SOURCE_NONE, SOURCE_SNAPSHOT, SOURCE_VOLUME } source_kind;
    char *source;           /* owned; id of snapshot or volume, or "" */
    char *node;             /* owned; node that it is published to, or "" */
    bool read_only;         /* published read-only */
    uint64_t publish_epoch; /* < 2^32 */
    enum volume_state state;
    char *restore_snapshot; /* owned; when RESTORING; else "" */
    uint64_t created_ms;
};
void volume_record_release(struct volume_record *r);
void volume_record_copy(struct volume_record *to, const struct volume_record *from);
int volume_record_encode(struct buf *out, const struct volume_record *r, struct err *e);
int volume_record_decode(struct volume_record *ret, uint64_t number, struct view in, struct err *e);
/* The same of what lies under a key (whole, a numbered one), which must be its own: of this name,
 * of this or an older number. Else a command would do to another volume what it was asked to do to
 * this one. -ERR_CORRUPT. */
int volume_record_decode_at(struct volume_record *ret, const char *key, struct view in,
                            struct err *e);

struct snapshot_record {
    uint64_t number;
    struct random_id nonce;
    bool deleted;             /* a tombstone: only name and nonce mean something */
    char *name;               /* owned; pool-wide */
    struct volume_key key;    /* snap-<h>-<hex n> */
    struct volume_key source; /* the volume it was cut from */
    char *source_name;        /* owned */
    struct random_id pin;     /* in the source */
    uint64_t size_bytes;
    uint32_t block_size;
    uint64_t created_ms;
    char *fstype; /* owned; from the volume's parameters, or "" */
};
void snapshot_record_release(struct snapshot_record *r);
void snapshot_record_copy(struct snapshot_record *to, const struct snapshot_record *from);
int snapshot_record_encode(struct buf *out, const struct snapshot_record *r, struct err *e);
int snapshot_record_decode(struct snapshot_record *ret, uint64_t number, struct view in,
                           struct err *e);
int snapshot_record_decode_at(struct snapshot_record *ret, const char *key, struct view in,
                              struct err *e);

struct node_record {
    uint64_t number;
    struct random_id nonce;
    bool deleted;
    char *node_id; /* owned; <= 128 bytes, see key_node for how it is written in a key */
    char *version; /* owned; of the agent */
    uint64_t registered_ms;
};
void node_record_release(struct node_record *r);
int node_record_encode(struct buf *out, const struct node_record *r, struct err *e);
int node_record_decode(struct node_record *ret, uint64_t number, struct view in, struct err *e);
int node_record_decode_at(struct node_record *ret, const char *key, struct view in, struct err *e);

struct pool_record {
    struct random_id uuid;
    char *cluster_id;     /* owned, or "" */
    bool conditional_put; /* the probe saw that If-None-Match is honoured */
    uint64_t created_ms;
};
void pool_record_release(struct pool_record *r);
int pool_record_encode(struct buf *out, const struct pool_record *r, struct err *e);
int pool_record_decode(struct pool_record *ret, struct view in, struct err *e);
