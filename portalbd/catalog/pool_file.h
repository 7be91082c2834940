/* The file that names an installation's pools (design §2.5): a section for each pool.
 *
 *     [fast]
 *     url = s3://bucket/prefix            or file:///path
 *     endpoint = https://s3.example.com   (s3, optional: AWS)
 *     region = eu-central-1
 *     addressing = path                   path | virtual | auto
 *     ca_file = /etc/ssl/own.pem
 *     access_key_id = ...                 (without: environment, shared file, web identity)
 *     secret_access_key = ...
 *     access_key_id_file = ...            or each from a file of its own,
 *     secret_access_key_file = ...
 *     session_token_file = ...            as are tokens, longer than a line may be
 *
 * A change of such a file is seen when the pool file changes too: in one volume of Kubernetes,
 * always.
 *
 * This is the one file of this room that reads a file; nothing else in it may (and no part of the
 * engine may call it). Blocks; any thread; no fibers. */
#pragma once

#include "common/err.h"
#include "common/secret.h"
#include "portalbd/format/ids.h"

enum { POOL_FILE_POOLS_MAX = 64 };

struct pool_config {
    char name[POOL_NAME_MAX];
    char *url;           /* owned */
    char *endpoint;      /* owned; "" when not given, like all that follow */
    char *region;        /* owned */
    char *addressing;    /* owned; "path", "virtual", "auto" or "" */
    char *ca_file;       /* owned */
    char *access_key_id; /* owned */
    struct secret secret_access_key;
    struct secret session_token;
};
void pool_config_release(struct pool_config *p);
void pool_config_copy(struct pool_config *to, const struct pool_config *from);
bool pool_config_equal(const struct pool_config *a, const struct pool_config *b);

/* Appends the section of a pool file that says the same; a session token stands in a file of its
 * own, which the caller writes. -ERR_INVALID, and nothing is appended: a value cannot be written on
 * a line of such a file, which never happens to a pool that pool_file_read gave. Wipe the buffer
 * (secret_wipe) if the pool has secrets. */
struct buf;
int pool_config_encode(struct buf *out, const struct pool_config *p, const char *session_token_path,
                       struct err *e);

/* What tells one version of the file from another. */
struct pool_file_stamp {
    uint64_t device, inode, size, mtime_ns;
};
struct pool_file {
    struct pool_config *pools; /* owned; in the order of the file */
    size_t count;
    struct pool_file_stamp stamp;
};
void pool_file_release(struct pool_file *f);

/* Reads and checks the whole file. -ERR_NOT_FOUND: there is none; -ERR_CONFIG: it makes no sense,
 * names a file of a key that cannot be read, or holds secrets and may be read by others than its
 * owner (mode 0600 or 0400 is wanted; 0440 for another user's). *ret is filled on success only. */
int pool_file_read(const char *path, struct pool_file *ret, struct err *e);
/* Is there another version of it now? false when it cannot be looked at: the old one stays good. */
bool pool_file_changed(const char *path, const struct pool_file *f);
/* Borrowed from f, or NULL. */
const struct pool_config *pool_file_find(const struct pool_file *f, const char *name);
