/* S3's XML on libexpat: a path of open elements, the text of the innermost one, and a callback for
 * each element that ends. Document types and entities of a document's own are refused; depth, text
 * and size are bounded. */
#include "portalbd/objstore/s3_xml.h"

#include <expat.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { NAME_MAX_ = 48, PATH_MAX_ = S3_XML_DEPTH_MAX * NAME_MAX_ };

struct walk {
    XML_Parser parser;
    /* "ListBucketResult/Contents": the names of the open elements, without namespaces. */
    char path[PATH_MAX_];
    size_t path_len;
    unsigned depth;
    struct buf text;
    bool refused;
    /* Called with the path of the element that ends and its text (NUL-terminated). False refuses
     * the document. */
    bool (*on_end)(struct walk *w, const char *path, const char *text);
    void *arg;
};

static void refuse(struct walk *w) {
    w->refused = true;
    XML_StopParser(w->parser, XML_FALSE);
}

static void on_doctype(void *arg, const XML_Char *name, const XML_Char *sysid,
                       const XML_Char *pubid, int internal) {
    (void)name;
    (void)sysid;
    (void)pubid;
    (void)internal;
    refuse(arg);
}

static void on_start(void *arg, const XML_Char *name, const XML_Char **attributes) {
    struct walk *w = arg;
    (void)attributes;
    const char *colon = strrchr(name, ':');
    const char *local = colon ? colon + 1 : name;
    size_t len = strlen(local);
    if (w->refused)
        return;
    if (++w->depth > S3_XML_DEPTH_MAX || len >= NAME_MAX_ ||
        w->path_len + 1 + len >= sizeof w->path) {
        refuse(w);
        return;
    }
    if (w->path_len > 0)
        w->path[w->path_len++] = '/';
    memcpy(w->path + w->path_len, local, len + 1);
    w->path_len += len;
    buf_clear(&w->text);
}

static void on_end(void *arg, const XML_Char *name) {
    struct walk *w = arg;
    (void)name;
    if (w->refused)
        return;
    if (!w->on_end(w, w->path, buf_cstr(&w->text))) {
        refuse(w);
        return;
    }
    const char *slash = strrchr(w->path, '/');
    w->path_len = slash ? (size_t)(slash - w->path) : 0;
    w->path[w->path_len] = '\0';
    w->depth--;
    buf_clear(&w->text);
}

static void on_text(void *arg, const XML_Char *text, int len) {
    struct walk *w = arg;
    if (w->refused)
        return;
    if (w->text.len + (size_t)len > S3_XML_TEXT_MAX || memchr(text, '\0', (size_t)len)) {
        refuse(w);
        return;
    }
    buf_append(&w->text, text, (size_t)len);
}

/* True when the document is well-formed and nobody refused it. */
static bool walk_document(struct walk *w, struct view xml) {
    if (xml.len == 0 || xml.len > S3_XML_MAX)
        return false;
    w->parser = XML_ParserCreate(NULL);
    CHECK(w->parser);
    XML_SetUserData(w->parser, w);
    XML_SetElementHandler(w->parser, on_start, on_end);
    XML_SetCharacterDataHandler(w->parser, on_text);
    XML_SetStartDoctypeDeclHandler(w->parser, on_doctype);
    bool ok = XML_Parse(w->parser, (const char *)xml.data, (int)xml.len, XML_TRUE) == XML_STATUS_OK;
    XML_ParserFree(w->parser);
    secret_wipe(w->text.data, w->text.cap); /* may hold credentials */
    buf_release(&w->text);
    return ok && !w->refused;
}

static bool is(const char *path, const char *want) {
    return strcmp(path, want) == 0;
}

static bool parse_u64(const char *text, uint64_t *ret) {
    if (*text < '0' || *text > '9')
        return false;
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    *ret = v;
    return errno == 0 && *end == '\0';
}

/* What a store says goes into logs: printable ASCII only. */
static void copy_text(char *to, size_t size, const char *text) {
    size_t n = 0;
    for (; *text && n + 1 < size; text++)
        to[n++] = (*text >= 0x20 && *text < 0x7f) ? *text : '?';
    to[n] = '\0';
}

