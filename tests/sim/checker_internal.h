/* What the files of the checker share. */
#pragma once

#include "tests/sim/checker.h"

struct cut_search {
    bool found;
    size_t cut;        /* the largest that explains it */
    size_t best;       /* the one with the fewest differences */
    size_t best_count; /* ... so many */
};

/* --- checker_cuts.c --- */

/* The value that a record leaves in a sector. */
uint32_t checker_record_value(const struct record *rec, uint64_t sector);
size_t checker_differences(const struct checker *c, const uint32_t *a, const uint32_t *b);
/* from NULL: zeroes. The caller's. */
uint32_t *checker_copy_places(const struct checker *c, const uint32_t *from);
/* Which k in [low, high] explain `found`? */
struct cut_search checker_find_cut(const struct reign *r, const uint32_t *found, size_t low,
                                   size_t high);
/* Who wrote a stamp: "reign d3 record 17 (acked)". */
void checker_describe_stamp(const struct checker *c, uint32_t stamp, char *to, size_t size);
void checker_describe_difference(const struct checker *c, const uint32_t *expected,
                                 const uint32_t *found, char *to, size_t size);
void checker_fail_cut(struct checker *c, const struct reign *r, const uint32_t *found,
                      const struct cut_search *s, size_t low, size_t high, const char *what,
                      bool whole);

/* --- checker.c --- */

/* NULL: none yet. */
struct reign *model_newest_reign(const struct model_volume *v);
/* Could its base be lost still? */
bool model_base_is_volatile(const struct reign *r);
/* Is this what the volume was made of? Says so when it is not. */
bool model_check_origin(struct model_volume *v, const uint32_t *found, const char *what);
