/* The file behind a journal: who holds it, what outlives what, pages reserved and given back. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/daemon/journal_file.h"
#include "tests/support/temp.h"

enum { MIB = 1024 * 1024, SIZE = 4 * MIB };

struct fixture {
    char *folder;
    char *dir, *state_dir, *path, *copy;
};

static struct fixture f;

static int setup(void **state) {
    (void)state;
    f.folder = temp_folder_new();
    f.dir = xasprintf("%s/journals", f.folder);
    f.state_dir = xasprintf("%s/state", f.folder);
    f.path = xasprintf("%s/v.journal", f.dir);
    f.copy = xasprintf("%s/set-aside/v.journal", f.state_dir);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    temp_folder_free(f.folder);
    free(f.dir);
    free(f.state_dir);
    free(f.path);
    free(f.copy);
    return 0;
}

static int open_rc(uint64_t size, struct journal_file **ret, struct err *e) {
    struct journal_file_config config = {
        .dir = f.dir, .state_dir = f.state_dir, .id = "v", .size = size};
    return journal_file_open(&config, ret, e);
}

static struct journal_file *open_file(uint64_t size) {
    struct journal_file *j = NULL;
    struct err e;
    if (open_rc(size, &j, &e) < 0)
        fail_msg("%s", e.text);
    return j;
}

static void assert_fails(uint64_t size, int code) {
    struct journal_file *j;
    struct err e;
    assert_int_equal(open_rc(size, &j, &e), code);
    assert_non_null(strstr(e.text, f.path));
}

static uint64_t blocks_of(const char *path) {
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* --- tests --- */

