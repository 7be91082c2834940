/* A layer that fails chosen requests: what a front end does with an error is tested with it. */
#pragma once

#include "portalbd/blockdev/blockdev.h"

/* Owns `below`. Lets everything through until bd_fault_arm. */
struct blockdev *bd_fault_open(struct blockdev *below);

/* The nth request from now (1: the next) of this operation ends with rc (-ERR_x) and does not reach
 * the device below; with `always`, so do all after it. rc 0 disarms. */
void bd_fault_arm(struct blockdev *fault, enum bd_op op, unsigned nth, int rc, bool always);
