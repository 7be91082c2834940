/* What the files of this room share. */
#pragma once

#include "portalbd/catalog/catalog.h"
#include "portalbd/volume/numbered.h"
#include "portalbd/volume/pins.h"

void catalog_new_id(struct catalog *c, struct random_id *ret);

/* Replaces an owned string. */
void catalog_set_text(char **text, const char *value);

/* A volume's or snapshot's name: 1..ENTITY_NAME_MAX bytes. -ERR_INVALID. */
int catalog_check_name(const char *what, const char *name, struct err *e);

/* The id of a volume or snapshot of this pool; -ERR_NOT_FOUND for anything else. */
int catalog_parse_id(const struct catalog *c, enum id_kind kind, const char *id,
                     struct parsed_id *ret, struct err *e);

static inline bool volume_keys_equal(const struct volume_key *a, const struct volume_key *b) {
    return strcmp(a->text, b->text) == 0;
}

/* Lost CATALOG_ATTEMPTS_MAX races in a row: -ERR_BUSY. */
int catalog_busy(struct err *e, const char *what, const char *name);

/* Reads the newest record of a folder and decodes it into ret, a record of `size` bytes; all zero
 * when there is none. Costs 2. */
int catalog_newest(struct catalog *c, const char *folder,
                   int (*decode)(void *ret, const char *key, struct view body, struct err *e),
                   void *ret, size_t size, struct err *e);

/* --- volume records (volume_records.c) --- */

/* The newest record under a name's hash; ret->number is 0 when there is none. Costs 2. */
int volume_record_newest(struct catalog *c, const char *hash, struct volume_record *ret,
                         struct err *e);
/* Record n. -ERR_NOT_FOUND: never put, or pruned. Costs 1. */
int volume_record_at(struct catalog *c, const char *hash, uint64_t n, struct volume_record *ret,
                     struct err *e);
/* The newest record of a volume that exists: -ERR_NOT_FOUND when that says deleted or is another
 * volume's. Costs 2. */
int volume_record_by_id(struct catalog *c, const char *id, struct volume_record *ret,
                        struct err *e);
/* Puts r as the record behind the one it was read from: number + 1, a new nonce. -ERR_STALE: start
 * over from the newest. Costs 2. */
int volume_record_advance(struct catalog *c, struct volume_record *r, struct err *e);
/* r->publish_epoch + 1; -ERR_OVERLOAD at the end of the numbers. */
int volume_record_next_epoch(struct volume_record *r, struct err *e);
/* Fills *ret from a record (moved: *r is empty afterwards) and the manifest. */
void volume_info_make(struct volume_info *ret, struct catalog *c, struct volume_record *r,
                      const struct manifest *m);
/* The same with the newest manifest, which must be there and not deleted: -ERR_NOT_FOUND. *r is
 * moved on success only. Costs 2. */
int volume_info_read(struct catalog *c, struct volume_record *r, struct volume_info *ret,
                     struct err *e);

/* What of a volume never changes, after a restore of it that is half done was finished. Borrowed
 * until the next call that waits. -ERR_NOT_FOUND. Costs 0 when this catalog has met it lately, and
 * has seen no restore of it since that is not finished; else 2. */
int volume_identity(struct catalog *c, const struct parsed_id *id,
                    const struct catalog_identity **ret, struct err *e);

/* --- publish.c --- */

/* Finishes a fencing that the record names: complete open with its publish epoch, record ready.
 * -ERR_STALE: the record moved on, read it again. */
int catalog_finish_fencing(struct catalog *c, struct volume_record *r, struct err *e);
/* Is the newest manifest closed at the record's publish epoch? Then nobody writes, and nobody that
 * the record does not name will. A volume without content has nothing to fence: closed. Costs 2. */
int catalog_is_closed(struct catalog *c, const struct volume_record *r, bool *ret, struct err *e);
/* No node has the volume, but its newest manifest is not closed: of two controllers that fenced at
 * the same time one died behind the other, or a maintenance did. Fences it off, with an epoch that
 * the record names first. -ERR_STALE: read the record again. */
