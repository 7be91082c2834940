/* The catalog: what a pool knows about its volumes, snapshots and nodes, in numbered records on the
 * object store and nowhere else. The controller (csi) and portalctl are its only users; daemons and
 * agents never write a volume record.
 *
 * Any number of catalogs, in any processes, may work on one pool at the same time. Every change is
 * one conditional PUT of record n+1 that counts only once a LIST shows it newest
 * (portalbd/catalog/numbered.h); who loses starts over from the newest. Every call may be repeated
 * after it was cut off at any step, here or elsewhere, and finishes what the first one began.
 *
 * All calls are fibers on the owner thread of c->env and wait for the store as long as it takes
 * (the store is a stack with a retry layer); cancelling the fiber ends them with -ERR_CANCELLED.
 * They return 0 or -ERR_x with a text that names the thing, and besides the errors that each lists:
 *   -ERR_CANCELLED  cut off: nothing, or all, or a part that a repetition finishes, has happened
 *   -ERR_BUSY       lost CATALOG_ATTEMPTS_MAX races in a row: come again
 *   -ERR_CORRUPT, -ERR_UNSUPPORTED  a record does not decode; nothing was changed
 * *ret is filled on success only; the caller releases it. Costs are counted in requests to the
 * store when nothing races; a "newest" is a LIST and a GET. */
#pragma once

#include "portalbd/format/records.h"
#include "portalbd/objstore/objstore_fiber.h"

enum {
    CATALOG_ATTEMPTS_MAX = 16, /* lost races in a row before -ERR_BUSY */
    CATALOG_PAGE_MAX = 1000,   /* items of one page of a list */
    CATALOG_PARALLEL_MAX = 16, /* requests at once while a list is filled */
    CATALOG_TOKEN_MAX = 300,   /* bytes of a page token, the NUL included */
    CATALOG_NODE_ID_MAX = 128, /* bytes of a node id, without NUL */
    CATALOG_DEPTH_MAX = 32,    /* clones of clones */
    VOLUME_BLOCK_SIZE = 4096,  /* bytes; towards every kernel, for ever */
};
#define VOLUME_SIZE_MAX (UINT64_C(1) << 60) /* bytes; sizes are multiples of VOLUME_BLOCK_SIZE */

/* What of a volume never changes, so that a snapshot needs no look at its record, unless that was
 * seen to name a restore. */
struct catalog_identity {
    struct volume_key key;
    char name[ENTITY_NAME_MAX + 1];
    char fstype[32];
};
enum { CATALOG_IDENTITIES = 16 };

/* A value: the owner keeps env and store alive. Several may share a store. */
struct catalog {
    struct env *env;          /* borrowed */
    struct objstore *store;   /* borrowed; a stack with a retry layer */
    char pool[POOL_NAME_MAX]; /* the local name that ids end in */
    struct catalog_identity identities[CATALOG_IDENTITIES]; /* of volumes met last, in a ring */
    unsigned identity_next;
};
void catalog_init(struct catalog *c, struct env *env, struct objstore *store, const char *pool);

/* --- volumes (volumes.c) --- */

struct volume_info {
    struct volume_record record; /* record.size_bytes is what is wanted ... */
    char id[ID_MAX];             /* "pv-....<pool>" */
    uint64_t size_bytes;         /* ... and this, out of the newest manifest, is the truth */
    uint32_t depth;              /* clones between it and a volume that stands alone */
    bool closed;                 /* no writer has it open, as far as its manifest says */
};
void volume_info_release(struct volume_info *i);

struct volume_create {
    const char *name;     /* 1..ENTITY_NAME_MAX bytes */
    uint64_t size_bytes;  /* at least; rounded up to VOLUME_BLOCK_SIZE; 0: the source's */
    uint64_t limit_bytes; /* at most; 0: none */
    const char *source;   /* id of a snapshot or a volume of this pool; NULL or "": from nothing */
    const struct string_map *parameters; /* borrowed; NULL: none. Kept in the record for ever */
};

/* Creates a volume, or returns the one that exists under this name when it was created by an equal
 * request (size, limit, source and parameters: the fingerprint), growth since then aside. Finishes
 * a creation that died half way. A volume with a source is a clone: O(1) in data, independent of
 * it; larger than its source when that was asked for. A half done restore of a volume that is the
 * source is finished first.
 *   -ERR_INVALID      name, size (0 without a source) or parameters out of range; a source of
 *                     another pool
 *   -ERR_EXISTS       the name is taken by a volume that was asked for differently
 *   -ERR_NOT_FOUND    the source does not exist
 *   -ERR_NO_SPACE     the size (of the source, or rounded up) is above limit_bytes, or the format's
 *   -ERR_UNSUPPORTED  the source is a clone of depth CATALOG_DEPTH_MAX
 *
 * Costs 4 from nothing, 9 from a snapshot, 13 from a volume, 4 when it exists. */
