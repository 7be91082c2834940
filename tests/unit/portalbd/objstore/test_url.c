/* Pools' URLs and settings. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/objstore/url.h"

static void assert_s3(const char *url, const char *bucket, const char *prefix) {
    struct objstore_url u;
    struct err e = {0};
    assert_int_equal(objstore_url_parse(url, &u, &e), 0);
    assert_int_equal(u.scheme, OBJ_SCHEME_S3);
    assert_string_equal(u.bucket, bucket);
    assert_string_equal(u.prefix, prefix);
}

static void assert_refused(const char *url) {
    struct objstore_url u;
    struct err e = {0};
    assert_int_equal(objstore_url_parse(url, &u, &e), -ERR_CONFIG);
    assert_true(strlen(e.text) > 10);
    assert_null(strstr(e.text, "sesame"));
}

static void test_urls(void **state) {
    (void)state;
    struct objstore_url u;
    struct err e;
    assert_s3("s3://bucket", "bucket", "");
    assert_s3("s3://bucket/", "bucket", "");
    assert_s3("s3://my.bucket-1/a/b", "my.bucket-1", "a/b/");
    assert_s3("s3://bucket/a/b/", "bucket", "a/b/");
    assert_int_equal(objstore_url_parse("file:///var/lib/pool", &u, &e), 0);
    assert_int_equal(u.scheme, OBJ_SCHEME_FILE);
    assert_string_equal(u.path, "/var/lib/pool");
    assert_int_equal(objstore_url_parse("memory:", &u, &e), 0);
    assert_refused("");
    assert_refused("bucket/prefix");
    assert_refused("http://bucket/prefix");
    assert_refused("s3://");
    assert_refused("s3:///prefix");
    assert_refused("s3://b");
    assert_refused("s3://bu cket/x");
    assert_refused("s3://bucket//x");
    assert_refused("s3://bucket/a/../b");
    assert_refused("s3://bucket/a?b");
    assert_refused("file://relative/path");
    assert_refused("memory:x");
    assert_refused("s3://me:sesame@bucket/x");
    assert_refused("s3://me:ses/sesame@bucket");
    assert_refused("https://me:sesame@bucket/x");
    assert_s3("s3://bucket/a@b", "bucket", "a@b/");
    char longer[2000];
    memset(longer, 'a', sizeof longer);
    memcpy(longer, "s3://", 5);
    longer[sizeof longer - 1] = '\0';
    assert_refused(longer);
    longer[70] = '\0';
    assert_refused(longer);
    memcpy(longer, "s3://bucket/", 12);
    longer[70] = 'a';
    longer[600] = '\0';
    assert_refused(longer);
}

static int open_code(struct loop *loop, const struct objstore_config *config) {
    struct objstore *s;
    struct err e = {0};
    int rc = objstore_open(loop, config, &s, &e);
    if (rc == 0)
        objstore_close(s);
    assert_null(strstr(e.text, "sesame"));
    return rc;
}

static void test_open(void **state) {
    (void)state;
    setenv("HOME", "/nonexistent", 1);
    static const char *const names[] = {
        "AWS_ACCESS_KEY_ID",   "AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE", "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_REGION"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        unsetenv(names[i]);
    struct loop *loop = loop_new(1);
    struct secret secret = {0};
    secret_set(&secret, view_of_str("secret"));
    struct objstore_config c = {.url = "s3://bucket/x"};
    assert_int_equal(open_code(loop, &c), -ERR_CONFIG); /* no credentials */
    c.access_key_id = "AK";
    c.secret_access_key = &secret;
    assert_int_equal(open_code(loop, &c), 0);
    c.endpoint = "127.0.0.1:9000";
    assert_int_equal(open_code(loop, &c), -ERR_CONFIG);
    c.endpoint = "http://127.0.0.1:9000/";
    assert_int_equal(open_code(loop, &c), 0);
    c.endpoint = "http://me:sesame@host";
    assert_int_equal(open_code(loop, &c), -ERR_CONFIG);
    c.endpoint = "https://host/path";
    assert_int_equal(open_code(loop, &c), -ERR_CONFIG);
    c.endpoint = NULL;
    c.region = "not a region";
    assert_int_equal(open_code(loop, &c), -ERR_CONFIG);
    struct metrics *metrics = metrics_new();
    assert_int_equal(
        open_code(loop,
                  &(struct objstore_config){.url = "memory:", .metrics = metrics, .pool = "p"}),
        0);
    metrics_free(metrics);
    secret_release(&secret);
    loop_free(loop);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_urls),
        cmocka_unit_test(test_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
