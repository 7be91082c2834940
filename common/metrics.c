/* The registry: families sorted by name, each a list of series in the order of their registration.
 *
 * I1 Every series belongs to one group; a family without series does not exist.
 * I2 What a series borrows is read only under the registry's mutex, so that it is free to go once
 *    metrics_group_free has taken its series off under the same mutex. */
#include "common/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum series_kind {
    SERIES_COUNTER,
    SERIES_GAUGE,
    SERIES_GAUGE_FN,
    SERIES_HISTOGRAM,
    SERIES_RESULTS
};

struct series {
    struct series *next;
    struct metrics_group *group;
    enum series_kind kind;
    enum metrics_unit unit; /* of a histogram */
    const void *source;     /* borrowed */
    double (*fn)(void *arg);
    void *arg;
    char *labels; /* owned: name="value",..., may be "" */
};

struct family {
    const char *name;
    const char *help;
    enum series_kind kind;
    struct series *first;
};

struct metrics {
    pthread_mutex_t mutex;
    /* guarded by mutex */
    struct family *families; /* owned, sorted by name */
    size_t count;
    size_t cap;
    size_t groups;
};

struct metrics_group {
    struct metrics *metrics;
    char *labels; /* owned */
};

struct metrics *metrics_new(void) {
    struct metrics *m = NEW(struct metrics);
    pthread_mutex_init(&m->mutex, NULL);
    return m;
}

