/* The journal: what was appended is found again by whoever opens the memory next, whatever it
 * holds nothing else is believed, and it uses no memory that was not reserved. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "portalbd/volume/journal.h"
#include "tests/support/ram_journal.h"

enum { SIZE = JOURNAL_SIZE_MIN, SECTORS = 100000, RECORD_MAGIC = 0x4a445250 };

static const struct volume_key key = {.text = "volume"};
static const struct random_id id_a = {.bytes = {1, 2, 3}};

static uint32_t next_random(uint64_t *seed) {
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

static struct journal *open_ok(struct journal_memory *m) {
    struct journal *j = NULL;
    struct err e = {0};
    if (journal_open(m, SIZE, &key, &j, &e) < 0)
        fail_msg("%s", e.text);
    return j;
}

static struct journal *new_journal(struct journal_memory *m) {
    struct journal *j = open_ok(m);
    assert_true(random_id_is_zero(journal_id(j)));
    assert_null(journal_damage(j));
    journal_format(j, &id_a);
    struct journal_found found;
    struct err e = {0};
    assert_int_equal(journal_scan(j, 0, SECTORS, &found, &e), 0);
    journal_recover(j, &found);
    return j;
}

/* Record n is a write at sector n % SECTORS, filled with its number. */
static bool append(struct journal *j, uint64_t n, uint64_t count, struct journal_record *r) {
    static uint8_t data[JOURNAL_DATA_MAX];
    memset(data, (uint8_t)n, count * SECTOR_SIZE);
    uint8_t kind = n % 5 == 0 ? EXTENT_HOLE : n % 7 == 0 ? EXTENT_ZERO : EXTENT_DATA;
    if (!journal_append(j, kind, n % 1000, count, data, r))
        return false;
    assert_int_equal(r->number, n);
    return true;
}

static void append_all(struct journal *j, uint64_t from, uint64_t to, uint64_t count) {
    struct journal_record r;
    for (uint64_t n = from; n <= to; n++)
        assert_true(append(j, n, count, &r));
}

/* The records from pos on are `from` .. `to`. */
static void check_records(struct journal *j, uint64_t pos, uint64_t from, uint64_t to) {
    struct journal_record r;
    for (uint64_t n = from; n <= to; n++, pos = r.end) {
        journal_read(j, pos, &r);
        assert_int_equal(r.number, n);
        assert_int_equal(r.sector, n % 1000);
        if (r.kind == EXTENT_DATA)
            for (uint64_t i = 0; i < r.count; i++)
                assert_int_equal(journal_data(j, r.data_pos)[i * SECTOR_SIZE + i % SECTOR_SIZE],
                                 (uint8_t)n);
    }
    assert_int_equal(pos, journal_head(j));
}

static struct journal_found scan(struct journal *j, uint64_t last_write) {
    struct journal_found found;
    struct err e = {0};
    if (journal_scan(j, last_write, SECTORS, &found, &e) < 0)
        fail_msg("%s", e.text);
    return found;
}

static void test_wraps_and_reopens(void **state) {
    (void)state;
    struct ram_journal m;
    ram_journal_init(&m, SIZE);
    struct journal *j = new_journal(&m.memory);
    uint64_t seed = 3, number = 1, stored = 0;
    for (int round = 0; round < 600; round++) {
        for (int i = 0; i < 10; i++, number++) {
            struct journal_record r;
            uint64_t count = 1 + next_random(&seed) % (JOURNAL_DATA_MAX / SECTOR_SIZE / 2);
            while (!append(j, number, count, &r)) {
                struct journal_record oldest;
                journal_read(j, journal_tail(j), &oldest);
                journal_free_to(j, oldest.end);
                stored = oldest.number;
            }
            assert_true(journal_head(j) - journal_tail(j) <= journal_size(j));
        }
        /* The process dies; the store may have more than the journal has freed. */
        uint64_t more = next_random(&seed) % (number - 1 - stored);
        journal_free(j);
        ram_journal_freeze(&m);
        ram_journal_thaw(&m);
        j = open_ok(&m.memory);
        assert_true(random_id_equal(journal_id(j), &id_a));
        struct journal_found found = scan(j, stored + more);
        assert_int_equal(found.damage.code, 0);
        assert_int_equal(found.number, number - 1);
        check_records(j, found.from, stored + more + 1, number - 1);
        journal_recover(j, &found);
        stored += more;
        assert_int_equal(journal_tail(j), found.from);
    }
    journal_free(j);
    ram_journal_release(&m);
}

