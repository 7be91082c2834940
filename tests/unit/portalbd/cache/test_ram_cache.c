/* The RAM cache against a plain array: what it gives back is what was written last; drops are
 * exact. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/cache/ram_cache.h"

enum { SECTORS = 512, OPERATIONS = 200000 };

static uint32_t next_random(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* A scan of read-once pages leaves what is in use; a second read makes a page one of these. */
static void test_once(void **state) {
    (void)state;
    enum { PAGES = 64 };
    static uint8_t buf[SECTORS * SECTOR_SIZE];
    struct ram_cache *c = ram_cache_new(PAGES * RAM_CACHE_PAGE);
    for (uint64_t p = 0; p < PAGES / 2; p++)
        ram_cache_write(c, p * RAM_CACHE_PAGE_SECTORS, RAM_CACHE_PAGE_SECTORS, buf);
    const uint64_t twice = 1005 * RAM_CACHE_PAGE_SECTORS;
    for (uint64_t p = 1000; p < 1000 + 10 * PAGES; p++) {
        uint64_t sector = p * RAM_CACHE_PAGE_SECTORS;
        ram_cache_write_once(c, sector, RAM_CACHE_PAGE_SECTORS, buf);
        assert_true(ram_cache_read(c, sector, RAM_CACHE_PAGE_SECTORS, buf));
        if (sector == twice)
            assert_true(ram_cache_read(c, sector, RAM_CACHE_PAGE_SECTORS, buf));
    }
    assert_true(ram_cache_read(c, twice, RAM_CACHE_PAGE_SECTORS, buf));
    for (uint64_t p = 0; p < PAGES / 2; p++)
        assert_true(ram_cache_read(c, p * RAM_CACHE_PAGE_SECTORS, RAM_CACHE_PAGE_SECTORS, buf));
    /* While there is room a scan takes it all; beyond that it has 3/8. */
    uint64_t scanned = 0;
    for (uint64_t p = 1000; p < 1000 + 10 * PAGES; p++)
        scanned += ram_cache_read(c, p * RAM_CACHE_PAGE_SECTORS, RAM_CACHE_PAGE_SECTORS, buf);
    assert_in_range(scanned, PAGES / 8 * 3, PAGES / 2);
    ram_cache_free(c);
}

static void run_model(uint64_t cache_size, uint64_t seed, unsigned *hits) {
    static uint8_t model[SECTORS];
    static uint8_t buf[SECTORS * SECTOR_SIZE];
    memset(model, 0, sizeof model);
    struct ram_cache *c = ram_cache_new(cache_size);
    for (int i = 0; i < OPERATIONS; i++) {
        uint64_t sector = next_random(&seed) % SECTORS;
        uint64_t count = 1 + next_random(&seed) % MIN(24u, SECTORS - sector);
        uint32_t op = next_random(&seed) % 8;
        if (op < 3) {
            uint8_t value = (uint8_t)(1 + next_random(&seed) % 255);
            memset(buf, value, count * SECTOR_SIZE);
            memset(model + sector, value, count);
            (value % 2 ? ram_cache_write : ram_cache_write_once)(c, sector, count, buf);
        } else if (op == 3) {
            if (next_random(&seed) % 64 == 0) {
                sector = 3;
                count = UINT64_C(1) << 40;
            }
            ram_cache_drop(c, sector, count);
            for (uint64_t s = sector; s < MIN(sector + count, (uint64_t)SECTORS); s++)
                model[s] = 0;
        } else if (ram_cache_read(c, sector, count, buf)) {
            (*hits)++;
            for (uint64_t s = 0; s < count; s++) {
                assert_int_not_equal(model[sector + s], 0); /* dropped sectors must not hit */
                assert_int_equal(buf[s * SECTOR_SIZE], model[sector + s]);
                assert_int_equal(buf[s * SECTOR_SIZE + SECTOR_SIZE - 1], model[sector + s]);
            }
        }
        assert_true(ram_cache_used(c) <= cache_size);
    }
    ram_cache_free(c);
}

static void test_model(void **state) {
    (void)state;
    const uint64_t sizes[] = {RAM_CACHE_PAGE, 3 * RAM_CACHE_PAGE, 17 * RAM_CACHE_PAGE, 256 * 1024};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        unsigned hits = 0;
        run_model(sizes[i], 77 + i, &hits);
        assert_true(hits > 0);
    }
}

static void test_keeps_what_fits(void **state) {
    (void)state;
    uint8_t buf[RAM_CACHE_PAGE] = {1};
    struct ram_cache *c = ram_cache_new(8 * RAM_CACHE_PAGE);
    for (uint64_t page = 0; page < 8; page++)
        ram_cache_write(c, page * RAM_CACHE_PAGE_SECTORS, RAM_CACHE_PAGE_SECTORS, buf);
    for (uint64_t page = 0; page < 8; page++)
        assert_true(ram_cache_read(c, page * RAM_CACHE_PAGE_SECTORS, RAM_CACHE_PAGE_SECTORS, buf));
    assert_int_equal(ram_cache_used(c), 8 * RAM_CACHE_PAGE);
    ram_cache_write(c, UINT64_C(1) << 50, RAM_CACHE_PAGE_SECTORS, buf);
    assert_true(ram_cache_read(c, UINT64_C(1) << 50, RAM_CACHE_PAGE_SECTORS, buf));
    assert_int_equal(ram_cache_used(c), 8 * RAM_CACHE_PAGE);
    ram_cache_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_once),
        cmocka_unit_test(test_keeps_what_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