static void test_outlives_its_process(void **state) {
    (void)state;
    struct journal_file *j = open_file(SIZE);
    struct journal_memory *m = journal_file_memory(j);
    struct stat st;
    assert_true(journal_file_is_new(j));
    assert_int_equal(m->size, SIZE);
    assert_int_equal(m->base[0], 0);
    assert_true(m->reserve(m, SIZE - 8192, 8192));
    memset(m->base + SIZE - 8192, 7, 8192);
    m->base[0] = 5;
    assert_int_equal(stat(f.path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_fails(SIZE, -ERR_IN_USE); /* somebody holds it */
    journal_file_close(j, false);

    j = open_file(2 * SIZE); /* keeps its size */
    m = journal_file_memory(j);
    assert_false(journal_file_is_new(j));
    assert_int_equal(m->size, SIZE);
    assert_int_equal(m->base[0], 5);
    assert_int_equal(m->base[SIZE - 1], 7);
    journal_file_close(j, true);
    assert_int_equal(access(f.path, F_OK), -1);
}

static void test_locked_pages_are_given_back(void **state) {
    (void)state;
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
        print_message("memory cannot be locked here\n");
    struct journal_file *j = open_file(SIZE);
    struct journal_memory *m = journal_file_memory(j);
    uint64_t before = blocks_of(f.path);
    assert_true(m->reserve(m, 4096, MIB));
    memset(m->base + 4096, 9, MIB);
    assert_true(blocks_of(f.path) >= before + MIB);
    m->punch(m, 4096 + 100, MIB - 200); /* not the first and the last page */
    assert_true(blocks_of(f.path) <= before + 64 * 1024);
    assert_int_equal(m->base[4096], 9);
    assert_int_equal(m->base[2 * 4096], 0);
    assert_int_equal(m->base[4096 + MIB - 1], 9);
    munlockall();
    journal_file_close(j, true);
}

static void read_copy(uint8_t *bytes, size_t size) {
    int fd = open(f.copy, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, bytes, size), size);
    close(fd);
}

static void test_set_aside(void **state) {
    (void)state;
    struct err e;
    struct journal_file *j = open_file(SIZE);
    struct journal_memory *m = journal_file_memory(j);
    uint8_t *bytes = xmalloc(SIZE);
    for (uint8_t round = 1; round <= 2; round++) { /* the second takes the first one's place */
        assert_true(m->reserve(m, MIB, 8192));
        memset(m->base + MIB, round, 8192);
        assert_int_equal(m->set_aside(m, 3, 4096, &e), 0);
        read_copy(bytes, SIZE);
        assert_memory_equal(bytes, m->base, SIZE);
        assert_true(blocks_of(f.copy) <= 256 * 1024);
    }
    CLEANUP_FREE char *tmp = xasprintf("%s.tmp", f.copy);
    assert_int_equal(access(tmp, F_OK), -1);
    free(bytes);
    journal_file_close(j, true);
}

static void test_set_aside_fails(void **state) {
    (void)state;
    struct err e;
    struct journal_file *j = open_file(SIZE);
    struct journal_memory *m = journal_file_memory(j);
    int fd = open(f.state_dir, O_WRONLY | O_CREAT | O_CLOEXEC, 0600); /* no folder */
    assert_true(fd >= 0);
    close(fd);
    assert_true(m->set_aside(m, 3, 4096, &e) < 0);
    assert_non_null(strstr(e.text, "--state-dir"));
    journal_file_close(j, true);
}

static void test_foreign_files(void **state) {
    (void)state;
    journal_file_close(open_file(SIZE), false);
    assert_int_equal(truncate(f.path, SIZE + 1), 0);
    assert_fails(SIZE, -ERR_CORRUPT);
    assert_int_equal(truncate(f.path, 0), 0); /* its maker died between two steps */
    journal_file_close(open_file(SIZE), true);
    assert_int_equal(symlink("/etc/hostname", f.path), 0);
    struct journal_file *j;
    struct err e;
    assert_true(open_rc(SIZE, &j, &e) < 0);
}

/* A disk keeps the file over the node's death, but not the order of its pages. */
static void test_earlier_boot(void **state) {
    (void)state;
    struct journal_file *j = open_file(SIZE);
    journal_file_memory(j)->base[0] = 5;
    journal_file_close(j, false);
    if (setxattr(f.path, "user.portalbd.boot", "another", 7, XATTR_REPLACE) < 0) {
        print_message("the folder for temporary files is a tmpfs\n");
        skip();
    }
    j = open_file(SIZE);
    assert_true(journal_file_is_new(j));
    assert_int_equal(journal_file_memory(j)->base[0], 0);
    journal_file_close(j, true);
}

/* --- on file systems of our own, in a child, because mounts are --- */

static void in_namespace(void (*fn)(void), const char *type, const char *options) {
    if (geteuid() != 0) {
        print_message("needs root\n");
        skip();
    }
    assert_int_equal(mkdir(f.dir, 0700), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("none", f.dir, type, 0, options) < 0)
            _exit(77);
        fn();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("nothing can be mounted here\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static void full_tmpfs(void) {
    struct journal_file *j = open_file(2 * SIZE);
    struct journal_memory *m = journal_file_memory(j);
    MUST(m->size == 2 * SIZE);
    MUST(m->reserve(m, 4096, MIB));
    MUST(!m->reserve(m, 2 * MIB, 2 * MIB)); /* the file system has 2 MiB */
    MUST(!m->reserve(m, 2 * MIB, 2 * MIB));
    m->punch(m, 4096, MIB);
    MUST(m->reserve(m, 2 * MIB, MIB + MIB / 2));
    memset(m->base + 2 * MIB, 1, MIB + MIB / 2); /* no SIGBUS */
    journal_file_close(j, true);
}

static void test_full_tmpfs(void **state) {
    (void)state;
    in_namespace(full_tmpfs, "tmpfs", "size=2m");
}

/* ramfs has neither fallocate nor holes. */
static void no_fallocate(void) {
    struct journal_file *j = open_file(SIZE);
    struct journal_memory *m = journal_file_memory(j);
    MUST(m->reserve(m, MIB, MIB));
    memset(m->base + MIB, 1, MIB);
    m->punch(m, MIB, MIB);
    MUST(m->base[MIB] == 1);
    journal_file_close(j, false);
    j = open_file(SIZE);
    MUST(journal_file_memory(j)->base[2 * MIB - 1] == 1);
    struct err e;
    MUST(journal_file_memory(j)->set_aside(journal_file_memory(j), 1, 1, &e) == 0);
    journal_file_close(j, true);
}

static void test_no_fallocate(void **state) {
    (void)state;
    in_namespace(no_fallocate, "ramfs", NULL);
}

static void no_room_at_all(void) {
    struct journal_file *j;
    struct err e;
    CLEANUP_FREE char *other = xasprintf("%s/other", f.dir);
    int fd = open(other, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    MUST(fd >= 0 && fallocate(fd, 0, 0, 4096) == 0);
    close(fd);
    MUST(open_rc(SIZE, &j, &e) < 0);
    MUST(strstr(e.text, "--journal-dir"));
}

static void test_no_room_at_all(void **state) {
    (void)state;
    in_namespace(no_room_at_all, "tmpfs", "size=4k");
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_outlives_its_process),
        TEST(test_locked_pages_are_given_back),
        TEST(test_set_aside),
        TEST(test_set_aside_fails),
        TEST(test_foreign_files),
        TEST(test_earlier_boot),
        TEST(test_full_tmpfs),
        TEST(test_no_fallocate),
        TEST(test_no_room_at_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
