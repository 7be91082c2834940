/* What S3 answers, and what it should not. */
#include "tests/support/test.h"

#include <string.h>

#include "portalbd/objstore/s3_xml.h"

static const char listing[] =
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
    "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\n"
    " <Prefix>p/</Prefix><KeyCount>2</KeyCount><MaxKeys>2</MaxKeys>\n"
    " <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\n"
    " <Contents><Key>p/a+b%2Bc</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;x&quot;</ETag><Size>12</Size><StorageClass>STANDARD</StorageClass></Contents>\n"
    " <Contents><Key>p/%C3%A9</Key><Size>0</Size><Owner><ID>me</ID></Owner></Contents>\n"
    "</ListBucketResult>";

static void test_list(void **state) {
    (void)state;
    struct s3_list l;
    struct err e;
    assert_int_equal(s3_xml_parse_list(view_of_str(listing), 2, &l, &e), 0);
    assert_int_equal(l.count, 2);
    assert_true(l.truncated);
    assert_string_equal(l.entries[0].key, "p/a b+c");
    assert_int_equal(l.entries[0].size, 12);
    assert_string_equal(l.entries[1].key, "p/\xc3\xa9");
    assert_int_equal(l.entries[1].size, 0);
    s3_list_release(&l);
    /* More keys than were asked for. */
    assert_int_equal(s3_xml_parse_list(view_of_str(listing), 1, &l, &e), -ERR_TRANSIENT);
}

/* Y10 for the parser: whatever is cut off, a listing is whole or refused. */
static void test_list_cut_anywhere(void **state) {
    (void)state;
    struct s3_list l;
    struct err e;
    for (size_t n = 0; n < sizeof listing - 1; n++)
        assert_int_equal(s3_xml_parse_list(view_of(listing, n), 2, &l, &e), -ERR_TRANSIENT);
}

static void assert_no_list(const char *xml) {
    struct s3_list l;
    struct err e;
    assert_int_equal(s3_xml_parse_list(view_of_str(xml), 10, &l, &e), -ERR_TRANSIENT);
}

static void test_no_list(void **state) {
    (void)state;
    assert_no_list("<Error><Code>InternalError</Code></Error>");
    assert_no_list("<html><body>proxy</body></html>");
    assert_no_list("<ListBucketResult></ListBucketResult>");
    assert_no_list("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>");
    assert_no_list("<ListBucketResult><IsTruncated>false</IsTruncated>"
                   "<Contents><Key>a</Key></Contents></ListBucketResult>");
    assert_no_list("<ListBucketResult><IsTruncated>false</IsTruncated>"
                   "<Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>");
    assert_no_list("<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false"
                   "</IsTruncated><Contents><Key>a%0</Key><Size>1</Size></Contents>"
                   "</ListBucketResult>");
}

static void test_hostile(void **state) {
    (void)state;
    assert_no_list("<!DOCTYPE a [<!ENTITY b \"bbbbbbbb\"><!ENTITY c \"&b;&b;&b;\">]>"
                   "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>");
    CLEANUP_BUF struct buf deep = {0};
    for (int i = 0; i < 100000; i++)
        buf_append_str(&deep, "<a>");
    assert_no_list(buf_cstr(&deep));
    CLEANUP_BUF struct buf text = {0};
    buf_append_str(&text, "<ListBucketResult><Name>");
    memset(buf_extend(&text, 100000), 'x', 100000);
    buf_append_str(&text, "</Name><IsTruncated>false</IsTruncated></ListBucketResult>");
    assert_no_list(buf_cstr(&text));
    CLEANUP_BUF struct buf name = {0};
    buf_append_str(&name, "<");
    memset(buf_extend(&name, 5000), 'n', 5000);
    buf_append_str(&name, "/>");
    assert_no_list(buf_cstr(&name));
}

static void test_error(void **state) {
    (void)state;
    struct s3_error r;
    assert_true(s3_xml_parse_error(
        view_of_str("<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>The\n"
                    "key</Message><Key>k</Key><Region>eu-west-1</Region></Error>"),
        &r));
    assert_string_equal(r.code, "NoSuchKey");
    assert_string_equal(r.message, "The?key");
    assert_string_equal(r.region, "eu-west-1");
    assert_true(s3_xml_parse_error(
        view_of_str(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>"
            "<Type>Sender</Type><Code>ExpiredTokenException</Code></Error></ErrorResponse>"),
        &r));
    assert_string_equal(r.code, "ExpiredTokenException");
    assert_false(s3_xml_parse_error(view_of_str("404 page not found"), &r));
    assert_false(s3_xml_parse_error(view_of(NULL, 0), &r));
}

static void test_delete(void **state) {
    (void)state;
    CLEANUP_BUF struct buf b = {0};
    const char *keys[] = {"a&b", "<c>"};
    s3_xml_build_delete("p/", keys, 2, &b);
    assert_non_null(strstr(buf_cstr(&b), "<Key>p/a&amp;b</Key>"));
    assert_non_null(strstr(buf_cstr(&b), "<Key>p/&lt;c&gt;</Key>"));
    struct s3_deleted d;
    struct err e;
    assert_int_equal(s3_xml_parse_deleted(view_of_str("<DeleteResult/>"), &d, &e), 0);
    assert_int_equal(d.errors, 0);
    assert_int_equal(
        s3_xml_parse_deleted(
            view_of_str("<DeleteResult><Error><Key>a</Key><Code>NoSuchKey</Code></Error>"
                        "<Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
                        "</DeleteResult>"),
            &d, &e),
        0);
    assert_int_equal(d.errors, 1);
    assert_string_equal(d.first.code, "AccessDenied");
    assert_int_equal(s3_xml_parse_deleted(view_of_str("<Error/>"), &d, &e), -ERR_TRANSIENT);
}

static void test_sts(void **state) {
    (void)state;
    struct s3_sts s;
    struct err e;
    assert_int_equal(
        s3_xml_parse_sts(
            view_of_str("<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/"
                        "2011-06-15/\"><AssumeRoleWithWebIdentityResult><Credentials>"
                        "<AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s3cr3t</SecretAccessKey>"
                        "<SessionToken>token</SessionToken><Expiration>2026-01-02T03:04:05Z"
                        "</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
                        "</AssumeRoleWithWebIdentityResponse>"),
            &s, &e),
        0);
    assert_string_equal(s.access_key_id, "ASIA");
    assert_true(view_equal(secret_reveal(&s.secret_access_key), view_of_str("s3cr3t")));
    assert_int_equal(s.expires_s, 1767323045);
    s3_sts_release(&s);
    assert_int_equal(s3_xml_parse_sts(view_of_str("<Error/>"), &s, &e), -ERR_TRANSIENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list),    cmocka_unit_test(test_list_cut_anywhere),
        cmocka_unit_test(test_no_list), cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_error),   cmocka_unit_test(test_delete),
        cmocka_unit_test(test_sts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
