/* Sources of S3 credentials. The shared file is read by hand: libinih cuts lines at 200 bytes,
 * session tokens are longer. Secrets stay in struct secret; buffers that held them are wiped. */
#include "portalbd/objstore/credentials.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "portalbd/objstore/s3_sign.h"
#include "portalbd/objstore/s3_xml.h"

enum {
    FILE_BYTES_MAX = 1024 * 1024, /* of a credentials file */
    STS_DURATION_S = 3600,
};

void s3_credentials_release(struct s3_credentials *c) {
    free(c->access_key_id);
    secret_release(&c->secret_access_key);
    secret_release(&c->session_token);
    *c = (struct s3_credentials){0};
}

void s3_credentials_copy(struct s3_credentials *to, const struct s3_credentials *from) {
    s3_credentials_release(to);
    to->access_key_id = xstrdup(from->access_key_id);
    secret_copy(&to->secret_access_key, &from->secret_access_key);
    secret_copy(&to->session_token, &from->session_token);
    to->expires_s = from->expires_s;
}

void s3_credentials_source_release(struct s3_credentials_source *s) {
    s3_credentials_release(&s->fixed);
    free(s->file);
    free(s->profile);
    free(s->token_file);
    free(s->role_arn);
    free(s->session_name);
    free(s->sts_url);
    *s = (struct s3_credentials_source){0};
}

/* --- finding a source --- */