void metrics_free(struct metrics *m) {
    if (!m)
        return;
    CHECK(m->groups == 0);
    CHECK(m->count == 0);
    free(m->families);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

/* --- histograms ------------------------------------------------------------------------------- */

/* Bucket i holds (bound(i - 1), bound(i)]: bounds are inclusive, as Prometheus wants them. */
static size_t bucket_of(uint64_t value) {
    uint64_t v = value > 0 ? value - 1 : 0;
    if (v < METRICS_BUCKETS_PER_OCTAVE)
        return (size_t)v;
    unsigned exponent = 63 - (unsigned)__builtin_clzll(v);
    size_t i = (size_t)(exponent - 1) * METRICS_BUCKETS_PER_OCTAVE + ((v >> (exponent - 2)) & 3);
    return MIN(i, (size_t)METRICS_BUCKETS - 1);
}

static uint64_t bucket_bound(size_t i) {
    if (i < METRICS_BUCKETS_PER_OCTAVE)
        return i + 1;
    size_t exponent = i / METRICS_BUCKETS_PER_OCTAVE + 1;
    return (uint64_t)(5 + i % METRICS_BUCKETS_PER_OCTAVE) << (exponent - 2);
}

void metrics_histogram_add(struct metrics_histogram *h, uint64_t value) {
    __atomic_fetch_add(&h->buckets[bucket_of(value)], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&h->sum, value, __ATOMIC_RELAXED);
}

uint64_t metrics_histogram_count(const struct metrics_histogram *h) {
    uint64_t count = 0;
    for (size_t i = 0; i < METRICS_BUCKETS; i++)
        count += __atomic_load_n(&h->buckets[i], __ATOMIC_RELAXED);
    return count;
}

uint64_t metrics_histogram_quantile(const struct metrics_histogram *h, double q) {
    CHECK(q >= 0 && q <= 1);
    uint64_t count = metrics_histogram_count(h);
    if (count == 0)
        return 0;
    uint64_t rank = MAX((uint64_t)((double)count * q + 0.999999), (uint64_t)1);
    uint64_t seen = 0;
    for (size_t i = 0; i < METRICS_BUCKETS; i++) {
        seen += __atomic_load_n(&h->buckets[i], __ATOMIC_RELAXED);
        if (seen >= rank)
            return bucket_bound(i);
    }
    return bucket_bound(METRICS_BUCKETS - 1);
}

/* --- results ---------------------------------------------------------------------------------- */

static const int result_codes[METRICS_RESULTS_MAX] = {
#define ERR_CODE(name, eno, retryable, nbd, grpc) [METRICS_RESULT_##name] = -(eno),
#include "common/err_codes.def"
#undef ERR_CODE
};

static size_t result_index(int rc) {
    switch (-rc) {
#define ERR_CODE(name, eno, retryable, nbd, grpc)                                                  \
    case eno:                                                                                      \
        return METRICS_RESULT_##name;
#include "common/err_codes.def"
#undef ERR_CODE
    default:
        CHECK(rc == 0);
        return 0;
    }
}

void metrics_results_add(struct metrics_results *r, int rc) {
    __atomic_fetch_add(&r->counts[result_index(rc)], 1, __ATOMIC_RELAXED);
}

uint64_t metrics_results_get(const struct metrics_results *r, int rc) {
    return __atomic_load_n(&r->counts[result_index(rc)], __ATOMIC_RELAXED);
}

/* --- registering ------------------------------------------------------------------------------ */

static bool is_name(const char *s) {
    if (!*s || (*s >= '0' && *s <= '9'))
        return false;
    return strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(s);
}

static void append_label(struct buf *out, const struct metrics_label *label) {
    CHECK(is_name(label->name));
    if (out->len > 0)
        buf_append_str(out, ",");
    buf_printf(out, "%s=\"", label->name);
    const char *value = label->value ? label->value : "";
    /* Cut between two UTF-8 sequences. */
    for (size_t i = 0; value[i] && (i < METRICS_LABEL_VALUE_MAX || (value[i] & 0xc0) == 0x80);
         i++) {
        if (value[i] == '\\' || value[i] == '"')
            buf_append(out, "\\", 1);
        if (value[i] == '\n')
            buf_append_str(out, "\\n");
        else
            buf_append(out, &value[i], 1);
    }
    buf_append_str(out, "\"");
}

/* The text of `first` (rendered already) followed by more labels; the caller frees it. */
static char *render_labels(const char *first, const struct metrics_label *labels) {
    CLEANUP_BUF struct buf out = {0};
    buf_append_str(&out, first);
    for (size_t i = 0; labels && labels[i].name; i++) {
        CHECK(i < METRICS_LABELS_MAX);
        append_label(&out, &labels[i]);
    }
    return xstrdup(buf_cstr(&out));
}

struct metrics_group *metrics_group_new(struct metrics *m, const struct metrics_label *labels) {
    if (!m)
        return NULL;
    struct metrics_group *g = NEW(struct metrics_group);
    g->metrics = m;
    g->labels = render_labels("", labels);
    pthread_mutex_lock(&m->mutex);
    m->groups++;
    pthread_mutex_unlock(&m->mutex);
    return g;
}

static void series_free(struct series *s) {
    free(s->labels);
    free(s);
}

static void family_drop_group(struct family *f, const struct metrics_group *g) {
    struct series **at = &f->first;
    while (*at) {
        struct series *s = *at;
        if (s->group != g) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        series_free(s);
    }
}

void metrics_group_free(struct metrics_group *g) {
    if (!g)
        return;
    struct metrics *m = g->metrics;
    pthread_mutex_lock(&m->mutex);
    size_t left = 0;
    for (size_t i = 0; i < m->count; i++) {
        family_drop_group(&m->families[i], g);
        if (m->families[i].first)
            m->families[left++] = m->families[i];
    }
    m->count = left;
    m->groups--;
    pthread_mutex_unlock(&m->mutex);
    free(g->labels);
    free(g);
}

/* Finds or makes the family; the mutex is held. */
static struct family *family_get_locked(struct metrics *m, const char *name, const char *help,
                                        enum series_kind kind) {
    size_t at = 0;
    while (at < m->count && strcmp(m->families[at].name, name) < 0)
        at++;
    if (at < m->count && strcmp(m->families[at].name, name) == 0)
        return &m->families[at];
    if (m->count == m->cap) {
        m->cap = MAX(m->cap * 2, (size_t)16);
        m->families = xrealloc(m->families, m->cap * sizeof m->families[0]);
    }
    memmove(&m->families[at + 1], &m->families[at], (m->count - at) * sizeof m->families[0]);
    m->count++;
    m->families[at] = (struct family){.name = name, .help = help, .kind = kind};
    return &m->families[at];
}

/* Takes `s`, whose labels are not rendered yet. */
static void series_register(struct metrics_group *g, struct series s, const char *name,
                            const char *help, const struct metrics_label *labels) {
    if (!g)
        return;
    CHECK(is_name(name));
    CHECK(help && !strchr(help, '\n'));
    struct metrics *m = g->metrics;
    struct series *own = NEW(struct series);
    *own = s;
    own->group = g;
    own->labels = render_labels(g->labels, labels);
    pthread_mutex_lock(&m->mutex);
    struct family *f = family_get_locked(m, name, help, s.kind);
    CHECK(f->kind == s.kind);
    struct series **end = &f->first;
    while (*end)
        end = &(*end)->next;
    *end = own;
    pthread_mutex_unlock(&m->mutex);
}

void metrics_counter_register(struct metrics_group *g, const struct metrics_counter *c,
                              const char *name, const char *help,
                              const struct metrics_label *labels) {
    series_register(g, (struct series){.kind = SERIES_COUNTER, .source = c}, name, help, labels);
}

void metrics_gauge_register(struct metrics_group *g, const struct metrics_gauge *v,
                            const char *name, const char *help,
                            const struct metrics_label *labels) {
    series_register(g, (struct series){.kind = SERIES_GAUGE, .source = v}, name, help, labels);
}

void metrics_gauge_fn_register(struct metrics_group *g, double (*fn)(void *arg), void *arg,
                               const char *name, const char *help,
                               const struct metrics_label *labels) {
    series_register(g, (struct series){.kind = SERIES_GAUGE_FN, .fn = fn, .arg = arg}, name, help,
                    labels);
}

void metrics_histogram_register(struct metrics_group *g, const struct metrics_histogram *h,
                                enum metrics_unit unit, const char *name, const char *help,
                                const struct metrics_label *labels) {
    series_register(g, (struct series){.kind = SERIES_HISTOGRAM, .source = h, .unit = unit}, name,
                    help, labels);
}

void metrics_results_register(struct metrics_group *g, const struct metrics_results *r,
                              const char *name, const char *help,
                              const struct metrics_label *labels) {
    series_register(g, (struct series){.kind = SERIES_RESULTS, .source = r}, name, help, labels);
}

/* --- rendering -------------------------------------------------------------------------------- */

/* name_suffix{labels,extra} and a space */
static void append_series_name(struct buf *out, const char *name, const char *suffix,
                               const char *labels, const char *extra) {
    buf_printf(out, "%s%s", name, suffix);
    if (*labels || *extra)
        buf_printf(out, "{%s%s%s}", labels, *labels && *extra ? "," : "", extra);
    buf_append(out, " ", 1);
}

static const struct {
    double scale;
    unsigned first, last; /* printed bounds are 2^first .. 2^last */
} units[] = {
    [METRICS_MICROSECONDS] = {1e-6, 6, 26},
    [METRICS_BYTES] = {1, 9, 26},
    [METRICS_COUNT] = {1, 0, 16},
};

static void append_histogram(struct buf *out, const char *name, const struct series *s) {
    const struct metrics_histogram *h = s->source;
    uint64_t sum = __atomic_load_n(&h->sum, __ATOMIC_RELAXED);
    uint64_t seen = 0;
    size_t i = 0;
    char extra[48];
    for (unsigned k = units[s->unit].first; k <= units[s->unit].last; k++) {
        uint64_t bound = UINT64_C(1) << k;
        for (; i < METRICS_BUCKETS && bucket_bound(i) <= bound; i++)
            seen += __atomic_load_n(&h->buckets[i], __ATOMIC_RELAXED);
        snprintf(extra, sizeof extra, "le=\"%.9g\"", (double)bound * units[s->unit].scale);
        append_series_name(out, name, "_bucket", s->labels, extra);
        buf_printf(out, "%llu\n", (unsigned long long)seen);
    }
    for (; i < METRICS_BUCKETS; i++)
        seen += __atomic_load_n(&h->buckets[i], __ATOMIC_RELAXED);
    append_series_name(out, name, "_bucket", s->labels, "le=\"+Inf\"");
    buf_printf(out, "%llu\n", (unsigned long long)seen);
    append_series_name(out, name, "_sum", s->labels, "");
    buf_printf(out, "%.17g\n", (double)sum * units[s->unit].scale);
    append_series_name(out, name, "_count", s->labels, "");
    buf_printf(out, "%llu\n", (unsigned long long)seen);
}

static void append_results(struct buf *out, const char *name, const struct series *s) {
    const struct metrics_results *r = s->source;
    for (size_t i = 0; i < METRICS_RESULTS_MAX; i++) {
        uint64_t count = __atomic_load_n(&r->counts[i], __ATOMIC_RELAXED);
        if (count == 0)
            continue;
        char extra[48];
        snprintf(extra, sizeof extra, "code=\"%s\"", err_code_name(result_codes[i]));
        append_series_name(out, name, "", s->labels, extra);
        buf_printf(out, "%llu\n", (unsigned long long)count);
    }
}

static void append_series(struct buf *out, const char *name, const struct series *s) {
    if (s->kind == SERIES_HISTOGRAM) {
        append_histogram(out, name, s);
        return;
    }
    if (s->kind == SERIES_RESULTS) {
        append_results(out, name, s);
        return;
    }
    append_series_name(out, name, "", s->labels, "");
    if (s->kind == SERIES_COUNTER)
        buf_printf(out, "%llu\n", (unsigned long long)metrics_counter_get(s->source));
    else if (s->kind == SERIES_GAUGE)
        buf_printf(out, "%lld\n", (long long)metrics_gauge_get(s->source));
    else
        buf_printf(out, "%.9g\n", s->fn(s->arg));
}

static const char *type_name(enum series_kind kind) {
    switch (kind) {
    case SERIES_COUNTER:
    case SERIES_RESULTS:
        return "counter";
    case SERIES_HISTOGRAM:
        return "histogram";
    case SERIES_GAUGE:
    case SERIES_GAUGE_FN:
        break;
    }
    return "gauge";
}

void metrics_render(struct metrics *m, struct buf *out) {
    pthread_mutex_lock(&m->mutex);
    for (size_t i = 0; i < m->count; i++) {
        const struct family *f = &m->families[i];
        buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", f->name, f->help, f->name,
                   type_name(f->kind));
        for (const struct series *s = f->first; s; s = s->next)
            append_series(out, f->name, s);
    }
    pthread_mutex_unlock(&m->mutex);
}
