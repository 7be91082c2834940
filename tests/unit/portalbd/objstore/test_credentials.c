/* Where credentials are found, and what a credentials file may look like. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "portalbd/objstore/credentials.h"
#include "tests/support/temp.h"

static const char file_text[] = "# comment\n"
                                "[default]\r\n"
                                "aws_access_key_id = AKDEFAULT\r\n"
                                "aws_secret_access_key=secret/default=+\r\n"
                                "s3 =\n"
                                "    aws_access_key_id = NESTED\n"
                                "\n"
                                "[ other ]\n"
                                "aws_access_key_id=AKOTHER\n"
                                "aws_secret_access_key = othersecret\n"
                                "aws_session_token = %s\n"
                                "[half]\n"
                                "aws_access_key_id=AKHALF\n";

static void clear_environment(void) {
    static const char *const names[] = {
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",       "AWS_SESSION_TOKEN",
        "AWS_PROFILE",       "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",      "AWS_ROLE_SESSION_NAME",       "AWS_ENDPOINT_URL_STS",
    };
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        unsetenv(names[i]);
    setenv("HOME", "/nonexistent", 1);
}

static void assert_secret(const struct secret *s, const char *want) {
    assert_true(view_equal(secret_reveal(s), view_of_str(want)));
}

static void test_file(void **state) {
    (void)state;
    struct s3_credentials c = {0};
    struct err e;
    CLEANUP_BUF struct buf token = {0};
    memset(buf_extend(&token, 1500), 't', 1500); /* longer than libinih's lines */
    CLEANUP_BUF struct buf text = {0};
    buf_printf(&text, file_text, buf_cstr(&token));
    assert_int_equal(s3_credentials_parse_file(buf_view(&text), "default", &c, &e), 0);
    assert_string_equal(c.access_key_id, "AKDEFAULT");
    assert_secret(&c.secret_access_key, "secret/default=+");
    assert_true(secret_empty(&c.session_token));
    s3_credentials_release(&c);
    assert_int_equal(s3_credentials_parse_file(buf_view(&text), "other", &c, &e), 0);
    assert_string_equal(c.access_key_id, "AKOTHER");
    assert_secret(&c.session_token, buf_cstr(&token));
    s3_credentials_release(&c);
    assert_int_equal(s3_credentials_parse_file(buf_view(&text), "half", &c, &e), -ERR_CONFIG);
    assert_int_equal(s3_credentials_parse_file(buf_view(&text), "none", &c, &e), -ERR_CONFIG);
    assert_non_null(strstr(e.text, "'none'"));
    for (size_t n = 0; n < text.len; n += 3) {
        if (s3_credentials_parse_file(view_of(text.data, n), "other", &c, &e) == 0)
            s3_credentials_release(&c);
    }
}

static int find(struct s3_credentials_source *s, struct err *e) {
    return s3_credentials_source_init(s, NULL, NULL, NULL, "eu-west-1", e);
}

