/* Tells every pool of the pool file that this node exists: at the start, when the file changes, and
 * again until each of them has heard it. The controller publishes volumes to registered nodes only.
 * Owner thread. */
#pragma once

#include "common/fiber.h"
#include "common/loop.h"
#include "common/metrics.h"

struct registrar_config {
    struct loop *loop;
    struct metrics *metrics;
    const char *pools_path; /* strings are borrowed until registrar_stop */
    const char *node_id;
    const char *version;
    void (*on_pools)(void *arg); /* the pool file was read, or read again; fiber. NULL: nobody */
    void *arg;
};

struct registrar;
struct registrar *registrar_start(const struct registrar_config *config);
/* fiber. Cancels what is under way and frees. */
void registrar_stop(struct registrar *r);
