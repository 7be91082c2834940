/* The file of pools: what it may say, who may read it, when it is read again. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/config_file.h"
#include "portalbd/catalog/pool_file.h"
#include "tests/support/temp.h"

struct fixture {
    char *folder;
    char path[256];
};

static int setup(void **state) {
    static struct fixture f;
    f.folder = temp_folder_new();
    snprintf(f.path, sizeof f.path, "%s/pools.ini", f.folder);
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    temp_folder_free(f->folder);
    return 0;
}

static void write_file(const char *path, const char *text, mode_t mode) {
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
    assert_int_equal(chmod(path, mode), 0);
}

static void test_good(void **state) {
    struct fixture *x = *state;
    char token[300], text[2000];
    snprintf(token, sizeof token, "%s/token", x->folder);
    write_file(token, "a-long-token\n", 0600);
    snprintf(
        text, sizeof text,
        "[fast]\nurl = s3://bucket/prefix\nendpoint = http://127.0.0.1:9000\nregion = x\n"
        "addressing = path\nca_file = /etc/x.pem\naccess_key_id = me\n"
        "secret_access_key = sesame\nsession_token_file = %s\n\n[files]\nurl = file:///srv/p\n",
        token);
    write_file(x->path, text, 0600);
    struct pool_file f;
    struct err e;
    assert_int_equal(pool_file_read(x->path, &f, &e), 0);
    assert_int_equal(f.count, 2);
    const struct pool_config *p = pool_file_find(&f, "fast");
    assert_non_null(p);
    assert_string_equal(p->url, "s3://bucket/prefix");
    assert_string_equal(p->endpoint, "http://127.0.0.1:9000");
    assert_string_equal(p->addressing, "path");
    assert_string_equal(p->access_key_id, "me");
    assert_true(view_equal(secret_reveal(&p->secret_access_key), view_of_str("sesame")));
    assert_true(view_equal(secret_reveal(&p->session_token), view_of_str("a-long-token")));
    assert_string_equal(pool_file_find(&f, "files")->region, "");
    assert_null(pool_file_find(&f, "other"));

    struct pool_config copy;
    pool_config_copy(&copy, p);
    assert_true(pool_config_equal(&copy, p));
    assert_false(pool_config_equal(&copy, pool_file_find(&f, "files")));
    pool_config_release(&copy);

    assert_false(pool_file_changed(x->path, &f));
    unlink(x->path);
    assert_false(pool_file_changed(x->path, &f)); /* the old one stays good */
    write_file(x->path, "[files]\nurl = file:///srv/q\n", 0644);
    assert_true(pool_file_changed(x->path, &f));
    pool_file_release(&f);
    assert_int_equal(pool_file_read(x->path, &f, &e), 0); /* without secrets anybody may read it */
    pool_file_release(&f);
}

/* As Kubernetes mounts Secrets: a file for each key; root's, and readable through a group. */
static void test_keys_from_files(void **state) {
    struct fixture *x = *state;
    char id[300], secret[300], text[1000];
    snprintf(id, sizeof id, "%s/id", x->folder);
    snprintf(secret, sizeof secret, "%s/secret", x->folder);
    snprintf(text, sizeof text,
             "[fast]\nurl = s3://b\naccess_key_id_file = %s\nsecret_access_key_file = %s\n", id,
             secret);
    write_file(id, "me\n", 0600);
    write_file(secret, "sesame", 0600);
    write_file(x->path, text, 0600);
    struct pool_file f;
    struct err e;
    assert_int_equal(pool_file_read(x->path, &f, &e), 0);
    assert_string_equal(f.pools[0].access_key_id, "me");
    assert_true(view_equal(secret_reveal(&f.pools[0].secret_access_key), view_of_str("sesame")));
    pool_file_release(&f);

    write_file(id, "me\nyou\n", 0600);
    assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_CONFIG);
    assert_non_null(strstr(e.text, "access_key_id_file"));
    write_file(id, "\n", 0600);
    assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_CONFIG);
    assert_non_null(strstr(e.text, "come together"));
    unlink(id);
    assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_CONFIG); /* the pool file is there */
    assert_non_null(strstr(e.text, "access_key_id_file"));
    assert_non_null(strstr(e.text, id));

    write_file(id, "me", 0600);
    unlink(secret);
    assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_CONFIG);
    assert_non_null(strstr(e.text, secret));
    write_file(secret, "sesame", 0600);
    assert_int_equal(chmod(x->path, 0440), 0);
    assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_CONFIG); /* our own: chmod 600 */
    if (chown(x->path, 65534, (gid_t)-1) != 0) {
        print_message("only root can give files away\n");
        skip();
    }
    assert_int_equal(pool_file_read(x->path, &f, &e), 0);
    pool_file_release(&f);
    assert_int_equal(chmod(x->path, 0444), 0);
    assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_CONFIG);
}

