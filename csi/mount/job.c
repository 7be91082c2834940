/* Jobs: a list of those under way, a thread and a copy of the data each.
 *
 * I1 A job is freed by whoever drops its last reference: its thread has one, each waiter has one.
 * I2 A job leaves the list when its thread is done, before its waiters wake. */
#include "csi/mount/job.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/list.h"
#include "common/mem.h"

enum { JOB_STACK_SIZE = 256 * 1024 };

struct job {
    struct list_node node;
    char key[JOB_KEY_MAX];
    size_t key_len;
    int (*fn)(void *data, struct err *e);
    uint8_t *data; /* owned; the thread's until done */
    size_t size;
    time_t since; /* monotonic, seconds */
    pthread_cond_t changed;
    unsigned refs;
    bool done;
    int rc;
    struct err error;
};

static struct {
    pthread_mutex_t mutex;
    struct list_node list; /* guarded: jobs under way */
    unsigned count;        /* guarded */
} jobs = {.mutex = PTHREAD_MUTEX_INITIALIZER, .list = {&jobs.list, &jobs.list}};

static void unref_locked(struct job *j) {
    if (--j->refs > 0)
        return;
    pthread_cond_destroy(&j->changed);
    free(j->data);
    free(j);
}

static void *job_main(void *arg) {
    struct job *j = arg;
    int rc = j->fn(j->data, &j->error);
    pthread_mutex_lock(&jobs.mutex);
    j->rc = rc;
    j->done = true;
    list_remove(&j->node);
    jobs.count--;
    pthread_cond_broadcast(&j->changed);
    unref_locked(j);
    pthread_mutex_unlock(&jobs.mutex);
    return NULL;
}

static time_t now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

static struct job *find_locked(const char *key, size_t size) {
    list_for_each (&jobs.list, node) {
        struct job *j = list_entry(node, struct job, node);
        if (j->key_len == strlen(key) && j->size == size &&
            strncmp(j->key, key, sizeof j->key - 1) == 0)
            return j;
    }
    return NULL;
}

static bool start_locked(struct job *j) {
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, JOB_STACK_SIZE);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, &attr, job_main, j);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return rc == 0;
}

static int new_locked(const char *key, int (*fn)(void *data, struct err *e), const void *data,
                      size_t size, struct job **ret, struct err *e) {
    if (jobs.count >= JOB_JOBS_MAX)
        return err_set(e, -ERR_OVERLOAD, "%d operations on devices do not come to an end",
                       JOB_JOBS_MAX);
    struct job *j = NEW(struct job);
    snprintf(j->key, sizeof j->key, "%s", key);
    j->key_len = strlen(key);
    j->fn = fn;
    j->data = xmalloc(size);
    memcpy(j->data, data, size);
    j->size = size;
    j->since = now_s();
    j->refs = 1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&j->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    list_push_back(&jobs.list, &j->node);
    jobs.count++;
    if (!start_locked(j)) {
        list_remove(&j->node);
        jobs.count--;
        unref_locked(j);
        return err_set(e, -ERR_OVERLOAD, "no thread is to be had for an operation on a device");
    }
    *ret = j;
    return 0;
}

static int wait_locked(struct job *j, void *data, uint32_t timeout_ms, struct err *e) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    int rc = 0;
    while (!j->done && rc == 0)
        rc = pthread_cond_timedwait(&j->changed, &jobs.mutex, &end);
    if (!j->done)
        return err_set(e, -ERR_BUSY, "%s is still under way after %lld s", j->key,
                       (long long)(now_s() - j->since));
    memcpy(data, j->data, j->size);
    if (j->rc && e)
        *e = j->error;
    return j->rc;
}

int job_run(const char *key, int (*fn)(void *data, struct err *e), void *data, size_t size,
            uint32_t timeout_ms, struct err *e) {
    CHECK(size > 0 && size <= JOB_DATA_MAX);
    pthread_mutex_lock(&jobs.mutex);
    struct job *j = find_locked(key, size);
    int rc = j ? 0 : new_locked(key, fn, data, size, &j, e);
    if (rc == 0) {
        j->refs++;
        rc = wait_locked(j, data, timeout_ms, e);
        unref_locked(j);
    }
    pthread_mutex_unlock(&jobs.mutex);
    return rc;
}
