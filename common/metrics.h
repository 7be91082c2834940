/* Counters, gauges and histograms, and their Prometheus text.
 *
 * The values are plain structs that live where they are counted (embedded, zero-initialised);
 * adding is one relaxed atomic operation. A group registers them under a name with labels, and
 * takes all of them away again when it is freed: a room makes one group for each thing that comes
 * and goes.
 *
 *     s->metrics = metrics_group_new(registry, METRICS_LABELS({"volume", name}));
 *     metrics_counter_register(s->metrics, &s->flushes, "portalbd_flushes_total",
 *                              "FLUSH requests answered.", NULL);
 *     ...
 *     metrics_group_free(s->metrics);
 *
 * Names are portalbd_<noun>_<unit>[_total], in base units: seconds, bytes. A registry of NULL gives
 * a group of NULL, with which registering does nothing (tests, the simulator).
 *
 * Registering, unregistering and rendering: any thread. */
#pragma once

#include "common/buf.h"
#include "common/err.h"

enum {
    METRICS_LABELS_MAX = 8,       /* of one series, its group's included */
    METRICS_LABEL_VALUE_MAX = 128 /* bytes; longer values are cut */
};

/* {name, value}, the last one {NULL, NULL}; copied by who takes it. NULL stands for none. */
struct metrics_label {
    const char *name;
    const char *value;
};
#define METRICS_LABELS(...) ((const struct metrics_label[]){__VA_ARGS__, {NULL, NULL}})

struct metrics;
struct metrics *metrics_new(void);
void metrics_free(struct metrics *m); /* no group may be left */

/* Appends everything in the Prometheus text format 0.0.4. Calls gauge functions. */
void metrics_render(struct metrics *m, struct buf *out);
#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

struct metrics_group;
/* labels: of all series of the group. */
struct metrics_group *metrics_group_new(struct metrics *m, const struct metrics_label *labels);
/* On return nothing of the group is read any more. NULL is fine. */
void metrics_group_free(struct metrics_group *g);

/* Only grows. */
struct metrics_counter {
    uint64_t value;
};
static inline void metrics_counter_add(struct metrics_counter *c, uint64_t n) {
    __atomic_fetch_add(&c->value, n, __ATOMIC_RELAXED);
}
static inline void metrics_counter_inc(struct metrics_counter *c) {
    metrics_counter_add(c, 1);
}
static inline uint64_t metrics_counter_get(const struct metrics_counter *c) {
    return __atomic_load_n(&c->value, __ATOMIC_RELAXED);
}

/* Goes up and down. */
struct metrics_gauge {
    int64_t value;
};
static inline void metrics_gauge_set(struct metrics_gauge *g, int64_t value) {
    __atomic_store_n(&g->value, value, __ATOMIC_RELAXED);
}
static inline void metrics_gauge_add(struct metrics_gauge *g, int64_t delta) {
    __atomic_fetch_add(&g->value, delta, __ATOMIC_RELAXED);
}
static inline int64_t metrics_gauge_get(const struct metrics_gauge *g) {
    return __atomic_load_n(&g->value, __ATOMIC_RELAXED);
}

/* Counts values by size, four buckets an octave: a quantile is at most 25 % too high. */
enum {
    METRICS_OCTAVES = 40,
    METRICS_BUCKETS_PER_OCTAVE = 4,
    METRICS_BUCKETS = METRICS_OCTAVES * METRICS_BUCKETS_PER_OCTAVE
};
struct metrics_histogram {
    uint64_t sum;
    uint64_t buckets[METRICS_BUCKETS];
};
void metrics_histogram_add(struct metrics_histogram *h, uint64_t value);
uint64_t metrics_histogram_count(const struct metrics_histogram *h);
/* The value below which the share q (0..1) of all lies, rounded up to its bucket; 0 when empty. */
uint64_t metrics_histogram_quantile(const struct metrics_histogram *h, double q);

/* What a histogram's values are, and which buckets are printed. */
enum metrics_unit {
    METRICS_MICROSECONDS, /* added in us, printed in seconds, 64 us to 67 s */
    METRICS_BYTES,        /* 512 bytes to 64 MiB */
    METRICS_COUNT,        /* 1 to 65536 */
};

/* Results by error code, index 0 being success: printed as one series a code that was met, with the
 * label code="ok", "NOT_FOUND", ... */
enum {
    METRICS_RESULTS_ = 0,
#define ERR_CODE(name, eno, retryable, nbd, grpc) METRICS_RESULT_##name,
#include "common/err_codes.def"
#undef ERR_CODE
    METRICS_RESULTS_MAX
};
struct metrics_results {
    uint64_t counts[METRICS_RESULTS_MAX];
};
void metrics_results_add(struct metrics_results *r, int rc); /* 0 or -ERR_x */
uint64_t metrics_results_get(const struct metrics_results *r, int rc);

/* The registered struct is borrowed until the group is freed; name and help are borrowed for ever
 * (constants). All series of one name have the same type and help. labels: more of them, or NULL.
 */
void metrics_counter_register(struct metrics_group *g, const struct metrics_counter *c,
                              const char *name, const char *help,
                              const struct metrics_label *labels);
void metrics_gauge_register(struct metrics_group *g, const struct metrics_gauge *v,
                            const char *name, const char *help, const struct metrics_label *labels);
/* fn is called at each scrape, on the thread of the scrape, under the registry's lock: it reads
 * something atomically and returns; it does not block, lock, or call metrics. */
void metrics_gauge_fn_register(struct metrics_group *g, double (*fn)(void *arg), void *arg,
                               const char *name, const char *help,
                               const struct metrics_label *labels);
void metrics_histogram_register(struct metrics_group *g, const struct metrics_histogram *h,
                                enum metrics_unit unit, const char *name, const char *help,
                                const struct metrics_label *labels);
void metrics_results_register(struct metrics_group *g, const struct metrics_results *r,
                              const char *name, const char *help,
                              const struct metrics_label *labels);
