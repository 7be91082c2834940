/* What a service manager is told (sd_notify(3)): datagrams to the socket that $NOTIFY_SOCKET names.
 * Without that variable nothing happens. */
#pragma once

/* The program serves. Blocks for a datagram; main thread. The variable is gone afterwards: children
 * are not the service. */
void service_ready(void);
