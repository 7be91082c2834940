/* Golden files: what format 1 wrote is readable for ever, and is written the same way.
 *
 *   test_golden           compares (as a test; from the root of the repository)
 *   test_golden --write   writes the files that are missing; it never changes one */
#include "tests/support/test.h"

#include <stdio.h>

#include "tests/golden/samples.h"

static void path_of(char *path, size_t size, const struct sample *s) {
    snprintf(path, size, "tests/golden/format1/%s", s->file);
}

static void read_golden(struct buf *out, const struct sample *s) {
    char path[256];
    path_of(path, sizeof path, s);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("there is no %s: run from the root of the repository", path);
    uint8_t block[4096];
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;)
        buf_append(out, block, n);
    fclose(f);
}

static void test_sample(void **state) {
    const struct sample *s = *state;
    CLEANUP_BUF struct buf golden = {0};
    CLEANUP_BUF struct buf again = {0};
    CLEANUP_BUF struct buf made = {0};
    struct err e = {0};
    read_golden(&golden, s);
    if (s->recode(&again, buf_view(&golden), &e) < 0)
        fail_msg("%s: %s", s->file, e.text);
    assert_true(view_equal(buf_view(&golden), buf_view(&again)));
    if (s->compressed)
        return;
    s->encode(&made);
    assert_true(view_equal(buf_view(&golden), buf_view(&made)));
}

static int write_missing(void) {
    for (size_t i = 0; i < ARRAY_LEN(samples); i++) {
        char path[256];
        path_of(path, sizeof path, &samples[i]);
        FILE *f = fopen(path, "wbx");
        if (!f) {
            printf("%s stays\n", path);
            continue;
        }
        CLEANUP_BUF struct buf made = {0};
        samples[i].encode(&made);
        bool ok = fwrite(made.data, 1, made.len, f) == made.len;
        if (fclose(f) != 0 || !ok)
            return 1;
        printf("%s written\n", path);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--write") == 0)
        return write_missing();
    struct CMUnitTest tests[ARRAY_LEN(samples)] = {0};
    for (size_t i = 0; i < ARRAY_LEN(samples); i++) {
        tests[i].name = samples[i].file;
        tests[i].test_func = test_sample;
        tests[i].initial_state = (void *)&samples[i];
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
