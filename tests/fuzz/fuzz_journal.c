/* libFuzzer: the memory of a journal as a restart finds it: the header page's first 136 bytes, then
 * the ring. As it came, and with the checksums of its header and of the records made right. What is
 * good can be read, recovered, appended to, and is good again. */
#include <stdlib.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "portalbd/volume/journal.h"
#include "portalbd/volume/volume.h"

enum { WORDS = 136, IDENTITY_CRC = 60, RECORD_CRC = 44, RECORD_LENGTH = 36, SECTORS = 100000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool reserve(struct journal_memory *m, uint64_t off, uint64_t len) {
    CHECK(len <= m->size && off <= m->size - len);
    return true;
}

static void punch(struct journal_memory *m, uint64_t off, uint64_t len) {
    CHECK(len <= m->size && off <= m->size - len);
}

static uint64_t count_records(struct journal *j, const struct journal_found *found) {
    uint64_t n = 0;
    for (uint64_t pos = found->from; pos < found->end; n++) {
        struct journal_record r;
        journal_read(j, pos, &r);
        CHECK(r.end > pos && r.end <= found->end && r.sector + r.count <= SECTORS);
        pos = r.end;
    }
    return n;
}

static void use(struct journal_memory *m, uint64_t last_write) {
    static const struct volume_key key = {.text = "volume"};
    struct journal *j;
    struct journal_found found, again;
    if (journal_open(m, 0, &key, &j, NULL) < 0)
        return;
    if (!random_id_is_zero(journal_id(j))) {
        journal_count_writes(j);
        CHECK(journal_scan(j, last_write, SECTORS, &found, NULL) == 0);
        uint64_t n = count_records(j, &found);
        CHECK(n == 0 || found.number == last_write + n);
        journal_recover(j, &found);
        struct journal_record r;
        if (journal_append(j, EXTENT_HOLE, 1, 1, NULL, &r)) {
            CHECK(r.number == found.number + 1);
            CHECK(journal_scan(j, last_write, SECTORS, &again, NULL) == 0);
            CHECK(again.damage.code == 0 && again.number == r.number);
            CHECK(count_records(j, &again) == n + 1 || n == 0);
        }
    }
    journal_free(j);
}

static void load(struct journal_memory *m, const uint8_t *data, size_t size) {
    memset(m->base, 0, m->size);
    memcpy(m->base, data, MIN(size, (size_t)WORDS));
    if (size > WORDS)
        memcpy(m->base + JOURNAL_HEADER_SIZE, data + WORDS,
               MIN(size - WORDS, (size_t)(m->size - JOURNAL_HEADER_SIZE)));
}

static void make_checksums_right(struct journal_memory *m, size_t size) {
    struct journal_memory *const j = m;
    store_le32(j->base, 0x4a4c4250);
    j->base[4] = 1;
    store_le64(j->base + 8, j->size);
    static const struct volume_key key = {.text = "volume"};
    segment_volume_hash(j->base + 16, &key);
    store_le32(j->base + IDENTITY_CRC, crc32c(view_of(j->base, IDENTITY_CRC)));
    uint8_t *ring = j->base + JOURNAL_HEADER_SIZE;
    for (size_t at = 0; at + JOURNAL_RECORD_HEADER <= size;) {
        store_le32(ring + at, 0x4a445250);
        store_le32(ring + at + RECORD_CRC, crc32c(view_of(ring + at, RECORD_CRC)));
        size_t length = load_le32(ring + at + RECORD_LENGTH);
        at += length >= JOURNAL_RECORD_HEADER ? length : size;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct journal_memory m;
    if (!m.base) {
        m = (struct journal_memory){.size = JOURNAL_SIZE_MIN, .reserve = reserve, .punch = punch};
        m.base = aligned_alloc(4096, m.size);
        CHECK(m.base);
    }
    uint64_t last_write = size > 0 ? data[size - 1] % 8 : 0;
    load(&m, data, size);
    use(&m, last_write);
    load(&m, data, size);
    make_checksums_right(&m, size > WORDS ? size - WORDS : 0);
    use(&m, last_write);
    return 0;
}
