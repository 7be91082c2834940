/* Folders for tests. */
#include "tests/support/temp.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/mem.h"

char *temp_folder_new(void) {
    const char *base = getenv("TMPDIR");
    char *path = xasprintf("%s/portalbd-test-XXXXXX", base && *base ? base : "/tmp");
    CHECK(mkdtemp(path));
    return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void temp_folder_free(char *path) {
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    free(path);
}
