/* One S3 request on one curl handle.
 *
 * PUT: `If-None-Match: *`, the body streamed from the caller's views, its CRC32C in a header that
 * the server checks. `Expect:` is switched off: it would cost a round trip. GET: Range. LIST:
 * version 2 with url encoding, so that every key survives XML. DELETE: one key by DELETE, more by
 * POST ?delete.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "portalbd/objstore/layer_internal.h"
#include "portalbd/objstore/s3_internal.h"
#include "portalbd/objstore/s3_xml.h"

enum {
    TEXT_BYTES_MAX = 64 * 1024, /* of an error document */
    UPLOAD_BUFFER_MIN = 64 * 1024,
    UPLOAD_BUFFER_LARGE = 512 * 1024,
    DOWNLOAD_BUFFER_LARGE = 256 * 1024,
    LARGE_BYTES = 256 * 1024, /* bodies from here on get large buffers */
};

uint64_t s3_now_s(void) {
    struct timespec ts;
    CHECK(clock_gettime(CLOCK_REALTIME, &ts) == 0);
    return (uint64_t)ts.tv_sec;
}

#define SET(easy, option, value) CHECK(curl_easy_setopt(easy, option, value) == CURLE_OK)

void s3_easy_setup(const struct s3_client *client, CURL *easy, char *error_text) {
    curl_easy_reset(easy);
    error_text[0] = '\0';
    SET(easy, CURLOPT_ERRORBUFFER, error_text);
    SET(easy, CURLOPT_NOSIGNAL, 1L);
    SET(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    SET(easy, CURLOPT_PATH_AS_IS, 1L);
    SET(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    SET(easy, CURLOPT_USERAGENT, "portalbd/" PORTALBD_VERSION);
    SET(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)client->connect_timeout_ms);
    SET(easy, CURLOPT_TIMEOUT_MS, (long)client->total_timeout_ms);
    SET(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    SET(easy, CURLOPT_LOW_SPEED_TIME, (long)DIV_UP(client->stall_timeout_ms, 1000));
    /* One file instead of a folder that every TLS context would read: 22 instead of 126 MB for 128
     * connections. */
    SET(easy, CURLOPT_CAPATH, NULL);
    if (curl_easy_setopt(easy, CURLOPT_CAINFO, client->ca_file) != CURLE_OK)
        snprintf(error_text, CURL_ERROR_SIZE, "cannot use '%s'", client->ca_file);
}

/* --- callbacks --- */

/* The next bytes of the body out of the caller's views. */
static size_t on_read(char *to, size_t size, size_t count, void *arg) {
    struct s3_call *c = arg;
    size_t room = size * count, done = 0;
    while (done < room && c->part < c->req->part_count) {
        struct view v = c->req->parts[c->part];
        size_t n = MIN(room - done, v.len - c->part_off);
        if (n > 0)
            memcpy(to + done, v.data + c->part_off, n);
        done += n;
        c->part_off += n;
        if (c->part_off == v.len) {
            c->part++;
            c->part_off = 0;
        }
    }
    return done;
}

/* curl starts the body again when a kept connection turns out to be dead. */
static int on_seek(void *arg, curl_off_t offset, int origin) {
    struct s3_call *c = arg;
    if (origin != SEEK_SET || offset != 0)
        return CURL_SEEKFUNC_CANTSEEK;
    c->part = 0;
    c->part_off = 0;
    return CURL_SEEKFUNC_OK;
}

static int status_of(const struct s3_call *c) {
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    return (int)status;
}

/* The most bytes that a good answer to this GET may have. */
static size_t body_cap(const struct obj_request *req) {
    if (req->len > 0)
        return req->len;
    return req->size_max > 0 ? req->size_max : OBJ_SIZE_MAX;
}

static size_t on_write(char *data, size_t size, size_t count, void *arg) {
    struct s3_call *c = arg;
    size_t len = size * count;
    int status = status_of(c);
    bool is_body = c->req->verb == OBJ_GET && (status == 200 || status == 206);
    bool is_document = !is_body && status == 200;
    struct buf *to = is_body ? &c->req->body : &c->text;
    size_t cap = is_body ? body_cap(c->req) : is_document ? S3_XML_MAX : TEXT_BYTES_MAX;
    if (to->len + len > cap) {
        c->too_large = true;
        return 0; /* ends the transfer */
    }
    if (is_body && to->len == 0) {
        curl_off_t announced = 0;
        curl_easy_getinfo(c->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &announced);
        if (announced > 0 && (uint64_t)announced > cap) {
            c->too_large = true;
            return 0;
        }
        buf_reserve(to, MAX((size_t)MAX(announced, 0), len));
    }
    buf_append(to, data, len);
    return len;
}

/* --- headers and signature --- */

struct headers {
    struct s3_pair items[S3_SIGNED_HEADERS_MAX];
    size_t count;
};

static void add(struct headers *h, const char *name, const char *value) {
    CHECK(h->count < ARRAY_LEN(h->items));
    h->items[h->count++] = (struct s3_pair){name, value};
}

/* Hands the headers to curl, together with the signature; host is curl's own. */
static void send_signed(struct s3_call *c, struct headers *h, const struct s3_signing *signing) {
    CLEANUP_BUF struct buf line = {0};
    struct curl_slist *list = NULL;
    for (size_t i = 0; i < h->count; i++) {
        if (strcmp(h->items[i].name, "host") == 0)
            continue;
        buf_clear(&line);
        buf_printf(&line, "%s: %s", h->items[i].name, h->items[i].value);
        list = curl_slist_append(list, buf_cstr(&line));
        CHECK(list);
    }
    secret_wipe(line.data, line.cap); /* a session token may have been in it */
    buf_clear(&line);
    buf_append_str(&line, "Authorization: ");
    s3_sign(signing, &line);
    list = curl_slist_append(list, buf_cstr(&line));
    CHECK(list);
    list = curl_slist_append(list, "Expect:");
    CHECK(list);
    c->headers = list;
    SET(c->easy, CURLOPT_HTTPHEADER, list);
}

static void base64_crc32c(const struct view *parts, size_t count, char ret[9]) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t crc = 0;
    for (size_t i = 0; i < count; i++)
        crc = crc32c_extend(crc, parts[i]);
    uint8_t bytes[6] = {0};
    store_be32(bytes, crc);
    uint64_t bits = (uint64_t)load_be32(bytes) << 16;
    for (int i = 0; i < 6; i++)
        ret[i] = digits[(bits >> (42 - 6 * i)) & 63];
    memcpy(ret + 6, "==", 3);
}

/* --- the four verbs --- */

static const char *method_of(const struct obj_request *req) {
    switch (req->verb) {
    case OBJ_PUT:
        return "PUT";
    case OBJ_DELETE:
        return req->key_count == 1 ? "DELETE" : "POST";
    default:
        return "GET";
    }
}

/* "/bucket/prefix/key", encoded; of LIST and POST the bucket's own. */
static void append_path(const struct s3_call *c, struct buf *ret) {
    const struct obj_request *req = c->req;
    const char *key = req->verb == OBJ_GET || req->verb == OBJ_PUT     ? req->key
                      : req->verb == OBJ_DELETE && req->key_count == 1 ? req->keys[0]
                                                                       : NULL;
    buf_append_str(ret, c->client->base_path);
    if (key || !*c->client->base_path)
        buf_append_str(ret, "/");
    if (key) {
        s3_encode_append(c->client->prefix, true, ret);
        s3_encode_append(key, true, ret);
    }
}

static void append_query(const struct s3_call *c, struct buf *ret) {
    const struct obj_request *req = c->req;
    if (req->verb == OBJ_DELETE && req->key_count > 1) {
        s3_query_append(&(struct s3_pair){"delete", ""}, 1, ret);
    } else if (req->verb == OBJ_LIST) {
        char keys_max[16];
        snprintf(keys_max, sizeof keys_max, "%u", req->keys_max);
        CLEANUP_FREE char *prefix = xasprintf("%s%s", c->client->prefix, req->key);
        CLEANUP_FREE char *after =
            req->start_after ? xasprintf("%s%s", c->client->prefix, req->start_after) : NULL;
        const struct s3_pair params[] = {{"encoding-type", "url"},
                                         {"list-type", "2"},
                                         {"max-keys", keys_max},
                                         {"prefix", prefix},
                                         {"start-after", after}};
        s3_query_append(params, after ? 5 : 4, ret);
    }
}

static void set_range(const struct obj_request *req, char ret[64]) {
    if (req->suffix)
        snprintf(ret, 64, "bytes=-%zu", req->len);
    else if (req->len > 0)
        snprintf(ret, 64, "bytes=%" PRIu64 "-%" PRIu64, req->off, req->off + req->len - 1);
    else if (req->off > 0)
        snprintf(ret, 64, "bytes=%" PRIu64 "-", req->off);
    else
        ret[0] = '\0';
}

static void set_body(struct s3_call *c) {
    const struct obj_request *req = c->req;
    CURL *easy = c->easy;
    if (req->verb == OBJ_PUT) {
        size_t len = obj_request_body_len(req);
        c->part = 0;
        c->part_off = 0;
        SET(easy, CURLOPT_UPLOAD, 1L);
        SET(easy, CURLOPT_READFUNCTION, on_read);
        SET(easy, CURLOPT_READDATA, c);
        SET(easy, CURLOPT_SEEKFUNCTION, on_seek);
        SET(easy, CURLOPT_SEEKDATA, c);
        SET(easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)len);
        SET(easy, CURLOPT_UPLOAD_BUFFERSIZE,
            (long)(len >= LARGE_BYTES ? UPLOAD_BUFFER_LARGE : UPLOAD_BUFFER_MIN));
    } else if (req->verb == OBJ_DELETE && req->key_count > 1) {
        SET(easy, CURLOPT_POST, 1L);
        SET(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)c->form.len);
        SET(easy, CURLOPT_POSTFIELDS, c->form.data); /* stays where it is */
    } else if (req->verb == OBJ_DELETE) {
        SET(easy, CURLOPT_CUSTOMREQUEST, "DELETE");
    } else if (req->verb == OBJ_GET && body_cap(req) >= LARGE_BYTES) {
        SET(easy, CURLOPT_BUFFERSIZE, (long)DOWNLOAD_BUFFER_LARGE);
    }
}

