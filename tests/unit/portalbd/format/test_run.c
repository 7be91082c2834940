/* Map entries, pages and run indexes: round trips, seeks, truncations, flipped bits, density. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/format/run.h"

static uint64_t rng_state = 88172645463325252u;
static uint64_t rng(uint64_t below) {
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state % below;
}

enum { REFS = 300, ENTRIES = 5000 };

struct stored {
    struct map_entry m;
    uint32_t ref;
    uint16_t lens[EXTENT_FRAMES_MAX];
};

static struct run_index make_index(void) {
    struct run_index x = {.volume_count = 2, .usage_count = REFS};
    x.volumes = xcalloc(2, sizeof *x.volumes);
    id_format_key(&x.volumes[0], ID_VOLUME, "00000000000000000000000000000000", 1);
    id_format_key(&x.volumes[1], ID_VOLUME, "ffffffffffffffffffffffffffffffff", 0x77);
    x.usage = xcalloc(REFS, sizeof *x.usage);
    for (size_t i = 0; i < REFS; i++) {
        struct run_usage *u = &x.usage[i];
        u->bytes = 1 + rng(1 << 20);
        u->ref.volume = (uint16_t)rng(2);
        u->ref.kind = rng(5) == 0 ? OBJ_MOVED : OBJ_LOG;
        if (u->ref.kind == OBJ_LOG)
            u->ref.seq = i == 0 ? UINT64_MAX : 1 + rng(1 << 20);
        else
            memset(u->ref.id.bytes, (int)(1 + i % 255), RANDOM_ID_SIZE);
    }
    return x;
}

static struct stored *make_entries(const struct run_index *x) {
    struct stored *all = xcalloc(ENTRIES, sizeof *all);
    uint64_t sector = 12345;
    uint32_t follow_off = SEGMENT_HEADER_SIZE;
    uint32_t ref = 0;
    for (size_t i = 0; i < ENTRIES; i++) {
        struct map_entry *m = &all[i].m;
        sector += rng(3) ? 0 : rng(1 << rng(30));
        m->sector = sector;
        m->kind = (uint8_t)(rng(4) ? EXTENT_DATA : 1 + rng(2));
        if (m->kind == EXTENT_DATA) {
            m->skip = (uint8_t)(rng(3) ? 0 : rng(FRAME_SECTORS_MAX));
            m->count = rng(3) ? 8 : 1 + rng(EXTENT_SECTORS_MAX - m->skip);
            m->len_count = (uint16_t)extent_frames(m->skip + m->count);
            ref = rng(2) ? ref : (uint32_t)rng(REFS);
            all[i].ref = ref;
            m->ref = x->usage[ref].ref;
            m->off = rng(2) ? follow_off : (uint32_t)(SEGMENT_HEADER_SIZE + rng(1 << 20));
            for (size_t j = 0; j < m->len_count; j++)
                all[i].lens[j] = (uint16_t)(FRAME_HEADER_SIZE + 1 + rng(FRAME_SIZE_MAX - 13));
            m->lens = all[i].lens;
            follow_off = m->off + map_entry_stored_len(m);
            if (follow_off > SEGMENT_SIZE_MAX / 2)
                follow_off = SEGMENT_HEADER_SIZE;
        } else {
            m->count = 1 + rng(UINT64_C(1) << rng(40));
        }
        sector += m->count;
    }
    return all;
}

static void assert_entry_equal(const struct map_entry *a, const struct map_entry *b) {
    assert_true(a->sector == b->sector && a->count == b->count);
    assert_int_equal(a->kind, b->kind);
    if (a->kind != EXTENT_DATA)
        return;
    assert_int_equal(a->skip, b->skip);
    assert_int_equal(a->off, b->off);
    assert_int_equal(a->len_count, b->len_count);
    assert_true(obj_ref_equal(&a->ref, &b->ref));
    assert_memory_equal(a->lens, b->lens, a->len_count * sizeof *a->lens);
}

static void test_pages(void **state) {
    (void)state;
    struct run_index x = make_index();
    struct stored *all = make_entries(&x);
    size_t at = 0, pages = 0;
    while (at < ENTRIES) {
        uint8_t page[RUN_PAGE_SIZE];
        struct run_page_builder b;
        run_page_start(&b, page);
        size_t first = at;
        while (at < ENTRIES && run_page_add(&b, &all[at].m, all[at].ref))
            at++;
        assert_true(at > first);
        run_page_finish(&b);
        pages++;

        struct run_page_cursor c;
        assert_int_equal(run_page_open(&c, &x, view_of(page, sizeof page), NULL), 0);
        for (size_t i = first; i < at; i++) {
            assert_int_equal(run_page_next(&c, NULL), 1);
            assert_entry_equal(&all[i].m, &c.entry);
        }
        assert_int_equal(run_page_next(&c, NULL), 0);
        for (size_t i = first; i < at; i++) { /* its first sector, its last, the one behind it */
            const struct map_entry *m = &all[i].m;
            assert_int_equal(run_page_seek(&c, m->sector, NULL), 0);
            assert_int_equal(run_page_next(&c, NULL), 1);
            assert_entry_equal(m, &c.entry);
            assert_int_equal(run_page_seek(&c, m->sector + m->count - 1, NULL), 0);
            assert_int_equal(run_page_next(&c, NULL), 1);
            assert_entry_equal(m, &c.entry);
            assert_int_equal(run_page_seek(&c, m->sector + m->count, NULL), 0);
            assert_int_equal(run_page_next(&c, NULL), i + 1 < at);
            if (i + 1 < at)
                assert_entry_equal(&all[i + 1].m, &c.entry);
        }
        assert_int_equal(run_page_seek(&c, 0, NULL), 0);
        assert_int_equal(run_page_next(&c, NULL), 1);
        assert_entry_equal(&all[first].m, &c.entry);
    }
    assert_true(pages > 5);
    free(all);
    run_index_release(&x);
}

