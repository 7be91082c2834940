/* Roots, manifests and pins: what names everything that a volume's content needs. JSON <-> structs,
 * pure, at most MANIFEST_SIZE_MAX bytes each. Any thread. */
#pragma once

#include "portalbd/format/run.h"

enum {
    MANIFEST_SIZE_MAX = 1024 * 1024,
    ROOT_VOLUMES_MAX = 64,
    ROOT_RUNS_MAX = 64,
    ROOT_TAIL_MAX = 16384, /* ranges */
    ROOT_LIST_MAX = 4096,  /* objects evacuated, or ranges condemned, inside the manifest */
    HELD_PINS_MAX = 64,
    FENCE_JUMP = 33, /* a fence at q: the next segment is q + FENCE_JUMP */
    WINDOW = 32,     /* seq put <= frontier + WINDOW */
};

struct root_run {
    struct obj_ref index; /* OBJ_MAP; volume index into the root's table */
    uint64_t age;         /* next_seq of the checkpoint it was made at; newest first in a root */
    uint64_t entry_count;
    uint64_t size; /* bytes of index and parts */
};

/* Segments below next_seq that no run holds, in the order of replay. */
struct root_tail {
    uint16_t volume; /* index into the root's table */
    uint64_t first;
    uint64_t count;
};

struct root {
    struct volume_key *volumes; /* owned; [0] is the volume whose root this is */
    size_t volume_count;
    struct root_run *runs; /* owned; newest first */
    size_t run_count;
    struct root_tail *tail; /* owned */
    size_t tail_count;
    uint64_t next_seq;
    struct obj_ref *evacuated; /* owned */
    size_t evacuated_count;
};
void root_init(struct root *r, const struct volume_key *own);
void root_release(struct root *r);
void root_copy(struct root *to, const struct root *from); /* `to` is uninitialised */
/* The index of a volume in the root's table, added when missing; -ERR_OVERLOAD when the table is
 * full. */
int root_volume_index(struct root *r, const struct volume_key *v, struct err *e);

/* A pin that this volume holds in another one: released when neither its root, nor a pin of its
 * own, nor an open claim needs it. */
struct held_pin {
    struct volume_key volume;
    struct random_id pin;
};

/* Objects of a volume's own prefix that its root no longer needs. */
struct condemned_range {
    uint8_t kind; /* OBJ_LOG: [first, first + count); OBJ_MOVED, OBJ_MAP: id, count 1 */
    uint64_t first;
    uint64_t count;
    struct random_id id;
};

struct manifest {
    uint64_t number; /* n, from the key */
    uint64_t epoch;  /* publish epoch << 32 | open count */
    struct random_id nonce;
    uint64_t size_bytes;
    uint32_t block_size;      /* 4096 */
    struct random_id journal; /* zero: none */
    uint64_t last_write;      /* of that journal, below next_seq */
    bool closed;
    bool deleted;
    uint32_t depth; /* clones between this volume and one that stands alone */
    struct root root;
    struct held_pin *held_pins; /* owned */
    size_t held_pin_count;
    struct condemned_range *condemned; /* owned */
    size_t condemned_count;
};
void manifest_release(struct manifest *m);
/* A copy under the next number, owned by the caller: to be changed and put. */
struct manifest manifest_next(const struct manifest *m);
/* -ERR_OVERLOAD when it would be larger than MANIFEST_SIZE_MAX. */
int manifest_encode(struct buf *out, const struct manifest *m, struct err *e);
int manifest_decode(struct manifest *ret, uint64_t number, struct view in, struct err *e);

static inline uint32_t epoch_publish(uint64_t epoch) {
    return (uint32_t)(epoch >> 32);
}

/* What makes a pin live: the newest record of a snapshot at this key names it, or the first
 * manifest of a clone at this key does. */
struct commit_key {
    bool is_clone;     /* key is a volume's first manifest, else a snapshot record */
    char key[KEY_MAX]; /* below the pool's prefix */
};

struct pin_claim {
    struct random_id pin;
    struct commit_key commit;
    struct random_id nonce;
    uint64_t created_ms; /* for people */
};
void pin_claim_encode(struct buf *out, const struct pin_claim *c);
int pin_claim_decode(struct pin_claim *ret, struct view in, struct err *e);

struct pin_root {
    struct random_id pin;
    struct commit_key commit;
    struct random_id nonce;
    bool expired; /* swept: there is no root and never will be */
    uint64_t size_bytes;
    uint32_t block_size;
    uint32_t depth;
    struct root root;
};
void pin_root_release(struct pin_root *p);
int pin_root_encode(struct buf *out, const struct pin_root *p, struct err *e);
int pin_root_decode(struct pin_root *ret, struct view in, struct err *e);
