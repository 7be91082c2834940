/* Map entries: cutting them down. */
#include "portalbd/format/run.h"

uint32_t map_entry_stored_len(const struct map_entry *m) {
    uint32_t len = 0;
    for (size_t i = 0; i < m->len_count; i++)
        len += m->lens[i];
    return len;
}

uint32_t map_entry_charge(const struct map_entry *m) {
    uint64_t from = m->skip, end = m->skip + m->count; /* behind the start of the first frame */
    uint32_t bytes = 0;
    for (size_t i = 0; i < m->len_count; i++) {
        uint64_t next = MIN(end, (uint64_t)(i + 1) * FRAME_SECTORS_MAX);
        uint32_t raw = FRAME_HEADER_SIZE + (uint32_t)(next - from) * SECTOR_SIZE;
        bytes += MIN(raw, (uint32_t)m->lens[i]);
        from = next;
    }
    return bytes;
}

void map_entry_narrow(struct map_entry *m, uint64_t sector, uint64_t count) {
    CHECK(count >= 1);
    CHECK(sector >= m->sector);
    CHECK(sector - m->sector <= m->count && count <= m->count - (sector - m->sector));
    uint64_t cut = sector - m->sector;
    m->sector = sector;
    m->count = count;
    if (m->kind != EXTENT_DATA)
        return;

    uint64_t first = m->skip + cut; /* sectors behind the start of the first frame */
    size_t frames = (size_t)(first / FRAME_SECTORS_MAX);
    CHECK(frames < m->len_count);
    for (size_t i = 0; i < frames; i++)
        m->off += m->lens[i];
    m->lens += frames;
    m->skip = (uint8_t)(first % FRAME_SECTORS_MAX);
    size_t left = extent_frames(m->skip + count);
    CHECK(left <= (size_t)m->len_count - frames);
    m->len_count = (uint16_t)left;
}
