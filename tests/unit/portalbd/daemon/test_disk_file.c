/* The disk cache's file: it holds what is written, leaves nothing behind, and says what is wrong.
 */
#include "tests/support/test.h"

#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/daemon/disk_file.h"
#include "tests/support/temp.h"

static unsigned names_in(const char *dir) {
    DIR *d = opendir(dir);
    assert_non_null(d);
    unsigned n = 0;
    for (const struct dirent *x; (x = readdir(d));)
        n += x->d_name[0] != '.';
    closedir(d);
    return n;
}

static void test_file(void **state) {
    (void)state;
    char *temp = temp_folder_new();
    CLEANUP_FREE char *dir = xasprintf("%s/cache", temp);
    struct disk_file *f;
    struct err e = {0};
    assert_int_equal(disk_file_open(dir, DISK_CACHE_SIZE_MIN, &f, &e), 0);
    struct disk_medium *m = disk_file_medium(f);
    uint8_t out[100000], in[100000];
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (uint8_t)(i * 7);
    assert_int_equal(m->write(m, 12345, view_of(out, sizeof out), &e), 0);
    assert_int_equal(m->read(m, 12345, in, sizeof in, &e), 0);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(m->read(m, 12345 + sizeof out, in, 1, &e), -ERR_IO); /* was never written */
    assert_int_equal(names_in(dir), 0);
    disk_file_close(f);
    assert_int_equal(names_in(dir), 0);
    temp_folder_free(temp);
}

static void test_no_folder(void **state) {
    (void)state;
    struct disk_file *f;
    struct err e = {0};
    assert_true(disk_file_open("/proc/no/such/folder", DISK_CACHE_SIZE_MIN, &f, &e) < 0);
    assert_non_null(strstr(e.text, "/proc/no/such/folder"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_file),
                                       cmocka_unit_test(test_no_folder)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