static void test_empty_goes_on_with_the_number(void **state) {
    (void)state;
    struct ram_journal m;
    ram_journal_init(&m, SIZE);
    struct journal *j = new_journal(&m.memory);
    append_all(j, 1, 20, 8);
    journal_free_to(j, journal_head(j));
    journal_free(j);
    j = open_ok(&m.memory);
    struct journal_found found = scan(j, 20);
    assert_int_equal(found.damage.code, 0);
    assert_int_equal(found.from, found.end);
    journal_recover(j, &found);
    append_all(j, 21, 21, 8);
    journal_free(j);
    ram_journal_release(&m);
}

static void test_memory_is_reserved_and_given_back(void **state) {
    (void)state;
    struct ram_journal m;
    ram_journal_init(&m, SIZE);
    m.full = true;
    struct journal *j;
    struct err e = {0};
    assert_int_equal(journal_open(&m.memory, 0, &key, &j, &e), -ERR_BUSY);
    m.full = false;
    j = new_journal(&m.memory);
    append_all(j, 1, 200, 8);
    assert_true(m.reserves < 10); /* no call for each write */
    m.full = true;
    struct journal_record r;
    uint64_t n = 201;
    while (append(j, n, 64, &r))
        n++;
    assert_true(journal_starved(j));
    m.full = false;
    while (append(j, n, 64, &r))
        n++;
    assert_false(journal_starved(j)); /* the ring is full now */
    assert_true(ram_journal_pages(&m) > SIZE / 4096 * 9 / 10);
    journal_free_to(j, journal_head(j));
    assert_true(ram_journal_pages(&m) <= 65);
    append_all(j, n, n + 30, 64); /* what was given back is reserved again */
    journal_free(j);
    /* A restart reads only what is there. */
    ram_journal_freeze(&m);
    ram_journal_thaw(&m);
    j = open_ok(&m.memory);
    struct journal_found found = scan(j, n - 1);
    check_records(j, found.from, n, n + 30);
    journal_free(j);
    ram_journal_release(&m);
}

/* A journal of 9 records, of which the store has 4; `harm` damages it. */
static struct journal *damaged_journal(struct ram_journal *m, void (*harm)(uint8_t *record_7)) {
    ram_journal_init(m, SIZE);
    struct journal *j = new_journal(&m->memory);
    append_all(j, 1, 6, 8);
    uint64_t pos = journal_head(j);
    append_all(j, 7, 9, 8);
    harm((uint8_t *)(uintptr_t)journal_data(j, pos));
    journal_free(j);
    return open_ok(&m->memory);
}

static void flip_length(uint8_t *r) {
    r[36] ^= 0x40;
}

static void wrong_number(uint8_t *r) {
    memcpy(r, r - 48 - 8 * SECTOR_SIZE, 48); /* a good record, of another write */
}

static void no_record(uint8_t *r) {
    memset(r, 0, 48);
}

static void test_damage_ends_the_replay(void **state) {
    (void)state;
    void (*const harms[])(uint8_t *) = {flip_length, wrong_number, no_record};
    for (size_t i = 0; i < ARRAY_LEN(harms); i++) {
        struct ram_journal m;
        struct journal *j = damaged_journal(&m, harms[i]);
        struct journal_found found = scan(j, 4);
        assert_int_equal(found.damage.code, -ERR_CORRUPT);
        assert_int_equal(found.number, 6);
        journal_recover(j, &found);
        check_records(j, found.from, 5, 6);
        append_all(j, 7, 12, 8);
        journal_free(j);
        j = open_ok(&m.memory); /* the cut stays */
        found = scan(j, 4);
        assert_int_equal(found.damage.code, 0);
        check_records(j, found.from, 5, 12);
        journal_free(j);
        ram_journal_release(&m);
    }
}

