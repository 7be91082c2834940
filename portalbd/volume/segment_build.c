/* Building a segment. The records of the range go into a memtable of their own, so that what a
 * later write of the same segment shadows is dropped; what is left is written sorted by sector. (A
 * segment is stored whole or not at all, and its extents do not overlap, so their order means
 * nothing.) Frames that are all zeroes become ZERO extents. */
#include "portalbd/volume/segment_build.h"

#include <stdlib.h>

#include "portalbd/volume/memtable.h"

struct table_builder {
    struct segment_build *b;
    size_t extent_cap;
    size_t len_cap;
    bool data_open; /* the last extent is DATA and takes more frames */
    unsigned raw;   /* frames in a row that did not become smaller */
};

/* After so many frames in vain, only one of them is tried: encrypted and compressed data comes in
 * long stretches. */
enum { RAW_FRAMES_MAX = 8 };

static struct segment_extent *add_extent(struct table_builder *t, uint8_t kind, uint64_t sector,
                                         uint64_t count) {
    struct segment_table *table = &t->b->table;
    if (table->extent_count == t->extent_cap) {
        t->extent_cap = MAX(t->extent_cap * 2, (size_t)16);
        table->extents = xrealloc(table->extents, t->extent_cap * sizeof *table->extents);
    }
    struct segment_extent *x = &table->extents[table->extent_count++];
    *x = (struct segment_extent){.sector = sector, .count = count, .kind = kind};
    CHECK(table->extent_count <= SEGMENT_EXTENTS_MAX);
    return x;
}

static void add_empty(struct table_builder *t, uint8_t kind, uint64_t sector, uint64_t count) {
    struct segment_table *table = &t->b->table;
    struct segment_extent *last =
        table->extent_count ? &table->extents[table->extent_count - 1] : NULL;
    t->data_open = false;
    if (last && last->kind == kind && last->sector + last->count == sector)
        last->count += count;
    else
        add_extent(t, kind, sector, count);
}

static void add_frame(struct table_builder *t, uint64_t sector, uint64_t count,
                      const uint8_t *data) {
    struct segment_build *b = t->b;
    struct segment_table *table = &b->table;
    if (!t->data_open) {
        struct segment_extent *x = add_extent(t, EXTENT_DATA, sector, 0);
        x->off = (uint32_t)(SEGMENT_HEADER_SIZE + b->frames.len);
        x->first_len = (uint32_t)table->len_count;
        t->data_open = true;
    }
    if (table->len_count == t->len_cap) {
        t->len_cap = MAX(t->len_cap * 2, (size_t)64);
        table->lens = xrealloc(table->lens, t->len_cap * sizeof *table->lens);
    }
    buf_reserve(&b->frames, FRAME_SIZE_MAX);
    bool try = b->compress && (t->raw < RAW_FRAMES_MAX || t->raw % RAW_FRAMES_MAX == 0);
    size_t len = frame_encode(b->frames.data + b->frames.len, data, count, try);
    CHECK(len <= FRAME_SIZE_MAX);
    t->raw = len == FRAME_HEADER_SIZE + count * SECTOR_SIZE ? t->raw + 1 : 0;
    b->frames.len += len;
    table->lens[table->len_count++] = (uint16_t)len;
    table->extents[table->extent_count - 1].count += count;
}

static bool all_zero(const uint8_t *data, size_t len) {
    uint64_t first;
    memcpy(&first, data, sizeof first);
    return first == 0 && memcmp(data, data + sizeof first, len - sizeof first) == 0;
}

static void add_data(struct table_builder *t, uint64_t sector, uint64_t count,
                     const uint8_t *data) {
    t->data_open = false;
    while (count > 0) {
        uint64_t n = MIN(count, (uint64_t)FRAME_SECTORS_MAX);
        if (all_zero(data, n * SECTOR_SIZE))
            add_empty(t, EXTENT_ZERO, sector, n);
        else
            add_frame(t, sector, n, data);
        data += n * SECTOR_SIZE;
        sector += n;
        count -= n;
    }
}

static struct memtable *collect(const struct segment_build *b) {
    struct memtable *m = memtable_new();
    for (uint64_t pos = b->from; pos < b->to;) {
        struct journal_record r;
        journal_read(b->journal, pos, &r);
        struct mem_extent x = {
            .sector = r.sector, .count = r.count, .kind = r.kind, .pos = r.data_pos};
        memtable_put(m, &x);
        pos = r.end;
    }
    return m;
}

/* Room that its frames take at most, so that their buffer never grows: it would double. */
static size_t frames_room(const struct memtable *m) {
    size_t room = FRAME_SIZE_MAX;
    const struct mem_extent *x;
    for (uint64_t sector = 0; (x = memtable_seek(m, sector)) != NULL; sector = x->sector + x->count)
        if (x->kind == EXTENT_DATA)
            room += x->count * SECTOR_SIZE + extent_frames(x->count) * FRAME_HEADER_SIZE;
    return room;
}

void segment_build_run(struct segment_build *b) {
    CHECK(b->from < b->to);
    struct table_builder t = {.b = b};
    struct memtable *m = collect(b);
    size_t room = frames_room(m);
    buf_reserve(&b->frames, room);
    const struct mem_extent *x;
    for (uint64_t sector = 0; (x = memtable_seek(m, sector)) != NULL;
         sector = x->sector + x->count) {
        if (x->kind == EXTENT_DATA)
            add_data(&t, x->sector, x->count, journal_data(b->journal, x->pos));
        else
            add_empty(&t, x->kind, x->sector, x->count);
    }
    memtable_free(m);
    CHECK(b->table.extent_count >= 1);
    CHECK(b->frames.len <= room);
    segment_encode_header(b->header, &b->meta);
    segment_encode_tail(&b->tail, &b->meta, &b->table, SEGMENT_HEADER_SIZE + b->frames.len);
}

void segment_build_release(struct segment_build *b) {
    buf_release(&b->frames);
    buf_release(&b->tail);
    segment_table_release(&b->table);
}
