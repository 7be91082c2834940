/* The memtable. A treap: binary search tree by sector, heap by a priority that is a hash of a
 * counter (deterministic, and nobody outside can choose it). A put splits the tree at its two
 * edges, drops the middle, and merges.
 *
 * I1 Extents in order of the tree do not overlap. I2 An extent that is stored never becomes
 * unstored. */
#include "portalbd/volume/memtable.h"

#include <stdlib.h>

struct node {
    struct node *left;
    struct node *right;
    uint32_t priority;
    struct mem_extent x;
};

struct memtable {
    struct node *root;
    size_t count;
    uint64_t counter;
};

struct lens_block *lens_block_new(const uint16_t *lens, size_t count) {
    struct lens_block *b = xmalloc(sizeof *b + count * sizeof *lens);
    b->refs = 1;
    if (count > 0)
        memcpy(b->lens, lens, count * sizeof *lens);
    return b;
}

void lens_block_unref(struct lens_block *b) {
    if (!b)
        return;
    CHECK(b->refs > 0);
    if (--b->refs == 0)
        free(b);
}

struct memtable *memtable_new(void) {
    return NEW(struct memtable);
}

static void free_node(struct memtable *t, struct node *n) {
    lens_block_unref(n->x.lens);
    free(n);
    t->count--;
}

static void free_tree(struct memtable *t, struct node *n) {
    while (n) {
        free_tree(t, n->left);
        struct node *right = n->right;
        free_node(t, n);
        n = right;
    }
}

void memtable_free(struct memtable *t) {
    if (!t)
        return;
    free_tree(t, t->root);
    CHECK(t->count == 0);
    free(t);
}

size_t memtable_count(const struct memtable *t) {
    return t->count;
}

static struct node *new_node(struct memtable *t, const struct mem_extent *x) {
    struct node *n = NEW(struct node);
    uint64_t h = ++t->counter * UINT64_C(0x9e3779b97f4a7c15);
    h ^= h >> 29;
    h *= UINT64_C(0xbf58476d1ce4e5b9);
    n->priority = (uint32_t)(h >> 32);
    n->x = *x;
    if (n->x.lens)
        n->x.lens->refs++;
    t->count++;
    return n;
}

/* Splits by start: sectors < at go left. No extent crosses `at` (cut_at made sure). */
static void split(struct node *n, uint64_t at, struct node **ret_left, struct node **ret_right) {
    if (!n) {
        *ret_left = *ret_right = NULL;
    } else if (n->x.sector < at) {
        split(n->right, at, &n->right, ret_right);
        *ret_left = n;
    } else {
        split(n->left, at, ret_left, &n->left);
        *ret_right = n;
    }
}

static struct node *merge(struct node *a, struct node *b) {
    if (!a)
        return b;
    if (!b)
        return a;
    if (a->priority > b->priority) {
        a->right = merge(a->right, b);
        return a;
    }
    b->left = merge(a, b->left);
    return b;
}

static struct node *seek(const struct memtable *t, uint64_t sector) {
    struct node *best = NULL;
    for (struct node *n = t->root; n;) {
        if (n->x.sector + n->x.count > sector) {
            best = n;
            n = n->left;
        } else {
            n = n->right;
        }
    }
    return best;
}

const struct mem_extent *memtable_seek(const struct memtable *t, uint64_t sector) {
    struct node *n = seek(t, sector);
    return n ? &n->x : NULL;
}

struct map_entry mem_extent_entry(const struct mem_extent *x) {
    struct map_entry m = {.sector = x->sector, .count = x->count, .kind = x->kind};
    if (x->kind != EXTENT_DATA)
        return m;
    CHECK(x->stored);
    m.skip = x->skip;
    m.off = x->off;
    m.ref = (struct obj_ref){.volume = x->volume, .kind = OBJ_LOG, .seq = x->seq};
    m.lens = x->lens->lens + x->first_len;
    m.len_count = (uint16_t)extent_frames(x->skip + x->count);
    return m;
}

