/* The list that an exporter fills. */
#include "portalbd/nbd/exports.h"

#include <stdlib.h>

#include "common/mem.h"

void nbd_listing_add(struct nbd_listing *l, const char *name, const char *description) {
    CHECK(l->count < NBD_LIST_MAX);
    if ((l->count & (l->count - 1)) == 0) /* a power of two: the array is full */
        l->entries = xrealloc(l->entries, MAX(l->count * 2, 1) * sizeof *l->entries);
    l->entries[l->count++] = (struct nbd_list_entry){
        .name = xstrdup(name), .description = description ? xstrdup(description) : NULL};
}

void nbd_listing_release(struct nbd_listing *l) {
    for (size_t i = 0; i < l->count; i++) {
        free((char *)l->entries[i].name);
        free((char *)l->entries[i].description);
    }
    free(l->entries);
    l->entries = NULL;
    l->count = 0;
}
