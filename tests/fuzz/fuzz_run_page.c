/* libFuzzer: pages of map runs. What decodes is in order, inside the limits, and encodes again;
 * seeks find what a walk finds. */
#include <stdlib.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "portalbd/format/run.h"

enum { REFS = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_entry(const struct map_entry *m, uint64_t *end) {
    CHECK(m->count >= 1 && m->sector >= *end && m->sector + m->count <= SECTORS_MAX);
    *end = m->sector + m->count;
    if (m->kind != EXTENT_DATA)
        return;
    CHECK(m->len_count == extent_frames(m->skip + m->count));
    CHECK(m->len_count <= EXTENT_FRAMES_MAX);
    CHECK(m->off + map_entry_stored_len(m) <= SEGMENT_SIZE_MAX);
    struct map_entry last = *m;
    map_entry_narrow(&last, m->sector + m->count - 1, 1);
    CHECK(last.len_count == 1);
}

static void seek(const struct run_index *x, struct view page, const struct map_entry *m) {
    struct run_page_cursor c;
    CHECK(run_page_open(&c, x, page, NULL) == 0);
    CHECK(run_page_seek(&c, m->sector + m->count - 1, NULL) == 0);
    CHECK(run_page_next(&c, NULL) == 1);
    CHECK(c.entry.sector == m->sector && c.entry.count == m->count && c.entry.kind == m->kind);
}

static void decode(const struct run_index *x, struct view page) {
    struct run_page_cursor c;
    if (run_page_open(&c, x, page, NULL) < 0)
        return;
    struct map_entry *all = xcalloc(RUN_PAGE_ENTRIES_MAX, sizeof *all);
    size_t count = 0;
    uint64_t end = 0;
    int rc;
    while ((rc = run_page_next(&c, NULL)) == 1) {
        CHECK(count < RUN_PAGE_ENTRIES_MAX);
        check_entry(&c.entry, &end);
        all[count++] = c.entry;
    }
    CHECK(rc == 0 || rc == -ERR_CORRUPT);
    for (size_t i = 0; rc == 0 && i < count; i++)
        seek(x, page, &all[i]);
    if (rc < 0 &&
        run_page_open(&c, x, page, NULL) == 0) /* damaged: a seek ends, whatever it says */
        if (run_page_seek(&c, end / 2, NULL) == 0)
            while (run_page_next(&c, NULL) == 1)
                ;
    free(all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct run_usage usage[REFS];
    for (size_t i = 0; i < REFS; i++)
        usage[i] = (struct run_usage){.ref = {.kind = OBJ_LOG, .seq = i + 1}, .bytes = 1};
    const struct run_index x = {.usage = usage, .usage_count = REFS};
    decode(&x, view_of(data, size));
    uint8_t page[RUN_PAGE_SIZE] = {0};
    memcpy(page, data, MIN(size, sizeof page));
    store_le32(page, crc32c(view_of(page + 4, sizeof page - 4)));
    decode(&x, view_of(page, sizeof page));
    return 0;
}
