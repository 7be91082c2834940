/* The file behind a volume's journal: shared memory that outlives the process.
 *
 * <dir>/<id>.journal, on a tmpfs, is locked for the life of the process and mapped whole. Pages are
 * reserved (fallocate) before the engine writes them, because a write to a mapping of a full tmpfs
 * is a SIGBUS, and given back (PUNCH_HOLE) when it needs them no more. What is in it is the
 * engine's business. */
#pragma once

#include "portalbd/volume/volume.h"

struct journal_file_config {
    const char *dir; /* made (0700) when it is not there; borrowed for the call */
    const char
        *state_dir; /* journals set aside go to <state_dir>/set-aside; borrowed for the call */
    const char *id; /* of the volume; borrowed for the call */
    uint64_t size;  /* bytes of a new one, a multiple of 4096; one that exists keeps its own */
};

struct journal_file;

/* Blocks on local files. -ERR_IN_USE: another process has it. */
int journal_file_open(const struct journal_file_config *config, struct journal_file **ret,
                      struct err *e);
/* Borrowed, as long as the file. */
struct journal_memory *journal_file_memory(struct journal_file *f);
/* This call of journal_file_open made it. */
bool journal_file_is_new(const struct journal_file *f);
/* Unmaps and unlocks; nothing uses the memory any more. remove: all that it held is in the store.
 */
void journal_file_close(struct journal_file *f, bool remove);

/* Does the journal at path hold writes of the volume with this id that may not be in its store?
 * Also when nobody can tell. Blocks; changes nothing. */
bool journal_file_holds_writes(const char *path, const char *id);
