/* A binary heap of timers. A timer knows its index (plus one), so that stopping it is O(log n). */
#include "common/timer_heap.h"

#include <stdlib.h>

#include "common/mem.h"

static bool before(const struct env_timer *a, const struct env_timer *b) {
    return a->due_us != b->due_us ? a->due_us < b->due_us : a->order < b->order;
}

static void place(struct timer_heap *h, size_t i, struct env_timer *t) {
    h->items[i] = t;
    t->heap_index = i + 1;
}

static void sift_up(struct timer_heap *h, size_t i, struct env_timer *t) {
    while (i > 0 && before(t, h->items[(i - 1) / 2])) {
        place(h, i, h->items[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    place(h, i, t);
}

static void sift_down(struct timer_heap *h, size_t i, struct env_timer *t) {
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= h->count)
            break;
        if (child + 1 < h->count && before(h->items[child + 1], h->items[child]))
            child++;
        if (!before(h->items[child], t))
            break;
        place(h, i, h->items[child]);
        i = child;
    }
    place(h, i, t);
}

void timer_heap_release(struct timer_heap *h) {
    for (size_t i = 0; i < h->count; i++)
        h->items[i]->heap_index = 0;
    free(h->items);
    *h = (struct timer_heap){0};
}

void timer_heap_start(struct timer_heap *h, struct env_timer *t, uint64_t due_us) {
    if (t->heap_index)
        timer_heap_stop(h, t);
    if (h->count == h->cap) {
        h->cap = MAX(h->cap * 2, (size_t)16);
        h->items = xrealloc(h->items, h->cap * sizeof *h->items);
    }
    t->due_us = due_us;
    t->order = h->order++;
    h->count++;
    sift_up(h, h->count - 1, t);
}

void timer_heap_stop(struct timer_heap *h, struct env_timer *t) {
    if (!t->heap_index)
        return;
    size_t i = t->heap_index - 1;
    CHECK(i < h->count && h->items[i] == t);
    t->heap_index = 0;
    struct env_timer *last = h->items[--h->count];
    if (last == t)
        return;
    if (i > 0 && before(last, h->items[(i - 1) / 2]))
        sift_up(h, i, last);
    else
        sift_down(h, i, last);
}

struct env_timer *timer_heap_first(const struct timer_heap *h) {
    return h->count ? h->items[0] : NULL;
}
