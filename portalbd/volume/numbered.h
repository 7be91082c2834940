/* Numbered records that several parties change without a lock (design §2.1; model numrec, rule 1):
 * objects "<folder><16 hex of 2^64-1-n>.json", so that LIST with one key gives the newest.
 *
 *   change   read the newest, put n+1 if absent, LIST: it counts only if n+1 is the newest now.
 *            Refused, or something newer is there: the outcome is unknown, start over from the
 *            newest. (A slow writer's n+1 may succeed into a hole that pruning left: trace 13.)
 *   read     the newest; one that is gone since the LIST is listed again, it never means "absent".
 *   prune    the newest NUMBERED_KEEP stay for ever.
 *
 * Used by the catalog and, to read what makes a pin live, by the sweeper. Fibers. -ERR_BUSY: lost
 * NUMBERED_ATTEMPTS_MAX races in a row. */
#pragma once

#include "portalbd/format/root.h"
#include "portalbd/objstore/objstore_fiber.h"

enum { NUMBERED_KEEP = 64, NUMBERED_ATTEMPTS_MAX = 16 };

/* *ret_n is 0 and *ret_body empty when the folder is empty. folder ends in '/'. Costs 2. */
int numbered_newest(struct objstore *s, const char *folder, uint64_t *ret_n, struct buf *ret_body,
                    struct err *e);
/* Only its number, 0 when the folder is empty. Costs 1. */
int numbered_newest_number(struct objstore *s, const char *folder, uint64_t *ret_n, struct err *e);
/* Puts record n. 0: it is stored and was the newest afterwards. -ERR_STALE: refused, or something
 * newer is there: the outcome is unknown, start over from the newest. Costs 2. */
int numbered_put(struct objstore *s, const char *folder, uint64_t n, struct view body,
                 struct err *e);
void numbered_key(char key[KEY_MAX], const char *folder, uint64_t n);

/* Walks the folders below `root` ("records/", ...) in order and names the newest record of each. */
struct numbered_walk {
    struct objstore *store;
    const char *root; /* borrowed */
    char after[KEY_MAX];
    struct obj_list page;
    size_t next;
    bool ended;
};
/* behind: a folder's name (its last component) to go on behind; NULL or "": from the start. */
void numbered_walk_init(struct numbered_walk *w, struct objstore *s, const char *root,
                        const char *behind);
void numbered_walk_release(struct numbered_walk *w);
/* 1: folder (whole, ends in '/') and number are set. 0: the end. < 0: error. */
int numbered_walk_next(struct numbered_walk *w, char ret_folder[KEY_MAX], uint64_t *ret_n,
                       struct err *e);

/* Deletes all but the newest NUMBERED_KEEP records of every folder below `root`. */
int numbered_prune(struct objstore *s, const char *root, size_t *ret_deleted, struct err *e);
