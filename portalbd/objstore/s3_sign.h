/* AWS Signature Version 4, the Authorization header. Pure, any thread.
 * https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html */
#pragma once

#include "common/buf.h"
#include "common/secret.h"

enum {
    S3_TIME_LEN = 16, /* "20130524T000000Z" */
    S3_SHA256_HEX_LEN = 64,
    S3_SIGNED_HEADERS_MAX = 16,
};

#define S3_UNSIGNED_PAYLOAD "UNSIGNED-PAYLOAD"

struct s3_pair {
    const char *name; /* of a header: in lower case */
    const char *value;
};

struct s3_signing {
    const char *method;
    const char *path;              /* encoded: "/bucket/a%20key" */
    const char *query;             /* as s3_query_append makes it, "" for none */
    const struct s3_pair *headers; /* all that are signed, host included, in any order */
    size_t header_count;           /* <= S3_SIGNED_HEADERS_MAX */
    const char *payload_hash;      /* hex SHA-256, or S3_UNSIGNED_PAYLOAD */
    const char *time;              /* S3_TIME_LEN characters, what x-amz-date says */
    const char *region;
    const char *service; /* "s3" */
    const char *access_key_id;
    const struct secret *secret_access_key;
};

/* Appends the value of the Authorization header. */
void s3_sign(const struct s3_signing *s, struct buf *ret);

/* Appends "a=1&b=%2F", sorted by name as the canonical query is; also what goes into the URL. */
void s3_query_append(const struct s3_pair *params, size_t count, struct buf *ret);

/* Appends text with everything but A-Z a-z 0-9 - _ . ~ (and slashes, if `keep_slash`) encoded. */
void s3_encode_append(const char *text, bool keep_slash, struct buf *ret);

void s3_time_format(uint64_t unix_s, char ret[S3_TIME_LEN + 1]);
void s3_sha256_hex(const struct view *parts, size_t count, char ret[S3_SHA256_HEX_LEN + 1]);
