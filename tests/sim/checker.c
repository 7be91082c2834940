/* The model's state and its checks. See checker.h. */
#include "tests/sim/checker_internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

void checker_init(struct checker *c) {
    *c = (struct checker){.next_stamp = 1};
    list_init(&c->volumes);
    list_init(&c->images);
}

static void reign_free(struct reign *r) {
    free(r->base);
    free(r->records);
    free(r->state);
    free(r->position);
    free(r);
}

void checker_release(struct checker *c) {
    struct list_node *node;
    while ((node = list_pop_front(&c->volumes)) != NULL) {
        struct model_volume *v = list_entry(node, struct model_volume, node);
        while ((node = list_pop_front(&v->reigns)) != NULL)
            reign_free(list_entry(node, struct reign, node));
        free(v);
    }
    while ((node = list_pop_front(&c->images)) != NULL) {
        struct image *i = list_entry(node, struct image, node);
        free(i->limits);
        free(i->content);
        free(i);
    }
}

void checker_add_span(struct checker *c, uint64_t sector, uint32_t count) {
    CHECK(c->span_count < SPANS_MAX);
    CHECK(c->span_count == 0 ||
          c->spans[c->span_count - 1].sector + c->spans[c->span_count - 1].count <= sector);
    c->spans[c->span_count++] =
        (struct span){.sector = sector, .count = count, .first_place = c->places};
    c->places += count;
}

void checker_fail(struct checker *c, const char *fmt, ...) {
    if (checker_failed(c))
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->finding, sizeof c->finding, fmt, ap);
    va_end(ap);
}

size_t checker_places(const struct checker *c, uint64_t sector, uint64_t count,
                      struct place_range ret[SPANS_MAX]) {
    size_t n = 0;
    for (size_t i = 0; i < c->span_count; i++) {
        const struct span *s = &c->spans[i];
        uint64_t from = MAX(sector, s->sector);
        uint64_t to = MIN(sector + count, s->sector + s->count);
        if (from < to)
            ret[n++] = (struct place_range){.sector = from,
                                            .place = s->first_place + (uint32_t)(from - s->sector),
                                            .count = (uint32_t)(to - from)};
    }
    return n;
}

/* --- volumes and reigns --- */

struct model_volume *model_volume_new(struct checker *c, const char *name, struct image *origin,
                                      uint64_t size_bytes) {
    struct model_volume *v = NEW(struct model_volume);
    *v = (struct model_volume){
        .checker = c, .origin = origin, .size_acked = size_bytes, .size_wanted = size_bytes};
    snprintf(v->name, sizeof v->name, "%s", name);
    list_init(&v->reigns);
    list_push_back(&c->volumes, &v->node);
    return v;
}

/* The newest reign below this epoch, or NULL. */
static struct reign *reign_below(const struct model_volume *v, uint64_t epoch) {
    struct reign *best = NULL;
    list_for_each (&v->reigns, node) {
        struct reign *r = list_entry(node, struct reign, node);
        if (r->epoch < epoch)
            best = r;
    }
    return best;
}

static struct reign *reign_above(const struct model_volume *v, uint64_t epoch) {
    list_for_each (&v->reigns, node) {
        struct reign *r = list_entry(node, struct reign, node);
        if (r->epoch > epoch)
            return r;
    }
    return NULL;
}

static void reign_insert(struct model_volume *v, struct reign *r) {
    struct reign *above = reign_above(v, r->epoch);
    list_insert_before_(above ? &above->node : &v->reigns, &r->node);
}

bool model_check_origin(struct model_volume *v, const uint32_t *found, const char *what) {
    struct checker *c = v->checker;
    if (v->origin) {
        model_image_check(v->origin, found, 0);
        return !checker_failed(c);
    }
    CLEANUP_FREE uint32_t *zeroes = checker_copy_places(c, NULL);
    size_t n = checker_differences(c, zeroes, found);
    if (n == 0)
        return true;
    char text[900];
    checker_describe_difference(c, zeroes, found, text, sizeof text);
    checker_fail(c, "%s of the new volume %s is not zero, %zu sectors differ:%s", what, v->name, n,
                 text);
    return false;
}

/* Could its base be lost still? */
bool model_base_is_volatile(const struct reign *r) {
    return r->parent && r->replayed && !r->settled_base;
}

/* Of which reign is this a cut: of the newest one, or, where that has only replayed, of an earlier?
 */
