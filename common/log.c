/* The log. A line is put together on the caller's stack and written with one write(2).
 *
 * I1 A line is whole: a field that does not fit is left out together with all that follow it, and
 *    truncated=true says so. LINE_TAIL bytes are kept free for that.
 * I2 What goes out is one line of valid UTF-8 (and valid JSON), whatever the values hold: control
 *    characters are escaped, bytes that are not UTF-8 become U+FFFD. */
#include "common/log.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/utf8.h"

enum { LINE_TAIL = 24 /* bytes of ,"truncated":true} and newline */, LIMIT_DEFAULT_MS = 10000 };

const char *const log_level_names[] = {"debug", "info", "warn", "error", NULL};
const char *const log_format_names[] = {"logfmt", "json", NULL};

enum log_level log_level_min_ = LOG_LEVEL_INFO;
static struct log_config settings = {.level = LOG_LEVEL_INFO, .fd = STDERR_FILENO};

static __thread char context_key[32]; /* "" when there is none */
static __thread char context_value[LOG_CONTEXT_MAX];

struct line {
    size_t len;
    bool full; /* something did not fit */
    bool json;
    char data[LOG_LINE_MAX];
};

void log_init(const struct log_config *config) {
    CHECK(config->level <= LOG_LEVEL_ERROR && config->format <= LOG_FORMAT_JSON);
    settings = *config;
    if (settings.fd == 0)
        settings.fd = STDERR_FILENO;
    log_set_level(config->level);
}

void log_set_level(enum log_level level) {
    __atomic_store_n(&log_level_min_, level, __ATOMIC_RELAXED);
}

void log_set_context(const char *key, const char *value) {
    snprintf(context_key, sizeof context_key, "%s", key && value ? key : "");
    snprintf(context_value, sizeof context_value, "%s", value ? value : "");
}

const char *log_strerror_(int eno) {
    const char *text = strerrordesc_np(eno);
    return text ? text : "unknown error";
}

static void put(struct line *l, const char *text, size_t len) {
    if (l->full || len > sizeof l->data - LINE_TAIL - l->len) {
        l->full = true;
        return;
    }
    memcpy(l->data + l->len, text, len);
    l->len += len;
}

static void put_str(struct line *l, const char *text) {
    put(l, text, strlen(text));
}

static void put_quoted(struct line *l, struct view v) {
    size_t shown = MIN(v.len, (size_t)LOG_VALUE_MAX);
    put_str(l, "\"");
    for (size_t i = 0; i < shown;) {
        uint8_t c = v.data[i];
        size_t len = utf8_sequence_len(v.data + i, v.len - i);
        char escaped[8];
        if (c == '"' || c == '\\')
            put(l, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\%c", c));
        else if (c == '\n' || c == '\t')
            put_str(l, c == '\n' ? "\\n" : "\\t");
        else if (c < 0x20 || c == 0x7f)
            put(l, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\u%04x", c));
        else if (len == 0)
            put_str(l, "\\ufffd");
        else
            put(l, (const char *)v.data + i, len);
        i += MAX(len, (size_t)1);
    }
    put_str(l, shown < v.len ? "...\"" : "\"");
}

/* Does logfmt need quotes? */
static bool is_plain(struct view v) {
    if (v.len == 0 || v.len > LOG_VALUE_MAX)
        return false;
    for (size_t i = 0; i < v.len; i++)
        if (v.data[i] <= ' ' || v.data[i] >= 0x7f || strchr("\"=\\", v.data[i]))
            return false;
    return true;
}

static void put_text(struct line *l, struct view v) {
    if (!l->json && is_plain(v))
        put(l, (const char *)v.data, v.len);
    else
        put_quoted(l, v);
}

static void put_key(struct line *l, const char *key) {
    if (l->json) {
        put_str(l, l->len > 1 ? ",\"" : "\"");
        put_str(l, key);
        put_str(l, "\":");
    } else {
        if (l->len > 0)
            put_str(l, " ");
        put_str(l, key);
        put_str(l, "=");
    }
}

static void put_pair(struct line *l, const char *key, const char *value) {
    put_key(l, key);
    put_text(l, view_of_str(value ? value : ""));
}

static void put_f64(struct line *l, double value) {
    char text[32];
    snprintf(text, sizeof text, "%.9g", value);
    if (isfinite(value))
        put_str(l, text);
    else
        put_text(l, view_of_str(text));
}

static void put_field(struct line *l, const struct log_field *f) {
    char text[32];
    if (f->type == LOG_TYPE_ERR) {
        put_pair(l, f->key, f->err->text);
        put_pair(l, "code", err_code_name(f->err->code));
        return;
    }
    CHECK(f->type > LOG_TYPE_END && f->type < LOG_TYPE_ERR);
    put_key(l, f->key);
    switch (f->type) {
    case LOG_TYPE_STR:
        put_text(l, view_of_str(f->str ? f->str : ""));
        return;
    case LOG_TYPE_VIEW:
        put_text(l, f->view);
        return;
    case LOG_TYPE_U64:
        put(l, text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)f->u64));
        return;
    case LOG_TYPE_I64:
        put(l, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)f->i64));
        return;
    case LOG_TYPE_X64:
        snprintf(text, sizeof text, "%016llx", (unsigned long long)f->u64);
        put_text(l, view_of_str(text));
        return;
    case LOG_TYPE_F64:
        put_f64(l, f->f64);
        return;
    case LOG_TYPE_BOOL:
        put_str(l, f->flag ? "true" : "false");
        return;
    case LOG_TYPE_ERR:
    case LOG_TYPE_END:
        break;
    }
}

