/* From a pool's settings to its store. */
#include "portalbd/objstore/url.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/objstore/credentials.h"
#include "portalbd/objstore/file.h"
#include "portalbd/objstore/hedge.h"
#include "portalbd/objstore/layer_internal.h"
#include "portalbd/objstore/limit.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/s3.h"

enum { KEY_BYTES_RESERVED = 256 }; /* what format 1 needs of a key behind the prefix */

/* --- URLs --- */

static bool starts_with(const char *s, const char *start) {
    return strncmp(s, start, strlen(start)) == 0;
}

/* S3's rules, as far as they matter for a host name and a path. */
static bool is_bucket_name(const char *name) {
    size_t len = strlen(name);
    return len >= 3 && len <= 63 &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_ABCDEFGHIJKLMNOPQRSTUVWXYZ") ==
               len &&
           name[0] != '.' && name[0] != '-';
}

/* Printable ASCII without what confuses URLs; no empty, "." or ".." part. */
static bool is_prefix(const char *prefix) {
    for (const char *p = prefix; *p; p++)
        if (*p <= ' ' || *p >= 0x7f || strchr("?#%\\\"<>", *p))
            return false;
    for (const char *part = prefix; *part;) {
        size_t n = strcspn(part, "/");
        if (n == 0 || (n <= 2 && strncmp(part, "..", n) == 0))
            return false;
        part += n + (part[n] == '/');
    }
    return true;
}

static int parse_s3(const char *rest, struct objstore_url *ret, struct err *e) {
    size_t n = strcspn(rest, "/");
    const char *prefix = rest[n] == '/' ? rest + n + 1 : "";
    snprintf(ret->bucket, sizeof ret->bucket, "%.*s", (int)MIN(n, sizeof ret->bucket), rest);
    if (n >= sizeof ret->bucket || !is_bucket_name(ret->bucket))
        return err_set(e, -ERR_CONFIG, "'%.*s' is not the name of a bucket", (int)n, rest);
    if (!is_prefix(prefix) || strlen(prefix) + 1 > OBJ_KEY_MAX - KEY_BYTES_RESERVED)
        return err_set(e, -ERR_CONFIG,
                       "'%s' cannot be a prefix: plain characters, parts that are not empty, at "
                       "most %d bytes",
                       prefix, OBJ_KEY_MAX - KEY_BYTES_RESERVED - 1);
    size_t len = strlen(prefix);
    const char *slash = len > 0 && prefix[len - 1] != '/' ? "/" : "";
    snprintf(ret->prefix, sizeof ret->prefix, "%s%s", prefix, slash);
    ret->scheme = OBJ_SCHEME_S3;
    return 0;
}

static int parse_file(const char *rest, struct objstore_url *ret, struct err *e) {
    if (rest[0] != '/')
        return err_set(e, -ERR_CONFIG, "write file:///path: three slashes and an absolute path");
    snprintf(ret->path, sizeof ret->path, "%s", rest);
    ret->scheme = OBJ_SCHEME_FILE;
    return 0;
}

static int parse(const char *url, struct objstore_url *ret, struct err *e) {
    if (strlen(url) >= OBJ_URL_MAX)
        return err_set(e, -ERR_CONFIG, "a pool's URL is longer than %d bytes", OBJ_URL_MAX - 1);
    if (starts_with(url, "s3://"))
        return parse_s3(url + strlen("s3://"), ret, e);
    if (starts_with(url, "file://"))
        return parse_file(url + strlen("file://"), ret, e);
    if (strcmp(url, "memory:") == 0) {
        ret->scheme = OBJ_SCHEME_MEMORY;
        return 0;
    }
    return err_set(
        e, -ERR_CONFIG,
        "'%.100s' is not a pool's URL: s3://bucket/prefix, file:///path or memory:", url);
}

/* Before an '@' people put passwords: such a URL is not repeated. */
int objstore_url_parse(const char *url, struct objstore_url *ret, struct err *e) {
    *ret = (struct objstore_url){0};
    int rc = parse(url, ret, e);
    if (rc < 0 && strchr(url, '@'))
        return err_set(
            e, rc,
            "a pool's URL is s3://bucket/prefix, file:///path or memory:, without a user "
            "or password before '@'");
    return rc;
}

/* --- stores --- */

