/* The controller's background work. One fiber, which owns everything here. */
#include "csi/housekeeping.h"

#include <stdlib.h>
#include <string.h>

#include "common/fiber.h"
#include "common/log.h"
#include "common/mem.h"
#include "portalbd/catalog/background.h"

/* What one pool's job remembers. */
struct pool_job {
    char name[POOL_NAME_MAX];
    struct background background;
};

struct housekeeping {
    struct loop *loop;
    struct pools *pools;
    struct fiber *fiber;
    struct fiber_done ended;
    struct pool_job *jobs; /* owned; of every pool that was ever seen */
    size_t job_count;
    struct metrics_group *metrics; /* owned */
    struct metrics_counter passes, failures, objects_deleted, pins_swept;
};

static struct pool_job *job_of(struct housekeeping *h, const char *name,
                               const struct catalog *catalog) {
    for (size_t i = 0; i < h->job_count; i++)
        if (strcmp(h->jobs[i].name, name) == 0)
            return &h->jobs[i];
    h->jobs = xrealloc(h->jobs, (h->job_count + 1) * sizeof *h->jobs);
    struct pool_job *job = &h->jobs[h->job_count++];
    strcpy(job->name, name);
    background_init(&job->background, catalog);
    return job;
}

static void report(struct housekeeping *h, const char *name,
                   const struct background_result *result) {
    metrics_counter_inc(&h->passes);
    metrics_counter_add(&h->failures, result->failures);
    metrics_counter_add(&h->objects_deleted, result->objects_deleted);
    metrics_counter_add(&h->pins_swept, result->pins_swept);
    if (result->failures > 0)
        log_warn("housekeeping left volumes for the next pass", LOG_STR("pool", name),
                 LOG_U64("volumes", result->failures), LOG_ERR(&result->first_failure));
    if (result->volumes_finished + result->objects_deleted + result->pins_swept > 0)
        log_info("housekeeping done", LOG_STR("pool", name), LOG_U64("volumes", result->volumes),
                 LOG_U64("deletions_finished", result->volumes_finished),
                 LOG_U64("objects_deleted", result->objects_deleted),
                 LOG_U64("pins_swept", result->pins_swept));
}

static int pass(struct housekeeping *h, const char *name, struct err *e) {
    struct pool *pool;
    int rc = pools_get(h->pools, name, NULL, &pool, e);
    if (rc)
        return rc;
    struct background_result result = {0};
    struct pool_job *job = job_of(h, name, &pool->catalog);
    job->background.catalog = pool->catalog; /* the store may be another one than last time */
    rc = background_pass(&job->background, &result, e);
    pools_put(h->pools, pool);
    if (rc == 0)
        report(h, name, &result);
    return rc;
}

static void pass_over_all(struct housekeeping *h) {
    char(*names)[POOL_NAME_MAX];
    size_t count;
    struct err e;
    if (pools_names(h->pools, &names, &count, &e) != 0) {
        log_warn("housekeeping waits for the pool file", LOG_ERR(&e));
        return;
    }
    for (size_t i = 0; i < count && !fiber_cancelled(loop_env(h->loop)); i++)
        if (pass(h, names[i], &e) != 0 && e.code != -ERR_CANCELLED)
            log_warn("housekeeping failed, it is tried again later", LOG_STR("pool", names[i]),
                     LOG_ERR(&e));
    free(names);
}

static void housekeeping_fiber(void *arg) {
    struct housekeeping *h = arg;
    do
        pass_over_all(h);
    while (fiber_sleep_us(loop_env(h->loop), BACKGROUND_INTERVAL_US) == 0);
    fiber_done_set(&h->ended);
}

static void start_fn(void *arg) {
    struct housekeeping *h = arg;
    fiber_done_init(&h->ended);
    h->fiber = fiber_start(loop_env(h->loop), housekeeping_fiber, h);
}

struct housekeeping *housekeeping_start(struct loop *loop, struct pools *pools,
                                        struct metrics *metrics) {
    struct housekeeping *h = NEW(struct housekeeping);
    h->loop = loop;
    h->pools = pools;
    h->metrics = metrics_group_new(metrics, NULL);
    metrics_counter_register(h->metrics, &h->passes, "portalbd_housekeeping_passes_total",
                             "Passes over a pool.", NULL);
    metrics_counter_register(h->metrics, &h->failures, "portalbd_housekeeping_failures_total",
                             "Volumes that a pass left for the next one.", NULL);
    metrics_counter_register(h->metrics, &h->objects_deleted,
                             "portalbd_housekeeping_deleted_objects_total",
                             "Objects of deleted volumes that were deleted.", NULL);
    metrics_counter_register(h->metrics, &h->pins_swept, "portalbd_housekeeping_swept_pins_total",
                             "Pins whose makers died that were swept.", NULL);
    loop_call(loop, start_fn, h);
    return h;
}

static void stop_fn(void *arg) {
    struct housekeeping *h = arg;
    if (!h->ended.done)
        fiber_cancel(h->fiber);
    fiber_done_wait_always(loop_env(h->loop), &h->ended);
}

void housekeeping_stop(struct housekeeping *h) {
    loop_call(h->loop, stop_fn, h);
    for (size_t i = 0; i < h->job_count; i++)
        background_release(&h->jobs[i].background);
    metrics_group_free(h->metrics);
    free(h->jobs);
    free(h);
}
