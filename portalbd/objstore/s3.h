/* A store on S3, or on anything that speaks it. One thread and one pool of connections a store. */
#pragma once

#include "portalbd/objstore/credentials.h"
#include "portalbd/objstore/objstore.h"

struct s3_config {
    const char *endpoint; /* "https://host[:port]", no path */
    bool path_style;      /* else the bucket's name stands before the host's */
    const char *bucket;
    const char *prefix; /* of every key: "" or with a slash at its end */
    const char *region;
    const char *ca_file;                  /* NULL: the system's */
    struct s3_credentials_source *source; /* taken over: empty afterwards */

    /* 0 means the default. */
    unsigned connections_max;    /* 64 */
    uint64_t connect_timeout_ms; /* 10 s */
    uint64_t stall_timeout_ms;   /* 20 s without a byte */
    uint64_t total_timeout_ms;   /* 120 s for a whole request */
};

/* Everything in config is borrowed for the call, but for the source. Owner thread of env. */
struct objstore *objstore_s3_open(struct env *env, const struct s3_config *config);