struct mem_extent mem_extent_part(const struct mem_extent *x, uint64_t sector, uint64_t count) {
    CHECK(sector >= x->sector && count >= 1);
    CHECK(sector + count <= x->sector + x->count);
    struct mem_extent part = *x;
    part.sector = sector;
    part.count = count;
    if (x->kind != EXTENT_DATA)
        return part;
    uint64_t ahead = sector - x->sector;
    if (!x->stored) {
        part.pos = x->pos + ahead * SECTOR_SIZE;
        return part;
    }
    uint64_t skipped = x->skip + ahead;
    for (uint64_t i = 0; i < skipped / FRAME_SECTORS_MAX; i++)
        part.off += x->lens->lens[x->first_len + i];
    part.first_len += (uint32_t)(skipped / FRAME_SECTORS_MAX);
    part.skip = skipped % FRAME_SECTORS_MAX;
    return part;
}

/* Makes sure that no extent crosses `at`. */
static void cut_at(struct memtable *t, uint64_t at) {
    struct node *n = seek(t, at);
    if (!n || n->x.sector >= at)
        return;
    struct mem_extent behind = mem_extent_part(&n->x, at, n->x.sector + n->x.count - at);
    n->x.count = at - n->x.sector;
    struct node *left, *right;
    split(t->root, at, &left, &right);
    t->root = merge(merge(left, new_node(t, &behind)), right);
}

void memtable_put(struct memtable *t, const struct mem_extent *x) {
    CHECK(x->count >= 1 && x->sector + x->count <= SECTORS_MAX);
    cut_at(t, x->sector);
    cut_at(t, x->sector + x->count);
    struct node *left, *middle, *right;
    split(t->root, x->sector, &left, &right);
    split(right, x->sector + x->count, &middle, &right);
    struct node *n = new_node(t, x);
    free_tree(t, middle);
    t->root = merge(merge(left, n), right);
}

/* One extent of a segment's table as the memtable keeps it. */
static struct mem_extent stored_extent(uint16_t volume, uint64_t seq,
                                       const struct segment_extent *x, struct lens_block *lens) {
    struct mem_extent m = {
        .sector = x->sector, .count = x->count, .kind = x->kind, .stored = true, .seq = seq};
    if (x->kind == EXTENT_DATA) {
        m.volume = volume;
        m.off = x->off;
        m.first_len = x->first_len;
        m.lens = lens;
    }
    return m;
}

void memtable_set_stored(struct memtable *t, uint64_t pos_from, uint64_t pos_to, uint64_t seq,
                         const struct segment_table *table, struct lens_block *lens) {
    for (size_t i = 0; i < table->extent_count; i++) {
        struct mem_extent whole = stored_extent(0, seq, &table->extents[i], lens);
        uint64_t end = whole.sector + whole.count;
        for (uint64_t sector = whole.sector; sector < end;) {
            struct node *n = seek(t, sector);
            if (!n || n->x.sector >= end)
                break;
            uint64_t from = MAX(n->x.sector, whole.sector);
            uint64_t to = MIN(n->x.sector + n->x.count, end);
            sector = to;
            if (n->x.stored || n->x.pos < pos_from || n->x.pos >= pos_to)
                continue; /* a newer write has shadowed this part */
            struct mem_extent part = mem_extent_part(&whole, from, to - from);
            if (n->x.sector != from || n->x.count != to - from) {
                memtable_put(t, &part); /* a record that became several extents */
                continue;
            }
            n->x = part;
            if (part.lens)
                part.lens->refs++;
        }
    }
}

void memtable_replay(struct memtable *t, uint16_t volume, uint64_t seq,
                     const struct segment_table *table) {
    struct lens_block *lens = lens_block_new(table->lens, table->len_count);
    for (size_t i = 0; i < table->extent_count; i++) {
        struct mem_extent x = stored_extent(volume, seq, &table->extents[i], lens);
        memtable_put(t, &x);
    }
    lens_block_unref(lens);
}
