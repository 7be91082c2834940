/* Tells the kubelet that this driver exists: a socket in its plugins_registry folder, on which it
 * asks who we are and says whether it took us. It watches the folder, so a new kubelet finds us,
 * and one that refused us (the node agent did not answer yet) is made to ask again. */
#pragma once

#include "common/err.h"
#include "common/metrics.h"

struct registration_config {
    const char *socket;      /* ours, in the kubelet's folder; a path or unix:// */
    const char *endpoint;    /* where the kubelet finds the CSI socket: a path of its own view */
    struct metrics *metrics; /* borrowed until registration_free */
};

struct registration;

/* After the CSI socket serves: the kubelet calls it at once. */
int registration_start(const struct registration_config *config, struct registration **ret,
                       struct err *e);
/* Takes the socket away: the kubelet forgets the driver. Once; NULL is fine. */
void registration_stop(struct registration *r);
void registration_free(struct registration *r); /* stopped; NULL is fine */

/* Why the kubelet refused us, into text; false: it did not. Any thread. */
bool registration_refused(struct registration *r, char *text, size_t size);
