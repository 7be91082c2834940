/* The file of pools: read whole, checked whole, or refused.
 *
 * A key that is not known is refused rather than passed over: a misspelt "regoin" would otherwise
 * be found out by what the store says. Secrets are kept in their own type only. */
#include "portalbd/catalog/pool_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/config_file.h"
#include "common/mem.h"

void pool_config_release(struct pool_config *p) {
    free(p->url);
    free(p->endpoint);
    free(p->region);
    free(p->addressing);
    free(p->ca_file);
    free(p->access_key_id);
    secret_release(&p->secret_access_key);
    secret_release(&p->session_token);
    *p = (struct pool_config){0};
}

static char *copy_text(const char *text) {
    return xstrdup(text ? text : "");
}

void pool_config_copy(struct pool_config *to, const struct pool_config *from) {
    *to = (struct pool_config){
        .url = copy_text(from->url),
        .endpoint = copy_text(from->endpoint),
        .region = copy_text(from->region),
        .addressing = copy_text(from->addressing),
        .ca_file = copy_text(from->ca_file),
        .access_key_id = copy_text(from->access_key_id),
    };
    memcpy(to->name, from->name, sizeof to->name);
    secret_copy(&to->secret_access_key, &from->secret_access_key);
    secret_copy(&to->session_token, &from->session_token);
}

bool pool_config_equal(const struct pool_config *a, const struct pool_config *b) {
    return strcmp(a->name, b->name) == 0 && strcmp(a->url, b->url) == 0 &&
           strcmp(a->endpoint, b->endpoint) == 0 && strcmp(a->region, b->region) == 0 &&
           strcmp(a->addressing, b->addressing) == 0 && strcmp(a->ca_file, b->ca_file) == 0 &&
           strcmp(a->access_key_id, b->access_key_id) == 0 &&
           secret_equal(&a->secret_access_key, &b->secret_access_key) &&
           secret_equal(&a->session_token, &b->session_token);
}

struct line {
    const char *key;
    struct view value;
};
enum { LINES_MAX = 8 };

/* Returns how many; values are borrowed. */
static size_t lines_of(const struct pool_config *p, const char *session_token_path,
                       struct line lines[LINES_MAX]) {
    const struct line all[LINES_MAX] = {
        {"url", view_of_str(p->url)},
        {"endpoint", view_of_str(p->endpoint)},
        {"region", view_of_str(p->region)},
        {"addressing", view_of_str(p->addressing)},
        {"ca_file", view_of_str(p->ca_file)},
        {"access_key_id", view_of_str(p->access_key_id)},
        {"secret_access_key", secret_reveal(&p->secret_access_key)},
        {"session_token_file", view_of_str(session_token_path)},
    };
    size_t n = 0;
    for (size_t i = 0; i < LINES_MAX; i++)
        if (all[i].value.len > 0)
            lines[n++] = all[i];
    return n;
}

static bool is_blank(uint8_t c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Whether a reader of "key = value" finds this value: it is no part of a comment, of the space
 * around it, or of the next line, and the line is not too long. */
static bool stands_on_line(const struct line *l) {
    struct view v = l->value;
    if (strlen(l->key) + strlen(" = ") + v.len > CONFIG_LINE_MAX || is_blank(v.data[0]) ||
        is_blank(v.data[v.len - 1]) || memchr(v.data, '\n', v.len))
        return false;
    for (size_t i = 1; i < v.len; i++)
        if (v.data[i] == ';' && is_blank(v.data[i - 1]))
            return false;
    return true;
}

static int check_lines(const struct pool_config *p, const struct line *lines, size_t n,
                       struct err *e) {
    for (size_t i = 0; i < n; i++)
        if (!stands_on_line(&lines[i]))
            return err_set(e, -ERR_INVALID,
                           "pool '%s': its %s cannot be written on a line of %d bytes", p->name,
                           lines[i].key, CONFIG_LINE_MAX);
    return 0;
}

int pool_config_encode(struct buf *out, const struct pool_config *p, const char *session_token_path,
                       struct err *e) {
    struct line lines[LINES_MAX];
    size_t n = lines_of(p, secret_empty(&p->session_token) ? "" : session_token_path, lines);
    int rc = check_lines(p, lines, n, e);
    if (rc < 0)
        return rc;
    buf_reserve(out, 8192); /* at once: growing would leave copies of the secret behind */
    buf_printf(out, "[%s]\n", p->name);
    for (size_t i = 0; i < n; i++) {
        bool bare = lines[i].value.data[0] == ';'; /* behind a space it would begin a comment */
        buf_printf(out, "%s =%s", lines[i].key, bare ? "" : " ");
        buf_append(out, lines[i].value.data, lines[i].value.len);
        buf_append_str(out, "\n");
    }
    return 0;
}

void pool_file_release(struct pool_file *f) {
    for (size_t i = 0; i < f->count; i++)
        pool_config_release(&f->pools[i]);
    free(f->pools);
    *f = (struct pool_file){0};
}

const struct pool_config *pool_file_find(const struct pool_file *f, const char *name) {
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->pools[i].name, name) == 0)
            return &f->pools[i];
    return NULL;
}

