/* Attach files: there and back, refused, of another boot, with secrets. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/mem.h"
#include "node-agent/state.h"

#define VOLUME "pv-0123456789abcdef0123456789abcdef-1.fast"

struct fixture {
    char dir[64];
    struct state_dir *state;
};

static int setup(void **state) {
    struct fixture *f = NEW(struct fixture);
    const char *tmp = getenv("TMPDIR");
    struct err e;
    snprintf(f->dir, sizeof f->dir, "%.40s/state-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(f->dir));
    assert_int_equal(state_open(f->dir, &f->state, &e), 0);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    CLEANUP_FREE char *command = xasprintf("rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    state_close(f->state);
    free(f);
    return 0;
}

static struct attach_state example(void) {
    return (struct attach_state){.volume = VOLUME,
                                 .backend = "fuse",
                                 .publish_epoch = UINT32_MAX,
                                 .read_only = true,
                                 .own_credentials = true,
                                 .cache_bytes = UINT64_C(1) << 40,
                                 .journal_bytes = 1 << 26,
                                 .disk_cache_bytes = UINT64_C(1) << 42,
                                 .pid = 4711,
                                 .pid_start = UINT64_C(123456789012),
                                 .served = true,
                                 .opened = true,
                                 .nbd_flags = 0xfff5,
                                 .size_bytes = UINT64_C(1) << 60,
                                 .restarts = 3,
                                 .boot_id = "b"};
}

static void test_there_and_back(void **state) {
    (void)state;
    struct attach_state s = example(), back;
    struct err e;
    CLEANUP_BUF struct buf text = {0};
    attach_state_encode(&text, &s);
    assert_int_equal(attach_state_decode(&back, buf_view(&text), &e), 0);
    assert_string_equal(back.volume, s.volume);
    assert_int_equal(back.pid_start, s.pid_start);
    assert_true(back.read_only && back.own_credentials && back.served);
    assert_true(back.opened && !back.journal_memory);
    assert_int_equal(back.nbd_flags, 0xfff5);
    assert_int_equal(back.size_bytes, UINT64_C(1) << 60);
    assert_int_equal(back.restarts, 3);
    assert_int_equal(back.disk_cache_bytes, UINT64_C(1) << 42);
    CLEANUP_BUF struct buf again = {0};
    attach_state_encode(&again, &back);
    assert_true(view_equal(buf_view(&text), buf_view(&again)));
}

/* What an agent wrote that did not resume: its daemon's journal dies with it. */
static void test_old_file(void **state) {
    (void)state;
    static const char old[] =
        "{\"version\":1,\"boot_id\":\"b\",\"volume\":\"" VOLUME "\",\"backend\":\"fuse\","
        "\"publish_epoch\":3,\"read_only\":false,\"own_credentials\":false,\"cache_bytes\":0,"
        "\"journal_bytes\":0,\"pid\":4711,\"pid_start\":12,\"served\":true}";
    struct attach_state back;
    struct err e;
    assert_int_equal(attach_state_decode(&back, view_of_str(old), &e), 0);
    assert_true(back.served && back.journal_memory && !back.opened);
    assert_int_equal(back.publish_epoch, 3);
    assert_int_equal(back.restarts, 0);
    assert_int_equal(back.disk_cache_bytes, 0);
}

static void replace(struct buf *text, const char *from, const char *to) {
    const char *all = buf_cstr(text);
    const char *at = strstr(all, from);
    assert_non_null(at);
    struct buf other = {0};
    buf_append(&other, all, (size_t)(at - all));
    buf_append_str(&other, to);
    buf_append_str(&other, at + strlen(from));
    buf_release(text);
    *text = other;
}

static void test_refused(void **state) {
    (void)state;
    static const char *const changes[][2] = {
        {"\"version\": 1", "\"version\": 2"},
        {"\"volume\": \"pv", "\"volume\": \"../pv"},
        {"4711", "-1"},
        {"4711", "4294967296"},
        {"4294967295", "4294967296"},
        {"\"fuse\"", "\"a-name-that-is-too-long\""},
        {"\"fuse\"", "\"\""},
        {"\"served\": true", "\"served\": 1"},
        {"\"served\"", "\"serve\""},
        {"{", "["},
        {"\"boot_id\": \"b\"", "\"boot_id\": null"},
        {"65525", "65536"},
        {"\"restarts\": 3", "\"restarts\": -3"},
        {"4398046511104", "-1"},
        {"\"opened\": true", "\"opened\": 1"},
    };
    for (size_t i = 0; i < ARRAY_LEN(changes); i++) {
        struct attach_state s = example(), back;
        struct err e;
        CLEANUP_BUF struct buf text = {0};
        attach_state_encode(&text, &s);
        replace(&text, changes[i][0], changes[i][1]);
        assert_int_equal(attach_state_decode(&back, buf_view(&text), &e), -ERR_CORRUPT);
    }
    struct attach_state s = example(), back;
    CLEANUP_BUF struct buf text = {0};
    attach_state_encode(&text, &s);
    for (size_t len = 0; len + 2 < text.len; len++)
        assert_int_equal(attach_state_decode(&back, view_of(text.data, len), NULL), -ERR_CORRUPT);
}

