/* The device in memory (see ram_device.h). Its memory is reserved at the largest size and filled in
 * by the kernel on demand, so growing is one assignment. */
#include "tests/support/ram_device.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/mem.h"

static struct ram_device *ram_of(struct blockdev *dev) {
    return container_of(dev, struct ram_device, dev);
}

static void execute(struct ram_device *d, struct bd_request *req) {
    CHECK(req->op < BD_OPS);
    CHECK(req->off % SECTOR_SIZE == 0 && req->len % SECTOR_SIZE == 0);
    CHECK(req->off <= d->size_bytes && req->len <= d->size_bytes - req->off);
    d->counts[req->op]++;
    req->rc = d->fail_rc;
    if (req->rc)
        return;
    switch (req->op) {
    case BD_READ:
        memcpy(req->read_buf, d->data + req->off, req->len);
        break;
    case BD_WRITE:
        memcpy(d->data + req->off, req->write_data, req->len);
        break;
    case BD_TRIM:
    case BD_WRITE_ZEROES: {
        uint64_t first = ALIGN_UP(req->off, 4096), end = req->off + req->len;
        uint64_t last = end - end % 4096;
        if (first >= last) {
            memset(d->data + req->off, 0, req->len);
            break;
        }
        memset(d->data + req->off, 0, first - req->off);
        memset(d->data + last, 0, end - last);
        CHECK(madvise(d->data + first, last - first, MADV_DONTNEED) == 0);
        break;
    }
    case BD_BLOCK_STATUS:
        req->extents.items[0] = (struct bd_extent){.len = req->len};
        req->extents.count = 1;
        break;
    default:
        break;
    }
}

static void on_event(struct env_event *event) {
    struct ram_device *d = container_of(event, struct ram_device, event);
    struct list_node held;
    list_init(&held);
    d->event_posted = false;
    for (struct list_node *n; (n = list_pop_front(&d->held));)
        list_push_front(&held, n);
    for (struct list_node *n; (n = list_pop_front(&held));) {
        struct bd_request *req = list_entry(n, struct bd_request, node);
        execute(d, req);
        req->done(req);
    }
}

static bool ram_submit(struct blockdev *dev, struct bd_request *req) {
    struct ram_device *d = ram_of(dev);
    if (!d->env) {
        execute(d, req);
        return true;
    }
    req->node = (struct list_node){0};
    list_push_back(&d->held, &req->node);
    if (!d->event_posted) {
        d->event_posted = true;
        env_post(d->env, &d->event);
    }
    return false;
}

static uint64_t ram_size_bytes(struct blockdev *dev) {
    return ram_of(dev)->size_bytes;
}

static void ram_close(struct blockdev *dev) {
    struct ram_device *d = ram_of(dev);
    CHECK(list_empty(&d->held));
    munmap(d->data, RAM_DEVICE_MAX);
    free(d);
}

static const struct blockdev_ops ram_ops = {
    .submit = ram_submit, .size_bytes = ram_size_bytes, .close = ram_close};

struct ram_device *ram_device_new(uint64_t size_bytes, struct env *env) {
    struct ram_device *d = NEW(struct ram_device);
    d->dev = (struct blockdev){
        .ops = &ram_ops, .block_size_min = SECTOR_SIZE, .block_size_preferred = 4096};
    d->env = env;
    d->event.fn = on_event;
    list_init(&d->held);
    d->data = mmap(NULL, RAM_DEVICE_MAX, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(d->data != MAP_FAILED);
    ram_device_grow(d, size_bytes);
    return d;
}

void ram_device_grow(struct ram_device *d, uint64_t size_bytes) {
    CHECK(size_bytes >= d->size_bytes && size_bytes <= RAM_DEVICE_MAX);
    d->size_bytes = size_bytes;
}
