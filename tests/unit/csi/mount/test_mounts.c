/* The mount table and changes to it. Wants to be root. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "csi/mount/mounts.h"

static char folder[64], a[96], b[96], file[96];

static bool may_mount(void) {
    return geteuid() == 0;
}

static void mount_tmpfs(void) {
    assert_int_equal(mount("portalbd-test", a, "tmpfs", 0, "size=1m"), 0);
}

static void test_find(void **state) {
    (void)state;
    struct mount_entry entry;
    struct err e;
    assert_int_equal(mount_find(a, &entry, &e), -ERR_NOT_FOUND);
    if (!may_mount())
        skip();
    mount_tmpfs();
    char slash[100];
    snprintf(slash, sizeof slash, "%s//", a);
    assert_int_equal(mount_find(slash, &entry, &e), 0);
    assert_string_equal(entry.fstype, "tmpfs");
    assert_false(entry.read_only);
    struct stat st;
    assert_int_equal(stat(a, &st), 0);
    assert_int_equal(entry.dev, st.st_dev);
    assert_int_equal(mount_unmount(a, false, 5000, &e), 0);
    assert_int_equal(mount_find(a, &entry, &e), -ERR_NOT_FOUND);
    assert_int_equal(mount_unmount(a, false, 5000, &e), 0); /* again */
}

static bool count(void *arg, const char *target) {
    (void)target;
    ++*(int *)arg;
    return true;
}

static void test_bind(void **state) {
    (void)state;
    if (!may_mount())
        skip();
    struct mount_entry entry;
    struct err e;
    mount_tmpfs();
    assert_int_equal(mount_bind(a, b, true, &e), 0);
    assert_int_equal(mount_find(b, &entry, &e), 0);
    assert_true(entry.read_only);
    char inside[112];
    snprintf(inside, sizeof inside, "%s/x", b);
    assert_int_equal(open(inside, O_CREAT | O_WRONLY, 0600), -1);
    assert_int_equal(errno, EROFS);
    assert_int_equal(mount_find(a, &entry, &e), 0);
    assert_false(entry.read_only);
    int mounts = 0;
    assert_int_equal(mount_for_each_of_device(entry.dev, "/dev/null", count, &mounts, &e), 0);
    assert_int_equal(mounts, 2);
    assert_int_equal(mount_unmount(b, false, 5000, &e), 0);
    assert_int_equal(mount_bind(a, b, false, &e), 0);
    assert_int_equal(mount_bind(a, b, false, &e), 0); /* two layers */
    assert_int_equal(mount_unmount(b, false, 5000, &e), 0);
    assert_int_equal(mount_find(b, &entry, &e), -ERR_NOT_FOUND);
    assert_int_equal(mount_unmount(a, false, 5000, &e), 0);
}

/* A device node shown on a file, as block volumes are. */
static void test_bind_of_a_device_node(void **state) {
    (void)state;
    if (!may_mount())
        skip();
    struct err e;
    struct stat st;
    close(open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(mount_bind("/dev/zero", file, false, &e), 0);
    assert_int_equal(stat(file, &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    int mounts = 0;
    assert_int_equal(mount_for_each_of_device(makedev(0, 0), "/dev/zero", count, &mounts, &e), 0);
    assert_int_equal(mounts, 1);
    assert_int_equal(mount_unmount(file, false, 5000, &e), 0);
    unlink(file);
}

static void test_busy(void **state) {
    (void)state;
    if (!may_mount())
        skip();
    struct err e;
    struct mount_entry entry;
    mount_tmpfs();
    char inside[112];
    snprintf(inside, sizeof inside, "%s/x", a);
    int fd = open(inside, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(mount_unmount(a, false, 5000, &e), -ERR_BUSY);
    /* By force it is only detached when it does not answer, not when somebody uses it. */
    assert_int_equal(mount_unmount(a, true, 5000, &e), -ERR_BUSY);
    assert_int_equal(mount_find(a, &entry, &e), 0);
    close(fd);
    assert_int_equal(mount_unmount(a, true, 5000, &e), 0);
}

static void test_errors(void **state) {
    (void)state;
    if (!may_mount())
        skip();
    struct err e;
    assert_true(mount_bind("/nonexistent", a, false, &e) < 0);
    assert_true(mount_device("/dev/zero", a, "ext4", "", false, &e) < 0);
    assert_non_null(strstr(e.text, "/dev/zero"));
}

static int set_up(void **state) {
    (void)state;
    strcpy(folder, "/tmp/portalbd-mounts-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(a, sizeof a, "%s/a", folder);
    snprintf(b, sizeof b, "%s/b", folder);
    snprintf(file, sizeof file, "%s/file", folder);
    return mkdir(a, 0700) || mkdir(b, 0700);
}

static int tear_down(void **state) {
    (void)state;
    umount2(b, MNT_DETACH);
    umount2(a, MNT_DETACH);
    umount2(file, MNT_DETACH);
    unlink(file);
    return rmdir(a) || rmdir(b) || rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_bind),
        cmocka_unit_test(test_bind_of_a_device_node),
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