int catalog_fence_abandoned(struct catalog *c, struct volume_record *r, struct err *e);
/* What stands in the way of any change: finishes a fencing or restore that the record names, and
 * asks to start over with -ERR_STALE. 0: there is none. */
int catalog_settle(struct catalog *c, struct volume_record *r, struct err *e);

/* --- restore.c --- */

/* Finishes the restore that the record names, in one way or the other (when the snapshot is gone
 * nothing changes): the record is ready when it returns 0. -ERR_STALE: it moved on, read it again.
 */
int catalog_finish_restore(struct catalog *c, struct volume_record *r, struct err *e);
/* volume_record_by_id, for who is about to read the content: finishes a restore first. Costs 2. */
int catalog_restored_record(struct catalog *c, const char *id, struct volume_record *ret,
                            struct err *e);

/* --- content.c --- */

/* The source of a clone. */
struct clone_source {
    bool is_snapshot;
    struct volume_key volume; /* that holds the pin */
    struct snapshot_record snapshot;
    uint64_t size_bytes;
    uint32_t depth; /* of the clone; 0: not known before the cut */
};
void clone_source_release(struct clone_source *s);
/* -ERR_NOT_FOUND: it does not exist; -ERR_INVALID: not an id of this pool. Costs 1 for a snapshot,
 * which may have been deleted since, 4 for a volume. */
int clone_source_find(struct catalog *c, const char *id, struct clone_source *ret, struct err *e);
/* Is a snapshot's record still the newest? -ERR_NOT_FOUND. Costs 1, 0 for a volume. */
int clone_source_check(struct catalog *c, const struct clone_source *s, struct err *e);

/* Of a snapshot: are its record and its root still there? -ERR_NOT_FOUND. Costs 2. */
int clone_source_root(struct catalog *c, const struct clone_source *s, struct pin_root *ret,
                      struct err *e);

/* Puts the first manifest of the volume that r describes: empty, or a clone of src (may be NULL).
 * -ERR_EXISTS: it has a first manifest already, which may say deleted. -ERR_NOT_FOUND: the source
 * went meanwhile. -ERR_STALE: a sweeper took us for dead, once more. */
int volume_content_create(struct catalog *c, const struct volume_record *r,
                          const struct clone_source *src, struct manifest *ret, struct err *e);

/* --- snapshots.c --- */

/* The newest record under a snapshot name's hash; number 0: none. Costs 2. */
int snapshot_record_newest(struct catalog *c, const char *hash, struct snapshot_record *ret,
                           struct err *e);
/* The record of a snapshot that exists, or -ERR_NOT_FOUND. Costs 2. */
int snapshot_record_by_id(struct catalog *c, const char *id, struct snapshot_record *ret,
                          struct err *e);

/* --- background.c --- */

enum { CATALOG_AFTER_MAX = OBJ_KEY_MAX + 2 };
/* The next volume that has any object, behind `after` (a key; "" at first, which is moved on): 1,
 * or 0 at the end. Costs 1. */
int catalog_next_volume(struct catalog *c, char after[CATALOG_AFTER_MAX], struct volume_key *ret,
                        struct err *e);

/* --- lists.c --- */

/* The newest record of a folder, or what became of it while the list was made. */
struct list_record {
    char key[KEY_MAX];
    struct buf body;
};

/* Fills a page: walks the folders of `root` behind `token`, reads the newest record of each and
 * runs fetch on it, CATALOG_PARALLEL_MAX at a time in fibers of their own: 1: the item is filled,
 * 0: it is none, < 0: error; keeps up to max items. */
struct list_page {
    const char *root;
    size_t item_size;
    int (*fetch)(struct catalog *c, void *arg, const struct list_record *record, void *item,
                 struct err *e);
    void (*release)(void *item);
    void *arg;
    struct err *damage; /* NULL, or where the first of what cannot be read is told */
    void *items;        /* the result; owned */
    size_t count;
    char next_token[CATALOG_TOKEN_MAX];
};
int catalog_list_page(struct catalog *c, struct list_page *p, const char *token, size_t max,
                      struct err *e);
/* -ERR_STALE unless it is empty or the name of a folder as name_hash makes them. */
int catalog_check_token(const char *token, struct err *e);
