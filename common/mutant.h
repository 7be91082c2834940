/* Deliberate bugs and deliberate deaths, to prove that the tests would find them. They exist only
 * in a build with -DMUTANTS (make MUTANTS=1, in a build folder of its own). There the environment
 * variable PORTALBD_MUTANT names the bug that is active, and PORTALBD_FAULT_AT=N kills the process
 * at the N-th FAULT_POINT that it comes to, whose name goes to stderr. */
#pragma once

#include "common/base.h"

#ifdef MUTANTS
bool mutant_active(const char *name);
void fault_point(const char *name);
#define MUTANT(name)      mutant_active(name)
#define FAULT_POINT(name) fault_point(name)
#else
#define MUTANT(name)      false
#define FAULT_POINT(name) ((void)0)
#endif
