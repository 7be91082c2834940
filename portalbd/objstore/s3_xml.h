/* The XML that S3 and STS speak. Pure, bounded, any thread; input is from a network and may be
 * anything: every parser refuses with -ERR_TRANSIENT (a broken answer is asked for again). */
#pragma once

#include "common/secret.h"
#include "portalbd/objstore/objstore.h"

enum {
    S3_XML_MAX = 8 * 1024 * 1024, /* bytes of a document */
    S3_XML_DEPTH_MAX = 16,
    S3_XML_TEXT_MAX = 8 * 1024, /* bytes of one element's text */
    S3_CODE_MAX = 64,
    S3_MESSAGE_MAX = 200,
};

/* <Error>: what a store says went wrong. Empty strings when it is no such document. */
struct s3_error {
    char code[S3_CODE_MAX]; /* "NoSuchKey" */
    char message[S3_MESSAGE_MAX];
    char region[S3_CODE_MAX]; /* of the bucket, where the store tells */
};
/* False when the document is not an <Error>. */
bool s3_xml_parse_error(struct view xml, struct s3_error *ret);

/* ListObjectsV2: the keys as they are in the bucket, whole. */
struct s3_list {
    struct obj_entry *entries; /* owned, keys too */
    size_t count;
    bool truncated;
};
void s3_list_release(struct s3_list *list);
int s3_xml_parse_list(struct view xml, size_t keys_max, struct s3_list *ret, struct err *e);

/* DeleteObjects. */
void s3_xml_build_delete(const char *prefix, const char *const *keys, size_t count,
                         struct buf *ret);
/* 0 when every key is gone; else errors > 0, and the first of them. */
struct s3_deleted {
    size_t errors;
    struct s3_error first;
};
int s3_xml_parse_deleted(struct view xml, struct s3_deleted *ret, struct err *e);

/* AssumeRoleWithWebIdentity. */
struct s3_sts {
    char access_key_id[256];
    struct secret secret_access_key; /* owned */
    struct secret session_token;     /* owned */
    uint64_t expires_s;              /* unix time */
};
void s3_sts_release(struct s3_sts *sts);
int s3_xml_parse_sts(struct view xml, struct s3_sts *ret, struct err *e);