static struct cut_search find_parent(struct reign **parent, const uint32_t *found, bool whole,
                                     const char *what) {
    struct reign *first = *parent;
    struct checker *c = first->volume->checker;
    size_t low = whole ? MAX(first->flushed, first->acked_end) : first->flushed;
    struct cut_search s = checker_find_cut(first, found, low, first->count), newest = s;
    for (struct reign *r = first; !s.found && !whole && model_base_is_volatile(r); r = r->parent) {
        s = checker_find_cut(r->parent, found, r->parent->flushed, MAX(r->cut, r->parent->flushed));
        *parent = r->parent;
    }
    if (!s.found) {
        checker_fail_cut(c, first, found, &newest, low, first->count, what, whole);
        return s;
    }
    for (struct reign *r = first; r != *parent; r = r->parent)
        r->base_lost = true;
    c->records_lost += (*parent)->count - s.cut;
    return s;
}

struct reign *model_open(struct model_volume *v, const char *name, uint64_t epoch,
                         const uint32_t *found, const struct reign *whole, bool replayed,
                         uint64_t size_min, uint64_t size_bytes) {
    struct checker *c = v->checker;
    c->cuts_checked++;
    char what[64];
    snprintf(what, sizeof what, "content at the open of %s/%s", v->name, name);
    if (size_bytes < size_min || size_bytes > v->size_wanted)
        checker_fail(
            c, "%s: size %" PRIu64 " is not in [%" PRIu64 " acknowledged, %" PRIu64 " wanted]",
            what, size_bytes, size_min, v->size_wanted);
    struct reign *parent = reign_below(v, epoch);
    struct cut_search s = {0};
    if (parent && parent->restored && !parent->base) {
        model_image_check(parent->restored, found, 0);
        parent->base = checker_copy_places(c, found);
    }
    if (whole && whole != parent)
        checker_fail(c, "%s has the journal of %s, but %s came after it", what, whole->name,
                     parent ? parent->name : "nobody");
    if (parent) {
        s = find_parent(&parent, found, whole != NULL, what);
    } else {
        model_check_origin(v, found, what);
    }
    if (checker_failed(c))
        return NULL;
    struct reign *r = NEW(struct reign);
    *r = (struct reign){
        .volume = v, .epoch = epoch, .parent = parent, .cut = s.cut, .replayed = replayed};
    snprintf(r->name, sizeof r->name, "%s", name);
    r->base = checker_copy_places(c, found);
    r->state = checker_copy_places(c, found);
    r->position = checker_copy_places(c, NULL);
    reign_insert(v, r);
    return r;
}

static void add_record(struct reign *r, uint64_t sector, uint64_t count, uint32_t stamp) {
    if ((r->count & (r->count - 1)) == 0)
        r->records = xrealloc(r->records, MAX(2 * r->count, (size_t)64) * sizeof *r->records);
    r->records[r->count++] = (struct record){.sector = sector, .count = count, .stamp = stamp};
}

size_t model_submit(struct reign *r, uint64_t sector, uint64_t count, uint32_t stamp,
                    size_t *ret_count) {
    size_t first = r->count;
    uint64_t step = stamp ? RECORD_SECTORS_MAX : count;
    for (uint64_t done = 0; done < count; done += step)
        add_record(r, sector + done, MIN(step, count - done), stamp);
    *ret_count = r->count - first;
    return first;
}

static void check_flush(struct reign *r, size_t flushed) {
    struct checker *c = r->volume->checker;
    if (r->base_lost)
        checker_fail(c, "P4: %s/%s acknowledged a flush, but what it had replayed is lost",
                     r->volume->name, r->name);
    if (flushed <= r->flushed)
        return;
    if (r->volume->deleted && flushed > r->deleted_at)
        checker_fail(c, "%s/%s acknowledged a flush of what came after the volume was deleted",
                     r->volume->name, r->name);
    struct reign *next = reign_above(r->volume, r->epoch);
    list_for_each (&r->volume->reigns, node) {
        struct reign *o = list_entry(node, struct reign, node);
        if (o->restored && o->epoch > r->epoch && r->replaced && flushed > r->replaced_at)
            checker_fail(c, "P4: %s/%s acknowledged a flush of what came after a restore",
                         r->volume->name, r->name);
        if (r->replaced || (o->parent != r && o != next))
            continue;
        size_t has = o->parent == r ? o->cut : 0;
        if (has < flushed)
            checker_fail(c,
                         "P4: %s/%s acknowledged a flush of %zu records, but %s, which opened "
                         "after it, has only %zu of them",
                         r->volume->name, r->name, flushed, o->name, has);
    }
}

