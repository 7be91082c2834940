/* Cuts are found by replaying a reign's records over its base while counting the places that differ
 * from what was found: every k with no difference is a possible cut. That is exact, because records
 * are totally ordered and zeroes of different origins need not be told apart. */
#include "tests/sim/checker_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

static uint64_t place_sector(const struct checker *c, uint32_t place) {
    for (size_t i = 0; i < c->span_count; i++)
        if (place - c->spans[i].first_place < c->spans[i].count)
            return c->spans[i].sector + (place - c->spans[i].first_place);
    return UINT64_MAX;
}

uint32_t checker_record_value(const struct record *rec, uint64_t sector) {
    return rec->stamp ? stamp_value(rec->stamp, sector) : 0;
}

/* Applies a record to `now`; returns by how much the number of differences from `found` changes. */
static int64_t apply(const struct checker *c, const struct record *rec, uint32_t *now,
                     const uint32_t *found) {
    struct place_range parts[SPANS_MAX];
    size_t n = checker_places(c, rec->sector, rec->count, parts);
    int64_t change = 0;
    for (size_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < parts[i].count; k++) {
            uint32_t place = parts[i].place + k;
            uint32_t value = checker_record_value(rec, parts[i].sector + k);
            if (found)
                change += (value != found[place]) - (now[place] != found[place]);
            now[place] = value;
        }
    }
    return change;
}

size_t checker_differences(const struct checker *c, const uint32_t *a, const uint32_t *b) {
    size_t n = 0;
    for (uint32_t p = 0; p < c->places; p++)
        n += a[p] != b[p];
    return n;
}

uint32_t *checker_copy_places(const struct checker *c, const uint32_t *from) {
    uint32_t *to = xmalloc(MAX(c->places, 1u) * sizeof *to);
    if (from)
        memcpy(to, from, c->places * sizeof *to);
    else
        memset(to, 0, c->places * sizeof *to);
    return to;
}

/* Which k in [low, high] explain `found`? */
struct cut_search checker_find_cut(const struct reign *r, const uint32_t *found, size_t low,
                                   size_t high) {
    const struct checker *c = r->volume->checker;
    CLEANUP_FREE uint32_t *now = checker_copy_places(c, r->base);
    int64_t differences = (int64_t)checker_differences(c, now, found);
    struct cut_search s = {.best_count = SIZE_MAX};
    for (size_t k = 0; k <= high; k++) {
        if (k >= low && (size_t)differences <= s.best_count) {
            s.best = k;
            s.best_count = (size_t)differences;
        }
        if (k >= low && differences == 0) {
            s.found = true;
            s.cut = k;
        }
        if (k < high)
            differences += apply(c, &r->records[k], now, found);
    }
    return s;
}

static void state_after(const struct reign *r, size_t k, uint32_t *now) {
    const struct checker *c = r->volume->checker;
    memcpy(now, r->base, c->places * sizeof *now);
    for (size_t i = 0; i < k; i++)
        apply(c, &r->records[i], now, NULL);
}

/* Who wrote a stamp: "reign d3 record 17 (acked)". */
void checker_describe_stamp(const struct checker *c, uint32_t stamp, char *to, size_t size) {
    if (stamp == 0) {
        snprintf(to, size, "zero");
        return;
    }
    if (stamp == STAMP_GARBAGE) {
        snprintf(to, size, "garbage");
        return;
    }
    list_for_each (&c->volumes, vn) {
        struct model_volume *v = list_entry(vn, struct model_volume, node);
        list_for_each (&v->reigns, rn) {
            struct reign *r = list_entry(rn, struct reign, node);
            for (size_t i = 0; i < r->count; i++) {
                if (r->records[i].stamp != stamp)
                    continue;
                snprintf(to, size, "stamp %u (%s/%s record %zu%s)", stamp, v->name, r->name, i,
                         r->records[i].acked ? ", acked" : "");
                return;
            }
        }
    }
    snprintf(to, size, "stamp %u (unknown)", stamp);
}

void checker_describe_difference(const struct checker *c, const uint32_t *expected,
                                 const uint32_t *found, char *to, size_t size) {
    size_t used = 0, shown = 0;
    to[0] = '\0';
    for (uint32_t p = 0; p < c->places && shown < 4 && used < size; p++) {
        if (expected[p] == found[p])
            continue;
        char want[120], have[120];
        checker_describe_stamp(c, expected[p], want, sizeof want);
        checker_describe_stamp(c, found[p], have, sizeof have);
        used += (size_t)snprintf(to + used, size - used,
                                 "\n    sector %" PRIu64 ": expected %s, found %s",
                                 place_sector(c, p), want, have);
        shown++;
    }
}

void checker_fail_cut(struct checker *c, const struct reign *r, const uint32_t *found,
                      const struct cut_search *s, size_t low, size_t high, const char *what,
                      bool whole) {
    CLEANUP_FREE uint32_t *now = checker_copy_places(c, NULL);
    state_after(r, s->best, now);
    char text[900];
    checker_describe_difference(c, now, found, text, sizeof text);
    checker_fail(
        c,
        "%s%s is no cut of %s/%s in [%zu %s, %zu submitted]: nearest is after %zu records, "
        "%zu sectors differ:%s",
        whole ? "P3: " : "", what, r->volume->name, r->name, low,
        whole ? "acknowledged" : "flushed", high, s->best, s->best_count, text);
}
