/* What all attach backends share. */
#include "node-agent/attach/attach.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void attach_devices_release(struct attach_devices *d) {
    free(d->items);
    *d = (struct attach_devices){0};
}

const struct attach_device *attach_devices_find(const struct attach_devices *d,
                                                const char *volume) {
    for (size_t i = 0; i < d->count; i++)
        if (strcmp(d->items[i].volume, volume) == 0)
            return &d->items[i];
    return NULL;
}

static void close_one(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void attach_link_close(struct attach_link *l) {
    close_one(&l->daemon_fd);
    close_one(&l->kernel_fd);
}