static void test_order(void **state) {
    (void)state;
    struct s3_credentials_source s;
    struct err e;
    clear_environment();
    assert_int_equal(find(&s, &e), -ERR_CONFIG);
    assert_non_null(strstr(e.text, "AWS_ACCESS_KEY_ID"));

    char *folder = temp_folder_new();
    char *path = xasprintf("%s/credentials", folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, file_text, "token");
    fclose(f);
    setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
    setenv("AWS_PROFILE", "other", 1);
    assert_int_equal(find(&s, &e), 0);
    assert_int_equal(s.kind, S3_CREDENTIALS_FILE);
    struct s3_credentials c = {0};
    assert_int_equal(s3_credentials_load(&s, &c, &e), 0);
    assert_string_equal(c.access_key_id, "AKOTHER");
    s3_credentials_release(&c);
    remove(path);
    assert_int_equal(s3_credentials_load(&s, &c, &e), -ERR_CONFIG);
    s3_credentials_source_release(&s);

    f = fopen(path, "w");
    assert_non_null(f);
    fputs("the+token\n", f);
    fclose(f);
    setenv("AWS_WEB_IDENTITY_TOKEN_FILE", path, 1);
    setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r", 1);
    assert_int_equal(find(&s, &e), 0);
    assert_int_equal(s.kind, S3_CREDENTIALS_WEB_IDENTITY);
    assert_string_equal(s.sts_url, "https://sts.eu-west-1.amazonaws.com/");
    CLEANUP_BUF struct buf form = {0};
    assert_int_equal(s3_credentials_sts_form(&s, &form, &e), 0);
    assert_string_equal(buf_cstr(&form),
                        "Action=AssumeRoleWithWebIdentity&DurationSeconds=3600&RoleArn=arn%3Aaws%"
                        "3Aiam%3A%3A1%3Arole%2Fr&RoleSessionName=portalbd&Version=2011-06-15&"
                        "WebIdentityToken=the%2Btoken");
    s3_credentials_source_release(&s);

    setenv("AWS_ACCESS_KEY_ID", "AKENV", 1);
    setenv("AWS_SECRET_ACCESS_KEY", "envsecret", 1);
    assert_int_equal(find(&s, &e), 0);
    assert_int_equal(s.kind, S3_CREDENTIALS_FIXED);
    assert_string_equal(s.fixed.access_key_id, "AKENV");
    s3_credentials_source_release(&s);

    struct secret secret = {0};
    secret_set(&secret, view_of_str("given"));
    assert_int_equal(s3_credentials_source_init(&s, "AKGIVEN", &secret, NULL, "r", &e), 0);
    assert_string_equal(s.fixed.access_key_id, "AKGIVEN");
    assert_secret(&s.fixed.secret_access_key, "given");
    s3_credentials_source_release(&s);
    assert_int_equal(s3_credentials_source_init(&s, "AKGIVEN", NULL, NULL, "r", &e), -ERR_CONFIG);
    assert_int_equal(s3_credentials_source_init(&s, "AK\nX: y", &secret, NULL, "r", &e),
                     -ERR_CONFIG);
    assert_non_null(strstr(e.text, "more than one line"));
    secret_release(&secret);
    free(path);
    temp_folder_free(folder);
}

/* What renews: another key, or none. */
static int renew(void *arg, struct s3_credentials *ret, struct err *e) {
    if (!arg)
        return err_set(e, -ERR_NOT_FOUND, "gone");
    ret->access_key_id = xstrdup(arg);
    secret_set(&ret->secret_access_key, view_of_str("newer"));
    return 0;
}

static void test_renewed(void **state) {
    (void)state;
    struct s3_credentials_source s;
    struct s3_credentials c = {0};
    struct secret secret = {0};
    char key[] = "AKNEW";
    secret_set(&secret, view_of_str("given"));
    assert_int_equal(s3_credentials_source_init(&s, "AKGIVEN", &secret, NULL, "r", NULL), 0);
    s.renew = renew;
    s.renew_arg = key;
    assert_int_equal(s3_credentials_load(&s, &c, NULL), 0);
    assert_string_equal(c.access_key_id, "AKNEW");
    assert_secret(&c.secret_access_key, "newer");
    s.renew_arg = NULL; /* then what was given is better than nothing */
    assert_int_equal(s3_credentials_load(&s, &c, NULL), 0);
    assert_string_equal(c.access_key_id, "AKGIVEN");
    assert_secret(&c.secret_access_key, "given");
    s3_credentials_release(&c);
    s3_credentials_source_release(&s);
    secret_release(&secret);
}

static void test_sts_refusal(void **state) {
    (void)state;
    struct s3_credentials c = {0};
    struct err e;
    assert_int_equal(
        s3_credentials_sts_parse(
            view_of_str("<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>no"
                        "</Message></Error></ErrorResponse>"),
            &c, &e),
        -ERR_DENIED);
    assert_non_null(strstr(e.text, "InvalidIdentityToken"));
    assert_null(c.access_key_id);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_renewed),
        cmocka_unit_test(test_sts_refusal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
