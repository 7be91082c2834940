/* Metrics: their text, coming and going of groups, quantiles. */
#include "tests/support/test.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/metrics.h"

static struct metrics *registry;
static struct buf text;

static int setup(void **state) {
    (void)state;
    registry = metrics_new();
    return 0;
}

static int teardown(void **state) {
    (void)state;
    metrics_free(registry);
    buf_release(&text);
    return 0;
}

static const char *rendered(void) {
    buf_clear(&text);
    metrics_render(registry, &text);
    return buf_cstr(&text);
}

static double seven(void *arg) {
    return *(double *)arg;
}

static void test_text(void **state) {
    (void)state;
    struct metrics_counter puts = {0}, gets = {0};
    struct metrics_gauge fill = {0};
    double value = 7.5;
    struct metrics_group *g = metrics_group_new(registry, METRICS_LABELS({"volume", "a\"\\\nb"}));
    metrics_counter_register(g, &puts, "portalbd_requests_total", "Requests.",
                             METRICS_LABELS({"verb", "put"}));
    metrics_gauge_register(g, &fill, "portalbd_journal_bytes", "Bytes in the journal.", NULL);
    metrics_counter_register(g, &gets, "portalbd_requests_total", "Requests.",
                             METRICS_LABELS({"verb", "get"}));
    metrics_gauge_fn_register(g, seven, &value, "portalbd_lag_seconds", "Lag.", NULL);
    metrics_counter_add(&puts, 3);
    metrics_counter_inc(&gets);
    metrics_gauge_set(&fill, -5);
    metrics_gauge_add(&fill, 1);
    assert_string_equal(rendered(),
                        "# HELP portalbd_journal_bytes Bytes in the journal.\n"
                        "# TYPE portalbd_journal_bytes gauge\n"
                        "portalbd_journal_bytes{volume=\"a\\\"\\\\\\nb\"} -4\n"
                        "# HELP portalbd_lag_seconds Lag.\n"
                        "# TYPE portalbd_lag_seconds gauge\n"
                        "portalbd_lag_seconds{volume=\"a\\\"\\\\\\nb\"} 7.5\n"
                        "# HELP portalbd_requests_total Requests.\n"
                        "# TYPE portalbd_requests_total counter\n"
                        "portalbd_requests_total{volume=\"a\\\"\\\\\\nb\",verb=\"put\"} 3\n"
                        "portalbd_requests_total{volume=\"a\\\"\\\\\\nb\",verb=\"get\"} 1\n");
    metrics_group_free(g);
    assert_string_equal(rendered(), "");
}

static void test_groups_come_and_go(void **state) {
    (void)state;
    struct metrics_counter a = {1}, b = {2};
    struct metrics_group *ga = metrics_group_new(registry, METRICS_LABELS({"volume", "a"}));
    struct metrics_group *gb = metrics_group_new(registry, METRICS_LABELS({"volume", "b"}));
    metrics_counter_register(ga, &a, "portalbd_x_total", "X.", NULL);
    metrics_counter_register(gb, &b, "portalbd_x_total", "X.", NULL);
    metrics_counter_register(gb, &b, "portalbd_y_total", "Y.", NULL);
    metrics_group_free(ga);
    assert_null(strstr(rendered(), "volume=\"a\""));
    assert_non_null(strstr(rendered(), "portalbd_x_total{volume=\"b\"} 2\n"));
    metrics_group_free(gb);
    assert_string_equal(rendered(), "");
}

static void test_no_registry_is_fine(void **state) {
    (void)state;
    struct metrics_counter c = {0};
    struct metrics_group *g = metrics_group_new(NULL, NULL);
    metrics_counter_register(g, &c, "portalbd_x_total", "X.", NULL);
    metrics_group_free(g);
}

static void test_histogram_text(void **state) {
    (void)state;
    static struct metrics_histogram h;
    struct metrics_group *g = metrics_group_new(registry, NULL);
    metrics_histogram_register(g, &h, METRICS_MICROSECONDS, "portalbd_put_seconds", "PUTs.", NULL);
    metrics_histogram_add(&h, 0);
    metrics_histogram_add(&h, 64);
    metrics_histogram_add(&h, 65);
    metrics_histogram_add(&h, UINT64_C(3600000000));
    const char *out = rendered();
    assert_non_null(strstr(out, "# TYPE portalbd_put_seconds histogram\n"));
    assert_non_null(strstr(out, "portalbd_put_seconds_bucket{le=\"6.4e-05\"} 2\n"));
    assert_non_null(strstr(out, "portalbd_put_seconds_bucket{le=\"0.000128\"} 3\n"));
    assert_non_null(strstr(out, "portalbd_put_seconds_bucket{le=\"67.108864\"} 3\n"));
    assert_non_null(strstr(out, "portalbd_put_seconds_bucket{le=\"+Inf\"} 4\n"));
    assert_non_null(strstr(out, "portalbd_put_seconds_sum 3600.0001"));
    assert_non_null(strstr(out, "portalbd_put_seconds_count 4\n"));
    metrics_group_free(g);
}

