/* Opens a pool's store: from a URL and its settings to retry(stats(limit(hedge(the store)))).
 *
 *     s3://bucket/prefix    S3, or whatever speaks it at `endpoint`
 *     file:///path          a folder
 *     memory:               nothing that lasts: tests
 */
#pragma once

#include "common/loop.h"
#include "common/metrics.h"
#include "common/secret.h"
#include "portalbd/objstore/retry.h"
#include "portalbd/objstore/stats.h"

struct s3_credentials;

enum { OBJ_URL_MAX = 1024 }; /* bytes of a URL, an endpoint */

enum objstore_addressing {
    OBJ_ADDRESSING_AUTO,    /* by path where an endpoint is given, else by host name */
    OBJ_ADDRESSING_PATH,    /* https://host/bucket/key */
    OBJ_ADDRESSING_VIRTUAL, /* https://bucket.host/key */
};

/* Everything but url is optional: NULL or 0. All of it is borrowed for the call only. */
struct objstore_config {
    const char *url;

    /* S3 alone. */
    const char
        *endpoint;      /* "https://host:port"; else AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS's */
    const char *region; /* else AWS_REGION, AWS_DEFAULT_REGION, us-east-1 */
    const char *access_key_id; /* with secret_access_key; else what AWS's tools would find: the
                                  environment, a web identity token, the shared credentials file */
    const struct secret *secret_access_key;
    const struct secret *session_token;
    /* With access_key_id: asks for what is given by now, at the start and when the store refuses
     * what it has, at most every few seconds. On the store's thread; may read small files. */
    int (*renew_credentials)(void *arg, struct s3_credentials *ret, struct err *e);
    void *renew_arg; /* borrowed until the store is closed */
    enum objstore_addressing addressing;
    const char *ca_file; /* else AWS_CA_BUNDLE, the system's */
    bool no_hedging;     /* nothing is sent a second time only because it is slow (hedge.h) */

    uint64_t give_up_us;     /* 0: retry for ever. For command lines and calls with a deadline. */
    unsigned requests_max;   /* in flight; 0: 64 */
    const char *pool;        /* the label of the metrics */
    struct metrics *metrics; /* NULL: counted, but not registered */
    void (*on_trouble)(void *arg, const struct err *why); /* as in retry.h */
    void *on_trouble_arg;
};

/* Owner thread of the loop, or before it runs. Checks the settings; does not talk to the store.
 * -ERR_CONFIG: these settings cannot work. objstore_close() closes it all. */
int objstore_open(struct loop *loop, const struct objstore_config *config, struct objstore **ret,
                  struct err *e);

/* Of a store that objstore_open opened; borrowed while it is open. */
const struct objstore_stats *objstore_open_stats(const struct objstore *store);
const struct retry_state *objstore_open_retry_state(const struct objstore *store);

/* A URL's parts. -ERR_CONFIG with a sentence that says what is expected. */
enum objstore_scheme { OBJ_SCHEME_S3, OBJ_SCHEME_FILE, OBJ_SCHEME_MEMORY };
struct objstore_url {
    enum objstore_scheme scheme;
    char bucket[64];          /* S3 */
    char prefix[OBJ_URL_MAX]; /* S3: of every key, empty or with a slash at its end */
    char path[OBJ_URL_MAX];   /* FILE: absolute */
};
int objstore_url_parse(const char *url, struct objstore_url *ret, struct err *e);
