/* The log: one line a call to stderr, a constant message and key=value fields, as logfmt or JSON.
 *
 *     log_info("segment stored", LOG_U64("seq", seq), LOG_STR("key", key));
 *     log_error("checkpoint gave up, the volume is in state ERROR", LOG_ERR(&e));
 *
 * A line is one write(2), so lines of threads never mix; it is cut at LOG_LINE_MAX bytes. Nothing
 * is allocated. Any thread. The message is constant text, what varies goes into fields. A failure
 * is logged once, by who stops passing it on, and the message says what happens next. Secrets are a
 * type of their own (common/secret.h) for which there is no field. */
#pragma once

#include "common/err.h"
#include "common/view.h"

enum {
    LOG_LINE_MAX = 4096,   /* bytes of a line, its newline included */
    LOG_VALUE_MAX = 1024,  /* bytes of one value, before quoting */
    LOG_CONTEXT_MAX = 160, /* bytes of a thread's context */
};

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };
enum log_format { LOG_FORMAT_LOGFMT, LOG_FORMAT_JSON };
extern const char *const log_level_names[];  /* by enum log_level, NULL at the end: for options */
extern const char *const log_format_names[]; /* by enum log_format, NULL at the end */

struct log_config {
    const char *program; /* borrowed for ever; NULL: none */
    enum log_level level;
    enum log_format format;
    int fd; /* 0: stderr */
};

/* Before other threads run; without it: level info, logfmt, no program name, stderr. */
void log_init(const struct log_config *config);
void log_set_level(enum log_level level); /* any thread, any time */

/* Adds "key=value" to every line of the calling thread; value is copied; NULL takes it away. For a
 * thread that serves one thing only (a volume's owner thread). */
void log_set_context(const char *key, const char *value);

enum log_type {
    LOG_TYPE_END,
    LOG_TYPE_STR,
    LOG_TYPE_VIEW,
    LOG_TYPE_U64,
    LOG_TYPE_I64,
    LOG_TYPE_X64,
    LOG_TYPE_F64,
    LOG_TYPE_BOOL,
    LOG_TYPE_ERR
};
struct log_field {
    const char *key; /* a word: a-z0-9_ */
    enum log_type type;
    union { /* borrowed for the call */
        const char *str;
        struct view view;
        uint64_t u64;
        int64_t i64;
        double f64;
        bool flag;
        const struct err *err;
    };
};

#define LOG_STR(k, v)                                                                              \
    ((struct log_field){.key = (k), .type = LOG_TYPE_STR, .str = (v)}) /* NULL: "" */
#define LOG_VIEW(k, v) ((struct log_field){.key = (k), .type = LOG_TYPE_VIEW, .view = (v)})
#define LOG_U64(k, v)  ((struct log_field){.key = (k), .type = LOG_TYPE_U64, .u64 = (uint64_t)(v)})
#define LOG_I64(k, v)  ((struct log_field){.key = (k), .type = LOG_TYPE_I64, .i64 = (int64_t)(v)})
#define LOG_X64(k, v)                                                                              \
    ((struct log_field){.key = (k), .type = LOG_TYPE_X64, .u64 = (uint64_t)(v)}) /* 16 hex digits  \
                                                                                  */
#define LOG_F64(k, v)  ((struct log_field){.key = (k), .type = LOG_TYPE_F64, .f64 = (v)})
#define LOG_BOOL(k, v) ((struct log_field){.key = (k), .type = LOG_TYPE_BOOL, .flag = (v)})
/* error="text" code=NAME */
#define LOG_ERR(e) ((struct log_field){.key = "error", .type = LOG_TYPE_ERR, .err = (e)})
/* For system calls: error="strerror" */
#define LOG_ERRNO(eno) LOG_STR("error", log_strerror_(eno))

/* For a failure that may repeat: at most a line each interval, which then says how many were
 * suppressed=n since the last one. One static or embedded struct a place; zeroed = 10 s. */
struct log_limit {
    uint32_t interval_ms;
    uint64_t next_ms;    /* log.c's own: monotonic */
    uint64_t suppressed; /* log.c's own */
};

#define log_debug(msg, ...)                log_at_(LOG_LEVEL_DEBUG, NULL, msg, ##__VA_ARGS__)
#define log_info(msg, ...)                 log_at_(LOG_LEVEL_INFO, NULL, msg, ##__VA_ARGS__)
#define log_warn(msg, ...)                 log_at_(LOG_LEVEL_WARN, NULL, msg, ##__VA_ARGS__)
#define log_error(msg, ...)                log_at_(LOG_LEVEL_ERROR, NULL, msg, ##__VA_ARGS__)
#define log_info_limited(limit, msg, ...)  log_at_(LOG_LEVEL_INFO, limit, msg, ##__VA_ARGS__)
#define log_warn_limited(limit, msg, ...)  log_at_(LOG_LEVEL_WARN, limit, msg, ##__VA_ARGS__)
#define log_error_limited(limit, msg, ...) log_at_(LOG_LEVEL_ERROR, limit, msg, ##__VA_ARGS__)

/* The first element stands for "no field at all", which C11 cannot write. */
#define log_at_(level, limit, msg, ...)                                                            \
    do {                                                                                           \
        if (log_enabled(level)) {                                                                  \
            const struct log_field log_fields_[] = {{.type = LOG_TYPE_END}, ##__VA_ARGS__};        \
            log_write_(level, limit, "" msg, log_fields_ + 1, ARRAY_LEN(log_fields_) - 1);         \
        }                                                                                          \
    } while (0)

extern enum log_level log_level_min_;
static inline bool log_enabled(enum log_level level) {
    return level >= __atomic_load_n(&log_level_min_, __ATOMIC_RELAXED);
}
void log_write_(enum log_level level, struct log_limit *limit, const char *msg,
                const struct log_field *fields, size_t count);
const char *log_strerror_(int eno);