static void test_refused(void **state) {
    struct fixture *x = *state;
    static const struct {
        const char *text;
        mode_t mode;
        const char *says;
    } cases[] = {
        {"", 0600, "names no pool"},
        {"url = file:///x\n", 0600, "not a pool's name"},
        {"[Fast]\nurl = file:///x\n", 0600, "not a pool's name"},
        {"[a-name-too-long]\nurl = file:///x\n", 0600, "not a pool's name"},
        {"[fast]\nregion = x\n", 0600, "has no url"},
        {"[fast]\nurl = s3://b\nregoin = x\n", 0600, "unknown key 'regoin'"},
        {"[fast]\nurl = s3://b\nurl = s3://c\n", 0600, "given twice"},
        {"[fast]\nurl = s3://b\naddressing = sideways\n", 0600, "addressing"},
        {"[fast]\nurl = s3://b\naccess_key_id = me\n", 0600, "come together"},
        {"[fast]\nurl = s3://b\nsession_token_file = /nonexistent/x\n", 0600, "session_token_file"},
        {"[fast]\nurl = s3://b\naccess_key_id = me\nsecret_access_key = x\n", 0640, "chmod 600"},
        {"[fast]\nurl = s3://b\nendpoint = http://me:sesame@host\n", 0600, "before '@'"},
        {"rubbish\n", 0600, "pools.ini:1"},
    };
    struct pool_file f;
    struct err e;
    assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_NOT_FOUND);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        write_file(x->path, cases[i].text, cases[i].mode);
        assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_CONFIG);
        if (!strstr(e.text, cases[i].says))
            fail_msg("case %zu says '%s'", i, e.text);
        assert_null(strstr(e.text, "sesame"));
    }
}

/* What was written is read back the same; a token stands in its own file. */
static void test_encode(void **state) {
    struct fixture *x = *state;
    struct pool_file f, back;
    struct err e;
    char token[300];
    snprintf(token, sizeof token, "%s.token", x->path);
    write_file(token, "token-token", 0600);
    char text[1024];
    snprintf(text, sizeof text,
             "[fast]\nurl = s3://b/p\nendpoint = http://e:1\nregion = r\naddressing = path\n"
             "ca_file = /ca\naccess_key_id = me\nsecret_access_key =;sesame\n"
             "session_token_file = %s\n[slow]\nurl = file:///x\n",
             token);
    write_file(x->path, text, 0600);
    assert_int_equal(pool_file_read(x->path, &f, &e), 0);
    struct buf out = {0};
    for (size_t i = 0; i < f.count; i++)
        assert_int_equal(pool_config_encode(&out, &f.pools[i], token, &e), 0);
    assert_null(strstr(buf_cstr(&out), "token-token"));
    write_file(x->path, buf_cstr(&out), 0600);
    assert_int_equal(pool_file_read(x->path, &back, &e), 0);
    assert_int_equal(back.count, 2);
    for (size_t i = 0; i < f.count; i++)
        assert_true(pool_config_equal(&f.pools[i], &back.pools[i]));
    pool_file_release(&f);
    pool_file_release(&back);
    buf_release(&out);
}

/* What no line of a pool file can say, wherever it comes from, is refused by its name alone. */
static void test_unwritable(void **state) {
    struct fixture *x = *state;
    static const char *const secrets[] = {"sesame ;open", "sesame\t;open", "\tsesame", "se\nsame"};
    char secret[300], text[1000], url[CONFIG_LINE_MAX];
    struct pool_file f;
    struct err e;
    snprintf(secret, sizeof secret, "%s/secret", x->folder);
    snprintf(text, sizeof text,
             "[fast]\nurl = s3://b\naccess_key_id = me\nsecret_access_key_file = %s\n", secret);
    write_file(x->path, text, 0600);
    for (size_t i = 0; i < ARRAY_LEN(secrets); i++) {
        write_file(secret, secrets[i], 0600);
        assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_INVALID);
        assert_non_null(strstr(e.text, "pool 'fast': its secret_access_key cannot be written"));
        assert_null(strstr(e.text, "same"));
    }
    memset(url, 'x', sizeof url);
    url[sizeof url - strlen("url = ") + 1] = '\0'; /* without the spaces, it fits */
    snprintf(text, sizeof text, "[fast]\nurl=%s\n", url);
    write_file(x->path, text, 0600);
    assert_int_equal(pool_file_read(x->path, &f, &e), -ERR_INVALID);
    assert_non_null(strstr(e.text, "its url"));
    text[strlen(text) - 2] = '\n';
    text[strlen(text) - 1] = '\0';
    write_file(x->path, text, 0600);
    assert_int_equal(pool_file_read(x->path, &f, &e), 0);
    struct buf out = {0};
    assert_int_equal(pool_config_encode(&out, &f.pools[0], "", &e), 0);
    pool_file_release(&f);
    buf_release(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_good, setup, teardown),
        cmocka_unit_test_setup_teardown(test_keys_from_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_encode, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unwritable, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
