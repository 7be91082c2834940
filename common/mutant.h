/* Deliberate bugs, to prove that the tests would find them. They exist only in a build with
 * -DMUTANTS (make MUTANTS=1, in a build folder of its own); there the environment variable
 * PORTALBD_MUTANT names the one that is active. */
#pragma once

#include "common/base.h"

#ifdef MUTANTS
bool mutant_active(const char *name);
#define MUTANT(name) mutant_active(name)
#else
#define MUTANT(name) false
#endif
