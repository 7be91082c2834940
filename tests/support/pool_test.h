/* What every cmocka program on a pool_fixture begins with: one fixture, new for each test. */
#pragma once

#include "tests/support/pool_fixture.h"
#include "tests/support/test.h"

static struct pool_fixture fixture;

/* The setup function of the tests, with the seed that their fixture starts from. */
#define POOL_TEST_SETUP(seed)                                                                      \
    static int setup(void **state) {                                                               \
        pool_fixture_init(&fixture, (seed));                                                       \
        *state = &fixture;                                                                         \
        return 0;                                                                                  \
    }

static inline int teardown(void **state) {
    pool_fixture_release(*state);
    return 0;
}