/* --- Error --- */

static bool error_end(struct walk *w, const char *path, const char *text) {
    struct s3_error *r = w->arg;
    if (strncmp(path, "ErrorResponse/", 14) == 0)
        path += 14; /* STS wraps it */
    if (is(path, "Error/Code"))
        copy_text(r->code, sizeof r->code, text);
    else if (is(path, "Error/Message"))
        copy_text(r->message, sizeof r->message, text);
    else if (is(path, "Error/Region"))
        copy_text(r->region, sizeof r->region, text);
    return true;
}

bool s3_xml_parse_error(struct view xml, struct s3_error *ret) {
    *ret = (struct s3_error){0};
    struct walk w = {.on_end = error_end, .arg = ret};
    bool ok = walk_document(&w, xml) && ret->code[0];
    if (!ok)
        *ret = (struct s3_error){0};
    return ok;
}

/* --- ListBucketResult --- */

struct list_walk {
    struct s3_list list;
    size_t cap;
    size_t keys_max;
    struct obj_entry entry; /* the one that is being read; key owned */
    bool has_size;
    bool url_encoded;
    bool is_list;
    bool has_truncated;
};

static void *list_slot(struct list_walk *l) {
    if (l->list.count == l->cap) {
        l->cap = MAX(2 * l->cap, (size_t)64);
        l->list.entries = xrealloc(l->list.entries, l->cap * sizeof l->list.entries[0]);
    }
    return &l->list.entries[l->list.count++];
}

static bool list_end(struct walk *w, const char *path, const char *text) {
    struct list_walk *l = w->arg;
    if (is(path, "ListBucketResult")) {
        l->is_list = true;
    } else if (is(path, "ListBucketResult/EncodingType")) {
        l->url_encoded = is(text, "url");
    } else if (is(path, "ListBucketResult/IsTruncated")) {
        l->has_truncated = is(text, "true") || is(text, "false");
        l->list.truncated = is(text, "true");
    } else if (is(path, "ListBucketResult/Contents/Key")) {
        free(l->entry.key);
        l->entry.key = xstrdup(text);
    } else if (is(path, "ListBucketResult/Contents/Size")) {
        l->has_size = parse_u64(text, &l->entry.size);
    } else if (is(path, "ListBucketResult/Contents")) {
        if (!l->entry.key || !l->has_size || l->list.count == l->keys_max)
            return false;
        *(struct obj_entry *)list_slot(l) = l->entry;
        l->entry = (struct obj_entry){0};
        l->has_size = false;
    }
    return true;
}

static int hex_value(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* In place; "+" is a space, as S3 writes it. */
static bool url_decode(char *s) {
    char *to = s;
    for (; *s; s++) {
        if (*s == '+') {
            *to++ = ' ';
        } else if (*s != '%') {
            *to++ = *s;
        } else {
            int high = hex_value(s[1]), low = high < 0 ? -1 : hex_value(s[2]);
            if (low < 0 || (high | low) == 0)
                return false;
            *to++ = (char)(high << 4 | low);
            s += 2;
        }
    }
    *to = '\0';
    return true;
}

void s3_list_release(struct s3_list *list) {
    for (size_t i = 0; i < list->count; i++)
        free(list->entries[i].key);
    free(list->entries);
    *list = (struct s3_list){0};
}

int s3_xml_parse_list(struct view xml, size_t keys_max, struct s3_list *ret, struct err *e) {
    struct list_walk l = {.keys_max = keys_max};
    struct walk w = {.on_end = list_end, .arg = &l};
    bool ok = walk_document(&w, xml) && l.is_list && l.has_truncated &&
              !(l.list.truncated && l.list.count == 0);
    free(l.entry.key);
    for (size_t i = 0; i < l.list.count && ok && l.url_encoded; i++)
        ok = url_decode(l.list.entries[i].key);
    if (!ok) {
        s3_list_release(&l.list);
        return err_set(e, -ERR_TRANSIENT, "the answer is no listing");
    }
    *ret = l.list;
    return 0;
}

/* --- Delete --- */

static void append_escaped(struct buf *b, const char *text) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '&')
            buf_append_str(b, "&amp;");
        else if (c == '<')
            buf_append_str(b, "&lt;");
        else if (c == '>')
            buf_append_str(b, "&gt;");
        else if (c == '"')
            buf_append_str(b, "&quot;");
        else if (c < 0x20)
            buf_printf(b, "&#%u;", c);
        else
            buf_append(b, text, 1);
    }
}

