/* Signature Version 4: a canonical request, its hash in a string to sign, an HMAC of that under a
 * key derived from the secret, the day, the region and the service. Hashes are OpenSSL's. */
#include "portalbd/objstore/s3_sign.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <time.h>

enum { HASH_LEN = 32 };

static const char algorithm[] = "AWS4-HMAC-SHA256";

static void hex(const uint8_t *bytes, size_t len, char *ret) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < len; i++) {
        ret[2 * i] = digits[bytes[i] >> 4];
        ret[2 * i + 1] = digits[bytes[i] & 15];
    }
    ret[2 * len] = '\0';
}

void s3_sha256_hex(const struct view *parts, size_t count, char ret[S3_SHA256_HEX_LEN + 1]) {
    uint8_t hash[HASH_LEN];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    CHECK(ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1);
    for (size_t i = 0; i < count; i++)
        CHECK(EVP_DigestUpdate(ctx, parts[i].data, parts[i].len) == 1);
    CHECK(EVP_DigestFinal_ex(ctx, hash, NULL) == 1);
    EVP_MD_CTX_free(ctx);
    hex(hash, sizeof hash, ret);
}

static void hmac(struct view key, struct view data, uint8_t ret[HASH_LEN]) {
    CHECK(HMAC(EVP_sha256(), key.data, (int)key.len, data.data, data.len, ret, NULL));
}

void s3_time_format(uint64_t unix_s, char ret[S3_TIME_LEN + 1]) {
    time_t t = (time_t)unix_s;
    struct tm tm;
    CHECK(gmtime_r(&t, &tm));
    CHECK(strftime(ret, S3_TIME_LEN + 1, "%Y%m%dT%H%M%SZ", &tm) == S3_TIME_LEN);
}

static bool is_unreserved(uint8_t c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.' || c == '~';
}

void s3_encode_append(const char *text, bool keep_slash, struct buf *ret) {
    for (const char *p = text; *p; p++) {
        uint8_t c = (uint8_t)*p;
        if (is_unreserved(c) || (keep_slash && c == '/'))
            buf_append(ret, p, 1);
        else
            buf_printf(ret, "%%%02X", c);
    }
}

static int compare_pairs(const void *a, const void *b) {
    return strcmp(((const struct s3_pair *)a)->name, ((const struct s3_pair *)b)->name);
}

void s3_query_append(const struct s3_pair *params, size_t count, struct buf *ret) {
    struct s3_pair sorted[S3_SIGNED_HEADERS_MAX];
    CHECK(count <= ARRAY_LEN(sorted));
    if (count == 0)
        return;
    memcpy(sorted, params, count * sizeof sorted[0]);
    qsort(sorted, count, sizeof sorted[0], compare_pairs);
    for (size_t i = 0; i < count; i++) {
        buf_append_str(ret, i > 0 ? "&" : "");
        s3_encode_append(sorted[i].name, false, ret);
        buf_append_str(ret, "=");
        s3_encode_append(sorted[i].value, false, ret);
    }
}

/* Method, path, query, headers, names of the headers, hash of the body. */
static void canonical_request(const struct s3_signing *s, const char *signed_headers,
                              const struct s3_pair *headers, struct buf *ret) {
    buf_printf(ret, "%s\n%s\n%s\n", s->method, s->path, s->query);
    for (size_t i = 0; i < s->header_count; i++)
        buf_printf(ret, "%s:%s\n", headers[i].name, headers[i].value);
    buf_printf(ret, "\n%s\n%s", signed_headers, s->payload_hash);
}

static void signing_key(const struct s3_signing *s, uint8_t ret[HASH_LEN]) {
    CLEANUP_BUF struct buf first = {0};
    struct view secret = secret_reveal(s->secret_access_key);
    buf_append_str(&first, "AWS4");
    buf_append(&first, secret.data, secret.len);
    uint8_t key[HASH_LEN];
    hmac(buf_view(&first), view_of(s->time, 8), key);
    hmac(view_of(key, sizeof key), view_of_str(s->region), key);
    hmac(view_of(key, sizeof key), view_of_str(s->service), key);
    hmac(view_of(key, sizeof key), view_of_str("aws4_request"), ret);
    secret_wipe(first.data, first.len);
    secret_wipe(key, sizeof key);
}

void s3_sign(const struct s3_signing *s, struct buf *ret) {
    struct s3_pair headers[S3_SIGNED_HEADERS_MAX];
    CHECK(s->header_count <= ARRAY_LEN(headers) && s->header_count > 0);
    CHECK(strlen(s->time) == S3_TIME_LEN);
    memcpy(headers, s->headers, s->header_count * sizeof headers[0]);
    qsort(headers, s->header_count, sizeof headers[0], compare_pairs);

    CLEANUP_BUF struct buf names = {0};
    for (size_t i = 0; i < s->header_count; i++)
        buf_printf(&names, "%s%s", i > 0 ? ";" : "", headers[i].name);
    CLEANUP_BUF struct buf request = {0};
    canonical_request(s, buf_cstr(&names), headers, &request);
    char request_hash[S3_SHA256_HEX_LEN + 1];
    struct view request_view = buf_view(&request);
    s3_sha256_hex(&request_view, 1, request_hash);

    CLEANUP_BUF struct buf scope = {0};
    buf_printf(&scope, "%.8s/%s/%s/aws4_request", s->time, s->region, s->service);
    CLEANUP_BUF struct buf to_sign = {0};
    buf_printf(&to_sign, "%s\n%s\n%s\n%s", algorithm, s->time, buf_cstr(&scope), request_hash);

    uint8_t key[HASH_LEN], signature[HASH_LEN];
    char signature_hex[2 * HASH_LEN + 1];
    signing_key(s, key);
    hmac(view_of(key, sizeof key), buf_view(&to_sign), signature);
    hex(signature, sizeof signature, signature_hex);
    secret_wipe(key, sizeof key);
    buf_printf(ret, "%s Credential=%s/%s, SignedHeaders=%s, Signature=%s", algorithm,
               s->access_key_id, buf_cstr(&scope), buf_cstr(&names), signature_hex);
}
