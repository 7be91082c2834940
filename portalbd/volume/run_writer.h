/* Writing a map run: entries in the order of sectors -> pages -> parts -> objects under map/.
 * Fibers where it says so; the rest on any thread, one at a time. */
#pragma once

#include "common/fiber.h"
#include "portalbd/format/root.h"
#include "portalbd/objstore/objstore_fiber.h"
#include "portalbd/volume/run_reader.h"

struct run_writer;

struct run_shape {
    uint32_t part_size;    /* bytes of pages that make a part; 0: 8 MiB */
    uint32_t page_entries; /* entries of a page, at most; 0: as many as fit. For tests: many parts
                              of few entries */
    uint32_t parts_max;    /* of the run; 0: what the format allows. For tests */
};
/* Bytes of pages that a run of this shape can hold, in whatever pieces they come. */
uint64_t run_shape_capacity(struct run_shape shape);

/* own: the volume under whose prefix the objects go. */
struct run_writer *run_writer_new(struct env *env, struct objstore *store,
                                  const struct volume_key *own, struct run_shape shape);
/* fiber. Entries come in the order of sectors and do not overlap; `owner` is the volume that
 * entry->ref belongs to (NULL for ZERO and HOLE; entry->ref.volume is ignored). Adjacent ZERO or
 * HOLE entries of one kind are joined. */
int run_writer_add(struct run_writer *w, const struct map_entry *entry,
                   const struct volume_key *owner, struct err *e);
/* fiber. Stores the last part and the index. *ret_run: index reference (with volume 0),
 * entry_count, size; its age is the caller's. A run without entries stores nothing and returns
 * entry_count 0. */
int run_writer_finish(struct run_writer *w, struct root_run *ret_run, struct err *e);
/* After run_writer_finish, once: what it stored, open for reading without a look at the store; the
 * caller's reference. NULL when there were no entries. */
struct run_reader *run_writer_reader(struct run_writer *w, struct page_cache *pages);
/* Frees it; what was stored and is not named by anybody is garbage that a later scrub condemns. */
void run_writer_free(struct run_writer *w);

/* So many bytes of pages may come: where that would be too many parts, they become larger. First of
 * all. */
void run_writer_expect(struct run_writer *w, uint64_t bytes);

/* run_writer_add in its steps, for merges. The number of an object, for as long as w lives: */
int run_writer_number(struct run_writer *w, const struct obj_ref *ref,
                      const struct volume_key *owner, uint32_t *ret, struct err *e);
/* The entry; number: of its object, DATA only. Not while the writer is full. */
void run_writer_put(struct run_writer *w, const struct map_entry *entry, uint32_t number);
/* There is a part to be stored before the next entry can come. */
bool run_writer_full(const struct run_writer *w);
int run_writer_store(struct run_writer *w, struct err *e); /* fiber. Makes it full no more */

/* Parts of an older run can be taken over. base (borrowed until w is freed): that run; its numbers
 * of objects are then the writer's. First of all. */
void run_writer_inherit(struct run_writer *w, struct run_reader *base);
/* Would it be right to take this part of base over here? Not if it is so small, or what is in the
 * making is, that they had better become one. */
bool run_writer_may_reuse(const struct run_writer *w, size_t part);
/* fiber. The part comes next, as it is; parts come in their order, and what lies between them is
 * added anew. */
int run_writer_reuse(struct run_writer *w, size_t part, struct err *e);
