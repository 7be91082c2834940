/* Memory for a journal that survives its users, for tests. What is touched without having been
 * reserved is a segmentation fault. */
#pragma once

#include "portalbd/volume/volume.h"

struct ram_journal {
    struct journal_memory memory;
    int fd; /* of a memory file */
    bool frozen;
    bool *readable;       /* owned; a flag for each page that was reserved */
    bool *old;            /* owned; ... that was given back, and is not clear */
    bool full;            /* nothing is reserved any more */
    unsigned refuse_next; /* so many reserves are refused */
    unsigned reserves, refusals, punches, set_asides;
    uint64_t writes_lost, bytes_lost; /* of the last set_aside */
};

void ram_journal_init(struct ram_journal *r, uint64_t size);
void ram_journal_release(struct ram_journal *r);
/* New again, as a file that was deleted. */
void ram_journal_reset(struct ram_journal *r);
/* The process that used it is dead: what the rest of it still does, in a test that clears it away,
 * has no effect. thaw: its successor comes. */
void ram_journal_freeze(struct ram_journal *r);
void ram_journal_thaw(struct ram_journal *r);
uint64_t ram_journal_pages(const struct ram_journal *r); /* that are there now */
