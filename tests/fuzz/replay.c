/* Stands in for libFuzzer in ordinary builds:  replay FOLDER...
 *
 * Gives the fuzz target every file of its corpus, every prefix of it, and the file with each bit of
 * its first bytes flipped: a second or two that catch what breaks a decoder most often. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/buf.h"

enum { INPUT_MAX = 1 << 20, PREFIXES_MAX = 2048, FLIPPED_BYTES_MAX = 512 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned long runs;

/* On memory of exactly this size, so that the address sanitizer sees a read behind its end. */
static void run_on_copy(const uint8_t *data, size_t size) {
    uint8_t *copy = xmalloc(size > 0 ? size : 1);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    runs++;
}

static void replay(uint8_t *data, size_t size) {
    run_on_copy(data, size);
    for (size_t len = 0; len < MIN(size, (size_t)PREFIXES_MAX); len++)
        run_on_copy(data, len);
    for (size_t i = 0; i < MIN(size, (size_t)FLIPPED_BYTES_MAX); i++)
        for (unsigned bit = 0; bit < 8; bit++) {
            data[i] ^= (uint8_t)(1u << bit);
            run_on_copy(data, size);
            data[i] ^= (uint8_t)(1u << bit);
        }
}

static bool replay_file(const char *folder, const char *name) {
    static uint8_t data[INPUT_MAX + 1];
    CLEANUP_FREE char *path = xasprintf("%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    size_t size = f ? fread(data, 1, sizeof data, f) : 0;
    if (!f || ferror(f) || size > INPUT_MAX) {
        fprintf(stderr, "%s: cannot be read, or is too large\n", path);
        return false;
    }
    fclose(f);
    replay(data, size);
    return true;
}

int main(int argc, char **argv) {
    unsigned files = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        for (struct dirent *d = dir ? readdir(dir) : NULL; d; d = readdir(dir))
            if (d->d_name[0] != '.') {
                if (!replay_file(argv[i], d->d_name))
                    return 1;
                files++;
            }
        if (dir)
            closedir(dir);
    }
    printf("%u files, %lu inputs\n", files, runs);
    return files > 0 ? 0 : 1;
}
