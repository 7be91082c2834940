/* What a volume may hold: a model of sectors, writes and flushes, and the checks of the promises.
 *
 * Each record (a write of at most 1 MiB, a trim, zeroes of any length) of a writer has a position
 * in the order of the submits, which is the order in which the engine numbers them. What one writer
 * did between its open and its end is a reign. The content that the next writer finds must be the
 * state after the first k records of the reign before it, for one k that is not below what that
 * reign has acknowledged as flushed (P1, P2); and no reign may acknowledge a flush of more than its
 * successor found (P4). What a writer replayed from its journal is in its base, but as good as
 * unflushed until it has acknowledged a flush: a successor without that journal may find a cut of
 * an earlier reign. A snapshot or clone is an image: such a state at some k between what was
 * flushed before the call and what was submitted at its end (P5).
 *
 * The address space of the model is a few spans of sectors ("places"); everything else is never
 * written with data. A place holds a stamp: the number of the record that wrote it, 0 for zeroes.
 *
 * Nothing here knows the engine. The first violation sets checker.finding; all later ones are
 * dropped. */
#pragma once

#include "common/list.h"

enum {
    SPANS_MAX = 8,
    RECORD_SECTORS_MAX = 2048, /* of a data record */
    FINDING_MAX = 1500,
};
#define STAMP_GARBAGE UINT32_MAX /* bytes that no record wrote there */

struct span {
    uint64_t sector;
    uint32_t count;
    uint32_t first_place;
};

struct checker {
    struct span spans[SPANS_MAX]; /* ascending, disjoint */
    size_t span_count;
    uint32_t places;
    uint32_t next_stamp;
    struct list_node volumes; /* struct model_volume */
    struct list_node images;  /* struct image */
    uint64_t operations;      /* so far, of all */
    uint64_t cuts_checked;    /* opens and images that were compared with the model */
    uint64_t records_lost;    /* unflushed records that were behind a cut */
    uint64_t reads_checked;
    char finding[FINDING_MAX]; /* "" while all is well */
};

