/* A sorted array: segments are stored nearly in the order of their numbers. */
#include "portalbd/volume/small_segments.h"

#include <stdlib.h>

#include "common/mem.h"

void small_segments_release(struct small_segments *l) {
    for (size_t i = 0; i < l->count; i++)
        segment_table_release(&l->items[i].table);
    free(l->items);
    *l = (struct small_segments){0};
}

static void *copy_of(const void *from, size_t count, size_t size) {
    void *to = xcalloc(count + 1, size);
    memcpy(to, from, count * size);
    return to;
}

void small_segments_note(struct small_segments *l, uint64_t seq, const struct segment_table *t) {
    if (l->count == SMALL_SEGMENTS_MAX || t->extent_count > SMALL_EXTENTS_MAX)
        return;
    if (!l->items)
        l->items = xcalloc(SMALL_SEGMENTS_MAX, sizeof *l->items);
    size_t at = l->count;
    while (at > 0 && l->items[at - 1].seq > seq)
        at--;
    CHECK(at == 0 || l->items[at - 1].seq < seq);
    memmove(l->items + at + 1, l->items + at, (l->count - at) * sizeof *l->items);
    l->items[at] = (struct small_segment){.seq = seq, .table = *t};
    l->items[at].table.extents = copy_of(t->extents, t->extent_count, sizeof *t->extents);
    l->items[at].table.lens = t->len_count ? copy_of(t->lens, t->len_count, sizeof *t->lens) : NULL;
    l->count++;
}

const struct segment_table *small_segments_find(const struct small_segments *l, uint64_t seq) {
    size_t low = 0, high = l->count; /* the first that is >= seq */
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (l->items[mid].seq < seq)
            low = mid + 1;
        else
            high = mid;
    }
    return low < l->count && l->items[low].seq == seq ? &l->items[low].table : NULL;
}

void small_segments_prune(struct small_segments *l, bool (*keep)(void *arg, uint64_t seq),
                          void *arg) {
    size_t kept = 0;
    for (size_t i = 0; i < l->count; i++) {
        if (keep(arg, l->items[i].seq))
            l->items[kept++] = l->items[i];
        else
            segment_table_release(&l->items[i].table);
    }
    l->count = kept;
}
