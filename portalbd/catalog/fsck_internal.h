/* fsck's parts: fsck.c walks the pool, fsck_volume.c knows a volume's roots, fsck_runs.c reads
 * runs, fsck_objects.c has the table of objects and reads their bytes. */
#pragma once

#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/catalog/fsck.h"

/* An object of any volume, in one order: volume, kind, number or id. */
struct fsck_name {
    uint16_t volume;     /* index into fsck_table.volumes */
    uint8_t kind;        /* obj_kind */
    struct random_id id; /* OBJ_LOG: its number, big-endian, in the first eight bytes */
};

enum {
    FSCK_NEEDED = 1,  /* a root names it and would miss it */
    FSCK_HELD = 2,    /* a root names it, perhaps in vain: no garbage */
    FSCK_CHECKED = 4, /* its bytes were looked at */
};

struct fsck_object {
    struct fsck_name name;
    uint8_t flags;
    uint32_t size; /* as listed */
};

/* What LISTs of the prefixes of some volumes have shown. */
struct fsck_table {
    struct volume_key *volumes; /* owned; [0] is the one that is checked */
    bool *listed;               /* owned; of each: its objects are in the table */
    size_t volume_count;
    struct fsck_object *items; /* owned; sorted */
    size_t count;
};

/* A run that some root names. */
struct fsck_run {
    struct fsck_name index;
    bool done;    /* its pages were walked */
    bool damaged; /* which was told */
};

/* What a root says of a run. */
struct fsck_root_run {
    struct fsck_name index;
    uint64_t entry_count;
    uint64_t size; /* bytes of index and parts */
};

/* What is kept of a root while the runs are walked. */
struct fsck_root {
    bool is_pin;
    struct random_id pin;
    struct fsck_root_run *runs; /* owned */
    size_t run_count;
    struct volume_key *volumes; /* owned; its table */
    size_t volume_count;
    struct fsck_name *evacuated; /* owned, sorted */
    size_t evacuated_count;
};

/* Something that is named and was not there. */
struct fsck_miss {
    struct fsck_name name;
    char who[64];
};
enum { FSCK_MISSES_MAX = 4096 };

struct fsck_check {
    struct fsck *f;
    struct objstore *store;
    const struct volume_key *volume;
    bool whole_pool; /* others' objects are checked as theirs */
    bool reading;    /* holds f->reading */
    struct fsck_table table;
    struct fsck_root *roots; /* owned; of this attempt */
    size_t root_count;
    struct fsck_run *runs; /* owned; of all attempts */
    size_t run_count;
    struct fsck_miss *misses; /* owned; of this attempt */
    size_t miss_count;
    bool blind;               /* an index cannot be read: nobody knows what it needs */
    uint64_t epoch, next_seq; /* of the manifest of this attempt */
    uint64_t size_bytes;      /* the largest of all roots */
};

/* What more than one part says. */
#define FSCK_IN_THE_WAY "not a record's key, and it hides the newest one"

/* Damage that was told lately is not told again: readers come by the same object on several ways,
 * and in each attempt. "<key>: " in front of the text goes. */
void fsck_report(struct fsck *f, enum fsck_kind kind, const char *key, const char *format, ...)
    PRINTF_LIKE(4, 5);
/* fiber. Counts the bytes. */
int fsck_get(struct fsck *f, const char *key, size_t size_max, struct buf *ret, struct err *e);

/* --- fsck_objects.c --- */

int fsck_name_compare(const struct fsck_name *a, const struct fsck_name *b);
struct fsck_name fsck_name_of(uint16_t volume, const struct obj_ref *ref);
struct fsck_name fsck_name_of_log(uint16_t volume, uint64_t seq);
uint64_t fsck_name_seq(const struct fsck_name *n);
void fsck_name_key(char key[KEY_MAX], const struct fsck_table *t, const struct fsck_name *n);

void fsck_table_release(struct fsck_table *t);
uint16_t fsck_table_volume(struct fsck_table *t, const struct volume_key *v);
/* fiber. Lists every volume that is not listed; flags of what is in the table already stay. */
int fsck_table_fill(struct fsck_table *t, struct objstore *s, struct err *e);
/* The next fill lists all again. CHECKED stays, the other flags go. */
void fsck_table_refresh(struct fsck_table *t);
struct fsck_object *fsck_table_find(const struct fsck_table *t, const struct fsck_name *n);

/* fiber. Reads all needed segments that were not read yet, and holds the entries of all runs
 * against their frames. *ret_gone: something has gone meanwhile: look at the roots again. */
int fsck_check_objects(struct fsck_check *c, bool *ret_gone, struct err *e);

/* --- fsck_runs.c --- */

/* Where a frame of an object lies, and which sectors it holds. */
struct fsck_frame {
    uint64_t sector;
    uint32_t off;
    uint16_t len;
    uint8_t sectors;
};
struct fsck_frames {
    struct fsck_frame *items; /* owned; sorted by off */
    size_t count;
};

/* Names something that must be there: marks it, or remembers that it was not. */
void fsck_need(struct fsck_check *c, const struct fsck_name *n, uint8_t flags, const char *who);
/* NULL: the root does not name the run of this index. */
const struct fsck_root_run *fsck_root_run(const struct fsck_root *r, const struct fsck_name *index);
/* fiber. Reads the index of a run: marks parts and objects for the roots that name it; walks its
 * pages when that was not done yet. */
int fsck_check_run(struct fsck_check *c, struct fsck_run *r, bool *ret_gone, struct err *e);
/* fiber. Walks a run's entries again, those that name objects [first, last) of the table, whose
 * frames are known. */
int fsck_check_entries(struct fsck_check *c, struct fsck_run *r, size_t first, size_t last,
                       const struct fsck_frames *frames, bool *ret_gone, struct err *e);

/* --- fsck_volume.c --- */

/* fiber. -ERR_NOT_FOUND: it has no manifest. */
int fsck_check_volume(struct fsck *f, const struct volume_key *v, bool whole_pool, struct err *e);