/* Every printed bound counts exactly the values that are not above it. */
static void test_bounds_are_inclusive(void **state) {
    (void)state;
    for (unsigned k = 0; k <= 16; k++) {
        struct metrics_histogram h = {0};
        uint64_t bound = UINT64_C(1) << k;
        struct metrics_group *g = metrics_group_new(registry, NULL);
        metrics_histogram_register(g, &h, METRICS_COUNT, "portalbd_n", "N.", NULL);
        metrics_histogram_add(&h, bound);
        metrics_histogram_add(&h, bound + 1);
        char want[64];
        snprintf(want, sizeof want, "portalbd_n_bucket{le=\"%llu\"} 1\n",
                 (unsigned long long)bound);
        assert_non_null(strstr(rendered(), want));
        metrics_group_free(g);
    }
}

static void test_quantiles(void **state) {
    (void)state;
    static struct metrics_histogram h;
    assert_int_equal(metrics_histogram_quantile(&h, 0.99), 0);
    for (uint64_t v = 1; v <= 10000; v++)
        metrics_histogram_add(&h, v);
    assert_int_equal(metrics_histogram_count(&h), 10000);
    const double qs[] = {0, 0.01, 0.5, 0.9, 0.99, 1};
    for (size_t i = 0; i < ARRAY_LEN(qs); i++) {
        double exact = qs[i] * 10000 < 1 ? 1 : qs[i] * 10000;
        uint64_t got = metrics_histogram_quantile(&h, qs[i]);
        assert_true((double)got >= exact);
        assert_true((double)got <= exact * 1.25 + 1);
    }
    metrics_histogram_add(&h, UINT64_MAX);
    assert_true(metrics_histogram_quantile(&h, 1) > UINT64_C(1) << 40);
}

static void test_results(void **state) {
    (void)state;
    struct metrics_results r = {0};
    struct metrics_group *g = metrics_group_new(registry, NULL);
    metrics_results_register(g, &r, "portalbd_store_requests_total", "By outcome.",
                             METRICS_LABELS({"verb", "put"}));
    metrics_results_add(&r, 0);
    metrics_results_add(&r, -ERR_EXISTS);
    metrics_results_add(&r, -ERR_EXISTS);
    const char *out = rendered();
    assert_non_null(strstr(out, "portalbd_store_requests_total{verb=\"put\",code=\"ok\"} 1\n"));
    assert_non_null(strstr(out, "portalbd_store_requests_total{verb=\"put\",code=\"EXISTS\"} 2\n"));
    assert_null(strstr(out, "TIMEOUT"));
    assert_int_equal(metrics_results_get(&r, -ERR_EXISTS), 2);
    metrics_group_free(g);
}

static void test_long_labels_are_cut_between_characters(void **state) {
    (void)state;
    char value[4 * METRICS_LABEL_VALUE_MAX] = "x";
    for (size_t i = 0; i < METRICS_LABEL_VALUE_MAX; i++)
        strcat(value, "ü");
    struct metrics_counter c = {0};
    struct metrics_group *g = metrics_group_new(registry, METRICS_LABELS({"v", value}));
    metrics_counter_register(g, &c, "portalbd_x_total", "X.", NULL);
    assert_non_null(strstr(rendered(), "ü\"} 0\n"));
    metrics_group_free(g);
}

static void *churn(void *arg) {
    (void)arg;
    static struct metrics_counter c;
    for (int i = 0; i < 300; i++) {
        struct metrics_group *g = metrics_group_new(registry, NULL);
        metrics_counter_register(g, &c, "portalbd_churn_total", "C.", NULL);
        metrics_counter_inc(&c);
        metrics_group_free(g);
    }
    return NULL;
}

static void test_scrapes_while_groups_come_and_go(void **state) {
    (void)state;
    pthread_t threads[2];
    for (size_t i = 0; i < ARRAY_LEN(threads); i++)
        pthread_create(&threads[i], NULL, churn, NULL);
    for (int i = 0; i < 300; i++)
        rendered();
    for (size_t i = 0; i < ARRAY_LEN(threads); i++)
        pthread_join(threads[i], NULL);
    assert_string_equal(rendered(), "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_groups_come_and_go, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_registry_is_fine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_histogram_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bounds_are_inclusive, setup, teardown),
        cmocka_unit_test_setup_teardown(test_quantiles, setup, teardown),
        cmocka_unit_test_setup_teardown(test_results, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_labels_are_cut_between_characters, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_scrapes_while_groups_come_and_go, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