void checker_init(struct checker *c);
void checker_release(struct checker *c);
void checker_add_span(struct checker *c, uint64_t sector, uint32_t count);
/* The first violation; also for what others find. */
void checker_fail(struct checker *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
static inline bool checker_failed(const struct checker *c) {
    return c->finding[0] != '\0';
}

/* --- content of sectors --- */

/* The bytes that a data record with this stamp has in a sector, SECTOR_SIZE of them. */
void stamp_fill(uint8_t *to, uint32_t stamp, uint64_t sector);
/* The place's value that these bytes mean: 0, a stamp, or STAMP_GARBAGE. */
uint32_t stamp_read(const uint8_t *from, uint64_t sector);
/* What a data record leaves in a sector: its stamp, or 0 where it wrote zeroes. */
uint32_t stamp_value(uint32_t stamp, uint64_t sector);

/* --- volumes and reigns --- */

struct image;

struct record {
    uint64_t sector;
    uint64_t count;
    uint32_t stamp; /* 0: trim or zeroes */
    bool acked;
    bool failed;
};

struct reign {
    struct list_node node; /* on volume->reigns, ascending epochs */
    struct model_volume *volume;
    uint64_t epoch;
    char name[24];
    uint32_t *base; /* owned; content at its open */
    struct record *records;
    size_t count;
    size_t flushed;         /* the first so many are acknowledged as flushed */
    size_t settled;         /* the first so many are acked or failed */
    size_t acked_end;       /* behind the last acked one */
    size_t deleted_at;      /* records when the volume was deleted */
    uint32_t *state;        /* owned; content by the acked records ... */
    uint32_t *position;     /* ... and the position + 1 of the record that wrote it; 0: base */
    struct reign *parent;   /* NULL: the volume's origin */
    size_t cut;             /* of the parent: the largest k that explains base */
    bool replayed;          /* base has what was only in a journal */
    bool settled_base;      /* ... and a flush was acknowledged since */
    bool base_lost;         /* ... and a successor did not find it */
    struct image *restored; /* no writer, but a restore to this; base is NULL until it is read */
    bool replaced;          /* by a restore ... */
    size_t replaced_at;     /* ... when it had so many records */
};

struct model_volume {
    struct list_node node;
    struct checker *checker;
    char name[24];
    struct list_node reigns;
    struct image *origin; /* borrowed; NULL: zeroes */
    uint64_t size_acked;  /* bytes: no open that begins now may find less ... */
    uint64_t size_wanted; /* ... or more */
    bool deleted;         /* no flush of anything more may be acknowledged */
};

struct model_volume *model_volume_new(struct checker *c, const char *name, struct image *origin,
                                      uint64_t size_bytes);

/* A writer has opened the volume and read all of it: `found` has a value for each place (borrowed).
 * whole: it replayed this reign's journal, so everything that was acknowledged must be there (P3);
 * or NULL. replayed: some of it was in its journal.
 * size_min: what size_acked was before it began: an open that returns late, already overtaken, need
 * not know of later growth. NULL after a finding. */
struct reign *model_open(struct model_volume *v, const char *name, uint64_t epoch,
                         const uint32_t *found, const struct reign *whole, bool replayed,
                         uint64_t size_min, uint64_t size_bytes);

/* Right before the submit. stamp 0: trim or zeroes. Data must lie inside the spans. Returns the
 * position of its first record; *ret_count records follow each other. */
size_t model_submit(struct reign *r, uint64_t sector, uint64_t count, uint32_t stamp,
                    size_t *ret_count);
/* The answer. fua: with it everything up to it is flushed. */
void model_answer(struct reign *r, size_t position, size_t count, int rc, bool fua);

/* Right before a flush is submitted: what its acknowledgement will promise. */
size_t model_flush_begin(const struct reign *r);
void model_flush_acked(struct reign *r, size_t token);

/* The volume's content is this image's from now on. Flushes that earlier reigns acknowledge late
 * are of what was there before. */
void model_restored(struct model_volume *v, const char *name, uint64_t epoch, struct image *to);

/* Its deletion has returned: no flush of anything that comes later may be acknowledged. */
void model_deleted(struct model_volume *v);

struct read_check {
    uint64_t sector;
    uint64_t count;
    uint32_t *state;    /* owned */
    uint32_t *position; /* owned */
    size_t
        unsettled; /* the first record that may be seen although it was not acked at the submit */
};
void model_read_begin(struct reign *r, struct read_check *check, uint64_t sector, uint64_t count);
/* A block status said that these sectors of the check are zero. */
void model_zero_seen(struct reign *r, const struct read_check *check, uint64_t sector,
                     uint64_t count);
/* data: NULL when the read failed or is of no interest any more. Releases the check. */
void model_read_end(struct reign *r, struct read_check *check, const uint8_t *data);

/* --- images: snapshots and clones --- */

struct image_limit {
    struct reign *reign;
    size_t count; /* records at the end of the call */
};

struct image {
    struct list_node node;
    struct model_volume *volume; /* what it was cut from */
    struct reign *from;          /* the newest reign at the start of the call, or NULL */
    size_t flushed;              /* of it, at the start */
    struct image_limit *limits;  /* owned; reigns at the (last) end of the call */
    size_t limit_count;
    uint64_t size_min;   /* bytes */
    uint64_t size_bytes; /* once known */
    uint32_t *content;   /* owned; once it was read; NULL before */
    char name[24];
};

struct image *model_image_begin(struct model_volume *v, const char *name);
/* The call, or one more attempt of it, is over: nothing submitted from now on may be in it. */
void model_image_end(struct image *i);
/* Somebody has read all of it. The first time it must be explained by the model, later it must be
 * the same. */
void model_image_check(struct image *i, const uint32_t *found, uint64_t size_bytes);

/* Calls fn for each part of the range that lies in a span. */
struct place_range {
    uint64_t sector;
    uint32_t place;
    uint32_t count;
};
size_t checker_places(const struct checker *c, uint64_t sector, uint64_t count,
                      struct place_range ret[SPANS_MAX]);
