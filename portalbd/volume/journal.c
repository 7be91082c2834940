/* The journal in memory mode: an anonymous mapping. The layout is that of the file on tmpfs that
 * will outlive the process:
 *
 *   record = magic u32 | kind u8 | 0 u8[3] | number u64 | sector u64 | count u64 | data_len u32 |
 * crc u32 | next u64 | data
 *
 * `next` is the distance to the next record (16-byte aligned); a PAD record fills the end of the
 * ring. crc covers the header before it. I1 Write numbers are contiguous. I2 tail <= head <= tail +
 * size. */
#include "portalbd/volume/journal.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "common/bytes.h"
#include "common/crc32c.h"

enum { RECORD_MAGIC = 0x4a445250, KIND_PAD = 0xff, ALIGNMENT = 16 };

struct journal {
    uint8_t *ring;
    uint64_t size;
    uint64_t head;
    uint64_t tail;
    uint64_t next_number;
};

struct journal *journal_new(uint64_t size, uint64_t first_number) {
    CHECK(size >= JOURNAL_SIZE_MIN && size % 4096 == 0);
    struct journal *j = NEW(struct journal);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    CHECK(p != MAP_FAILED);
    j->ring = p;
    j->size = size;
    j->next_number = first_number;
    return j;
}

void journal_free(struct journal *j) {
    if (!j)
        return;
    munmap(j->ring, j->size);
    free(j);
}

static uint8_t *at(const struct journal *j, uint64_t pos) {
    return j->ring + pos % j->size;
}

static void write_header(struct journal *j, uint8_t kind, uint64_t number, uint64_t sector,
                         uint64_t count, uint32_t data_len, uint64_t next) {
    uint8_t *h = at(j, j->head);
    memset(h, 0, JOURNAL_RECORD_HEADER);
    store_le32(h, RECORD_MAGIC);
    h[4] = kind;
    store_le64(h + 8, number);
    store_le64(h + 16, sector);
    store_le64(h + 24, count);
    store_le32(h + 32, data_len);
    store_le64(h + 40, next);
    store_le32(h + 36, crc32c(view_of(h, 36)));
}

bool journal_append(struct journal *j, uint8_t kind, uint64_t sector, uint64_t count,
                    const uint8_t *data, struct journal_record *ret) {
    CHECK(count >= 1);
    CHECK(kind != EXTENT_DATA || count * SECTOR_SIZE <= JOURNAL_DATA_MAX);
    uint32_t data_len = kind == EXTENT_DATA ? (uint32_t)(count * SECTOR_SIZE) : 0;
    uint64_t need = ALIGN_UP(JOURNAL_RECORD_HEADER + (uint64_t)data_len, ALIGNMENT);
    uint64_t to_end = j->size - j->head % j->size;
    uint64_t pad = to_end < need ? to_end : 0;
    if (j->head + pad + need > j->tail + j->size)
        return false;
    if (pad) {
        if (pad >= JOURNAL_RECORD_HEADER)
            write_header(j, KIND_PAD, 0, 0, 0, 0, pad);
        j->head +=
            pad; /* less than a header at the end of the ring is padding that everybody can see */
    }
    write_header(j, kind, j->next_number, sector, count, data_len, need);
    if (data_len)
        memcpy(at(j, j->head + JOURNAL_RECORD_HEADER), data, data_len);
    *ret = (struct journal_record){
        .pos = j->head,
        .end = j->head + need,
        .number = j->next_number,
        .sector = sector,
        .count = count,
        .kind = kind,
        .data_pos = data_len ? j->head + JOURNAL_RECORD_HEADER : j->head,
    };
    j->head += need;
    j->next_number++;
    CHECK(j->head - j->tail <= j->size);
    return true;
}

void journal_read(const struct journal *j, uint64_t pos, struct journal_record *ret) {
    for (;;) {
        uint64_t to_end = j->size - pos % j->size;
        if (to_end >= JOURNAL_RECORD_HEADER) {
            const uint8_t *h = at(j, pos);
            CHECK(load_le32(h) == RECORD_MAGIC);
            if (h[4] != KIND_PAD) {
                *ret = (struct journal_record){
                    .pos = pos,
                    .end = pos + load_le64(h + 40),
                    .number = load_le64(h + 8),
                    .sector = load_le64(h + 16),
                    .count = load_le64(h + 24),
                    .kind = h[4],
                    .data_pos = h[4] == EXTENT_DATA ? pos + JOURNAL_RECORD_HEADER : pos,
                };
                return;
            }
        }
        pos += to_end;
    }
}

const uint8_t *journal_data(const struct journal *j, uint64_t pos) {
    return at(j, pos);
}

void journal_free_to(struct journal *j, uint64_t pos) {
    CHECK(pos >= j->tail && pos <= j->head);
    j->tail = pos;
}

uint64_t journal_head(const struct journal *j) {
    return j->head;
}

uint64_t journal_tail(const struct journal *j) {
    return j->tail;
}

uint64_t journal_size(const struct journal *j) {
    return j->size;
}