void model_answer(struct reign *r, size_t position, size_t count, int rc, bool fua) {
    struct checker *c = r->volume->checker;
    for (size_t i = position; i < position + count; i++) {
        struct record *rec = &r->records[i];
        rec->acked = rc == 0;
        rec->failed = rc < 0;
        if (rc < 0)
            continue;
        struct place_range parts[SPANS_MAX];
        size_t n = checker_places(c, rec->sector, rec->count, parts);
        for (size_t k = 0; k < n; k++) {
            for (uint32_t j = 0; j < parts[k].count; j++) {
                uint32_t place = parts[k].place + j;
                if (r->position[place] > i)
                    continue;
                r->position[place] = (uint32_t)i + 1;
                r->state[place] = checker_record_value(rec, parts[k].sector + j);
            }
        }
        r->acked_end = MAX(r->acked_end, i + 1);
    }
    while (r->settled < r->count && (r->records[r->settled].acked || r->records[r->settled].failed))
        r->settled++;
    if (rc == 0 && fua)
        model_flush_acked(r, position + count);
}

size_t model_flush_begin(const struct reign *r) {
    return r->acked_end;
}

void model_flush_acked(struct reign *r, size_t token) {
    check_flush(r, token);
    r->settled_base = true;
    r->flushed = MAX(r->flushed, token);
}

void model_restored(struct model_volume *v, const char *name, uint64_t epoch, struct image *to) {
    struct reign *newest = model_newest_reign(v);
    if (newest && newest->epoch >= epoch)
        return; /* two put the same */
    list_for_each (&v->reigns, node) {
        struct reign *r = list_entry(node, struct reign, node);
        r->replaced_at = r->replaced ? r->replaced_at : r->count;
        r->replaced = true;
    }
    struct reign *r = NEW(struct reign);
    *r = (struct reign){.volume = v, .epoch = epoch, .restored = to};
    snprintf(r->name, sizeof r->name, "%s", name);
    if (to->content)
        r->base = checker_copy_places(v->checker, to->content);
    reign_insert(v, r);
}

void model_deleted(struct model_volume *v) {
    v->deleted = true;
    list_for_each (&v->reigns, node) {
        struct reign *r = list_entry(node, struct reign, node);
        r->deleted_at = r->count;
    }
}

struct reign *model_newest_reign(const struct model_volume *v) {
    return reign_below(v, UINT64_MAX);
}

/* --- reads --- */

void model_read_begin(struct reign *r, struct read_check *check, uint64_t sector, uint64_t count) {
    const struct checker *c = r->volume->checker;
    *check = (struct read_check){.sector = sector, .count = count, .unsettled = r->settled};
    check->state = xcalloc(count, sizeof *check->state);
    check->position = xcalloc(count, sizeof *check->position);
    struct place_range parts[SPANS_MAX];
    size_t n = checker_places(c, sector, count, parts);
    for (size_t i = 0; i < n; i++) {
        size_t at = (size_t)(parts[i].sector - sector);
        memcpy(check->state + at, r->state + parts[i].place, parts[i].count * sizeof *check->state);
        memcpy(check->position + at, r->position + parts[i].place,
               parts[i].count * sizeof *check->position);
    }
}

/* May this value be read from this sector? */
static bool may_read(const struct reign *r, const struct read_check *check, size_t at,
                     uint32_t value) {
    uint64_t sector = check->sector + at;
    if (value == check->state[at])
        return true;
    for (size_t i = MAX(check->unsettled, (size_t)check->position[at]); i < r->count; i++) {
        const struct record *rec = &r->records[i];
        bool covers = rec->sector <= sector && sector < rec->sector + rec->count;
        if (covers && checker_record_value(rec, sector) == value)
            return true;
    }
    return false;
}

void model_zero_seen(struct reign *r, const struct read_check *check, uint64_t sector,
                     uint64_t count) {
    for (uint64_t s = sector; s < sector + count; s++) {
        if (may_read(r, check, (size_t)(s - check->sector), 0))
            continue;
        char want[120];
        checker_describe_stamp(r->volume->checker, check->state[s - check->sector], want,
                               sizeof want);
        checker_fail(r->volume->checker,
                     "block status of %s/%s says that sector %" PRIu64
                     " is zero, it must be %s or newer",
                     r->volume->name, r->name, s, want);
        return;
    }
}

void model_read_end(struct reign *r, struct read_check *check, const uint8_t *data) {
    struct checker *c = r->volume->checker;
    for (size_t i = 0; data && i < check->count; i++) {
        uint32_t value = stamp_read(data + i * SECTOR_SIZE, check->sector + i);
        if (may_read(r, check, i, value))
            continue;
        char want[120], have[120];
        checker_describe_stamp(c, check->state[i], want, sizeof want);
        checker_describe_stamp(c, value, have, sizeof have);
        checker_fail(c,
                     "read of %s/%s, sectors %" PRIu64 "+%" PRIu64 ": sector %" PRIu64
                     " must be %s or newer, is %s",
                     r->volume->name, r->name, check->sector, check->count, check->sector + i, want,
                     have);
        break;
    }
    c->reads_checked += data != NULL;
    free(check->state);
    free(check->position);
    check->state = check->position = NULL;
}
