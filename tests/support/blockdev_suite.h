/* The conformance suite of block devices: what every implementation and every stack of layers must
 * do. */
#pragma once

#include "common/loop.h"
#include "portalbd/blockdev/blockdev.h"

/* Makes the devices that the suite tests. Each case gets a fresh one: all zeroes, a hole, writable.
 */
struct blockdev_factory {
    const char *name;
    uint64_t size_bytes; /* of the devices: at least 16 MiB */
    /* fiber. */
    struct blockdev *(*open)(struct blockdev_factory *f, struct env *env, uint64_t size_bytes);
    /* fiber. Closes it. */
    void (*close)(struct blockdev_factory *f, struct env *env, struct blockdev *dev);
    /* fiber. Closes and opens it again: what was flushed must be there. NULL: cannot. */
    struct blockdev *(*reopen)(struct blockdev_factory *f, struct env *env, struct blockdev *dev);
    /* BLOCK_STATUS tells holes and zeroes to the sector; otherwise it may call anything data. */
    bool exact_status;
    void *arg;
};

/* Runs all cases on the loop, which runs on a thread of its own. Prints what failed; the number of
 * failed cases. */
unsigned blockdev_suite_run(struct loop *loop, struct blockdev_factory *f);