/* --- one key --- */

static bool name_valid(const char *name) {
    size_t len = strlen(name);
    return len >= 1 && len < POOL_NAME_MAX &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == len;
}

/* The pool of a section; made when it is the first key of it. */
static struct pool_config *section_pool(struct pool_file *f, const char *section, struct err *e) {
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->pools[i].name, section) == 0)
            return &f->pools[i];
    if (!name_valid(section)) {
        err_set_text(e, -ERR_CONFIG,
                     "'%.64s' is not a pool's name: write [name], 1 to %d of a-z 0-9 -", section,
                     POOL_NAME_MAX - 1);
        return NULL;
    }
    if (f->count == POOL_FILE_POOLS_MAX) {
        err_set_text(e, -ERR_CONFIG, "more than %d pools", POOL_FILE_POOLS_MAX);
        return NULL;
    }
    f->pools = xrealloc(f->pools, (f->count + 1) * sizeof *f->pools);
    struct pool_config *p = &f->pools[f->count++];
    *p = (struct pool_config){
        .url = copy_text(NULL),
        .endpoint = copy_text(NULL),
        .region = copy_text(NULL),
        .addressing = copy_text(NULL),
        .ca_file = copy_text(NULL),
        .access_key_id = copy_text(NULL),
    };
    memcpy(p->name, section, strlen(section) + 1);
    return p;
}

static int set_secret(struct secret *s, struct view v, const char *key, struct err *e) {
    if (!secret_empty(s))
        return err_set(e, -ERR_CONFIG, "%s is given twice", key);
    if (!secret_set(s, v))
        return err_set(e, -ERR_CONFIG, "%s is not a text of at most %d bytes", key, SECRET_MAX);
    return 0;
}

/* Whatever it is: no -ERR_NOT_FOUND, which says that there is no pool file. */
static int cannot_read(const char *key, const char *path, int eno, struct err *e) {
    return err_set(e, -ERR_CONFIG, "%s %s: %s", key, path, strerror(eno));
}

/* A value from a file of its own: a token is longer than a line of this one may be, a key may come
 * from elsewhere (a Secret of Kubernetes). Space at its end is not part of it. */
static int set_secret_from_file(struct secret *s, const char *path, const char *key,
                                struct err *e) {
    uint8_t bytes[SECRET_MAX + 2];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return cannot_read(key, path, errno, e);
    ssize_t n = read(fd, bytes, sizeof bytes);
    int eno = errno;
    close(fd);
    if (n < 0)
        return cannot_read(key, path, eno, e);
    size_t len = (size_t)n;
    while (len > 0 && (bytes[len - 1] == '\n' || bytes[len - 1] == '\r' || bytes[len - 1] == ' '))
        len--;
    int rc = set_secret(s, view_of(bytes, len), key, e);
    secret_wipe(bytes, sizeof bytes);
    return rc;
}

static int set_text(char **text, const char *key, const char *value, struct err *e) {
    if ((*text)[0] != '\0')
        return err_set(e, -ERR_CONFIG, "%s is given twice", key);
    free(*text);
    *text = xstrdup(value);
    return 0;
}

static int set_text_from_file(char **text, const char *path, const char *key, struct err *e) {
    CLEANUP_SECRET struct secret value = {0};
    int rc = set_secret_from_file(&value, path, key, e);
    if (rc < 0)
        return rc;
    struct view v = secret_reveal(&value);
    if (v.len > CONFIG_LINE_MAX || (v.len > 0 && memchr(v.data, '\n', v.len)))
        return err_set(e, -ERR_CONFIG, "%s %s is not one line of at most %d bytes", key, path,
                       CONFIG_LINE_MAX);
    CLEANUP_FREE char *line = xasprintf("%.*s", (int)v.len, v.len ? (const char *)v.data : "");
    return set_text(text, key, line, e);
}