void s3_xml_build_delete(const char *prefix, const char *const *keys, size_t count,
                         struct buf *ret) {
    buf_append_str(ret, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                        "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
                        "<Quiet>true</Quiet>");
    for (size_t i = 0; i < count; i++) {
        buf_append_str(ret, "<Object><Key>");
        append_escaped(ret, prefix);
        append_escaped(ret, keys[i]);
        buf_append_str(ret, "</Key></Object>");
    }
    buf_append_str(ret, "</Delete>");
}

struct deleted_walk {
    struct s3_deleted result;
    struct s3_error error;
    bool is_result;
};

static bool deleted_end(struct walk *w, const char *path, const char *text) {
    struct deleted_walk *d = w->arg;
    if (is(path, "DeleteResult")) {
        d->is_result = true;
    } else if (is(path, "DeleteResult/Error/Code")) {
        copy_text(d->error.code, sizeof d->error.code, text);
    } else if (is(path, "DeleteResult/Error/Message")) {
        copy_text(d->error.message, sizeof d->error.message, text);
    } else if (is(path, "DeleteResult/Error")) {
        if (!is(d->error.code, "NoSuchKey") && d->result.errors++ == 0)
            d->result.first = d->error;
        d->error = (struct s3_error){0};
    }
    return true;
}

int s3_xml_parse_deleted(struct view xml, struct s3_deleted *ret, struct err *e) {
    struct deleted_walk d = {0};
    struct walk w = {.on_end = deleted_end, .arg = &d};
    if (!walk_document(&w, xml) || !d.is_result)
        return err_set(e, -ERR_TRANSIENT, "the answer does not say what was deleted");
    *ret = d.result;
    return 0;
}

/* --- STS --- */

static bool parse_time(const char *text, uint64_t *ret) {
    struct tm tm = {0};
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    if (!end || (*end != 'Z' && *end != '.' && *end != '\0'))
        return false;
    time_t t = timegm(&tm);
    *ret = (uint64_t)t;
    return t > 0;
}

static bool sts_end(struct walk *w, const char *path, const char *text) {
    struct s3_sts *r = w->arg;
    static const char prefix[] = "AssumeRoleWithWebIdentityResponse/"
                                 "AssumeRoleWithWebIdentityResult/Credentials/";
    if (strncmp(path, prefix, sizeof prefix - 1) != 0)
        return true;
    const char *name = path + sizeof prefix - 1;
    if (is(name, "AccessKeyId"))
        copy_text(r->access_key_id, sizeof r->access_key_id, text);
    else if (is(name, "SecretAccessKey"))
        return secret_set(&r->secret_access_key, view_of_str(text));
    else if (is(name, "SessionToken"))
        return secret_set(&r->session_token, view_of_str(text));
    else if (is(name, "Expiration"))
        return parse_time(text, &r->expires_s);
    return true;
}

void s3_sts_release(struct s3_sts *sts) {
    secret_release(&sts->secret_access_key);
    secret_release(&sts->session_token);
    *sts = (struct s3_sts){0};
}

int s3_xml_parse_sts(struct view xml, struct s3_sts *ret, struct err *e) {
    struct s3_sts sts = {0};
    struct walk w = {.on_end = sts_end, .arg = &sts};
    if (!walk_document(&w, xml) || !sts.access_key_id[0] || secret_empty(&sts.secret_access_key) ||
        sts.expires_s == 0) {
        s3_sts_release(&sts);
        return err_set(e, -ERR_TRANSIENT, "the answer holds no credentials");
    }
    *ret = sts;
    return 0;
}
