/* The S3 client's parts, this room only: s3.c is the thread, s3_call.c one request. */
#pragma once

#include <curl/curl.h>
#include <pthread.h>

#include "portalbd/objstore/credentials.h"
#include "portalbd/objstore/s3_answer.h"
#include "portalbd/objstore/s3_sign.h"

/* What all calls of a store share, on the S3 thread. */
struct s3_client {
    char *origin;     /* owned: "https://host:port" */
    char *host;       /* owned: the Host header's value */
    char *base_path;  /* owned: encoded "/bucket", or "" */
    char *prefix;     /* owned */
    char *region;     /* owned */
    char *ca_file;    /* owned */
    bool hash_bodies; /* sign the SHA-256 of bodies: plain HTTP to AWS */
    uint64_t connect_timeout_ms;
    uint64_t stall_timeout_ms;
    uint64_t total_timeout_ms;
    struct s3_credentials credentials;
    int64_t clock_skew_s; /* the server's clock minus ours */
};

struct s3_call {
    struct obj_request *req; /* ours until it is posted */
    struct s3_client *client;
    struct list_node node;
    bool cancelled; /* atomic: set by the owner thread */

    /* While it is sent. */
    CURL *easy; /* borrowed from the thread's pool */
    struct curl_slist *headers;
    struct buf url;
    struct buf form; /* the body of a POST */
    struct buf text; /* the answer's body, but a good GET's */
    size_t part;     /* of the body of a PUT: the next byte is parts[part][part_off] */
    size_t part_off;
    bool too_large;
    char curl_error[CURL_ERROR_SIZE];
};

/* Sets the handle up for the request: URL, signed headers, body. */
void s3_call_prepare(struct s3_call *c, CURL *easy);
/* What came of it: fills the request's answer. */
enum s3_hint s3_call_finish(struct s3_call *c, CURLcode result);
/* Frees what the call holds for sending; the handle is the caller's again. */
void s3_call_release(struct s3_call *c);

/* Options of every handle, STS's too. */
void s3_easy_setup(const struct s3_client *client, CURL *easy, char *error_text);
uint64_t s3_now_s(void);
