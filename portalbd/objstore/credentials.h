/* Where S3 credentials come from, in the order of AWS's tools: given explicitly, the environment, a
 * web identity token (Kubernetes service accounts: IRSA), the shared credentials file. Who gives
 * them explicitly may offer to give newer ones when the store refuses them.
 *
 * A source is found once, when a store is opened; what it holds is loaded again and again. Loading
 * reads small local files; talking to STS is the caller's. */
#pragma once

#include "common/buf.h"
#include "common/err.h"
#include "common/secret.h"

struct s3_credentials {
    char *access_key_id;             /* owned; not secret */
    struct secret secret_access_key; /* owned */
    struct secret session_token;     /* owned; empty: none */
    uint64_t expires_s;              /* unix time; 0: never */
};
void s3_credentials_release(struct s3_credentials *c);
void s3_credentials_copy(struct s3_credentials *to, const struct s3_credentials *from);

enum s3_credentials_kind { S3_CREDENTIALS_FIXED, S3_CREDENTIALS_FILE, S3_CREDENTIALS_WEB_IDENTITY };

struct s3_credentials_source {
    enum s3_credentials_kind kind;
    struct s3_credentials fixed; /* FIXED */
    /* FIXED, may be NULL: what would be given by now. A failure leaves those that were given. */
    int (*renew)(void *arg, struct s3_credentials *ret, struct err *e);
    void *renew_arg; /* borrowed */
    char *file;      /* FILE; owned, as all below */
    char *profile;
    char *token_file; /* WEB_IDENTITY */
    char *role_arn;
    char *session_name;
    char *sts_url;
};

/* Reads the environment (so: before threads that change it). The explicit ones may be NULL.
 * -ERR_CONFIG when nothing is found: the text says where it was looked for. */
int s3_credentials_source_init(struct s3_credentials_source *s, const char *access_key_id,
                               const struct secret *secret_access_key,
                               const struct secret *session_token, const char *region,
                               struct err *e);
void s3_credentials_source_release(struct s3_credentials_source *s);

/* FIXED, FILE. -ERR_CONFIG when the file or the profile is not there or not whole. */
int s3_credentials_load(const struct s3_credentials_source *s, struct s3_credentials *ret,
                        struct err *e);

/* WEB_IDENTITY: the body of the form to POST to sts_url; secret, wipe it. Reads the token file. */
int s3_credentials_sts_form(const struct s3_credentials_source *s, struct buf *ret, struct err *e);
/* ... and what STS answered. */
int s3_credentials_sts_parse(struct view xml, struct s3_credentials *ret, struct err *e);

/* The profile in a credentials file's text. Pure. -ERR_CONFIG. */
int s3_credentials_parse_file(struct view text, const char *profile, struct s3_credentials *ret,
                              struct err *e);