static unsigned mode_of(const char *path) {
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_mode & 07777;
}

static void test_save_and_list(void **state) {
    struct fixture *f = *state;
    struct attach_state s = example();
    struct attach_states all;
    struct err e;
    assert_int_equal(state_save(f->state, &s, &e), 0);
    s.publish_epoch = 5;
    assert_int_equal(state_save(f->state, &s, &e), 0);
    CLEANUP_FREE char *path = xasprintf("%s/attachments/%s.json", f->dir, VOLUME);
    assert_int_equal(mode_of(path), 0600);
    assert_int_equal(state_list(f->state, &all, &e), 0);
    assert_int_equal(all.count, 1);
    assert_string_equal(all.items[0].volume, VOLUME);
    assert_int_equal(all.items[0].publish_epoch, 5);
    assert_string_not_equal(all.items[0].boot_id, "b"); /* this boot's */
    attach_states_release(&all);
    assert_int_equal(state_remove(f->state, VOLUME, &e), 0);
    assert_int_equal(state_remove(f->state, VOLUME, &e), 0);
    assert_int_equal(state_list(f->state, &all, &e), 0);
    assert_int_equal(all.count, 0);
    attach_states_release(&all);
}

static void write_text(const char *path, struct view v) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(v.data, 1, v.len, file), v.len);
    fclose(file);
}

static void test_other_boots_and_leftovers(void **state) {
    struct fixture *f = *state;
    struct attach_state s = example();
    struct attach_states all;
    struct err e;
    CLEANUP_BUF struct buf text = {0};
    attach_state_encode(&text, &s); /* boot id "b" */
    CLEANUP_FREE char *old = xasprintf("%s/attachments/%s.json", f->dir, VOLUME);
    CLEANUP_FREE char *half = xasprintf("%s/attachments/x.json.tmp", f->dir);
    CLEANUP_FREE char *broken = xasprintf("%s/attachments/broken.json", f->dir);
    write_text(old, buf_view(&text));
    write_text(half, view_of_str("{"));
    write_text(broken, view_of_str("{"));
    assert_int_equal(state_list(f->state, &all, &e), 0);
    assert_int_equal(all.count, 0);
    attach_states_release(&all);
    assert_int_equal(access(old, F_OK), -1);
    assert_int_equal(access(half, F_OK), -1);
    assert_int_equal(access(broken, F_OK), 0); /* for somebody to look at */
}

static struct pool_config pool_example(const char *secret, const char *token) {
    struct pool_config p = {.name = "fast",
                            .url = xstrdup("s3://bucket/prefix"),
                            .endpoint = xstrdup("http://127.0.0.1:9000"),
                            .region = xstrdup("us-east-1"),
                            .addressing = xstrdup("path"),
                            .ca_file = xstrdup(""),
                            .access_key_id = xstrdup("AKIDEXAMPLE")};
    assert_true(secret_set(&p.secret_access_key, view_of_str(secret)));
    assert_true(secret_set(&p.session_token, view_of_str(token)));
    return p;
}

static void test_pool(void **state) {
    struct fixture *f = *state;
    struct err e;
    char token[2048];
    memset(token, 't', sizeof token - 1);
    token[sizeof token - 1] = '\0';
    struct pool_config p = pool_example("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token);
    assert_int_equal(state_save_pool(f->state, VOLUME, &p, &e), 0);
    CLEANUP_FREE char *path = state_pool_path(f->state, VOLUME);
    assert_int_equal(mode_of(path), 0600);
    struct pool_file back;
    assert_int_equal(pool_file_read(path, &back, &e), 0);
    assert_true(pool_config_equal(&back.pools[0], &p));
    pool_file_release(&back);
    pool_config_release(&p);
    assert_int_equal(state_remove(f->state, VOLUME, &e), 0);
    assert_int_equal(access(path, F_OK), -1);

    /* A value must not become a line of its own. */
    p = pool_example("a\nurl = file:///elsewhere", "");
    assert_int_not_equal(state_save_pool(f->state, VOLUME, &p, &e), 0);
    assert_null(strstr(e.text, "elsewhere"));
    pool_config_release(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_old_file),
        cmocka_unit_test(test_refused),
        cmocka_unit_test_setup_teardown(test_save_and_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_boots_and_leftovers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pool, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
