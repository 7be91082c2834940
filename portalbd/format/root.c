/* Roots: bytes <-> structs.
 *
 *   {"volumes": [key, ...], "runs": [[ref, age, entries, size], ...], "tail": [[volume, first,
 *    count], ...], "next_seq": n, "evacuated": [ref, ...]}
 *
 * where a ref is [volume, store, "log", seq] or [volume, store, "moved" | "map", id].
 *
 * I1  Every volume index is inside the table; the table has no key twice.
 * I2  Tail ranges of the own volume lie below next_seq. */
#include "portalbd/format/root_internal.h"

#include <stdlib.h>

void root_init(struct root *r, const struct volume_key *own) {
    *r = (struct root){.volumes = NEW(struct volume_key), .volume_count = 1, .next_seq = 1};
    r->volumes[0] = *own;
}

void root_release(struct root *r) {
    free(r->volumes);
    free(r->runs);
    free(r->tail);
    free(r->evacuated);
    *r = (struct root){0};
}

static void *copy_array(const void *from, size_t count, size_t size) {
    if (count == 0)
        return NULL;
    void *to = xcalloc(count, size);
    memcpy(to, from, count * size);
    return to;
}

void root_copy(struct root *to, const struct root *from) {
    *to = *from;
    to->volumes = copy_array(from->volumes, from->volume_count, sizeof *from->volumes);
    to->runs = copy_array(from->runs, from->run_count, sizeof *from->runs);
    to->tail = copy_array(from->tail, from->tail_count, sizeof *from->tail);
    to->evacuated = copy_array(from->evacuated, from->evacuated_count, sizeof *from->evacuated);
}

int root_volume_index(struct root *r, const struct volume_key *v, struct err *e) {
    for (size_t i = 0; i < r->volume_count; i++)
        if (volume_key_equal(&r->volumes[i], v))
            return (int)i;
    if (r->volume_count >= ROOT_VOLUMES_MAX)
        return err_set(e, -ERR_OVERLOAD, "a root of more than %d volumes", ROOT_VOLUMES_MAX);
    r->volumes = xrealloc(r->volumes, (r->volume_count + 1) * sizeof *r->volumes);
    r->volumes[r->volume_count] = *v;
    return (int)r->volume_count++;
}

/* --- what a root must be --- */

static bool volumes_valid(const struct root *r) {
    for (size_t i = 0; i < r->volume_count; i++) {
        if (!volume_key_valid(r->volumes[i].text, ID_VOLUME))
            return false;
        for (size_t j = 0; j < i; j++)
            if (volume_key_equal(&r->volumes[i], &r->volumes[j]))
                return false;
    }
    return r->volume_count >= 1;
}

static bool tail_valid(const struct root *r, const struct root_tail *t) {
    if (t->volume >= r->volume_count || t->first < 1 || t->count < 1 ||
        t->first > JSON_INTEGER_MAX || t->count > JSON_INTEGER_MAX - t->first)
        return false;
    return t->volume != 0 || t->first + t->count <= r->next_seq;
}

bool root_valid(const struct root *r) {
    if (!volumes_valid(r) || r->next_seq < 1 || r->next_seq > JSON_INTEGER_MAX)
        return false;
    for (size_t i = 0; i < r->run_count; i++) {
        const struct obj_ref *ref = &r->runs[i].index;
        if (!obj_ref_valid(ref) || ref->kind != OBJ_MAP || ref->volume >= r->volume_count)
            return false;
    }
    for (size_t i = 0; i < r->tail_count; i++)
        if (!tail_valid(r, &r->tail[i]))
            return false;
    for (size_t i = 0; i < r->evacuated_count; i++) {
        const struct obj_ref *ref = &r->evacuated[i];
        if (!obj_ref_valid(ref) || ref->kind == OBJ_MAP || ref->volume >= r->volume_count)
            return false;
    }
    return true;
}

int root_check_limits(const struct root *r, struct err *e) {
    if (r->volume_count > ROOT_VOLUMES_MAX || r->run_count > ROOT_RUNS_MAX ||
        r->tail_count > ROOT_TAIL_MAX || r->evacuated_count > ROOT_LIST_MAX)
        return err_set(e, -ERR_OVERLOAD,
                       "a root of %zu volumes, %zu runs, %zu ranges of segments and %zu evacuated "
                       "objects is more than format 1 allows",
                       r->volume_count, r->run_count, r->tail_count, r->evacuated_count);
    return 0;
}

/* --- writing --- */

static json_t *ref_json(struct json_writer *w, const struct obj_ref *ref) {
    static const char *const kinds[] = {
        [OBJ_LOG] = "log", [OBJ_MOVED] = "moved", [OBJ_MAP] = "map"};
    CHECK(ref->kind <= OBJ_MAP);
    json_t *a = json_array();
    json_add(w, a, json_of_u64(ref->volume));
    json_add(w, a, json_of_u64(ref->store));
    json_add(w, a, json_string(kinds[ref->kind]));
    json_add(w, a, ref->kind == OBJ_LOG ? json_of_u64(ref->seq) : json_of_id(&ref->id));
    return a;
}

static json_t *run_json(struct json_writer *w, const struct root_run *run) {
    json_t *a = json_array();
    json_add(w, a, ref_json(w, &run->index));
    json_add(w, a, json_of_u64(run->age));
    json_add(w, a, json_of_u64(run->entry_count));
    json_add(w, a, json_of_u64(run->size));
    return a;
}

static json_t *tail_json(struct json_writer *w, const struct root_tail *t) {
    json_t *a = json_array();
    json_add(w, a, json_of_u64(t->volume));
    json_add(w, a, json_of_u64(t->first));
    json_add(w, a, json_of_u64(t->count));
    return a;
}

