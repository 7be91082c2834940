/* Images: what snapshots and clones must hold, for ever. */
#include "tests/sim/checker_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/mem.h"

struct image *model_image_begin(struct model_volume *v, const char *name) {
    struct image *i = NEW(struct image);
    *i = (struct image){.volume = v, .from = model_newest_reign(v), .size_min = v->size_acked};
    while (i->from && model_base_is_volatile(i->from))
        i->from = i->from->parent;
    i->flushed = i->from ? i->from->flushed : 0;
    snprintf(i->name, sizeof i->name, "%s", name);
    list_push_back(&v->checker->images, &i->node);
    return i;
}

void model_image_end(struct image *i) {
    free(i->limits);
    i->limits = NULL;
    i->limit_count = 0;
    list_for_each (&i->volume->reigns, node) {
        struct reign *r = list_entry(node, struct reign, node);
        i->limits = xrealloc(i->limits, (i->limit_count + 1) * sizeof *i->limits);
        i->limits[i->limit_count++] = (struct image_limit){.reign = r, .count = r->count};
    }
}

/* What comes nearest to an image that nothing explains. */
struct nearest {
    const struct image_limit *limit;
    struct cut_search search;
    size_t low;
};

static bool matches(struct image *i, const uint32_t *found, struct nearest *nearest);

/* What the volume was made of. */
static bool matches_origin(const struct model_volume *v, const uint32_t *found) {
    if (v->origin)
        return matches(v->origin, found, NULL);
    CLEANUP_FREE uint32_t *zeroes = checker_copy_places(v->checker, NULL);
    return checker_differences(v->checker, zeroes, found) == 0;
}

static bool matches_reign(const struct image *i, const struct image_limit *l, const uint32_t *found,
                          struct nearest *nearest) {
    if (l->reign->restored && !l->reign->base) /* nobody has read it since */
        return matches(l->reign->restored, found, NULL);
    size_t low = l->reign == i->from ? i->flushed : 0;
    struct cut_search s = checker_find_cut(l->reign, found, low, l->count);
    if (!s.found && nearest && s.best_count < nearest->search.best_count)
        *nearest = (struct nearest){.limit = l, .search = s, .low = low};
    return s.found;
}

/* Is it explained by the model? Tries the reign of the start, then its successors. */
static bool matches(struct image *i, const uint32_t *found, struct nearest *nearest) {
    if (i->content)
        return checker_differences(i->volume->checker, i->content, found) == 0;
    for (size_t k = 0; k < i->limit_count; k++) {
        const struct image_limit *l = &i->limits[k];
        if ((!i->from || l->reign->epoch >= i->from->epoch) && matches_reign(i, l, found, nearest))
            return true;
    }
    return !i->from && matches_origin(i->volume, found);
}

static bool explain(struct image *i, const uint32_t *found) {
    struct checker *c = i->volume->checker;
    struct nearest n = {.search.best_count = SIZE_MAX};
    if (matches(i, found, &n))
        return true;
    char what[64];
    snprintf(what, sizeof what, "image %s of %s", i->name, i->volume->name);
    if (!i->from)
        return model_check_origin(i->volume, found, what);
    if (n.limit)
        checker_fail_cut(c, n.limit->reign, found, &n.search, n.low, n.limit->count, what, false);
    else
        checker_fail(c, "%s is not what the volume was restored to", what);
    return false;
}

void model_image_check(struct image *i, const uint32_t *found, uint64_t size_bytes) {
    struct checker *c = i->volume->checker;
    c->cuts_checked++;
    if (size_bytes > 0 && i->size_bytes > 0 && size_bytes != i->size_bytes)
        checker_fail(c, "image %s of %s has size %" PRIu64 ", it was %" PRIu64, i->name,
                     i->volume->name, size_bytes, i->size_bytes);
    if (size_bytes > 0 && size_bytes < i->size_min)
        checker_fail(c, "image %s of %s has size %" PRIu64 ", below %" PRIu64 " before the call",
                     i->name, i->volume->name, size_bytes, i->size_min);
    i->size_bytes = MAX(size_bytes, i->size_bytes);
    if (!i->content) {
        if (!checker_failed(c) && explain(i, found))
            i->content = checker_copy_places(c, found);
        return;
    }
    size_t n = checker_differences(c, i->content, found);
    if (n == 0)
        return;
    char text[900];
    checker_describe_difference(c, i->content, found, text, sizeof text);
    checker_fail(c, "image %s of %s has changed, %zu sectors differ:%s", i->name, i->volume->name,
                 n, text);
}