static const char *from_env(const char *name) {
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

static const char *first(const char *a, const char *b, const char *c, const char *d) {
    return a ? a : b ? b : c ? c : d;
}

/* "https://host:port" without the slash that people like to put behind it. */
static int check_endpoint(const char *endpoint, char ret[OBJ_URL_MAX], struct err *e) {
    size_t len = strlen(endpoint);
    if (strchr(endpoint, '@'))
        return err_set(e, -ERR_CONFIG,
                       "an endpoint is https://host or https://host:port, without a user or "
                       "password before '@'");
    if (len > 0 && endpoint[len - 1] == '/')
        len--;
    snprintf(ret, OBJ_URL_MAX, "%.*s", (int)MIN(len, (size_t)OBJ_URL_MAX - 1), endpoint);
    const char *host = starts_with(ret, "https://")  ? ret + strlen("https://")
                       : starts_with(ret, "http://") ? ret + strlen("http://")
                                                     : NULL;
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]";
    if (len >= OBJ_URL_MAX || !host || !*host || strspn(host, plain) != strlen(host))
        return err_set(e, -ERR_CONFIG,
                       "'%.100s' is not an endpoint: write https://host or https://host:port",
                       endpoint);
    return 0;
}

static bool is_region(const char *region) {
    size_t len = strlen(region);
    return len > 0 && len < 64 &&
           strspn(region, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") ==
               len;
}

static int open_s3(struct env *env, const struct objstore_config *config,
                   const struct objstore_url *url, struct objstore **ret, struct err *e) {
    const char *region =
        first(config->region, from_env("AWS_REGION"), from_env("AWS_DEFAULT_REGION"), "us-east-1");
    const char *given = first(config->endpoint, from_env("AWS_ENDPOINT_URL_S3"),
                              from_env("AWS_ENDPOINT_URL"), NULL);
    if (!is_region(region))
        return err_set(e, -ERR_CONFIG, "'%.100s' is not a region", region);
    bool has_dot = strchr(url->bucket, '.') != NULL; /* no certificate fits such a host name */
    bool path_style = config->addressing == OBJ_ADDRESSING_PATH ||
                      (config->addressing == OBJ_ADDRESSING_AUTO && (given || has_dot));
    CLEANUP_FREE char *aws =
        xasprintf("https://s3.%s.amazonaws.com%s", region, starts_with(region, "cn-") ? ".cn" : "");
    char endpoint[OBJ_URL_MAX];
    int rc = check_endpoint(given ? given : aws, endpoint, e);
    if (rc < 0)
        return rc;
    struct s3_credentials_source source;
    rc = s3_credentials_source_init(&source, config->access_key_id, config->secret_access_key,
                                    config->session_token, region, e);
    if (rc < 0)
        return rc;
    if (config->access_key_id) {
        source.renew = config->renew_credentials;
        source.renew_arg = config->renew_arg;
    }
    struct s3_config s3 = {.endpoint = endpoint,
                           .path_style = path_style,
                           .bucket = url->bucket,
                           .prefix = url->prefix,
                           .region = region,
                           .ca_file = first(config->ca_file, from_env("AWS_CA_BUNDLE"), NULL, NULL),
                           .source = &source};
    *ret = objstore_s3_open(env, &s3);
    return 0;
}

int objstore_open(struct loop *loop, const struct objstore_config *config, struct objstore **ret,
                  struct err *e) {
    struct env *env = loop_env(loop);
    struct objstore_url url;
    struct objstore *base = NULL;
    int rc = objstore_url_parse(config->url, &url, e);
    if (rc < 0)
        return rc;
    if (url.scheme == OBJ_SCHEME_S3) {
        rc = open_s3(env, config, &url, &base, e);
        if (rc < 0)
            return rc;
    } else if (url.scheme == OBJ_SCHEME_FILE) {
        base = objstore_file_open(env, url.path);
    } else {
        base = objstore_memory_new(env);
    }
    const struct metrics_label *labels =
        config->pool ? METRICS_LABELS({"pool", config->pool}) : NULL;
    /* A disk is not faster the second time. */
    if (url.scheme == OBJ_SCHEME_S3 && !config->no_hedging)
        base = objstore_hedge_new(base, NULL, config->metrics, labels);
    struct limit_options limit = {.requests_max = config->requests_max};
    struct retry_options retry = {.give_up_us = config->give_up_us,
                                  .on_trouble = config->on_trouble,
                                  .arg = config->on_trouble_arg};
    base = objstore_limit_new(base, &limit);
    base = objstore_stats_new(base, config->metrics, labels);
    *ret = objstore_retry_new(base, &retry);
    return 0;
}

const struct objstore_stats *objstore_open_stats(const struct objstore *store) {
    return objstore_stats(objstore_retry_below(store));
}

const struct retry_state *objstore_open_retry_state(const struct objstore *store) {
    return objstore_retry_state(store);
}