void root_put(struct json_writer *w, const char *name, const struct root *r) {
    CHECK(root_valid(r));
    struct json_writer o = {.object = json_object()};
    json_t *volumes = json_array(), *runs = json_array(), *tail = json_array(),
           *evacuated = json_array();
    for (size_t i = 0; i < r->volume_count; i++)
        json_add(&o, volumes, json_string(r->volumes[i].text));
    for (size_t i = 0; i < r->run_count; i++)
        json_add(&o, runs, run_json(&o, &r->runs[i]));
    for (size_t i = 0; i < r->tail_count; i++)
        json_add(&o, tail, tail_json(&o, &r->tail[i]));
    for (size_t i = 0; i < r->evacuated_count; i++)
        json_add(&o, evacuated, ref_json(&o, &r->evacuated[i]));
    json_put(&o, "volumes", volumes);
    json_put(&o, "runs", runs);
    json_put(&o, "tail", tail);
    json_put_u64(&o, "next_seq", r->next_seq);
    json_put(&o, "evacuated", evacuated);
    w->bad |= o.bad;
    json_put(w, name, o.object);
}

/* --- reading --- */

static bool get_ref(const json_t *a, struct obj_ref *ret) {
    uint64_t volume, store;
    if (!json_is_array(a) || json_array_size(a) != 4 ||
        !json_value_u64(json_array_get(a, 0), ROOT_VOLUMES_MAX, &volume) ||
        !json_value_u64(json_array_get(a, 1), 0, &store))
        return false;
    *ret = (struct obj_ref){.volume = (uint16_t)volume, .store = (uint8_t)store};
    const json_t *kind = json_array_get(a, 2), *which = json_array_get(a, 3);
    if (json_value_is(kind, "log")) {
        ret->kind = OBJ_LOG;
        return json_value_u64(which, JSON_INTEGER_MAX, &ret->seq);
    }
    ret->kind = json_value_is(kind, "moved") ? OBJ_MOVED : OBJ_MAP;
    return (ret->kind == OBJ_MOVED || json_value_is(kind, "map")) && json_value_id(which, &ret->id);
}

static bool get_run(const json_t *a, struct root_run *ret) {
    return json_is_array(a) && json_array_size(a) == 4 &&
           get_ref(json_array_get(a, 0), &ret->index) &&
           json_value_u64(json_array_get(a, 1), JSON_INTEGER_MAX, &ret->age) &&
           json_value_u64(json_array_get(a, 2), JSON_INTEGER_MAX, &ret->entry_count) &&
           json_value_u64(json_array_get(a, 3), JSON_INTEGER_MAX, &ret->size);
}

static bool get_tail(const json_t *a, struct root_tail *ret) {
    uint64_t volume = 0;
    bool ok = json_is_array(a) && json_array_size(a) == 3 &&
              json_value_u64(json_array_get(a, 0), ROOT_VOLUMES_MAX, &volume) &&
              json_value_u64(json_array_get(a, 1), JSON_INTEGER_MAX, &ret->first) &&
              json_value_u64(json_array_get(a, 2), JSON_INTEGER_MAX, &ret->count);
    ret->volume = (uint16_t)volume;
    return ok;
}

static bool get_volume(const json_t *value, struct volume_key *ret) {
    const char *text = json_string_value(value);
    if (!text || !volume_key_valid(text, ID_VOLUME))
        return false;
    memcpy(ret->text, text, strlen(text) + 1);
    return true;
}

void root_get(struct json_reader *in, const char *name, struct root *ret) {
    *ret = (struct root){0};
    const json_t *object = json_member(in, name);
    if (!json_is_object(object)) {
        json_bad(in, name);
        return;
    }
    struct json_reader r = json_reader_of(object, in->type, in->e);
    const json_t *volumes = json_get_array(&r, "volumes", ROOT_VOLUMES_MAX, &ret->volume_count);
    const json_t *runs = json_get_array(&r, "runs", ROOT_RUNS_MAX, &ret->run_count);
    const json_t *tail = json_get_array(&r, "tail", ROOT_TAIL_MAX, &ret->tail_count);
    const json_t *evacuated = json_get_array(&r, "evacuated", ROOT_LIST_MAX, &ret->evacuated_count);
    ret->next_seq = json_get_u64(&r, "next_seq", JSON_INTEGER_MAX);
    ret->volumes = xcalloc(MAX(ret->volume_count, 1), sizeof *ret->volumes);
    ret->runs = xcalloc(MAX(ret->run_count, 1), sizeof *ret->runs);
    ret->tail = xcalloc(MAX(ret->tail_count, 1), sizeof *ret->tail);
    ret->evacuated = xcalloc(MAX(ret->evacuated_count, 1), sizeof *ret->evacuated);
    bool ok = true;
    for (size_t i = 0; ok && i < ret->volume_count; i++)
        ok = get_volume(json_array_get(volumes, i), &ret->volumes[i]);
    for (size_t i = 0; ok && i < ret->run_count; i++)
        ok = get_run(json_array_get(runs, i), &ret->runs[i]);
    for (size_t i = 0; ok && i < ret->tail_count; i++)
        ok = get_tail(json_array_get(tail, i), &ret->tail[i]);
    for (size_t i = 0; ok && i < ret->evacuated_count; i++)
        ok = get_ref(json_array_get(evacuated, i), &ret->evacuated[i]);
    int rc = json_end(&r);
    if (rc < 0)
        in->rc = in->rc ? in->rc : rc;
    else if (!ok || !root_valid(ret))
        json_bad(in, name);
}
