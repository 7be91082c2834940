/* What every unit test includes first: cmocka with the headers that it wants. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/err.h"

/* A check that fails in a fiber, or on another thread, cannot jump back into cmocka: it says what
 * it saw and ends the program. Lines stay whole beside those of the log, tests/run counts them. */
__attribute__((constructor)) static inline void set_up_cmocka(void) {
    setenv("CMOCKA_TEST_ABORT", "1", 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

/* Fails with the text of an error. e: of what returned rc; may be NULL. */
static inline void ok(int rc, const struct err *e) {
    if (rc < 0)
        fail_msg("%s: %s", err_code_name(rc), e ? e->text : "");
}
