/* A pool that the real engine wrote, and what fsck says of it. */
#pragma once

#include "portalbd/catalog/fsck.h"
#include "tests/support/pool_fixture.h"

enum { FSCK_STORY_SIZE = 4 * 1024 * 1024 }; /* bytes of each volume */

/* Ids of its volumes. */
struct fsck_story {
    char volume[ID_MAX], clone[ID_MAX], chained[ID_MAX];
};

/* All of these: in a fiber. */

/* Publishes a volume to node-a. Returns the publish epoch; *ret: its key. */
uint64_t fsck_story_publish(struct pool_fixture *f, const char *id, struct volume_key *ret);
/* Publishes it, writes so often at random, closes and unpublishes it. */
void fsck_story_write(struct pool_fixture *f, const char *id, int writes);
/* source: an id to clone, or NULL. ret: its id. */
void fsck_story_create(struct pool_fixture *f, const char *name, const char *source,
                       char ret[ID_MAX]);
/* A snapshot. ret: its id. */
void fsck_story_cut(struct pool_fixture *f, const char *name, const char *volume, char ret[ID_MAX]);
/* A volume with snapshots, a clone, a clone of the clone, a deleted snapshot, a volume that lives
 * on in a snapshot only, one that is gone. */
void fsck_story_tell(struct pool_fixture *f, struct fsck_story *s);

struct findings {
    size_t count;
    char keys[256][KEY_MAX];
    char texts[256][ERR_TEXT_MAX];
};
/* Of struct fsck: adds to the findings that are its arg. */
void findings_add(void *arg, const struct fsck_finding *f);
/* Runs fsck over a volume, or NULL: the pool; nothing may be told twice. VERBOSE in the environment
 * prints what is found. */
struct fsck_result fsck_story_check(struct pool_fixture *f, const char *volume, bool quick,
                                    struct findings *l);
/* Is there a finding about this key? */
bool findings_name(const struct findings *l, const char *key);
/* Fails unless a finding has this text in it. */
void findings_tell(const struct findings *l, const char *text);
/* The bytes, owned by the caller. */
uint8_t *view_copy(struct view body);