static void put_time(struct line *l) {
    struct timespec ts;
    CHECK(clock_gettime(CLOCK_REALTIME, &ts) == 0);
    struct tm tm;
    gmtime_r(&ts.tv_sec, &tm);
    char text[64];
    size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + n, sizeof text - n, ".%06ldZ", ts.tv_nsec / 1000);
    put_key(l, "time");
    l->json ? put_quoted(l, view_of_str(text)) : put_str(l, text);
}

static void write_line(const struct line *l) {
    size_t done = 0;
    while (done < l->len) {
        ssize_t n = write(settings.fd, l->data + done, l->len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* nobody listens, or the pipe is full: the log never holds up the program */
        done += (size_t)n;
    }
}

/* Is this line let through? *ret_suppressed: how many were not since the last one. */
static bool limit_passes(struct log_limit *limit, uint64_t *ret_suppressed) {
    struct timespec ts;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &ts) == 0);
    uint64_t now_ms = (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
    uint64_t next_ms = __atomic_load_n(&limit->next_ms, __ATOMIC_RELAXED);
    uint64_t interval_ms = limit->interval_ms ? limit->interval_ms : LIMIT_DEFAULT_MS;
    if (now_ms < next_ms ||
        !__atomic_compare_exchange_n(&limit->next_ms, &next_ms, now_ms + interval_ms, false,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        __atomic_fetch_add(&limit->suppressed, 1, __ATOMIC_RELAXED);
        return false;
    }
    *ret_suppressed = __atomic_exchange_n(&limit->suppressed, 0, __ATOMIC_RELAXED);
    return true;
}

static void finish(struct line *l, size_t whole_len) {
    if (l->full) {
        l->len = whole_len;
        const char *tail = l->json ? ",\"truncated\":true" : " truncated=true";
        memcpy(l->data + l->len, tail, strlen(tail));
        l->len += strlen(tail);
    }
    if (l->json)
        l->data[l->len++] = '}';
    l->data[l->len++] = '\n';
    CHECK(l->len <= sizeof l->data);
}

void log_write_(enum log_level level, struct log_limit *limit, const char *msg,
                const struct log_field *fields, size_t count) {
    int saved_errno = errno;
    uint64_t suppressed = 0;
    if (limit && !limit_passes(limit, &suppressed))
        return;
    struct line l;
    l.len = 0;
    l.full = false;
    l.json = settings.format == LOG_FORMAT_JSON;
    if (l.json)
        put_str(&l, "{");
    put_time(&l);
    put_pair(&l, "level", log_level_names[level]);
    if (settings.program)
        put_pair(&l, "program", settings.program);
    if (context_key[0])
        put_pair(&l, context_key, context_value);
    put_pair(&l, "msg", msg);
    if (suppressed > 0)
        put_field(&l, &LOG_U64("suppressed", suppressed));
    size_t whole_len = l.len;
    for (size_t i = 0; i < count && !l.full; i++) {
        put_field(&l, &fields[i]);
        if (!l.full)
            whole_len = l.len;
    }
    finish(&l, whole_len);
    write_line(&l);
    errno = saved_errno;
}
