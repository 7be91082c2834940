/* Signature Version 4 against AWS's published examples:
 * https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html and the
 * "get-vanilla" family of the Signature Version 4 test suite. */
#include "tests/support/test.h"

#include <string.h>

#include "portalbd/objstore/s3_sign.h"

#define EMPTY_SHA256 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

struct example {
    const char *method, *path, *query;
    struct s3_pair headers[8];
    const char *payload_hash;
    const char *signed_headers;
    const char *signature;
};

static void assert_s3_example(const struct example *x) {
    struct secret secret = {0};
    assert_true(secret_set(&secret, view_of_str("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")));
    struct s3_signing s = {.method = x->method,
                           .path = x->path,
                           .query = x->query,
                           .headers = x->headers,
                           .payload_hash = x->payload_hash,
                           .time = "20130524T000000Z",
                           .region = "us-east-1",
                           .service = "s3",
                           .access_key_id = "AKIAIOSFODNN7EXAMPLE",
                           .secret_access_key = &secret};
    while (x->headers[s.header_count].name)
        s.header_count++;
    CLEANUP_BUF struct buf got = {0};
    CLEANUP_BUF struct buf want = {0};
    s3_sign(&s, &got);
    buf_printf(&want,
               "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/"
               "aws4_request, SignedHeaders=%s, Signature=%s",
               x->signed_headers, x->signature);
    assert_string_equal(buf_cstr(&got), buf_cstr(&want));
    secret_release(&secret);
}

static void test_get_object_with_range(void **state) {
    (void)state;
    assert_s3_example(
        &(struct example){"GET",
                          "/test.txt",
                          "",
                          {{"x-amz-date", "20130524T000000Z"},
                           {"range", "bytes=0-9"},
                           {"x-amz-content-sha256", EMPTY_SHA256},
                           {"host", "examplebucket.s3.amazonaws.com"}},
                          EMPTY_SHA256,
                          "host;range;x-amz-content-sha256;x-amz-date",
                          "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"});
}

static void test_put_object(void **state) {
    (void)state;
    struct view body = view_of_str("Welcome to Amazon S3.");
    char hash[S3_SHA256_HEX_LEN + 1];
    s3_sha256_hex(&body, 1, hash);
    assert_string_equal(hash, "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072");
    CLEANUP_BUF struct buf path = {0};
    s3_encode_append("/test$file.text", true, &path);
    assert_string_equal(buf_cstr(&path), "/test%24file.text");
    assert_s3_example(
        &(struct example){"PUT",
                          buf_cstr(&path),
                          "",
                          {{"date", "Fri, 24 May 2013 00:00:00 GMT"},
                           {"host", "examplebucket.s3.amazonaws.com"},
                           {"x-amz-content-sha256", hash},
                           {"x-amz-date", "20130524T000000Z"},
                           {"x-amz-storage-class", "REDUCED_REDUNDANCY"}},
                          hash,
                          "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
                          "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"});
}

static void test_query_without_value(void **state) {
    (void)state;
    assert_s3_example(
        &(struct example){"GET",
                          "/",
                          "lifecycle=",
                          {{"host", "examplebucket.s3.amazonaws.com"},
                           {"x-amz-content-sha256", EMPTY_SHA256},
                           {"x-amz-date", "20130524T000000Z"}},
                          EMPTY_SHA256,
                          "host;x-amz-content-sha256;x-amz-date",
                          "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"});
}

static void test_list_objects(void **state) {
    (void)state;
    CLEANUP_BUF struct buf query = {0};
    s3_query_append((const struct s3_pair[]){{"prefix", "J"}, {"max-keys", "2"}}, 2, &query);
    assert_string_equal(buf_cstr(&query), "max-keys=2&prefix=J");
    assert_s3_example(
        &(struct example){"GET",
                          "/",
                          buf_cstr(&query),
                          {{"host", "examplebucket.s3.amazonaws.com"},
                           {"x-amz-content-sha256", EMPTY_SHA256},
                           {"x-amz-date", "20130524T000000Z"}},
                          EMPTY_SHA256,
                          "host;x-amz-content-sha256;x-amz-date",
                          "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"});
}

static void assert_suite(const char *method, const char *query, const char *signature) {
    struct secret secret = {0};
    assert_true(secret_set(&secret, view_of_str("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")));
    const struct s3_pair headers[] = {{"host", "example.amazonaws.com"},
                                      {"x-amz-date", "20150830T123600Z"}};
    struct s3_signing s = {.method = method,
                           .path = "/",
                           .query = query,
                           .headers = headers,
                           .header_count = 2,
                           .payload_hash = EMPTY_SHA256,
                           .time = "20150830T123600Z",
                           .region = "us-east-1",
                           .service = "service",
                           .access_key_id = "AKIDEXAMPLE",
                           .secret_access_key = &secret};
    CLEANUP_BUF struct buf got = {0};
    s3_sign(&s, &got);
    const char *at = strstr(buf_cstr(&got), "Signature=");
    assert_non_null(at);
    assert_string_equal(at + strlen("Signature="), signature);
    secret_release(&secret);
}

static void test_suite(void **state) {
    (void)state;
    assert_suite("GET", "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
    assert_suite("POST", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b");
    assert_suite("GET", "Param1=value1&Param2=value2",
                 "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500");
}

static void test_encoding(void **state) {
    (void)state;
    CLEANUP_BUF struct buf b = {0};
    s3_encode_append("a/b c+d~e%f\xc3\xa9", false, &b);
    assert_string_equal(buf_cstr(&b), "a%2Fb%20c%2Bd~e%25f%C3%A9");
    buf_clear(&b);
    s3_encode_append("a/b c", true, &b);
    assert_string_equal(buf_cstr(&b), "a/b%20c");
}

static void test_time(void **state) {
    (void)state;
    char text[S3_TIME_LEN + 1];
    s3_time_format(1369353600, text);
    assert_string_equal(text, "20130524T000000Z");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_get_object_with_range),
        cmocka_unit_test(test_put_object),
        cmocka_unit_test(test_query_without_value),
        cmocka_unit_test(test_list_objects),
        cmocka_unit_test(test_suite),
        cmocka_unit_test(test_encoding),
        cmocka_unit_test(test_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