/* An environment variable that is set and not empty, or NULL. */
static const char *from_env(const char *name) {
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

/* Each becomes part of a header. */
static bool is_one_line(struct view v) {
    return v.len == 0 || (!memchr(v.data, '\n', v.len) && !memchr(v.data, '\r', v.len));
}

static int set_fixed(struct s3_credentials_source *s, const char *id, struct view secret,
                     struct view token, struct err *e) {
    s->kind = S3_CREDENTIALS_FIXED;
    s->fixed.access_key_id = xstrdup(id);
    if (!secret_set(&s->fixed.secret_access_key, secret) ||
        !secret_set(&s->fixed.session_token, token)) {
        s3_credentials_source_release(s);
        return err_set(e, -ERR_CONFIG, "a secret key or session token of S3 is too long");
    }
    if (!is_one_line(view_of_str(id)) || !is_one_line(secret) || !is_one_line(token)) {
        s3_credentials_source_release(s);
        return err_set(e, -ERR_CONFIG, "a key or session token of S3 is more than one line");
    }
    return 0;
}

static void set_web_identity(struct s3_credentials_source *s, const char *token_file,
                             const char *role_arn, const char *region) {
    const char *name = from_env("AWS_ROLE_SESSION_NAME");
    const char *url = from_env("AWS_ENDPOINT_URL_STS");
    s->kind = S3_CREDENTIALS_WEB_IDENTITY;
    s->token_file = xstrdup(token_file);
    s->role_arn = xstrdup(role_arn);
    s->session_name = xstrdup(name ? name : "portalbd");
    s->sts_url = url ? xstrdup(url)
                     : xasprintf("https://sts.%s.amazonaws.com%s/", region,
                                 strncmp(region, "cn-", 3) == 0 ? ".cn" : "");
}

static bool set_file(struct s3_credentials_source *s) {
    const char *file = from_env("AWS_SHARED_CREDENTIALS_FILE"), *home = from_env("HOME");
    const char *profile = from_env("AWS_PROFILE");
    if (!file && !home)
        return false;
    s->kind = S3_CREDENTIALS_FILE;
    s->file = file ? xstrdup(file) : xasprintf("%s/.aws/credentials", home);
    s->profile = xstrdup(profile ? profile : "default");
    return profile || access(s->file, F_OK) == 0;
}

int s3_credentials_source_init(struct s3_credentials_source *s, const char *access_key_id,
                               const struct secret *secret_access_key,
                               const struct secret *session_token, const char *region,
                               struct err *e) {
    *s = (struct s3_credentials_source){0};
    if (access_key_id) {
        if (!secret_access_key || secret_empty(secret_access_key))
            return err_set(e, -ERR_CONFIG, "the pool has an access key id but no secret key");
        return set_fixed(s, access_key_id, secret_reveal(secret_access_key),
                         session_token ? secret_reveal(session_token) : view_of(NULL, 0), e);
    }
    const char *id = from_env("AWS_ACCESS_KEY_ID"), *secret = from_env("AWS_SECRET_ACCESS_KEY");
    const char *token = from_env("AWS_SESSION_TOKEN");
    if (id && secret)
        return set_fixed(s, id, view_of_str(secret), view_of_str(token ? token : ""), e);
    const char *token_file = from_env("AWS_WEB_IDENTITY_TOKEN_FILE");
    const char *role_arn = from_env("AWS_ROLE_ARN");
    if (token_file && role_arn) {
        set_web_identity(s, token_file, role_arn, region);
        return 0;
    }
    if (set_file(s))
        return 0;
    s3_credentials_source_release(s);
    return err_set(e, -ERR_CONFIG,
                   "no S3 credentials: give the pool a key, or set AWS_ACCESS_KEY_ID and "
                   "AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or "
                   "make ~/.aws/credentials");
}

/* --- the shared file --- */

static struct view trim(struct view v) {
    while (v.len > 0 && (v.data[0] == ' ' || v.data[0] == '\t'))
        v = view_part(v, 1, v.len - 1);
    while (v.len > 0 && strchr(" \t\r", v.data[v.len - 1]))
        v.len--;
    return v;
}

static bool take_line(struct view *text, struct view *ret_line) {
    if (text->len == 0)
        return false;
    const uint8_t *end = memchr(text->data, '\n', text->len);
    size_t len = end ? (size_t)(end - text->data) : text->len;
    *ret_line = view_part(*text, 0, len);
    size_t skip = end ? len + 1 : len;
    *text = view_part(*text, skip, text->len - skip);
    return true;
}

static bool is(struct view v, const char *name) {
    return view_equal(v, view_of_str(name));
}

/* False when a value is too long. */
static bool take_setting(struct s3_credentials *c, struct view name, struct view value) {
    if (is(name, "aws_secret_access_key"))
        return secret_set(&c->secret_access_key, value);
    if (is(name, "aws_session_token"))
        return secret_set(&c->session_token, value);
    if (is(name, "aws_access_key_id")) {
        free(c->access_key_id);
        c->access_key_id = xstrndup((const char *)value.data, value.len);
    }
    return true;
}

int s3_credentials_parse_file(struct view text, const char *profile, struct s3_credentials *ret,
                              struct err *e) {
    struct s3_credentials c = {0};
    struct view line;
    bool in_profile = false, found = false, fits = true;
    while (fits && take_line(&text, &line)) {
        struct view t = trim(line);
        if (t.len == 0 || strchr("#;", t.data[0]) || strchr(" \t", line.data[0]))
            continue; /* comments; indented lines are nested settings of others */
        if (t.data[0] == '[') {
            struct view name = trim(view_part(t, 1, t.len - 1));
            bool closed = name.len > 0 && name.data[name.len - 1] == ']';
            name.len -= closed;
            in_profile = closed && is(trim(name), profile);
            found = found || in_profile;
            continue;
        }
        const uint8_t *equals = memchr(t.data, '=', t.len);
        if (!in_profile || !equals)
            continue;
        size_t at = (size_t)(equals - t.data);
        fits =
            take_setting(&c, trim(view_part(t, 0, at)), trim(view_part(t, at + 1, t.len - at - 1)));
    }
    if (fits && c.access_key_id && *c.access_key_id && !secret_empty(&c.secret_access_key)) {
        *ret = c;
        return 0;
    }
    s3_credentials_release(&c);
    return err_set(e, -ERR_CONFIG, "profile '%s' %s", profile,
                   found ? "has no aws_access_key_id and aws_secret_access_key"
                         : "is not in the credentials file");
}

/* A small file whole. */
static int read_file(const char *path, struct buf *ret, struct err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : 1;
    while (n > 0 && ret->len < FILE_BYTES_MAX) {
        buf_reserve(ret, 4096);
        n = read(fd, ret->data + ret->len, 4096);
        if (n > 0)
            ret->len += (size_t)n;
    }
    int eno = errno;
    if (fd >= 0)
        close(fd);
    if (n < 0)
        return err_set(e, -ERR_CONFIG, "read '%s': %s", path, strerror(eno));
    if (n > 0)
        return err_set(e, -ERR_CONFIG, "'%s' is longer than %d bytes", path, FILE_BYTES_MAX);
    return 0;
}

static void wipe(struct buf *b) {
    secret_wipe(b->data, b->cap);
    buf_release(b);
}
#define CLEANUP_WIPE CLEANUP(wipe)

int s3_credentials_load(const struct s3_credentials_source *s, struct s3_credentials *ret,
                        struct err *e) {
    CHECK(s->kind != S3_CREDENTIALS_WEB_IDENTITY);
    if (s->kind == S3_CREDENTIALS_FIXED) {
        struct s3_credentials newer = {0};
        bool renewed = s->renew && s->renew(s->renew_arg, &newer, NULL) == 0;
        s3_credentials_copy(ret, renewed ? &newer : &s->fixed);
        s3_credentials_release(&newer);
        return 0;
    }
    CLEANUP_WIPE struct buf text = {0};
    struct s3_credentials c;
    struct err why;
    if (read_file(s->file, &text, &why) < 0 ||
        s3_credentials_parse_file(buf_view(&text), s->profile, &c, &why) < 0) {
        err_wrap(&why, "S3 credentials in '%s'", s->file);
        return err_copy(e, &why);
    }
    s3_credentials_release(ret);
    *ret = c;
    return 0;
}

/* --- web identity --- */

int s3_credentials_sts_form(const struct s3_credentials_source *s, struct buf *ret, struct err *e) {
    CHECK(s->kind == S3_CREDENTIALS_WEB_IDENTITY);
    CLEANUP_WIPE struct buf token = {0};
    struct err why;
    if (read_file(s->token_file, &token, &why) < 0) {
        err_wrap(&why, "web identity token");
        return err_copy(e, &why);
    }
    while (token.len > 0 && strchr("\r\n", token.data[token.len - 1]))
        token.len--;
    char duration[16];
    snprintf(duration, sizeof duration, "%d", STS_DURATION_S);
    const struct s3_pair params[] = {
        {"Action", "AssumeRoleWithWebIdentity"}, {"Version", "2011-06-15"},
        {"DurationSeconds", duration},           {"RoleArn", s->role_arn},
        {"RoleSessionName", s->session_name},    {"WebIdentityToken", buf_cstr(&token)}};
    buf_reserve(ret, 3 * token.len + 1024); /* no copies left behind by growing */
    s3_query_append(params, ARRAY_LEN(params), ret);
    return 0;
}

int s3_credentials_sts_parse(struct view xml, struct s3_credentials *ret, struct err *e) {
    struct s3_error error;
    if (s3_xml_parse_error(xml, &error))
        return err_set(e, -ERR_DENIED, "STS: %s: %s", error.code, error.message);
    struct s3_sts sts;
    int rc = s3_xml_parse_sts(xml, &sts, e);
    if (rc < 0)
        return rc;
    s3_credentials_release(ret);
    ret->access_key_id = xstrdup(sts.access_key_id);
    secret_copy(&ret->secret_access_key, &sts.secret_access_key);
    secret_copy(&ret->session_token, &sts.session_token);
    ret->expires_s = sts.expires_s;
    s3_sts_release(&sts);
    return 0;
}
