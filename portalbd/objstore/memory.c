/* The store in memory: an array of objects sorted by key, under a mutex (T3: no call out of it).
 *
 * A request is posted to its handle's env and carried out in that turn, whole: a PUT is there or it
 * is not. */
#include "portalbd/objstore/memory.h"

#include <pthread.h>
#include <stdlib.h>

#include "portalbd/objstore/layer_internal.h"

struct object {
    char *key;     /* owned */
    uint8_t *data; /* owned */
    size_t len;
};

struct memory_store {
    pthread_mutex_t mutex; /* guards what follows */
    struct object *objects;
    size_t count;
    size_t cap;
};

struct memory_handle {
    struct objstore store;
    struct memory_store *backing;
    bool owns_backing;
    size_t under_way; /* requests that are not done */
};

struct memory_store *memory_store_new(void) {
    struct memory_store *m = NEW(struct memory_store);
    pthread_mutex_init(&m->mutex, NULL);
    return m;
}

void memory_store_free(struct memory_store *m) {
    for (size_t i = 0; i < m->count; i++) {
        free(m->objects[i].key);
        free(m->objects[i].data);
    }
    free(m->objects);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

/* The index of the first object whose key is >= key. */
static size_t lower_bound_locked(const struct memory_store *m, const char *key) {
    size_t low = 0, high = m->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(m->objects[mid].key, key) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static struct object *find_locked(const struct memory_store *m, const char *key) {
    size_t i = lower_bound_locked(m, key);
    return i < m->count && strcmp(m->objects[i].key, key) == 0 ? &m->objects[i] : NULL;
}

static void insert_locked(struct memory_store *m, const char *key, uint8_t *data, size_t len) {
    if (m->count == m->cap) {
        m->cap = m->cap ? 2 * m->cap : 64;
        m->objects = xrealloc(m->objects, m->cap * sizeof m->objects[0]);
    }
    size_t i = lower_bound_locked(m, key);
    memmove(&m->objects[i + 1], &m->objects[i], (m->count - i) * sizeof m->objects[0]);
    m->objects[i] = (struct object){.key = xstrdup(key), .data = data, .len = len};
    m->count++;
}

static bool remove_locked(struct memory_store *m, const char *key) {
    struct object *o = find_locked(m, key);
    if (!o)
        return false;
    free(o->key);
    free(o->data);
    memmove(o, o + 1, (size_t)(m->objects + m->count - (o + 1)) * sizeof *o);
    m->count--;
    return true;
}

static void get_locked(const struct memory_store *m, struct obj_request *req) {
    const struct object *o = find_locked(m, req->key);
    if (!o) {
        obj_request_fail(req, -ERR_NOT_FOUND, "no such key");
        return;
    }
    uint64_t off;
    size_t len;
    if (obj_range_resolve(req, o->len, &off, &len) < 0) {
        obj_request_fail(req, -ERR_CORRUPT, "its %zu bytes are not what was asked for", o->len);
        return;
    }
    req->object_size = o->len;
    buf_append(&req->body, o->data + off, len);
}

static void put_locked(struct memory_store *m, struct obj_request *req) {
    if (find_locked(m, req->key)) {
        obj_request_fail(req, -ERR_EXISTS, "the key exists");
        return;
    }
    size_t len = obj_request_body_len(req), at = 0;
    uint8_t *data = xmalloc(len);
    for (size_t i = 0; i < req->part_count; i++) {
        if (req->parts[i].len > 0)
            memcpy(data + at, req->parts[i].data, req->parts[i].len);
        at += req->parts[i].len;
    }
    insert_locked(m, req->key, data, len);
}

static void list_locked(const struct memory_store *m, struct obj_request *req) {
    size_t prefix_len = strlen(req->key);
    const char *from = req->key;
    if (req->start_after && strcmp(req->start_after, from) > 0)
        from = req->start_after;
    size_t i = lower_bound_locked(m, from);
    if (req->start_after && i < m->count && strcmp(m->objects[i].key, req->start_after) == 0)
        i++;
    req->entries = xcalloc(req->keys_max, sizeof req->entries[0]);
    for (; i < m->count && strncmp(m->objects[i].key, req->key, prefix_len) == 0; i++) {
        if (req->entry_count == req->keys_max) {
            req->more = true;
            return;
        }
        req->entries[req->entry_count++] =
            (struct obj_entry){.key = xstrdup(m->objects[i].key), .size = m->objects[i].len};
    }
}

static void carry_out(struct memory_store *m, struct obj_request *req) {
    pthread_mutex_lock(&m->mutex);
    switch (req->verb) {
    case OBJ_GET:
        get_locked(m, req);
        break;
    case OBJ_PUT:
        put_locked(m, req);
        break;
    case OBJ_LIST:
        list_locked(m, req);
        break;
    case OBJ_DELETE:
        for (size_t i = 0; i < req->key_count; i++)
            remove_locked(m, req->keys[i]);
        break;
    }
    pthread_mutex_unlock(&m->mutex);
}

static void on_turn(struct env_event *event) {
    struct obj_request *req = container_of(event, struct obj_request, event);
    struct memory_handle *h = req->priv;
    if (req->rc == 0)
        carry_out(h->backing, req);
    h->under_way--;
    req->done(req);
}

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct memory_handle *h = container_of(store, struct memory_handle, store);
    obj_request_check(req);
    req->priv = h;
    req->rc = 0;
    req->event.fn = on_turn;
    h->under_way++;
    env_post(store->env, &req->event);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    (void)store;
    obj_request_fail(req, -ERR_CANCELLED, "cancelled");
}

static void op_close(struct objstore *store) {
    struct memory_handle *h = container_of(store, struct memory_handle, store);
    CHECK(h->under_way == 0);
    if (h->owns_backing)
        memory_store_free(h->backing);
    free(h);
}

static const struct objstore_ops memory_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

static struct memory_handle *open_handle(struct env *env, struct memory_store *m) {
    struct memory_handle *h = NEW(struct memory_handle);
    h->store = (struct objstore){.ops = &memory_ops, .env = env};
    h->backing = m;
    return h;
}

struct objstore *objstore_memory_open(struct env *env, struct memory_store *m) {
    return &open_handle(env, m)->store;
}

struct objstore *objstore_memory_new(struct env *env) {
    struct memory_handle *h = open_handle(env, memory_store_new());
    h->owns_backing = true;
    return &h->store;
}

size_t memory_store_count(struct memory_store *m) {
    pthread_mutex_lock(&m->mutex);
    size_t count = m->count;
    pthread_mutex_unlock(&m->mutex);
    return count;
}

bool memory_store_at(struct memory_store *m, size_t index, const char **ret_key, struct view *ret) {
    pthread_mutex_lock(&m->mutex);
    bool found = index < m->count;
    if (found) {
        *ret_key = m->objects[index].key;
        *ret = view_of(m->objects[index].data, m->objects[index].len);
    }
    pthread_mutex_unlock(&m->mutex);
    return found;
}

bool memory_store_find(struct memory_store *m, const char *key, struct view *ret) {
    pthread_mutex_lock(&m->mutex);
    const struct object *o = find_locked(m, key);
    if (o && ret)
        *ret = view_of(o->data, o->len);
    pthread_mutex_unlock(&m->mutex);
    return o != NULL;
}

void memory_store_replace(struct memory_store *m, const char *key, struct view body) {
    uint8_t *data = xmalloc(body.len);
    if (body.len > 0)
        memcpy(data, body.data, body.len);
    pthread_mutex_lock(&m->mutex);
    remove_locked(m, key);
    insert_locked(m, key, data, body.len);
    pthread_mutex_unlock(&m->mutex);
}

bool memory_store_remove(struct memory_store *m, const char *key) {
    pthread_mutex_lock(&m->mutex);
    bool found = remove_locked(m, key);
    pthread_mutex_unlock(&m->mutex);
    return found;
}
