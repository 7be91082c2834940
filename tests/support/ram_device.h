/* A block device in memory for tests: answers inline, or in later turns and another order; counts
 * what it is asked. Owner thread of its env. */
#pragma once

#include "common/env.h"
#include "portalbd/blockdev/blockdev.h"

struct ram_device {
    struct blockdev dev;
    struct env *env; /* borrowed; NULL: every request is answered inline */
    uint8_t *data;   /* owned; read and write it as you like */
    uint64_t size_bytes;
    uint64_t counts[BD_OPS];
    int fail_rc; /* every request ends with this while it is not 0 */

    /* Answers of a turn are held back and given in reverse. */
    struct env_event event;
    struct list_node held;
    bool event_posted;
};

struct ram_device *ram_device_new(uint64_t size_bytes, struct env *env);
void ram_device_grow(struct ram_device *d,
                     uint64_t size_bytes); /* the memory was reserved up to RAM_DEVICE_MAX */
#define RAM_DEVICE_MAX (UINT64_C(64) << 30)
/* bd_close of d->dev frees it. */