static void test_page_flips(void **state) {
    (void)state;
    struct run_index x = make_index();
    struct stored *all = make_entries(&x);
    uint8_t page[RUN_PAGE_SIZE];
    struct run_page_builder b;
    run_page_start(&b, page);
    for (size_t i = 0; i < 40; i++)
        assert_true(run_page_add(&b, &all[i].m, all[i].ref));
    run_page_finish(&b);
    struct run_page_cursor c;
    for (size_t bit = 0; bit < sizeof page * 8; bit++) {
        page[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(run_page_open(&c, &x, view_of(page, sizeof page), NULL), -ERR_CORRUPT);
        page[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < sizeof page; len++)
        assert_int_equal(run_page_open(&c, &x, view_of(page, len), NULL), -ERR_CORRUPT);

    /* An index with fewer objects than the page names is seen entry by entry. */
    struct run_index small = x;
    small.usage_count = 0;
    int rc = run_page_open(&c, &small, view_of(page, sizeof page), NULL);
    assert_int_equal(rc, 0);
    while ((rc = run_page_next(&c, NULL)) == 1)
        assert_int_not_equal(c.entry.kind, EXTENT_DATA);
    assert_int_equal(rc, -ERR_CORRUPT);
    free(all);
    run_index_release(&x);
}

/* 1 TiB of random 4 KiB writes: at most 12 bytes an extent. */
static void test_density(void **state) {
    (void)state;
    uint8_t page[RUN_PAGE_SIZE];
    size_t pages = 0, entries = 0, at = 0;
    uint64_t sector = 0;
    struct run_page_builder b;
    while (pages < 50) {
        run_page_start(&b, page);
        for (;; at++) {
            uint16_t len = FRAME_HEADER_SIZE + 4096;
            struct map_entry m = {.sector = sector,
                                  .count = 8,
                                  .kind = EXTENT_DATA,
                                  .off = (uint32_t)(96 + 4108 * rng(2000)),
                                  .ref = {.kind = OBJ_LOG, .seq = 1},
                                  .lens = &len,
                                  .len_count = 1};
            if (!run_page_add(&b, &m, (uint32_t)rng(160000)))
                break;
            sector += 8;
        }
        run_page_finish(&b);
        entries += b.entries;
        pages++;
    }
    double each = (double)pages * RUN_PAGE_SIZE / (double)entries;
    print_message("%.2f bytes an extent\n", each);
    assert_true(each <= 12.0);
}

static void test_narrow(void **state) {
    (void)state;
    uint16_t lens[] = {100, 200, 300, 50};
    struct map_entry m = {.sector = 1000,
                          .count = 100,
                          .kind = EXTENT_DATA,
                          .skip = 10,
                          .off = 96,
                          .lens = lens,
                          .len_count = 4};
    assert_int_equal(map_entry_stored_len(&m), 650);
    struct map_entry n = m;
    map_entry_narrow(&n, 1000, 100);
    assert_int_equal(n.len_count, 4);
    map_entry_narrow(&n, 1000, 22); /* just the rest of the first frame */
    assert_int_equal(n.len_count, 1);
    assert_int_equal(n.skip, 10);
    n = m;
    map_entry_narrow(&n, 1022, 33);
    assert_int_equal(n.off, 196);
    assert_int_equal(n.skip, 0);
    assert_int_equal(n.len_count, 2);
    assert_int_equal(n.lens[0], 200);
    map_entry_narrow(&n, 1054, 1);
    assert_int_equal(n.off, 396);
    assert_int_equal(n.len_count, 1);
    n = (struct map_entry){.sector = 5, .count = 1000, .kind = EXTENT_ZERO};
    map_entry_narrow(&n, 100, 7);
    assert_true(n.sector == 100 && n.count == 7);
}

static void test_charge(void **state) {
    (void)state;
    uint16_t lens[] = {FRAME_SIZE_MAX, 200, FRAME_SIZE_MAX};
    struct map_entry m = {
        .sector = 0, .count = 96, .kind = EXTENT_DATA, .lens = lens, .len_count = 3};
    assert_int_equal(map_entry_charge(&m), map_entry_stored_len(&m));
    struct map_entry n = m;
    map_entry_narrow(&n, 31, 34); /* one sector, a whole small frame, one sector */
    assert_int_equal(map_entry_stored_len(&n), 2 * FRAME_SIZE_MAX + 200);
    assert_int_equal(map_entry_charge(&n), 2 * (FRAME_HEADER_SIZE + SECTOR_SIZE) + 200);
    n = m;
    map_entry_narrow(&n, 8, 16); /* from the middle of one */
    assert_int_equal(map_entry_charge(&n), FRAME_HEADER_SIZE + 16 * SECTOR_SIZE);
    n = m;
    map_entry_narrow(&n, 40, 1); /* of a small one, which alone would take more */
    assert_int_equal(map_entry_charge(&n), 200);
}

/* Some of them so wide that their fences take eight bytes each. */
static void add_parts(struct run_index *x, size_t parts) {
    x->parts = xcalloc(parts, sizeof *x->parts);
    x->part_count = parts;
    uint64_t sector = 3;
    for (size_t i = 0; i < parts; i++) {
        struct run_part *p = &x->parts[i];
        uint64_t page_first[100];
        p->ref = (struct obj_ref){.kind = OBJ_MAP, .volume = (uint16_t)rng(2)};
        memset(p->ref.id.bytes, (int)(i + 1), RANDOM_ID_SIZE);
        p->page_count = (uint32_t)(1 + rng(100));
        p->first_sector = sector;
        uint64_t widest = i % 2 ? 24 : 36;
        for (size_t j = 0; j < p->page_count; j++) {
            page_first[j] = sector;
            sector += 1 + rng(UINT64_C(1) << rng(widest));
        }
        p->last_sector = sector - 1;
        run_part_set_fences(p, page_first);
        for (uint32_t j = 0; j < p->page_count; j++)
            assert_true(run_part_page_first(p, j) == page_first[j]);
        p->entries = p->page_count;
        p->sectors = p->entries + rng(p->last_sector - p->first_sector + 2 - p->entries);
        p->shares_len = (uint32_t)rng(100000);
        sector += rng(2) ? 0 : rng(1000);
        x->entry_count += p->entries;
    }
}

static void test_index(void **state) {
    (void)state;
    struct run_index x = make_index(), back;
    memset(x.nonce.bytes, 9, sizeof x.nonce.bytes);
    add_parts(&x, 5);
    for (size_t i = 0; i < REFS; i += 1 + rng(9))
        x.usage[i] = (struct run_usage){0}; /* free numbers */
    CLEANUP_BUF struct buf a = {0};
    CLEANUP_BUF struct buf b = {0};
    assert_int_equal(run_index_encode(&a, &x, NULL), 0);
    struct err e = {0};
    assert_int_equal(run_index_decode(&back, buf_view(&a), &e), 0);
    assert_int_equal(back.entry_count, x.entry_count);
    for (size_t i = 0; i < x.usage_count; i++) {
        assert_true(obj_ref_equal(&back.usage[i].ref, &x.usage[i].ref));
        assert_true(back.usage[i].bytes == x.usage[i].bytes);
    }
    for (size_t i = 0; i < x.part_count; i++) {
        const struct run_part *p = &back.parts[i], *q = &x.parts[i];
        assert_true(p->last_sector == q->last_sector && p->sectors == q->sectors);
        assert_true(p->entries == q->entries && p->shares_len == q->shares_len);
        assert_int_equal(p->page_count, q->page_count);
        for (uint32_t j = 0; j < p->page_count; j++)
            assert_true(run_part_page_first(p, j) == run_part_page_first(q, j));
    }
    assert_int_equal(run_index_encode(&b, &back, NULL), 0);
    assert_true(view_equal(buf_view(&a), buf_view(&b)));
    run_index_release(&back);
    run_index_release(&x);
}

static void test_index_damage(void **state) {
    (void)state;
    struct run_index x = make_index(), back;
    x.usage_count = 3;
    add_parts(&x, 2);
    CLEANUP_BUF struct buf a = {0};
    assert_int_equal(run_index_encode(&a, &x, NULL), 0);
    for (size_t bit = 0; bit < a.len * 8; bit++) {
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(run_index_decode(&back, buf_view(&a), NULL), -ERR_CORRUPT);
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < a.len; len++)
        assert_int_equal(run_index_decode(&back, view_of(a.data, len), NULL), -ERR_CORRUPT);
    run_index_release(&x);

    struct run_index empty = {0};
    buf_clear(&a);
    assert_int_equal(run_index_encode(&a, &empty, NULL), 0);
    assert_int_equal(run_index_decode(&back, buf_view(&a), NULL), 0);
    run_index_release(&back);
}

/* What cannot be is refused, even under a good checksum. */
static void test_index_counts(void **state) {
    (void)state;
    for (int what = 0; what < 3; what++) {
        struct run_index x = make_index(), back;
        add_parts(&x, 1);
        CLEANUP_BUF struct buf a = {0};
        x.entry_count += what == 1;
        if (what == 2) /* a free number */
            x.usage[0] = (struct run_usage){0};
        assert_int_equal(run_index_encode(&a, &x, NULL), 0);
        int rc = run_index_decode(&back, buf_view(&a), NULL);
        assert_int_equal(rc, what == 1 ? -ERR_CORRUPT : 0);
        if (rc == 0) {
            assert_int_equal(run_usage_is_free(&back.usage[0]), what == 2);
            run_index_release(&back);
        }
        run_index_release(&x);
    }
}

static void test_free_number(void **state) {
    (void)state;
    struct run_index x = make_index();
    uint8_t page[RUN_PAGE_SIZE];
    struct run_page_builder b;
    struct run_page_cursor c;
    uint16_t len = 100;
    struct map_entry m = {.sector = 8,
                          .count = 8,
                          .kind = EXTENT_DATA,
                          .off = 96,
                          .ref = x.usage[7].ref,
                          .lens = &len,
                          .len_count = 1};
    run_page_start(&b, page);
    assert_true(run_page_add(&b, &m, 7));
    run_page_finish(&b);
    assert_int_equal(run_page_open(&c, &x, view_of(page, sizeof page), NULL), 0);
    assert_int_equal(run_page_next(&c, NULL), 1);
    x.usage[7] = (struct run_usage){0};
    assert_int_equal(run_page_open(&c, &x, view_of(page, sizeof page), NULL), 0);
    assert_int_equal(run_page_next(&c, NULL), -ERR_CORRUPT);
    run_index_release(&x);
}

static void test_shares(void **state) {
    (void)state;
    enum { SHARES = 1000 };
    struct run_share in[SHARES], *out;
    size_t count;
    uint32_t number = 0;
    for (size_t i = 0; i < SHARES; i++) {
        in[i] = (struct run_share){number, 1 + rng(UINT64_C(1) << rng(62))};
        number += 1 + (uint32_t)rng(4000);
    }
    CLEANUP_BUF struct buf a = {0};
    run_shares_encode(&a, in, SHARES);
    assert_int_equal(run_shares_decode(&out, &count, buf_view(&a), NULL), 0);
    assert_int_equal(count, SHARES);
    for (size_t i = 0; i < SHARES; i++)
        assert_true(out[i].number == in[i].number && out[i].bytes == in[i].bytes);
    free(out);
    buf_clear(&a);
    run_shares_encode(&a, in, 30);
    for (size_t bit = 0; bit < a.len * 8; bit++) {
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(run_shares_decode(&out, &count, buf_view(&a), NULL), -ERR_CORRUPT);
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < a.len; len++)
        assert_int_equal(run_shares_decode(&out, &count, view_of(a.data, len), NULL), -ERR_CORRUPT);
    buf_clear(&a);
    run_shares_encode(&a, NULL, 0);
    assert_int_equal(run_shares_decode(&out, &count, buf_view(&a), NULL), 0);
    assert_int_equal(count, 0);
    free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages),        cmocka_unit_test(test_page_flips),
        cmocka_unit_test(test_density),      cmocka_unit_test(test_narrow),
        cmocka_unit_test(test_charge),       cmocka_unit_test(test_index),
        cmocka_unit_test(test_index_damage), cmocka_unit_test(test_index_counts),
        cmocka_unit_test(test_free_number),  cmocka_unit_test(test_shares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
