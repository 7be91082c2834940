/* The file store's own: what lies in its folder, and what does not belong there. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "portalbd/objstore/file.h"
#include "portalbd/objstore/objstore_fiber.h"
#include "tests/support/temp.h"
#include "tests/support/virtual_env.h"

struct fixture {
    struct virtual_env v;
    char *folder;
    struct objstore *s;
    bool ran;
};

static struct fixture f;

static int setup(void **state) {
    (void)state;
    f = (struct fixture){.folder = temp_folder_new()};
    virtual_env_init(&f.v, 5);
    f.s = objstore_file_open(&f.v.env, f.folder);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    objstore_close(f.s);
    virtual_env_release(&f.v);
    temp_folder_free(f.folder);
    return 0;
}

static void run(void (*fn)(void *arg)) {
    virtual_env_call(&f.v, fn, NULL);
    assert_true(f.ran);
}

static char *path_of(const char *name) {
    return xasprintf("%s/%s", f.folder, name);
}

static void make_file(const char *name, const char *text) {
    CLEANUP_FREE char *path = path_of(name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static bool exists(const char *name) {
    CLEANUP_FREE char *path = path_of(name);
    return access(path, F_OK) == 0;
}

static void put(const char *key, const char *body) {
    struct err e = {0};
    if (objstore_put(f.s, key, view_of_str(body), NULL, &e) < 0)
        fail_msg("%s", e.text);
}

static void names(void *arg) {
    (void)arg;
    struct err e;
    put("volumes/a/log/1", "x");
    put("with space/.hidden%", "y");
    assert_true(exists("volumes/a/log/1"));
    assert_true(exists("with%20space/%2Ehidden%25"));
    /* Nothing is left of how it was written, and empty folders go. */
    assert_int_equal(objstore_delete_one(f.s, "volumes/a/log/1", &e), 0);
    assert_false(exists("volumes"));
    CLEANUP_FREE char *tmp = path_of(".tmp");
    assert_int_equal(rmdir(tmp), 0);
    f.ran = true;
}

static void test_names(void **state) {
    (void)state;
    run(names);
}

static void list_foreign(void *arg) {
    (void)arg;
    struct err e;
    struct obj_list list = {0};
    put("ours", "x");
    make_file(".foreign", "");
    make_file("bad%2", "");
    make_file("bad%41", "A is never encoded");
    make_file("white space", "");
    CLEANUP_FREE char *fifo = path_of("fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    CLEANUP_FREE char *empty = path_of("empty");
    assert_int_equal(mkdir(empty, 0700), 0);
    assert_int_equal(objstore_list(f.s, "", NULL, 100, &list, &e), 0);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.entries[0].key, "ours");
    obj_list_release(&list);
    f.ran = true;
}

static void test_foreign_files_are_not_listed(void **state) {
    (void)state;
    run(list_foreign);
}

static void sweep(void *arg) {
    (void)arg;
    CLEANUP_FREE char *tmp = path_of(".tmp");
    CLEANUP_FREE char *old = path_of(".tmp/old");
    assert_int_equal(mkdir(tmp, 0700), 0);
    make_file(".tmp/old", "left by a crash");
    make_file(".tmp/new", "somebody is writing it");
    struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    assert_int_equal(utimensat(AT_FDCWD, old, times, 0), 0);
    put("a", "b");
    assert_false(exists(".tmp/old"));
    assert_true(exists(".tmp/new"));
    f.ran = true;
}

static void test_strays_are_swept(void **state) {
    (void)state;
    run(sweep);
}

static void without_folder(void *arg) {
    (void)arg;
    struct err e;
    CLEANUP_BUF struct buf b = {0};
    struct obj_list list;
    assert_int_equal(objstore_put(f.s, "a", view_of_str("b"), NULL, &e), -ERR_NO_BUCKET);
    assert_int_equal(objstore_get(f.s, "a", 0, &b, &e), -ERR_NO_BUCKET);
    assert_int_equal(objstore_list(f.s, "", NULL, 10, &list, &e), -ERR_NO_BUCKET);
    assert_int_equal(objstore_delete_one(f.s, "a", &e), -ERR_NO_BUCKET);
    assert_non_null(strstr(e.text, f.folder));
    f.ran = true;
}

static void test_missing_folder(void **state) {
    (void)state;
    assert_int_equal(rmdir(f.folder), 0);
    run(without_folder);
}

static void bad_keys(void *arg) {
    (void)arg;
    static const char *const keys[] = {"a//b", "a/", "/a", "a/../b", "..", ".", "a/."};
    struct err e;
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        assert_int_equal(objstore_put(f.s, keys[i], view_of_str("x"), NULL, &e), -ERR_INVALID);
    char part[300];
    memset(part, 'n', sizeof part);
    part[sizeof part - 1] = '\0';
    assert_int_equal(objstore_put(f.s, part, view_of_str("x"), NULL, &e), -ERR_INVALID);
    char key[OBJ_KEY_MAX + 2];
    memset(key, 'k', sizeof key);
    key[sizeof key - 1] = '\0';
    assert_int_equal(objstore_put(f.s, key, view_of_str("x"), NULL, &e), -ERR_INVALID);
    struct obj_list list = {0};
    assert_int_equal(objstore_list(f.s, "", NULL, 10, &list, &e), 0);
    assert_int_equal(list.count, 0);
    obj_list_release(&list);
    f.ran = true;
}

static void test_bad_keys(void **state) {
    (void)state;
    run(bad_keys);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_names),
        TEST(test_foreign_files_are_not_listed),
        TEST(test_strays_are_swept),
        TEST(test_missing_folder),
        TEST(test_bad_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