void s3_call_prepare(struct s3_call *c, CURL *easy) {
    const struct s3_client *client = c->client;
    const struct obj_request *req = c->req;
    c->easy = easy;
    s3_easy_setup(client, easy, c->curl_error);
    SET(easy, CURLOPT_PRIVATE, c);
    SET(easy, CURLOPT_WRITEFUNCTION, on_write);
    SET(easy, CURLOPT_WRITEDATA, c);

    CLEANUP_BUF struct buf path = {0};
    CLEANUP_BUF struct buf query = {0};
    append_path(c, &path);
    append_query(c, &query);
    buf_printf(&c->url, "%s%s%s%s", client->origin, buf_cstr(&path), query.len > 0 ? "?" : "",
               buf_cstr(&query));
    SET(easy, CURLOPT_URL, buf_cstr(&c->url));

    bool is_post = req->verb == OBJ_DELETE && req->key_count > 1;
    if (is_post)
        s3_xml_build_delete(client->prefix, req->keys, req->key_count, &c->form);
    struct view form = buf_view(&c->form);
    const struct view *body = is_post ? &form : req->parts;
    size_t body_parts = is_post ? 1 : req->verb == OBJ_PUT ? req->part_count : 0;

    char when[S3_TIME_LEN + 1], hash[S3_SHA256_HEX_LEN + 1] = S3_UNSIGNED_PAYLOAD;
    char range[64] = "", crc[9];
    s3_time_format((uint64_t)((int64_t)s3_now_s() + client->clock_skew_s), when);
    if (client->hash_bodies)
        s3_sha256_hex(body, body_parts, hash);

    struct headers h = {0};
    add(&h, "host", client->host);
    add(&h, "x-amz-date", when);
    add(&h, "x-amz-content-sha256", hash);
    struct view token = secret_reveal(&client->credentials.session_token);
    if (token.len > 0)
        add(&h, "x-amz-security-token", (const char *)token.data);
    if (is_post || req->verb == OBJ_PUT) {
        base64_crc32c(body, body_parts, crc);
        add(&h, "x-amz-checksum-crc32c", crc);
        add(&h, "content-type", is_post ? "application/xml" : "application/octet-stream");
    }
    if (req->verb == OBJ_PUT)
        add(&h, "if-none-match", "*");
    if (req->verb == OBJ_GET)
        set_range(req, range);
    if (range[0])
        add(&h, "range", range);

    send_signed(c, &h,
                &(struct s3_signing){.method = method_of(req),
                                     .path = buf_cstr(&path),
                                     .query = buf_cstr(&query),
                                     .headers = h.items,
                                     .header_count = h.count,
                                     .payload_hash = hash,
                                     .time = when,
                                     .region = client->region,
                                     .service = "s3",
                                     .access_key_id = client->credentials.access_key_id,
                                     .secret_access_key = &client->credentials.secret_access_key});
    set_body(c);
}

