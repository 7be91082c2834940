/* Looking at devices, formatting and growing them, on images in files. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "csi/mount/filesystem.h"

static char image[64];

static void make_image(off_t size) {
    int fd = open(image, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
}

static void write_at(off_t off, const char *bytes, size_t len) {
    int fd = open(image, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, bytes, len, off), len);
    close(fd);
}

static struct fs_probe probe(void) {
    struct fs_probe p = {0};
    struct err e;
    assert_int_equal(fs_probe(image, &p, &e), 0);
    return p;
}

static void test_empty_is_formatted_once(void **state) {
    (void)state;
    struct err e;
    make_image(64 << 20);
    assert_int_equal(probe().content, FS_EMPTY);
    assert_int_equal(fs_format(image, "ext4", "-L data -i 65536", &e), 0);
    struct fs_probe p = probe();
    assert_int_equal(p.content, FS_FOUND);
    assert_string_equal(p.fstype, "ext4");
    assert_int_equal(fs_check(image, "ext4", &e), 0);
    assert_int_equal(fs_format(image, "ext4", "", &e), -ERR_IN_USE);
    char command[128];
    snprintf(command, sizeof command, "test \"$(e2label %s)\" = data", image);
    assert_int_equal(system(command), 0);
}

static void test_xfs(void **state) {
    (void)state;
    struct err e;
    make_image((off_t)fs_size_min("xfs"));
    assert_int_equal(fs_format(image, "xfs", "", &e), 0);
    assert_string_equal(probe().fstype, "xfs");
    assert_int_equal(fs_check(image, "xfs", &e), 0);
    assert_int_equal(fs_grow(image, "xfs", NULL, &e), 0);
}

static void test_what_is_not_empty_is_left_alone(void **state) {
    (void)state;
    struct err e;
    make_image(64 << 20);
    write_at(700000, "x", 1); /* no signature, but not zero */
    assert_int_equal(probe().content, FS_FOREIGN);
    assert_int_equal(fs_format(image, "ext4", "", &e), -ERR_IN_USE);

    make_image(64 << 20);
    write_at(510, "\x55\xaa", 2); /* a partition table without partitions */
    assert_int_equal(probe().content, FS_FOREIGN);

    make_image(64 << 20);
    char command[128];
    snprintf(command, sizeof command, "mkswap -q %s", image);
    assert_int_equal(system(command), 0);
    assert_int_equal(probe().content, FS_FOREIGN);
    assert_string_equal(probe().fstype, "swap");
    assert_int_equal(fs_format(image, "xfs", "", &e), -ERR_IN_USE);
}

/* A mkfs that fails half way leaves a marker, and the next one begins anew. */
static void test_interrupted_format(void **state) {
    (void)state;
    struct err e;
    make_image(64 << 20);
    assert_int_equal(fs_format(image, "ext4", "--no-such-option", &e), -ERR_IO);
    assert_non_null(strstr(e.text, "mkfs.ext4"));
    assert_int_equal(probe().content, FS_INTERRUPTED);
    write_at(0, "rubbish of a mkfs that was killed", 33);
    assert_int_equal(probe().content, FS_INTERRUPTED);
    assert_int_equal(fs_format(image, "ext4", "", &e), 0);
    assert_int_equal(probe().content, FS_FOUND);
    assert_int_equal(fs_check(image, "ext4", &e), 0);
}

/* The marker's text in a file of a filesystem in use is just data. */
static void test_marker_as_data(void **state) {
    (void)state;
    static const char text[] = "portalbd: a filesystem is being made here, nothing is on it yet\n";
    struct err e;
    make_image(64 << 20);
    assert_int_equal(fs_format(image, "ext4", "", &e), 0);
    write_at(63 << 20, text, sizeof text);
    assert_int_equal(probe().content, FS_INTERRUPTED);
    write_at(1024 + 44, "\x01\x02\x03\x04", 4); /* s_mtime: it was mounted */
    assert_int_equal(probe().content, FS_FOUND);
    assert_int_equal(fs_format(image, "ext4", "", &e), -ERR_IN_USE);

    make_image(320 << 20);
    assert_int_equal(fs_format(image, "xfs", "", &e), 0);
    write_at(319 << 20, text, sizeof text);
    assert_int_equal(probe().content, FS_INTERRUPTED);
    write_at(240, "\0\0\0\1\0\0\0\2", 8); /* sb_lsn */
    assert_int_equal(probe().content, FS_FOUND);
}

static void test_ext4_grows_before_it_is_mounted(void **state) {
    (void)state;
    struct err e;
    make_image(64 << 20);
    assert_int_equal(fs_format(image, "ext4", "", &e), 0);
    assert_int_equal(fs_grow(image, "ext4", NULL, &e), 0); /* nothing to do */
    assert_int_equal(truncate(image, 200 << 20), 0);
    assert_int_equal(fs_grow(image, "ext4", NULL, &e), 0);
    char command[256];
    snprintf(command, sizeof command,
             "test $(dumpe2fs -h %s 2>/dev/null | awk '/^Block count/ {c=$3} /^Block size/ {s=$3} "
             "END {print c*s}') = %d",
             image, 200 << 20);
    assert_int_equal(system(command), 0);
}

static void test_options(void **state) {
    (void)state;
    struct err e;
    assert_int_equal(fs_check_options("", &e), 0);
    assert_int_equal(fs_check_options("-b 4096  -m\t1", &e), 0);
    assert_int_equal(fs_check_options("/dev/sda", &e), -ERR_INVALID);
    assert_int_equal(fs_check_options("-b\n4096", &e), -ERR_INVALID);
    char many[300];
    memset(many, 0, sizeof many);
    for (int i = 0; i < 65; i++)
        strcat(many, "-a ");
    assert_int_equal(fs_check_options(many, &e), -ERR_INVALID);
    assert_true(fs_supported("ext4"));
    assert_false(fs_supported("ntfs"));
}

static void test_no_device(void **state) {
    (void)state;
    struct err e;
    struct fs_probe p;
    assert_int_equal(fs_probe("/nonexistent", &p, &e), -ERR_NOT_FOUND);
}

static void test_stat(void **state) {
    (void)state;
    struct err e;
    struct fs_stats s;
    assert_int_equal(fs_stat("/", 5000, &s, &e), 0);
    assert_true(s.bytes_total >= s.bytes_used);
    assert_int_equal(fs_stat("/nonexistent", 5000, &s, &e), -ERR_NOT_FOUND);
}

static int set_up(void **state) {
    (void)state;
    strcpy(image, "/tmp/portalbd-image-XXXXXX");
    int fd = mkstemp(image);
    if (fd >= 0)
        close(fd);
    return fd < 0;
}

static int tear_down(void **state) {
    (void)state;
    return unlink(image);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty_is_formatted_once),
        cmocka_unit_test(test_xfs),
        cmocka_unit_test(test_what_is_not_empty_is_left_alone),
        cmocka_unit_test(test_interrupted_format),
        cmocka_unit_test(test_marker_as_data),
        cmocka_unit_test(test_ext4_grows_before_it_is_mounted),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_no_device),
        cmocka_unit_test(test_stat),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
