/* What controller.c, create_volume.c and snapshots.c share. */
#pragma once

#include "csi/convert.h"
#include "csi/driver.h"

enum {
    LIST_ENTRIES_MAX = 8000, /* entries of one answer, so that it stays below RPC_RESPONSE_MAX */
    LIST_TOKEN_MAX = CATALOG_TOKEN_MAX + POOL_NAME_MAX + 1
};

/* Something done with a pool's catalog, by a handler on its worker thread. It goes on when the
 * client gives up, so that the client's next call finds it done; it is cut off only when the driver
 * stops and its grace time is over. */
struct pool_work {
    struct rpc_call *call;            /* of the controller service */
    const char *pool;                 /* name */
    const struct string_map *secrets; /* NULL: none */
    /* fiber, on the loop's thread. */
    int (*fn)(struct catalog *catalog, void *arg, struct err *e);
    void *arg;
    struct err *e;

    /* pool_work.c's own */
    int rc;
    struct fiber *fiber;
    struct env_timer timer;
};
/* Blocks until it is done. */
int pool_work_run(struct pool_work *work);

/* The pool that an id names; -ERR_NOT_FOUND when it is no id of that kind. */
int pool_of_id(const char *id, enum id_kind kind, char pool[POOL_NAME_MAX], struct err *e);

/* Names of all pools. */
struct pool_names {
    char (*names)[POOL_NAME_MAX]; /* owned */
    size_t count;
};
int pool_names_read(struct controller *c, struct pool_names *ret, struct err *e);
void pool_names_release(struct pool_names *n);

/* A list over all pools, page by page. Tokens are "<pool>/<token of that pool's list>". */
struct list_walk {
    struct pool_names pools;
    size_t pool;                   /* index of the pool that is next */
    char token[CATALOG_TOKEN_MAX]; /* in its list; "" at its start */
    size_t left;                   /* entries that still fit into the answer */
};
/* only: the name of the one pool to look at, or NULL. -ERR_STALE: not a token of ours;
 * -ERR_INVALID: max_entries is negative. */
int list_walk_begin(struct list_walk *w, struct controller *c, const char *starting_token,
                    int32_t max_entries, const char *only, struct err *e);
/* The name of the pool to list next, or NULL at the end. */
const char *list_walk_pool(const struct list_walk *w);
/* `count` entries were taken; next_token is the pool's. */
void list_walk_advance(struct list_walk *w, size_t count, const char *next_token);
/* What to put into the answer; "" at the end. */
char *list_walk_token(const struct list_walk *w, struct rpc_call *call);
static inline void list_walk_release(struct list_walk *w) {
    pool_names_release(&w->pools);
}

/* Parameters that csi's sidecars add for information (--extra-create-metadata). */
bool parameter_is_extra(const char *key);

/* A volume as answers have it. */
Csi__V1__Volume *volume_new(struct rpc_call *call, const struct volume_info *info);

/* create_volume.c */
int create_volume(struct rpc_call *call, const Csi__V1__CreateVolumeRequest *request,
                  Csi__V1__CreateVolumeResponse *response, struct err *e);

/* snapshots.c */
int create_snapshot(struct rpc_call *call, const Csi__V1__CreateSnapshotRequest *request,
                    Csi__V1__CreateSnapshotResponse *response, struct err *e);
int delete_snapshot(struct rpc_call *call, const Csi__V1__DeleteSnapshotRequest *request,
                    Csi__V1__DeleteSnapshotResponse *response, struct err *e);
int list_snapshots(struct rpc_call *call, const Csi__V1__ListSnapshotsRequest *request,
                   Csi__V1__ListSnapshotsResponse *response, struct err *e);
int get_snapshot(struct rpc_call *call, const Csi__V1__GetSnapshotRequest *request,
                 Csi__V1__GetSnapshotResponse *response, struct err *e);