void s3_call_release(struct s3_call *c) {
    curl_slist_free_all(c->headers);
    c->headers = NULL;
    buf_release(&c->url);
    buf_release(&c->form);
    buf_release(&c->text);
    c->easy = NULL;
}

/* --- the end --- */

static const char *header(CURL *easy, const char *name) {
    struct curl_header *h;
    return curl_easy_header(easy, name, 0, CURLH_HEADER, -1, &h) == CURLHE_OK ? h->value : NULL;
}

static int code_of_curl(CURLcode result) {
    switch (result) {
    case CURLE_OPERATION_TIMEDOUT:
        return -ERR_TIMEOUT;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
        return -ERR_CONFIG;
    default:
        return -ERR_TRANSIENT;
    }
}

static void fail_transfer(struct s3_call *c, CURLcode result) {
    struct obj_request *req = c->req;
    buf_release(&req->body);
    if (c->too_large && req->verb == OBJ_GET && req->len == 0)
        obj_request_fail(req, -ERR_CORRUPT, "larger than %zu bytes", body_cap(req));
    else if (c->too_large && req->verb == OBJ_GET)
        obj_request_fail(req, -ERR_UNSUPPORTED, "the store sends more than the range asked for");
    else if (c->too_large)
        obj_request_fail(req, -ERR_TRANSIENT, "an answer that is too long");
    else
        obj_request_fail(req, code_of_curl(result), "%s",
                         c->curl_error[0] ? c->curl_error : curl_easy_strerror(result));
}

enum s3_hint s3_call_finish(struct s3_call *c, CURLcode result) {
    struct obj_request *req = c->req;
    struct s3_answer a = {.status = status_of(c),
                          .text = buf_view(&c->text),
                          .content_range = header(c->easy, "content-range"),
                          .retry_after = header(c->easy, "retry-after"),
                          .bucket_region = header(c->easy, "x-amz-bucket-region")};
    /* A server may refuse a PUT and close while the body is still on its way. */
    bool refused_early = req->verb == OBJ_PUT && a.status >= 400 &&
                         (result == CURLE_SEND_ERROR || result == CURLE_RECV_ERROR);
    if (result != CURLE_OK && !refused_early) {
        fail_transfer(c, result);
        return S3_HINT_NONE;
    }
    enum s3_hint hint = s3_answer_apply(req, c->client->prefix, &a);
    const char *date = hint == S3_HINT_CLOCK ? header(c->easy, "date") : NULL;
    time_t server = date ? curl_getdate(date, NULL) : -1;
    if (server > 0)
        c->client->clock_skew_s = (int64_t)server - (int64_t)s3_now_s();
    return hint;
}