int catalog_volume_create(struct catalog *c, const struct volume_create *req,
                          struct volume_info *ret, struct err *e);

/* -ERR_NOT_FOUND: also for an id that does not parse, is of another pool, was deleted, or whose
 * creation never came to its end. Costs 4. */
int catalog_volume_get(struct catalog *c, const char *id, struct volume_info *ret, struct err *e);
/* The same by name. */
int catalog_volume_find(struct catalog *c, const char *name, struct volume_info *ret,
                        struct err *e);

struct volume_list {
    struct volume_info *items; /* owned */
    size_t count;
    char next_token[CATALOG_TOKEN_MAX]; /* "" at the end */
};
void volume_list_release(struct volume_list *l);
/* Up to max (0: CATALOG_PAGE_MAX) volumes behind `token` (NULL or "": from the start), in an order
 * that means nothing but stays. Volumes that come or go meanwhile may be there or not. One that
 * cannot be read (-ERR_CORRUPT, -ERR_UNSUPPORTED) ends the list with its error; when ret_damage is
 * not NULL it is left out instead, and the error of the first stands there, unless one does
 * already. -ERR_STALE: not a token of ours. Costs about 3 a volume, CATALOG_PARALLEL_MAX at once.
 */
int catalog_volume_list(struct catalog *c, const char *token, size_t max, struct volume_list *ret,
                        struct err *ret_damage, struct err *e);

/* Deletes: when it returns 0 the volume does not exist any more, no writer of it acknowledges a
 * flush, and its objects that no snapshot or clone needs are deleted, or will be by the background
 * job. Snapshots and clones of it live on. An id that names nothing is deleted already: 0.
 * -ERR_IN_USE: it is published to a node. `force` deletes it all the same.
 * Costs about 20 + a LIST of all its objects; 4 when it was deleted before. */
int catalog_volume_delete(struct catalog *c, const char *id, bool force, struct err *e);

/* Gives the volume to a node: record {node, publish epoch + 1}. To the node that has it already:
 * the stored epoch, nothing is written. First finishes a fencing or restore that somebody left half
 * done.
 * `steal` takes it from whatever node has it (also anew from the same one): portalctl --steal.
 * ret->record.publish_epoch is what travels to the agent and its daemon.
 * -ERR_NOT_FOUND: no such volume, or no such node is registered (the text says which)
 * -ERR_IN_USE: another node has it; the text names it
 * -ERR_EXISTS: this node has it, but read-only where writable was asked for or the other way round
 * Costs 8, 4 when it is published there already. */
int catalog_volume_publish(struct catalog *c, const char *id, const char *node, bool read_only,
                           bool steal, struct volume_info *ret, struct err *e);

/* Takes it from the node (NULL or "": from whatever node has it), fencing it unless its newest
 * manifest is closed at the record's publish epoch: then the record says fencing and publish epoch
 * + 1 first, a complete open with that epoch follows, and the record says ready (model pubepoch:
 * any other order fences the node that was published next). Of a volume that another node has, or
 * none, or that does not exist: 0, nothing is done.
 * Costs 6 when closed, else about 16 + a walk of the log. */
int catalog_volume_unpublish(struct catalog *c, const char *id, const char *node, struct err *e);

/* Makes it at least size_bytes (rounded up) large: the record says so, and while no writer has it
 * open, also its manifest; else NodeExpandVolume has to go through the daemon: *ret_needs_node. (A
 * volume that no node has, and that is not closed all the same, is fenced off and grows here.) A
 * volume that is as large already, or larger: 0, nothing is written.
 * -ERR_NOT_FOUND; -ERR_INVALID: size 0; -ERR_NO_SPACE: above limit_bytes (0: none) or the format's.
 * Costs 4 to 9. */
int catalog_volume_expand(struct catalog *c, const char *id, uint64_t size_bytes,
                          uint64_t limit_bytes, struct volume_info *ret, bool *ret_needs_node,
                          struct err *e);

struct volume_maintained {
    uint64_t objects_deleted, bytes_deleted;
    uint64_t bytes_moved;
    uint64_t objects_held, bytes_held; /* what only snapshots and clones need */
};
/* Pays what a volume that nobody has owes to its store: merges, GC. While a node has it, its daemon
 * does that. Whoever is published, restores or deletes meanwhile is not held up, and fences us; of
 * two maintenances at once one waits for the other. A clone that lets go of its source makes
 * garbage there: that is collected, too, unless somebody has the source. -ERR_NOT_FOUND;
 * -ERR_IN_USE: it is published to a node. Costs about 25, a LIST of its objects, and what it does;
 * of a source as much. (maintain.c) */
int catalog_volume_maintain(struct catalog *c, const char *id, struct volume_maintained *ret,
                            struct err *e);

/* --- snapshots (snapshots.c) --- */

