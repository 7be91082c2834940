/* The memtable, the journal and segment building against plain arrays. */
#include "tests/support/test.h"

#include <stdlib.h>

#include "portalbd/volume/journal.h"
#include "portalbd/volume/memtable.h"
#include "portalbd/volume/segment_build.h"

enum { SECTORS = 4096, WRITES = 4000 };

static uint32_t next_random(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* What the model knows of a sector: the write that owns it, and that write's kind. */
struct model_sector {
    uint32_t write; /* 0: never written */
    uint8_t kind;
};

static void check_against_model(const struct memtable *t, const struct model_sector *model) {
    uint64_t at = 0;
    const struct mem_extent *x;
    for (uint64_t sector = 0; (x = memtable_seek(t, sector)) != NULL;
         sector = x->sector + x->count) {
        for (; at < x->sector; at++)
            assert_int_equal(model[at].write, 0);
        for (uint64_t i = 0; i < x->count; i++, at++) {
            assert_int_equal(model[at].kind, x->kind);
            uint64_t pos = x->pos + (x->kind == EXTENT_DATA ? i * SECTOR_SIZE : 0);
            assert_int_equal(pos >> 32,
                             model[at].write); /* positions of write n start at n << 32 */
            if (x->kind == EXTENT_DATA)
                assert_int_equal((pos & UINT32_MAX) / SECTOR_SIZE, at % 4096);
        }
    }
    for (; at < SECTORS; at++)
        assert_int_equal(model[at].write, 0);
}

static void test_puts_shadow(void **state) {
    (void)state;
    uint64_t seed = 5;
    static struct model_sector model[SECTORS];
    struct memtable *t = memtable_new();
    for (uint32_t n = 1; n <= WRITES; n++) {
        uint64_t sector = next_random(&seed) % SECTORS;
        uint64_t count = 1 + next_random(&seed) % MIN(200u, SECTORS - sector);
        uint8_t kind = (uint8_t)(next_random(&seed) % 3);
        struct mem_extent x = {
            .sector = sector, .count = count, .kind = kind, .pos = (uint64_t)n << 32};
        if (kind == EXTENT_DATA)
            x.pos += sector * SECTOR_SIZE;
        memtable_put(t, &x);
        for (uint64_t s = sector; s < sector + count; s++)
            model[s] = (struct model_sector){.write = n, .kind = kind};
        if (n % 500 == 0)
            check_against_model(t, model);
    }
    check_against_model(t, model);
    assert_true(memtable_count(t) > 10);
    memtable_free(t);
}

/* Writes go through a journal, segments are built from ranges of it, and the memtable must then say
 * where in the segment each sector's bytes are, whatever was written in between. */
struct world {
    struct journal *journal;
    struct memtable *table;
    uint8_t *image;
    struct segment_build segments[64];
    size_t segment_count;
    uint64_t seed;
};

static struct journal *new_journal(uint64_t size) {
    struct volume_key key = {.text = "v"};
    struct random_id id = {.bytes = {1}};
    struct journal *j;
    struct err e = {0};
    assert_int_equal(journal_open(NULL, size, &key, &j, &e), 0);
    journal_format(j, &id);
    return j;
}

static void write_one(struct world *w) {
    uint64_t sector = next_random(&w->seed) % SECTORS;
    uint64_t count = 1 + next_random(&w->seed) % MIN(150u, SECTORS - sector);
    uint8_t kind = next_random(&w->seed) % 4 == 0 ? EXTENT_HOLE : EXTENT_DATA;
    uint8_t *data = w->image + sector * SECTOR_SIZE;
    bool zeroes = next_random(&w->seed) % 4 == 0;
    for (uint64_t i = 0; i < count * SECTOR_SIZE; i++)
        data[i] = kind == EXTENT_HOLE || (zeroes && i / SECTOR_SIZE % 64 < 50)
                      ? 0
                      : (uint8_t)next_random(&w->seed);
    struct journal_record r;
    assert_true(journal_append(w->journal, kind, sector, count, data, &r));
    struct mem_extent x = {.sector = sector, .count = count, .kind = kind, .pos = r.data_pos};
    memtable_put(w->table, &x);
}

static void check_sector(struct world *w, const struct mem_extent *x, uint64_t sector) {
    uint8_t frame[FRAME_SECTORS_MAX * SECTOR_SIZE];
    const uint8_t *want = w->image + sector * SECTOR_SIZE;
    if (x->kind != EXTENT_DATA) {
        for (int i = 0; i < SECTOR_SIZE; i++)
            assert_int_equal(want[i], 0);
        return;
    }
    struct mem_extent part = mem_extent_part(x, sector, 1);
    if (!part.stored) {
        assert_memory_equal(journal_data(w->journal, part.pos), want, SECTOR_SIZE);
        return;
    }
    struct map_entry m = mem_extent_entry(&part);
    struct segment_build *b = &w->segments[m.ref.seq - 1];
    size_t stored;
    struct err e = {0};
    struct view in = view_part(buf_view(&b->frames), m.off - SEGMENT_HEADER_SIZE, m.lens[0]);
    assert_int_equal(frame_decode(in, frame, m.skip + 1u, &stored, &e), 0);
    assert_int_equal(stored, m.lens[0]);
    assert_memory_equal(frame + m.skip * SECTOR_SIZE, want, SECTOR_SIZE);
}

static void check_image(struct world *w) {
    const struct mem_extent *x;
    for (uint64_t sector = 0; (x = memtable_seek(w->table, sector)) != NULL;
         sector = x->sector + x->count)
        for (uint64_t s = x->sector; s < x->sector + x->count; s++)
            check_sector(w, x, s);
}

static void build_one(struct world *w, uint64_t from, uint64_t to) {
    struct segment_build *b = &w->segments[w->segment_count++];
    *b = (struct segment_build){.journal = w->journal, .from = from, .to = to, .compress = true};
    b->meta = (struct segment_meta){.kind = SEGMENT_DATA, .epoch = 1, .seq = w->segment_count};
    segment_build_run(b);
}

static void store_one(struct world *w, size_t i) {
    struct segment_build *b = &w->segments[i];
    struct lens_block *lens = lens_block_new(b->table.lens, b->table.len_count);
    memtable_set_stored(w->table, b->from, b->to, i + 1, &b->table, lens);
    lens_block_unref(lens);
    journal_free_to(w->journal, b->to);
}

static void test_stored_points_at_segments(void **state) {
    (void)state;
    struct world w = {.journal = new_journal(16 * 1024 * 1024), .table = memtable_new(), .seed = 9};
    w.image = xcalloc(SECTORS, SECTOR_SIZE);
    size_t stored = 0;
    for (uint64_t from = 0; w.segment_count < 60; from = journal_head(w.journal)) {
        for (int i = 0; i < 12; i++)
            write_one(&w);
        build_one(&w, from, journal_head(w.journal));
        if (w.segment_count % 3 ==
            2) /* the newest is still under way: its sectors stay in the journal */
            while (stored + 1 < w.segment_count)
                store_one(&w, stored++);
        check_image(&w);
    }
    while (stored < w.segment_count)
        store_one(&w, stored++);
    check_image(&w);
    assert_int_equal(journal_head(w.journal), journal_tail(w.journal));
    /* Replaying all tables in order gives the same image. */
    struct memtable *replayed = memtable_new();
    for (size_t i = 0; i < w.segment_count; i++)
        memtable_replay(replayed, 0, i + 1, &w.segments[i].table);
    memtable_free(w.table);
    w.table = replayed;
    check_image(&w);
    memtable_free(w.table);
    for (size_t i = 0; i < w.segment_count; i++)
        segment_build_release(&w.segments[i]);
    journal_free(w.journal);
    free(w.image);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_puts_shadow),
        cmocka_unit_test(test_stored_points_at_segments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