static int on_key(void *arg, const char *section, const char *key, const char *value,
                  struct err *e) {
    struct pool_config *p = section_pool(arg, section, e);
    if (!p)
        return -ERR_CONFIG;
    struct {
        const char *key;
        char **text;
    } texts[] = {{"url", &p->url},         {"endpoint", &p->endpoint},
                 {"region", &p->region},   {"addressing", &p->addressing},
                 {"ca_file", &p->ca_file}, {"access_key_id", &p->access_key_id}};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        if (strcmp(texts[i].key, key) == 0)
            return set_text(texts[i].text, key, value, e);
    if (strcmp(key, "secret_access_key") == 0)
        return set_secret(&p->secret_access_key, view_of_str(value), key, e);
    if (strcmp(key, "session_token") == 0)
        return set_secret(&p->session_token, view_of_str(value), key, e);
    if (strcmp(key, "access_key_id_file") == 0)
        return set_text_from_file(&p->access_key_id, value, key, e);
    if (strcmp(key, "secret_access_key_file") == 0)
        return set_secret_from_file(&p->secret_access_key, value, key, e);
    if (strcmp(key, "session_token_file") == 0)
        return set_secret_from_file(&p->session_token, value, key, e);
    return err_set(e, -ERR_CONFIG, "pool '%s' has an unknown key '%.64s'", section, key);
}

/* --- the whole --- */

/* Also, that the pool can be handed on: a daemon gets its own in a file like this one. */
static int check_pool(const struct pool_config *p, struct err *e) {
    static const char *const addressings[] = {"", "path", "virtual", "auto"};
    bool known = false;
    for (size_t i = 0; i < ARRAY_LEN(addressings); i++)
        known |= strcmp(p->addressing, addressings[i]) == 0;
    if (p->url[0] == '\0')
        return err_set(e, -ERR_CONFIG,
                       "pool '%s' has no url: write url = s3://bucket/prefix or "
                       "file:///path",
                       p->name);
    if (strchr(p->endpoint, '@')) /* not repeated: a password may stand before it */
        return err_set(e, -ERR_CONFIG,
                       "pool '%s': its endpoint has a user or password before '@': keys are "
                       "access_key_id and secret_access_key",
                       p->name);
    if (!known)
        return err_set(e, -ERR_CONFIG, "pool '%s': addressing is path, virtual or auto", p->name);
    if ((p->access_key_id[0] == '\0') != secret_empty(&p->secret_access_key))
        return err_set(e, -ERR_CONFIG,
                       "pool '%s': access_key_id and secret_access_key come together, or neither",
                       p->name);
    struct line lines[LINES_MAX];
    return check_lines(p, lines, lines_of(p, "", lines), e);
}

static bool has_secrets(const struct pool_file *f) {
    for (size_t i = 0; i < f->count; i++)
        if (!secret_empty(&f->pools[i].secret_access_key) ||
            !secret_empty(&f->pools[i].session_token))
            return true;
    return false;
}

static struct pool_file_stamp stamp_of(const struct stat *st) {
    return (struct pool_file_stamp){
        .device = (uint64_t)st->st_dev,
        .inode = (uint64_t)st->st_ino,
        .size = (uint64_t)st->st_size,
        .mtime_ns = (uint64_t)st->st_mtim.tv_sec * 1000000000 + (uint64_t)st->st_mtim.tv_nsec,
    };
}

static bool stamps_equal(const struct pool_file_stamp *a, const struct pool_file_stamp *b) {
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           a->mtime_ns == b->mtime_ns;
}

/* A file of somebody else that we may read belongs to a group of ours: so Kubernetes hands Secrets
 * to processes that are not root. */
static mode_t forbidden_mode(const struct stat *st) {
    return st->st_uid == geteuid() ? 077 : 037;
}

int pool_file_read(const char *path, struct pool_file *ret, struct err *e) {
    struct stat st;
    if (stat(path, &st) < 0)
        return err_from_errno(e, errno, "pool file %s", path);
    struct pool_file f = {.stamp =
                              stamp_of(&st)}; /* of before: a change meanwhile is seen next time */
    int rc = config_file_read(path, on_key, &f, e);
    for (size_t i = 0; rc == 0 && i < f.count; i++) {
        rc = check_pool(&f.pools[i], e);
        if (rc < 0 && e)
            err_wrap(e, "%s", path);
    }
    if (rc == 0 && f.count == 0)
        rc = err_set(e, -ERR_CONFIG, "%s names no pool: write [name] and url = ...", path);
    if (rc == 0 && has_secrets(&f) && (st.st_mode & forbidden_mode(&st)) != 0)
        rc =
            err_set(e, -ERR_CONFIG,
                    "%s holds secrets and others than its owner may read it (mode %03o): chmod 600",
                    path, (unsigned)(st.st_mode & 0777));
    if (rc == 0)
        *ret = f;
    else
        pool_file_release(&f);
    return rc;
}

bool pool_file_changed(const char *path, const struct pool_file *f) {
    struct stat st;
    if (stat(path, &st) < 0)
        return false;
    struct pool_file_stamp now = stamp_of(&st);
    return !stamps_equal(&now, &f->stamp);
}
