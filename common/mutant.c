/* Which deliberate bug is active. Empty in an ordinary build. */
#include "common/mutant.h"

#ifdef MUTANTS
#include <stdlib.h>
#include <string.h>

bool mutant_active(const char *name) {
    static const char *active;
    static bool looked;
    if (!looked) {
        active = getenv("PORTALBD_MUTANT");
        looked = true;
    }
    return active && strcmp(active, name) == 0;
}
#else
typedef int mutant_unused; /* ISO C wants a declaration in every file */
#endif
