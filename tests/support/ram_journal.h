/* Memory for a journal that survives its users, for tests: what is touched without having been
 * reserved, and what is written after ram_journal_freeze, is a segmentation fault. */
#pragma once

#include "portalbd/volume/volume.h"

struct ram_journal {
    struct journal_memory memory;
    bool *readable;       /* owned; a flag for each page that was reserved */
    bool full;            /* nothing is reserved any more */
    unsigned refuse_next; /* so many reserves are refused */
    unsigned reserves, refusals, punches, set_asides;
    uint64_t writes_lost, bytes_lost; /* of the last set_aside */
};

void ram_journal_init(struct ram_journal *r, uint64_t size);
void ram_journal_release(struct ram_journal *r);
/* New again, as a file that was deleted. */
void ram_journal_reset(struct ram_journal *r);
/* The process that used it is dead: nobody may write any more; thaw: its successor comes. */
void ram_journal_freeze(struct ram_journal *r);
void ram_journal_thaw(struct ram_journal *r);
uint64_t ram_journal_pages(const struct ram_journal *r); /* that are there now */
