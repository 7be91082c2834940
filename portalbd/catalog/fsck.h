/* Checks a pool or a volume against itself: every record, manifest, pin and run, every reference
 * from one object to another, and (unless quick) every frame of every object that is needed.
 * Changes nothing, and works beside live writers, collectors and controllers: what is missing or
 * contradicts something is looked at again, under the manifest that is newest then, before it is
 * told. docs/fsck.md says what is looked at. */
#pragma once

#include "portalbd/catalog/catalog.h"

enum fsck_kind {
    FSCK_DAMAGE,  /* lost, unreadable, or in contradiction to something else */
    FSCK_LEAK,    /* nothing needs it, and nothing of ours will ever free it */
    FSCK_GARBAGE, /* nothing needs it, and no writer is at work: freed by the next one, or by
                     portalctl gc */
};

struct fsck_finding {
    enum fsck_kind kind;
    const char *key;  /* of the object; borrowed during the call */
    const char *text; /* what is wrong; borrowed during the call */
};

struct fsck_result {
    uint64_t volumes, snapshots, records; /* looked at */
    uint64_t roots, runs, entries;        /* of live and deleted volumes and their pins */
    uint64_t objects, frames, bytes_read; /* segments whose bytes were checked; their frames */
    uint64_t damaged, leaked, garbage, garbage_bytes;
    uint64_t pending;   /* objects and pins that a writer, collector or sweeper is at */
    uint64_t unsettled; /* volumes that changed faster than they could be read */
};

enum { FSCK_TOLD = 256 };

struct fsck {
    struct catalog *catalog; /* borrowed */
    bool quick;              /* no data: what is referenced is there, and large enough */
    void (*on_finding)(void *arg, const struct fsck_finding *f); /* may be NULL */
    /* Now and then, with the volume that is looked at, or the folder of records. May be NULL. */
    void (*on_progress)(void *arg, const struct fsck_result *so_far, const char *where);
    void *arg;
    struct fsck_result result; /* grows from call to call */
    /* fsck's own: */
    uint64_t told[FSCK_TOLD]; /* damage that was told last, hashed; a ring */
    size_t told_next;
    struct fiber_mutex reading; /* one volume at a time reads runs and data */
};

/* fiber. Everything below the pool's prefix. Findings are no errors: 0. -ERR_NOT_FOUND: there is no
 * pool. */
int fsck_pool(struct fsck *f, struct err *e);
/* fiber. One volume, by id or by name, its snapshots, and what it needs of others. Of one whose
 * record is damaged no more is told. -ERR_NOT_FOUND. */
int fsck_volume(struct fsck *f, const char *id, struct err *e);
int fsck_volume_named(struct fsck *f, const char *name, struct err *e);
