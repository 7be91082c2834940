/* The pool that a program works on: found by its options, its store opened. */
#pragma once

#include "common/loop.h"
#include "common/options.h"
#include "portalbd/catalog/catalog.h"
#include "portalbd/objstore/url.h"

#define POOLS_PATH_DEFAULT "/etc/portalbd/pools.conf"
#define POOL_NAME_DEFAULT  "default"
#define RUN_DIR_DEFAULT    "/run/portalbd"

/* Strings are owned by the options, NULL when not given. */
struct pool_options {
    char *store;
    char *pool;
    char *pools;
    char *endpoint;
    char *region;
    int addressing;
    char *ca_file;
};
extern const char *const pool_addressing_names[];

/* Lines of an option table whose config struct has `struct pool_options pool`. */
#define POOL_OPTION_SPECS(config)                                                                  \
    {"store",                                                                                      \
     OPTION_STRING,                                                                                \
     offsetof(struct config, pool.store),                                                          \
     .arg = "URL",                                                                                 \
     .group = "Pool",                                                                              \
     .help = "The pool's store: s3://bucket/prefix (with the usual AWS_* variables) or "           \
             "file:///path. Instead of a pool file."},                                             \
        {"pools",                                                                                  \
         OPTION_STRING,                                                                            \
         offsetof(struct config, pool.pools),                                                      \
         .arg = "FILE",                                                                            \
         .def = POOLS_PATH_DEFAULT,                                                                \
         .help = "The pool file, when there is no --store."},                                      \
        {"pool", OPTION_STRING, offsetof(struct config, pool.pool), .arg = "NAME",                 \
         .help = "Which pool of the file; may be left out when it has one. With --store: the "     \
                 "name that ids of volumes end in, \"" POOL_NAME_DEFAULT "\" without it."},        \
        {"endpoint", OPTION_STRING, offsetof(struct config, pool.endpoint), .arg = "URL",          \
         .help = "With --store s3://: the server, when it is not AWS's."},                         \
        {"region", OPTION_STRING, offsetof(struct config, pool.region),                            \
         .help = "With --store s3://: its region."},                                               \
        {"addressing",                                                                             \
         OPTION_ENUM,                                                                              \
         offsetof(struct config, pool.addressing),                                                 \
         .def = "auto",                                                                            \
         .choices = pool_addressing_names,                                                         \
         .help = "With --store s3://: the bucket in the path or in the host's name."},             \
    {                                                                                              \
        "ca-file", OPTION_STRING, offsetof(struct config, pool.ca_file),                           \
            .arg = "FILE",                                                                         \
            .help = "With --store s3://: certificates to trust instead of the system's."           \
    }

struct pool {
    char name[POOL_NAME_MAX];
    struct objstore *store;     /* owned */
    char *where;                /* owned; the store, for people: no credentials in it */
    struct pool_source *source; /* owned; the pool file that it was found in, or NULL */
    struct catalog catalog;
};

struct pool_how {
    const char *wanted;      /* the pool's name out of a volume id, or NULL */
    uint64_t give_up_us;     /* 0: never */
    bool make_folder;        /* of a file:// store, when it is not there */
    struct metrics *metrics; /* may be NULL */
    void (*on_trouble)(void *arg, const struct err *why); /* as in objstore/retry.h; may be NULL */
    void *arg;
};

/* Blocks on files; owner thread of the loop. -ERR_CONFIG, -ERR_NOT_FOUND, -ERR_INVALID with a
 * sentence that says what to do. */
int pool_open(struct loop *loop, const struct pool_options *options, const struct pool_how *how,
              struct pool *ret, struct err *e);
void pool_close(struct pool *p);
/* A store for people, without credentials: its URL, and the endpoint that these settings and the
 * environment name. Owned by the caller. */
char *pool_where(const char *url, const char *endpoint);