static void test_gap_behind_the_store_is_damage(void **state) {
    (void)state;
    struct ram_journal m;
    ram_journal_init(&m, SIZE);
    struct journal *j = new_journal(&m.memory);
    append_all(j, 1, 5, 8);
    journal_free_to(j, journal_head(j));
    append_all(j, 6, 9, 8);
    journal_free(j);
    j = open_ok(&m.memory);
    struct journal_found found = scan(j, 4); /* write 5 is nowhere */
    assert_int_equal(found.damage.code, -ERR_CORRUPT);
    assert_int_equal(found.from, found.end);
    assert_int_equal(found.number, 4);
    journal_recover(j, &found);
    assert_int_equal(journal_head(j), journal_tail(j));
    append_all(j, 5, 5, 8);
    journal_free(j);
    ram_journal_release(&m);
}

static void test_write_beyond_the_volume_is_damage(void **state) {
    (void)state;
    struct ram_journal m;
    ram_journal_init(&m, SIZE);
    struct journal *j = new_journal(&m.memory);
    append_all(j, 1, 5, 8);
    struct journal_found found;
    struct err e = {0};
    assert_int_equal(journal_scan(j, 0, 12, &found, &e), 0);
    assert_int_equal(found.damage.code, -ERR_CORRUPT);
    assert_int_equal(found.number, 4);
    journal_free(j);
    ram_journal_release(&m);
}

static void test_header_is_not_believed(void **state) {
    (void)state;
    /* Identity, head, tail. A flipped bit is found, or changes nothing but which records are good.
     */
    for (size_t bit = 0; bit < 136 * 8; bit++) {
        struct ram_journal m;
        ram_journal_init(&m, SIZE);
        struct journal *j = new_journal(&m.memory);
        append_all(j, 1, 9, 8);
        journal_free(j);
        m.memory.base[bit / 8] ^= (uint8_t)(1u << bit % 8);
        struct err e = {0};
        assert_int_equal(journal_open(&m.memory, 0, &key, &j, &e), 0);
        if (bit < 64 * 8) {
            assert_true(random_id_is_zero(journal_id(j)));
            assert_non_null(journal_damage(j));
            journal_format(j, &id_a);
            assert_null(journal_damage(j));
        } else if (!journal_damage(j)) {
            struct journal_found found = scan(j, 4);
            assert_true(found.number >= 4 && found.number <= 9);
            journal_recover(j, &found);
        }
        journal_free(j);
        ram_journal_release(&m);
    }
}

static void test_other_volumes_and_versions(void **state) {
    (void)state;
    struct ram_journal m;
    ram_journal_init(&m, SIZE);
    struct journal *j = new_journal(&m.memory);
    append_all(j, 1, 3, 8);
    journal_free(j);
    const struct volume_key other = {.text = "another"};
    struct err e = {0};
    assert_int_equal(journal_open(&m.memory, 0, &other, &j, &e), 0);
    assert_non_null(journal_damage(j));
    journal_free(j);
    struct journal_memory odd = m.memory;
    odd.size = 4096;
    assert_int_equal(journal_open(&odd, 0, &key, &j, &e), -ERR_INVALID);
    ram_journal_release(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wraps_and_reopens),
        cmocka_unit_test(test_empty_goes_on_with_the_number),
        cmocka_unit_test(test_memory_is_reserved_and_given_back),
        cmocka_unit_test(test_damage_ends_the_replay),
        cmocka_unit_test(test_gap_behind_the_store_is_damage),
        cmocka_unit_test(test_write_beyond_the_volume_is_damage),
        cmocka_unit_test(test_header_is_not_believed),
        cmocka_unit_test(test_other_volumes_and_versions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
