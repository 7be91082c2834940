/* One operation at a time on a volume or snapshot: a list of what is held. */
#include "csi/oplock.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/crc32c.h"
#include "common/mem.h"

enum { WAKE_MS = 100 }; /* how often a waiter looks whether its client is still there */

struct oplocks {
    pthread_mutex_t mutex;
    pthread_cond_t released;
    struct list_node list; /* guarded, as is everything in struct oplock */
};

struct oplock {
    struct list_node node;
    struct oplocks *all;
    char *key;          /* owned */
    const char *method; /* of who holds it; borrowed from the service's table, lives longer */
    uint32_t request;   /* checksum of its request */
    int64_t since_ms;
    unsigned waiters;
    bool held;
};

struct oplocks *oplocks_new(void) {
    struct oplocks *l = NEW(struct oplocks);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->released, &monotonic);
    pthread_condattr_destroy(&monotonic);
    list_init(&l->list);
    return l;
}

void oplocks_free(struct oplocks *l) {
    CHECK(list_empty(&l->list));
    pthread_cond_destroy(&l->released);
    pthread_mutex_destroy(&l->mutex);
    free(l);
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static uint32_t checksum(const ProtobufCMessage *request) {
    size_t len = protobuf_c_message_get_packed_size(request);
    CLEANUP_FREE uint8_t *bytes = xmalloc(len + 1);
    protobuf_c_message_pack(request, bytes);
    return crc32c(view_of(bytes, len));
}

static struct oplock *find_locked(struct oplocks *l, const char *key) {
    list_for_each (&l->list, node) {
        struct oplock *o = list_entry(node, struct oplock, node);
        if (strcmp(o->key, key) == 0)
            return o;
    }
    struct oplock *o = NEW(struct oplock);
    o->all = l;
    o->key = xstrdup(key);
    list_push_back(&l->list, &o->node);
    return o;
}

static void drop_locked(struct oplock *o) {
    if (o->held || o->waiters > 0)
        return;
    list_remove(&o->node);
    free(o->key);
    free(o);
}

static void sleep_locked(struct oplocks *l) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += WAKE_MS * 1000000L;
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&l->released, &l->mutex, &end);
}

static int busy_locked(const struct oplock *o, struct err *e) {
    const char *method = strrchr(o->method, '/') + 1;
    return err_set(e, -ERR_BUSY, "%s for it is under way since %lld s, try again", method,
                   (long long)(now_ms() - o->since_ms) / 1000);
}

/* Waits until nobody holds it. */
static int wait_locked(struct oplock *o, const struct rpc_call *call, uint32_t request,
                       struct err *e) {
    int64_t begin_ms = now_ms();
    while (o->held) {
        bool same = o->request == request && strcmp(o->method, rpc_call_method(call)) == 0;
        int64_t left_ms = rpc_call_time_left_ms(call);
        int64_t waited_ms = now_ms() - begin_ms;
        if (rpc_call_cancelled(call))
            return err_set(e, -ERR_CANCELLED, "given up while it waited for another call");
        if (left_ms < OPLOCK_DEADLINE_SPARE_MS)
            return busy_locked(o, e);
        if (waited_ms > (same ? OPLOCK_SAME_WAIT_MS : OPLOCK_OTHER_WAIT_MS) &&
            (!same || left_ms == INT64_MAX))
            return busy_locked(o, e);
        sleep_locked(o->all);
    }
    return 0;
}

int oplock_acquire(struct oplocks *l, const char *key, const struct rpc_call *call,
                   const ProtobufCMessage *request, struct oplock **ret, struct err *e) {
    uint32_t sum = checksum(request);
    int rc = 0;
    pthread_mutex_lock(&l->mutex);
    struct oplock *o = find_locked(l, key);
    if (o->held && o->waiters >= OPLOCK_WAITERS_MAX) {
        rc = busy_locked(o, e);
    } else {
        o->waiters++;
        rc = wait_locked(o, call, sum, e);
        o->waiters--;
    }
    if (rc == 0) {
        o->held = true;
        o->method = rpc_call_method(call);
        o->request = sum;
        o->since_ms = now_ms();
        *ret = o;
    } else {
        drop_locked(o);
    }
    pthread_mutex_unlock(&l->mutex);
    return rc;
}

void oplock_release(struct oplock *o) {
    if (!o)
        return;
    struct oplocks *l = o->all;
    pthread_mutex_lock(&l->mutex);
    CHECK(o->held);
    o->held = false;
    pthread_cond_broadcast(&l->released);
    drop_locked(o);
    pthread_mutex_unlock(&l->mutex);
}
