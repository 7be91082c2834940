/* Merging the metrics of daemons. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "node-agent/scrape.h"

static const char first[] = "# HELP a_total As.\n"
                            "# TYPE a_total counter\n"
                            "a_total{volume=\"v1\",op=\"read\"} 1\n"
                            "# HELP c Cs.\n"
                            "# TYPE c histogram\n"
                            "c_bucket{pool=\"p\",le=\"1\"} 2\n"
                            "c_sum 3\n";
static const char second[] = "# HELP b Bs.\n"
                             "# TYPE b gauge\n"
                             "b 4\n"
                             "# HELP c Cs.\n"
                             "# TYPE c histogram\n"
                             "c_sum 5\n"
                             "# HELP empty Nothing.\n";

static void test_merge(void **state) {
    (void)state;
    CLEANUP_BUF struct buf out = {0};
    struct scrape *s = scrape_new();
    scrape_add(s, "v1", view_of_str(first));
    scrape_add(s, "v2", view_of_str(second));
    scrape_render(s, &out);
    scrape_free(s);
    assert_string_equal(buf_cstr(&out), "# HELP a_total As.\n"
                                        "# TYPE a_total counter\n"
                                        "a_total{volume=\"v1\",op=\"read\"} 1\n"
                                        "# HELP b Bs.\n"
                                        "# TYPE b gauge\n"
                                        "b{volume=\"v2\"} 4\n"
                                        "# HELP c Cs.\n"
                                        "# TYPE c histogram\n"
                                        "c_bucket{volume=\"v1\",pool=\"p\",le=\"1\"} 2\n"
                                        "c_sum{volume=\"v1\"} 3\n"
                                        "c_sum{volume=\"v2\"} 5\n"
                                        "# HELP empty Nothing.\n");
}

static void test_nonsense(void **state) {
    (void)state;
    static const char *const texts[] = {"",        "\n\n",           "a 1",
                                        "# HELP ", "# HELP  x\na 1", "#",
                                        "# ",      "# HELP a\nb{",   "# TYPE a\na{ } 1\nx"};
    struct scrape *s = scrape_new();
    CLEANUP_BUF struct buf out = {0};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        char *copy = strdup(texts[i]);
        scrape_add(s, "v", view_of(copy, strlen(copy)));
        free(copy);
    }
    for (unsigned i = 0; i < 2 * SCRAPE_FAMILIES_MAX; i++) {
        CLEANUP_BUF struct buf text = {0};
        buf_printf(&text, "# HELP n%u x\nn%u 1\n", i, i);
        scrape_add(s, "v", buf_view(&text));
    }
    scrape_render(s, &out);
    assert_true(out.len < 2 * SCRAPE_FAMILIES_MAX * 64);
    scrape_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_merge),
                                       cmocka_unit_test(test_nonsense)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