struct snapshot_info {
    struct snapshot_record record;
    char id[ID_MAX];        /* "snap-....<pool>" */
    char source_id[ID_MAX]; /* of the volume it was cut from, which may be deleted since */
};
void snapshot_info_release(struct snapshot_info *i);

/* Cuts a snapshot of what the volume has flushed, wherever it is attached, without telling it; or
 * returns the one that exists under this name of the same volume.
 * -ERR_EXISTS: the name is a snapshot of another volume; -ERR_NOT_FOUND: no such volume;
 * -ERR_INVALID: the name is empty or longer than ENTITY_NAME_MAX.
 * A restore that is half done is finished first; one that began since this catalog met the volume,
 * and died, is not seen: then it holds what was there before, and the restore is finished later.
 * Costs 9 and no data, 11 for a volume that this catalog has not met lately; 2 when it exists. */
int catalog_snapshot_create(struct catalog *c, const char *name, const char *source_id,
                            struct snapshot_info *ret, struct err *e);
/* An id that names nothing is deleted already: 0. Costs 6; 2 when there is nothing to do. */
int catalog_snapshot_delete(struct catalog *c, const char *id, struct err *e);
/* -ERR_NOT_FOUND like catalog_volume_get. Costs 2. */
int catalog_snapshot_get(struct catalog *c, const char *id, struct snapshot_info *ret,
                         struct err *e);
int catalog_snapshot_find(struct catalog *c, const char *name, struct snapshot_info *ret,
                          struct err *e);

/* The volume's content becomes what the snapshot holds; later snapshots stay. What was written
 * since, and no other snapshot holds, is lost. Only while no client has the volume: it is published
 * to no node. The record says restoring first, so that this very call, a publish or an unpublish
 * finishes what died half way. The size never shrinks.
 * -ERR_NOT_FOUND: no such snapshot or volume (also: the snapshot was deleted meanwhile; then the
 *   volume is as it was)
 * -ERR_INVALID: a snapshot of another volume; -ERR_IN_USE: published, the text names the node
 * -ERR_CORRUPT, -ERR_UNSUPPORTED: the snapshot cannot be read; the volume is as it was.
 * Costs 18 and no data. */
int catalog_snapshot_restore(struct catalog *c, const char *snapshot_id, const char *volume_id,
                             struct volume_info *ret, struct err *e);

struct snapshot_list {
    struct snapshot_info *items; /* owned */
    size_t count;
    char next_token[CATALOG_TOKEN_MAX]; /* "" at the end */
};
void snapshot_list_release(struct snapshot_list *l);
/* Up to max (0: CATALOG_PAGE_MAX) snapshots behind `token`; with source_id (may be NULL or "") only
 * those of that volume, also of one that is deleted since. ret_damage: as with volumes.
 * -ERR_STALE: not a token of ours. Costs about 1 for each snapshot of the pool up to the page's
 * end. */
int catalog_snapshot_list(struct catalog *c, const char *source_id, const char *token, size_t max,
                          struct snapshot_list *ret, struct err *ret_damage, struct err *e);

/* --- nodes (nodes.c) --- */

/* What an agent says when it starts. Writes a record only when something changed. -ERR_INVALID:
 * node id empty or longer than CATALOG_NODE_ID_MAX. Costs 2, 4 when it writes. */
int catalog_node_register(struct catalog *c, const char *node_id, const char *version,
                          struct err *e);
/* -ERR_NOT_FOUND: not registered. Costs 2. */
int catalog_node_get(struct catalog *c, const char *node_id, struct node_record *ret,
                     struct err *e);
/* Of a node that is not registered: 0. Volumes that are published to it stay so. */
int catalog_node_delete(struct catalog *c, const char *node_id, struct err *e);

struct node_list {
    struct node_record *items; /* owned */
    size_t count;
};
void node_list_release(struct node_list *l);
int catalog_node_list(struct catalog *c, struct node_list *ret, struct err *e);

/* --- the pool itself (pool.c) --- */

struct pool_create {
    const char
        *cluster_id; /* NULL or "": none; a pool belongs to the first cluster that names itself */
    bool allow_other_cluster; /* use the pool although it is another cluster's */
};

/* Reads portalbd.json and refuses what must not be used.
 * -ERR_NOT_FOUND: there is no pool here yet (the text says how to make one); -ERR_UNSUPPORTED: of a
 * newer format; -ERR_IN_USE: it is another cluster's. Costs 1. */
int catalog_pool_check(struct catalog *c, const struct pool_create *options,
                       struct pool_record *ret, struct err *e);
/* The same, but makes the pool when there is none: first it proves that the store keeps
 * "If-None-Match: *" (one winner among several PUTs of one key, a later one refused, the winner's
 * bytes read back). -ERR_UNSUPPORTED: it does not; nothing stays behind. Costs about 13, 1 when it
 * exists. */
int catalog_pool_create(struct catalog *c, const struct pool_create *options,
                        struct pool_record *ret, struct err *e);
