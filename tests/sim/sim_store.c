/* The modelled bucket: a sorted array of objects, and operations that are on their way.
 *
 *   submit -> PENDING --effect (world timer)--> EFFECTED --answer (timer of the process)--> done
 *
 * An operation owns copies of all that it was given, so its effect does not depend on its client.
 * The client's request hangs on it until it is answered; an operation without request and without
 * anything to come is freed. What happens is drawn at submit.
 *
 * I1 An effect is atomic; only a torn LIST page has two moments, and within each it is exact.
 * I2 done() is called once, in a turn of the process, never inside submit or cancel.
 * I3 An operation whose handle is cut answers -ERR_CANCELLED; its effect may still come. */
#include "tests/sim/sim_store.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "portalbd/objstore/layer_internal.h"

struct object {
    char *key; /* owned */
    struct buf body;
};

struct key_set { /* sorted; keys are owned */
    char **keys;
    size_t count;
};

struct sim_bucket {
    struct sim_world *world; /* borrowed */
    struct sim_faults faults;
    struct object *objects; /* sorted by key */
    size_t count;
    size_t cap;
    struct key_set deleted;
    struct list_node ops; /* struct op: all */
    size_t handles;
    struct sim_bucket_stats stats;
    uint64_t pin_changes;
    void (*observer)(void *arg, const struct sim_effect *effect);
    void *observer_arg;
    void (*hook)(void *arg, struct sim_proc *p, enum obj_verb verb, const char *key);
    void *hook_arg;
};

struct handle {
    struct objstore store;
    struct sim_bucket *bucket; /* borrowed */
    struct sim_proc *proc;     /* borrowed */
    char name[SIM_NAME_MAX];
    size_t under_way; /* requests that are not answered */
    bool cut;
};

struct op {
    struct list_node node; /* on bucket->ops */
    struct sim_bucket *bucket;
    struct handle *handle;      /* NULL once answered */
    struct obj_request *req;    /* NULL once answered */
    struct env_timer effect;    /* world: the effect, or what is left of it */
    struct env_timer answering; /* process */
    struct env_event cancelled;
    char client[SIM_NAME_MAX];
    enum obj_verb verb;
    char *key;         /* owned */
    char *start_after; /* owned; LIST */
    char **keys;       /* owned; DELETE */
    size_t key_count;
    struct buf body;      /* PUT: to store */
    unsigned keys_max;    /* LIST */
    size_t torn_at;       /* LIST: keys of the page's first moment; 0: not torn */
    uint64_t pin_changes; /* LIST: at the first moment */
    unsigned effects;     /* still to come */
    bool effected;
    bool answered;
    bool has_error; /* the answer is `error`, whatever the effect was */
    int error;
    const char *error_text;
    uint64_t retry_after_us;
    uint64_t answer_us; /* delay of the answer after the effect, or after submit (see `alone`) */
    bool alone;         /* the answer does not wait for the effect */
};

/* --- objects --- */

