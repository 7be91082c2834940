/* The medium in memory: see the header. */
#include "tests/support/memory_medium.h"

#include <stdlib.h>
#include <string.h>

static int op_read(struct disk_medium *medium, uint64_t off, uint8_t *buf, size_t len,
                   struct err *e) {
    struct memory_medium *m = container_of(medium, struct memory_medium, medium);
    CHECK(off + len <= medium->size);
    m->reads++;
    if (m->fail_reads)
        return err_set(e, -ERR_IO, "the medium does not read");
    memcpy(buf, m->bytes + off, len);
    if (m->flip)
        buf[len / 2] ^= 4;
    return 0;
}

static int op_write(struct disk_medium *medium, uint64_t off, struct view data, struct err *e) {
    struct memory_medium *m = container_of(medium, struct memory_medium, medium);
    CHECK(off + data.len <= medium->size);
    m->writes++;
    if (m->fail_writes)
        return err_set(e, -ERR_IO, "the medium does not write");
    memcpy(m->bytes + off, data.data, data.len);
    return 0;
}

void memory_medium_init(struct memory_medium *m, uint64_t size) {
    *m = (struct memory_medium){.medium = {.size = size, .read = op_read, .write = op_write},
                                .bytes = xcalloc(1, size)};
}

void memory_medium_release(struct memory_medium *m) {
    free(m->bytes);
}
