/* Which deliberate bug is active, and when to die. Empty in an ordinary build. */
#include "common/mutant.h"

#ifdef MUTANTS
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool mutant_active(const char *name) {
    static const char *active;
    static bool looked;
    if (!looked) {
        active = getenv("PORTALBD_MUTANT");
        looked = true;
    }
    return active && strcmp(active, name) == 0;
}

void fault_point(const char *name) {
    static long left = -1; /* to the one that kills; 0: none does */
    if (left < 0) {
        const char *at = getenv("PORTALBD_FAULT_AT");
        left = at ? atol(at) : 0;
    }
    if (left == 0 || --left > 0)
        return;
    fprintf(stderr, "fault point: %s\n", name);
    kill(getpid(), SIGKILL);
}
#else
typedef int mutant_unused; /* ISO C wants a declaration in every file */
#endif
