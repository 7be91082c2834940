/* The kernel's NBD devices as a folder shows them that looks like /sys. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/mem.h"
#include "node-agent/attach/nbd_sysfs.h"
#include "tests/support/temp.h"

static void write_file(const char *root, const char *name, const char *text) {
    CLEANUP_FREE char *path = xasprintf("%s/%s", root, name);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void test_backend(void **state) {
    (void)state;
    char text[NBD_BACKEND_MAX], volume[ATTACH_VOLUME_MAX];
    uint64_t epoch;
    char longest[ATTACH_VOLUME_MAX];
    memset(longest, 'v', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    nbd_backend_print(text, longest, UINT64_MAX);
    assert_true(nbd_backend_parse(text, volume, &epoch));
    assert_string_equal(volume, longest);
    assert_true(epoch == UINT64_MAX);
    nbd_backend_print(text, "pv-1a.pool", 7);
    assert_string_equal(text, "portalbd:pv-1a.pool:7");
    assert_true(nbd_backend_parse(text, volume, &epoch));
    assert_string_equal(volume, "pv-1a.pool");
    assert_int_equal(epoch, 7);
}

static void test_backend_of_others(void **state) {
    (void)state;
    char volume[ATTACH_VOLUME_MAX];
    uint64_t epoch;
    static const char *const texts[] = {
        "",
        "portalbd",
        "portalbd:",
        "portalbd::1",
        "portalbd:a",
        "portalbd:a:",
        "portalbd:a:-1",
        "portalbd:a: 1",
        "portalbd:a:1x",
        "portalbd:a:1:2",
        "portalbd:a:18446744073709551616",
        "portalbd:a/b:1",
        "rbd:a:1",
        "portalbd:0123456789012345678901234567890123456789012345678901234567890123:1",
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        if (nbd_backend_parse(texts[i], volume, &epoch))
            fail_msg("'%s' is taken for one of ours", texts[i]);
    }
}

static void test_release(void **state) {
    (void)state;
    assert_true(nbd_release_at_least("5.14.0", 5, 14));
    assert_true(nbd_release_at_least("6.1.0-50-cloud-amd64", 5, 14));
    assert_true(nbd_release_at_least("5.15", 5, 14));
    assert_false(nbd_release_at_least("5.13.19", 5, 14));
    assert_false(nbd_release_at_least("4.19.0-26-amd64", 5, 14));
    assert_false(nbd_release_at_least("unknown", 5, 14));
}

static void test_list(void **state) {
    (void)state;
    char *root = temp_folder_new();
    write_file(root, "block/nbd12/backend", "portalbd:b.p:4294967296\n");
    write_file(root, "block/nbd12/size", "2048\n");
    write_file(root, "block/nbd12/dev", "43:12\n");
    write_file(root, "block/nbd2/backend", "portalbd:a.p:1\n");
    write_file(root, "block/nbd2/size", "broken\n");
    write_file(root, "block/nbd0/size", "0\n"); /* not connected */
    write_file(root, "block/nbd1/backend", "rbd:image\n");
    write_file(root, "block/nbdx/backend", "portalbd:c.p:1\n");
    write_file(root, "block/loop0/backend", "portalbd:d.p:1\n");
    struct nbd_device *all;
    size_t count;
    struct err e;
    assert_int_equal(nbd_sysfs_list(root, &all, &count, &e), 0);
    assert_int_equal(count, 2);
    assert_int_equal(all[0].index, 2);
    assert_string_equal(all[0].device.volume, "a.p");
    assert_string_equal(all[0].device.path, "/dev/nbd2");
    assert_int_equal(all[0].device.size_bytes, 0);
    assert_string_equal(all[1].backend, "portalbd:b.p:4294967296");
    assert_string_equal(all[1].device.volume, "b.p");
    assert_true(all[1].device.publish_epoch == UINT64_C(1) << 32);
    assert_int_equal(all[1].device.size_bytes, 2048 * 512);
    assert_true(nbd_sysfs_number(root, 12) == makedev(43, 12));
    assert_true(nbd_sysfs_number(root, 2) == 0);
    free(all);
    temp_folder_free(root);
}

static void test_no_sysfs(void **state) {
    (void)state;
    char *root = temp_folder_new();
    struct nbd_device *all;
    size_t count;
    struct err e;
    assert_int_equal(nbd_sysfs_list(root, &all, &count, &e), 0);
    assert_int_equal(count, 0);
    free(all);
    temp_folder_free(root);
}

static void test_attributes(void **state) {
    (void)state;
    char *root = temp_folder_new();
    struct err e;
    write_file(root, "block/nbd3/backend", "portalbd:a.p:1\n");
    write_file(root, "block/nbd3/queue/io_timeout", "30000\n");
    write_file(root, "block/nbd3/holders/x", "");
    write_file(root, "block/nbd4/holders/.keep", "");
    assert_true(nbd_sysfs_is_connected(root, 3, "portalbd:a.p:1"));
    assert_false(nbd_sysfs_is_connected(root, 3, "portalbd:a.p:2"));
    assert_false(nbd_sysfs_is_connected(root, 4, "portalbd:a.p:1"));
    assert_true(nbd_sysfs_is_held(root, 3));
    assert_false(nbd_sysfs_is_held(root, 4));
    assert_false(nbd_sysfs_is_held(root, 5));
    assert_int_equal(nbd_sysfs_set_io_timeout(root, 3, 2000, &e), 0);
    CLEANUP_FREE char *path = xasprintf("%s/block/nbd3/queue/io_timeout", root);
    char text[16] = {0};
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_true(fread(text, 1, sizeof text - 1, f) >= 4);
    fclose(f);
    assert_memory_equal(text, "2000", 4);
    assert_true(nbd_sysfs_set_io_timeout(root, 4, 2000, &e) < 0);
    temp_folder_free(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backend),  cmocka_unit_test(test_backend_of_others),
        cmocka_unit_test(test_release),  cmocka_unit_test(test_list),
        cmocka_unit_test(test_no_sysfs), cmocka_unit_test(test_attributes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