size_t sim_bucket_lower_bound(const struct sim_bucket *b, const char *key) {
    size_t low = 0, high = b->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(b->objects[mid].key, key) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static struct object *find(const struct sim_bucket *b, const char *key) {
    size_t i = sim_bucket_lower_bound(b, key);
    return i < b->count && strcmp(b->objects[i].key, key) == 0 ? &b->objects[i] : NULL;
}

static void insert(struct sim_bucket *b, const char *key, struct view body) {
    if (b->count == b->cap) {
        b->cap = MAX(2 * b->cap, (size_t)256);
        b->objects = xrealloc(b->objects, b->cap * sizeof b->objects[0]);
    }
    size_t i = sim_bucket_lower_bound(b, key);
    memmove(&b->objects[i + 1], &b->objects[i], (b->count - i) * sizeof b->objects[0]);
    b->objects[i] = (struct object){.key = xstrdup(key)};
    buf_append(&b->objects[i].body, body.data, body.len);
    b->count++;
}

static size_t key_set_lower_bound(const struct key_set *s, const char *key) {
    size_t low = 0, high = s->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(s->keys[mid], key) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static bool key_set_has(const struct key_set *s, const char *key) {
    size_t i = key_set_lower_bound(s, key);
    return i < s->count && strcmp(s->keys[i], key) == 0;
}

static void key_set_add(struct key_set *s, const char *key) {
    if (key_set_has(s, key))
        return;
    if ((s->count & (s->count - 1)) == 0)
        s->keys = xrealloc(s->keys, MAX(2 * s->count, (size_t)16) * sizeof s->keys[0]);
    size_t i = key_set_lower_bound(s, key);
    memmove(&s->keys[i + 1], &s->keys[i], (s->count - i) * sizeof s->keys[0]);
    s->keys[i] = xstrdup(key);
    s->count++;
}

static void key_set_release(struct key_set *s) {
    for (size_t i = 0; i < s->count; i++)
        free(s->keys[i]);
    free(s->keys);
}

bool sim_bucket_remove(struct sim_bucket *b, const char *key) {
    struct object *o = find(b, key);
    if (!o)
        return false;
    key_set_add(&b->deleted, key);
    free(o->key);
    buf_release(&o->body);
    memmove(o, o + 1, (size_t)(b->objects + b->count - (o + 1)) * sizeof *o);
    b->count--;
    return true;
}

size_t sim_bucket_count(const struct sim_bucket *b) {
    return b->count;
}

void sim_bucket_at(const struct sim_bucket *b, size_t index, const char **ret_key,
                   struct view *ret) {
    CHECK(index < b->count);
    *ret_key = b->objects[index].key;
    *ret = buf_view(&b->objects[index].body);
}

bool sim_bucket_find(const struct sim_bucket *b, const char *key, struct view *ret) {
    const struct object *o = find(b, key);
    if (o && ret)
        *ret = buf_view(&o->body);
    return o != NULL;
}

const struct sim_bucket_stats *sim_bucket_stats(const struct sim_bucket *b) {
    return &b->stats;
}

size_t sim_bucket_pending(const struct sim_bucket *b) {
    size_t n = 0;
    list_for_each (&b->ops, node)
        n++;
    return n;
}

/* --- effects --- */

static void observe(struct op *o, const char *key, struct view body, bool stored, bool existed,
                    bool was_deleted) {
    struct sim_bucket *b = o->bucket;
    bool late = !o->req;
    if (stored || (o->verb == OBJ_DELETE && existed))
        b->pin_changes += strstr(key, "/pins/") != NULL;
    b->stats.late += late;
    const char *put = stored ? " stored" : " refused: exists";
    const char *deletion = existed ? " deleted" : " was not there";
    const char *words[] = {o->verb == OBJ_PUT ? "PUT " : "DELETE ", key,
                           o->verb == OBJ_PUT ? put : deletion, late ? " (late)" : ""};
    sim_note(b->world, o->client, words, ARRAY_LEN(words));
    struct sim_effect effect = {
        .verb = o->verb,
        .key = key,
        .body = body,
        .client = o->client,
        .stored = stored,
        .existed = existed,
        .was_deleted = was_deleted,
        .late = late,
    };
    if (b->observer)
        b->observer(b->observer_arg, &effect);
}

static void effect_put(struct op *o) {
    struct sim_bucket *b = o->bucket;
    bool existed = find(b, o->key) != NULL;
    bool was_deleted = key_set_has(&b->deleted, o->key);
    if (!existed)
        insert(b, o->key, buf_view(&o->body));
    if (o->req && !o->effected && existed)
        obj_request_fail(o->req, -ERR_EXISTS, "the key exists");
    observe(o, o->key, buf_view(&o->body), !existed, existed, was_deleted);
}

static void effect_delete(struct op *o) {
    for (size_t i = 0; i < o->key_count; i++) {
        struct view body = {0};
        bool existed = sim_bucket_find(o->bucket, o->keys[i], &body);
        observe(o, o->keys[i], body, false, existed, key_set_has(&o->bucket->deleted, o->keys[i]));
        sim_bucket_remove(o->bucket, o->keys[i]);
    }
}

static void effect_get(struct op *o) {
    struct obj_request *req = o->req;
    const struct object *found = find(o->bucket, o->key);
    uint64_t off;
    size_t len;
    if (!found) {
        obj_request_fail(req, -ERR_NOT_FOUND, "no such key");
    } else if (obj_range_resolve(req, found->body.len, &off, &len) < 0) {
        obj_request_fail(req, -ERR_CORRUPT, "its %zu bytes are not what was asked for",
                         found->body.len);
    } else {
        req->object_size = found->body.len;
        buf_append(&req->body, found->body.data + off, len);
    }
}

/* Appends to the page what is behind its last key now, up to `limit` entries in all. */
static void list_more(struct op *o, size_t limit) {
    struct sim_bucket *b = o->bucket;
    struct obj_request *req = o->req;
    size_t prefix_len = strlen(o->key);
    const char *after = req->entry_count ? req->entries[req->entry_count - 1].key : o->start_after;
    size_t i = sim_bucket_lower_bound(b, after && strcmp(after, o->key) > 0 ? after : o->key);
    if (after && i < b->count && strcmp(b->objects[i].key, after) == 0)
        i++;
    for (; i < b->count && strncmp(b->objects[i].key, o->key, prefix_len) == 0; i++) {
        if (req->entry_count == limit) {
            req->more = limit == o->keys_max;
            return;
        }
        req->entries[req->entry_count++] =
            (struct obj_entry){.key = xstrdup(b->objects[i].key), .size = b->objects[i].body.len};
    }
}

static void effect_list(struct op *o) {
    struct obj_request *req = o->req;
    if (!req->entries)
        req->entries = xcalloc(o->keys_max, sizeof req->entries[0]);
    bool first_half = o->torn_at > 0 && o->effects > 1;
    if (first_half)
        o->pin_changes = o->bucket->pin_changes;
    else if (o->torn_at > 0 && strstr(o->key, "/pins/"))
        o->bucket->stats.torn_pins += o->pin_changes != o->bucket->pin_changes;
    list_more(o, first_half ? o->torn_at : o->keys_max);
}

static void op_free_if_over(struct op *o) {
    if (o->req || o->effects > 0)
        return;
    struct sim_bucket *b = o->bucket;
    sim_timer_stop(b->world, &o->effect);
    list_remove(&o->node);
    for (size_t i = 0; i < o->key_count; i++)
        free(o->keys[i]);
    free(o->keys);
    free(o->key);
    free(o->start_after);
    buf_release(&o->body);
    free(o);
}

static void on_effect(struct env_timer *timer) {
    struct op *o = container_of(timer, struct op, effect);
    struct sim_bucket *b = o->bucket;
    CHECK(o->effects > 0);
    if (o->verb == OBJ_PUT)
        effect_put(o);
    else if (o->verb == OBJ_DELETE)
        effect_delete(o);
    else if (o->req && o->verb == OBJ_GET)
        effect_get(o);
    else if (o->req && o->verb == OBJ_LIST)
        effect_list(o);
    o->effects--;
    bool more_of_page = o->verb == OBJ_LIST && o->effects > 0;
    if (o->req && !o->effected && !o->alone && !more_of_page)
        timer_heap_start(&o->handle->proc->timers, &o->answering, b->world->now_us + o->answer_us);
    o->effected = !more_of_page;
    if (o->effects > 0) {
        b->stats.duplicates += !more_of_page;
        bool pins = more_of_page && strstr(o->key, "/pins/");
        uint64_t us = pins           ? b->faults.slow_us_max
                      : more_of_page ? b->faults.latency_us_max
                                     : b->faults.late_us_max;
        sim_timer_start(b->world, &o->effect, sim_skewed(b->world, 1, MAX(us, UINT64_C(1))));
    }
    op_free_if_over(o);
}

/* --- answers --- */

/* Hands the request back; the operation lives on while effects are to come. */
static void finish(struct op *o) {
    struct obj_request *req = o->req;
    timer_heap_stop(&o->handle->proc->timers, &o->answering);
    o->req = NULL;
    o->handle->under_way--;
    o->handle = NULL;
    if (o->verb == OBJ_GET || o->verb == OBJ_LIST)
        o->effects = 0; /* nobody reads it */
    op_free_if_over(o);
    req->done(req);
}

static void answer_error(struct op *o) {
    o->bucket->stats.errors++;
    uint64_t retry_after_us = o->retry_after_us;
    obj_request_release(o->req);
    obj_request_fail(o->req, o->error, "%s", o->error_text);
    o->req->retry_after_us = retry_after_us;
}

static void on_answer(struct env_timer *timer) {
    struct op *o = container_of(timer, struct op, answering);
    if (o->has_error)
        answer_error(o);
    finish(o);
}

static void on_cancelled(struct env_event *event) {
    struct op *o = container_of(event, struct op, cancelled);
    obj_request_release(o->req);
    obj_request_fail(o->req, -ERR_CANCELLED, "cancelled");
    finish(o);
}

/* --- what is to happen --- */

static void draw_error(struct op *o, int code, const char *text) {
    o->has_error = true;
    o->error = code;
    o->error_text = text;
}

static void draw_trouble(struct op *o) {
    struct sim_world *w = o->bucket->world;
    static const char *const texts[] = {"500 InternalError", "503 SlowDown", "429 TooManyRequests",
                                        "connection reset"};
    size_t which = sim_below(w, ARRAY_LEN(texts));
    draw_error(o, -ERR_TRANSIENT, texts[which]);
    if (which == 1 && sim_chance(w, 300))
        o->retry_after_us = sim_between(w, 1, 3) * 1000000;
}

static uint64_t draw_latency(struct sim_bucket *b) {
    const struct sim_faults *f = &b->faults;
    if (sim_chance(b->world, f->slow))
        return sim_skewed(b->world, 1, f->slow_us_max);
    return sim_skewed(b->world, 1, f->latency_us_max);
}

/* Decides the operation's fate and starts its timers. */
static void draw(struct op *o) {
    struct sim_bucket *b = o->bucket;
    struct sim_world *w = b->world;
    const struct sim_faults *f = &b->faults;
    bool changes = o->verb == OBJ_PUT || o->verb == OBJ_DELETE;
    uint64_t effect_us = draw_latency(b);
    o->effects = 1;
    o->answer_us = draw_latency(b);
    if (sim_chance(w, f->refused)) {
        draw_trouble(o);
        o->effects = 0;
    } else if (sim_chance(w, f->timeout)) {
        draw_error(o, -ERR_TIMEOUT, "no answer");
        o->answer_us = sim_between(w, 1, 10) * 1000000;
        o->effects = 0;
    } else if (o->verb == OBJ_PUT && sim_chance(w, f->conflict)) {
        draw_error(o, -ERR_TRANSIENT, "409 ConditionalRequestConflict");
        o->effects = 0;
    } else if (o->verb == OBJ_GET && sim_chance(w, f->short_body)) {
        draw_error(o, -ERR_TRANSIENT, "the body breaks off");
    } else if (changes && sim_chance(w, f->late)) {
        draw_error(o, sim_chance(w, 500) ? -ERR_TIMEOUT : -ERR_TRANSIENT, "gave up waiting");
        o->alone = true;
        effect_us = o->answer_us + sim_skewed(w, 1, f->late_us_max);
    } else if (sim_chance(w, f->lost_answer)) {
        draw_trouble(o);
    }
    if (o->verb == OBJ_LIST && o->effects > 0) {
        if (sim_chance(w, f->short_page))
            o->keys_max = (unsigned)sim_skewed(w, 1, o->keys_max);
        bool pins = strstr(o->key, "/pins/") != NULL;
        if (o->keys_max > 1 && sim_chance(w, pins ? f->torn_pins : f->torn_page)) {
            o->torn_at = sim_skewed(w, 1, MIN(o->keys_max - 1, 40u));
            o->effects = 2;
        }
    }
    if (changes && o->effects == 1 && sim_chance(w, f->duplicate))
        o->effects = 2;
    if (o->effects > 0)
        sim_timer_start(w, &o->effect, effect_us);
    if (o->effects == 0 || o->alone)
        timer_heap_start(&o->handle->proc->timers, &o->answering, w->now_us + o->answer_us);
}

/* --- struct objstore --- */

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct handle *h = container_of(store, struct handle, store);
    struct sim_bucket *b = h->bucket;
    obj_request_check(req);
    struct op *o = NEW(struct op);
    *o = (struct op){
        .bucket = b, .handle = h, .req = req, .verb = req->verb, .keys_max = req->keys_max};
    o->effect.fn = on_effect;
    o->answering.fn = on_answer;
    o->cancelled.fn = on_cancelled;
    memcpy(o->client, h->name, sizeof o->client);
    o->key = req->key ? xstrdup(req->key) : NULL;
    o->start_after = req->verb == OBJ_LIST && req->start_after ? xstrdup(req->start_after) : NULL;
    if (req->verb == OBJ_DELETE) {
        o->key_count = req->key_count;
        o->keys = xcalloc(req->key_count, sizeof o->keys[0]);
        for (size_t i = 0; i < req->key_count; i++)
            o->keys[i] = xstrdup(req->keys[i]);
    }
    if (req->verb == OBJ_PUT)
        for (size_t i = 0; i < req->part_count; i++)
            buf_append(&o->body, req->parts[i].data, req->parts[i].len);
    req->priv = o;
    req->rc = 0;
    h->under_way++;
    list_push_back(&b->ops, &o->node);
    if (h->cut) {
        o->answered = true;
        env_post(store->env, &o->cancelled);
        return;
    }
    b->stats.requests[req->verb]++;
    const char *key = req->verb == OBJ_DELETE ? req->keys[0] : req->key;
    const char *words[] = {obj_verb_name(req->verb), " ", key, " ..."};
    sim_note(b->world, h->name, words, ARRAY_LEN(words));
    if (b->hook)
        b->hook(b->hook_arg, h->proc, req->verb, key);
    draw(o);
}

static void cancel(struct op *o) {
    if (o->answered)
        return;
    o->answered = true;
    timer_heap_stop(&o->handle->proc->timers, &o->answering);
    env_post(o->handle->store.env, &o->cancelled);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    struct op *o = req->priv;
    CHECK(o->handle == container_of(store, struct handle, store));
    CHECK(o->req == req);
    o->alone = true; /* the effect does not answer any more */
    cancel(o);
}

static void op_close(struct objstore *store) {
    struct handle *h = container_of(store, struct handle, store);
    CHECK(h->under_way == 0);
    h->bucket->handles--;
    free(h);
}

static const struct objstore_ops sim_store_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

struct objstore *sim_store_open(struct sim_bucket *b, struct sim_proc *p, const char *name) {
    struct handle *h = NEW(struct handle);
    h->store = (struct objstore){.ops = &sim_store_ops, .env = &p->env};
    h->bucket = b;
    h->proc = p;
    snprintf(h->name, sizeof h->name, "%s", name);
    b->handles++;
    return &h->store;
}

void sim_store_cut(struct objstore *store) {
    struct handle *h = container_of(store, struct handle, store);
    struct sim_bucket *b = h->bucket;
    h->cut = true;
    list_for_each (&b->ops, node) {
        struct op *o = list_entry(node, struct op, node);
        if (o->handle != h)
            continue;
        o->alone = true;
        cancel(o);
        /* On the wire: most of it arrives soon, some much later, some never. */
        if (o->effects > 0 && !o->effected && sim_chance(b->world, 300))
            sim_timer_start(b->world, &o->effect, sim_skewed(b->world, 1, b->faults.late_us_max));
        else if (o->effects > 0 && !o->effected && sim_chance(b->world, 300)) {
            sim_timer_stop(b->world, &o->effect);
            o->effects = 0;
        }
    }
}

struct sim_bucket *sim_bucket_new(struct sim_world *w, const struct sim_faults *faults) {
    struct sim_bucket *b = NEW(struct sim_bucket);
    b->world = w;
    b->faults = *faults;
    list_init(&b->ops);
    return b;
}

void sim_bucket_free(struct sim_bucket *b) {
    CHECK(b->handles == 0);
    list_for_each (&b->ops, node) {
        struct op *o = list_entry(node, struct op, node);
        CHECK(!o->req);
        o->effects = 0;
        op_free_if_over(o);
    }
    for (size_t i = 0; i < b->count; i++) {
        free(b->objects[i].key);
        buf_release(&b->objects[i].body);
    }
    free(b->objects);
    key_set_release(&b->deleted);
    free(b);
}

void sim_bucket_set_faults(struct sim_bucket *b, const struct sim_faults *faults) {
    b->faults = *faults;
}

void sim_bucket_set_observer(struct sim_bucket *b,
                             void (*fn)(void *arg, const struct sim_effect *effect), void *arg) {
    b->observer = fn;
    b->observer_arg = arg;
}

void sim_bucket_set_submit_hook(struct sim_bucket *b,
                                void (*fn)(void *arg, struct sim_proc *p, enum obj_verb verb,
                                           const char *key),
                                void *arg) {
    b->hook = fn;
    b->hook_arg = arg;
}
