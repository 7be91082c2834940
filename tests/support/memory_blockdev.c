/* A block device in memory: the bytes in one sparse mapping, the state of each sector (never
 * written or trimmed, zeroes, data) in another. */
#include "tests/support/memory_blockdev.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/mem.h"

struct memory_blockdev {
    struct blockdev dev;
    uint64_t size;
    uint64_t size_max;
    uint8_t *bytes;
    uint8_t *states; /* BD_EXTENT_x of a sector, inverted so that a fresh mapping says hole, zero */
};

enum { STATE_FRESH = BD_EXTENT_HOLE | BD_EXTENT_ZERO, PAGE = 4096 };

static void set_state(struct memory_blockdev *m, uint64_t off, uint64_t len, int state) {
    memset(m->states + off / SECTOR_SIZE, STATE_FRESH ^ state, len / SECTOR_SIZE);
}

/* Zeroes exactly; gives whole pages back. */
static void zero_bytes(struct memory_blockdev *m, uint64_t off, uint64_t len) {
    uint64_t first = ALIGN_UP(off, (uint64_t)PAGE), end = (off + len) / PAGE * PAGE;
    if (first >= end) {
        memset(m->bytes + off, 0, len);
        return;
    }
    memset(m->bytes + off, 0, first - off);
    CHECK(madvise(m->bytes + first, end - first, MADV_DONTNEED) == 0);
    memset(m->bytes + end, 0, off + len - end);
}

static void block_status(struct memory_blockdev *m, struct bd_request *req) {
    size_t max = req->flags & BD_REQ_ONE ? 1 : BD_STATUS_EXTENTS_MAX, count = 0;
    uint64_t sector = req->off / SECTOR_SIZE, end = (req->off + req->len) / SECTOR_SIZE;
    while (sector < end && count < max) {
        uint64_t next = sector + 1;
        while (next < end && m->states[next] == m->states[sector])
            next++;
        req->extents.items[count++] = (struct bd_extent){.len = (next - sector) * SECTOR_SIZE,
                                                         .state = STATE_FRESH ^ m->states[sector]};
        sector = next;
    }
    req->extents.count = count;
}

static bool memory_submit(struct blockdev *dev, struct bd_request *req) {
    struct memory_blockdev *m = container_of(dev, struct memory_blockdev, dev);
    CHECK(req->off <= m->size && req->len <= m->size - req->off);
    CHECK((req->off | req->len) % SECTOR_SIZE == 0);
    req->rc = 0;
    switch (req->op) {
    case BD_READ:
        memcpy(req->read_buf, m->bytes + req->off, req->len);
        break;
    case BD_WRITE:
        memcpy(m->bytes + req->off, req->write_data, req->len);
        set_state(m, req->off, req->len, 0);
        break;
    case BD_TRIM:
    case BD_WRITE_ZEROES:
        zero_bytes(m, req->off, req->len);
        set_state(m, req->off, req->len,
                  req->flags & BD_NO_HOLE ? BD_EXTENT_ZERO : BD_EXTENT_ZERO | BD_EXTENT_HOLE);
        break;
    case BD_BLOCK_STATUS:
        block_status(m, req);
        break;
    case BD_FLUSH:
    case BD_CACHE:
        break;
    case BD_OPS:
        CHECK(false);
    }
    return true;
}

static uint64_t memory_size_bytes(struct blockdev *dev) {
    return container_of(dev, struct memory_blockdev, dev)->size;
}

static void memory_close(struct blockdev *dev) {
    struct memory_blockdev *m = container_of(dev, struct memory_blockdev, dev);
    munmap(m->bytes, m->size_max);
    munmap(m->states, m->size_max / SECTOR_SIZE);
    free(m);
}

static const struct blockdev_ops memory_ops = {
    .submit = memory_submit,
    .size_bytes = memory_size_bytes,
    .close = memory_close,
};

static uint8_t *map_zeroes(uint64_t len) {
    void *p =
        mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

struct blockdev *memory_blockdev_open_growable(uint64_t size_bytes, uint64_t size_max_bytes) {
    CHECK(size_bytes % PAGE == 0 && size_max_bytes >= size_bytes && size_max_bytes > 0);
    struct memory_blockdev *m = NEW(struct memory_blockdev);
    m->dev.ops = &memory_ops;
    m->dev.block_size_min = SECTOR_SIZE;
    m->dev.block_size_preferred = PAGE;
    m->size = size_bytes;
    m->size_max = size_max_bytes;
    m->bytes = map_zeroes(size_max_bytes);
    m->states = map_zeroes(size_max_bytes / SECTOR_SIZE);
    return &m->dev;
}

struct blockdev *memory_blockdev_open(uint64_t size_bytes) {
    return memory_blockdev_open_growable(size_bytes, size_bytes);
}

void memory_blockdev_grow(struct blockdev *dev, uint64_t size_bytes) {
    struct memory_blockdev *m = container_of(dev, struct memory_blockdev, dev);
    CHECK(size_bytes >= m->size && size_bytes <= m->size_max && size_bytes % PAGE == 0);
    m->size = size_bytes;
}
