/* The tables of volumes and objects of a run that is being made. Any thread, one at a time. */
#pragma once

#include "portalbd/format/run.h"

struct usage_table {
    struct run_index *index; /* borrowed; its volumes and usage are the tables */
    size_t usage_cap;
    size_t free_from; /* no number below it is free */
    uint32_t *slots;  /* owned: open addressing, number + 1; 0: empty */
    size_t slot_count;
    size_t slots_used;
};

/* index: its tables are empty. */
void usage_table_init(struct usage_table *t, struct run_index *index);
void usage_table_release(struct usage_table *t);
/* Begins with the tables of another run: its numbers stay, and what it charges. First of all. */
void usage_table_inherit(struct usage_table *t, const struct run_index *base);
/* -ERR_OVERLOAD: too many. */
int usage_table_volume(struct usage_table *t, const struct volume_key *v, uint16_t *ret,
                       struct err *e);
/* ref->volume indexes this table's volumes. */
int usage_table_number(struct usage_table *t, const struct obj_ref *ref, uint32_t *ret,
                       struct err *e);
/* What nothing is charged with becomes free; volumes that nothing names go. The last call. */
void usage_table_finish(struct usage_table *t);
