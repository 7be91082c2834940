/* The control socket of one volume: <run folder>/<volume>.sock, mode 0600. */
#pragma once

#include "common/fiber.h"
#include "common/loop.h"
#include "portalbd/control/wire.h"

enum {
    CONTROL_CONNECTIONS_MAX = 32, /* more wait to be accepted */
};

struct control_server;

struct control_server_config {
    struct loop *loop;
    const char *run_dir; /* borrowed for the call */
    const char *volume;  /* id; borrowed for the call */
    /* fiber. Does what a request asks for. 0 and *ret_result (an object, owned by the caller), or
     * -ERR_x with a sentence. *ret_fd is -1; a descriptor that is put there goes to the client with
     * the result and is the server's from then on, which closes it. Requests of one connection come
     * one after the other, those of several at a time. Cancelled when the server stops. */
    int (*handle)(void *arg, const char *verb, const json_t *args, json_t **ret_result, int *ret_fd,
                  struct err *e);
    void *arg;
};

/* Who holds the volume's lock calls this: a socket that is there is a dead process's and is
 * replaced. */
int control_server_start(const struct control_server_config *config, struct control_server **ret,
                         struct err *e);

/* fiber. Takes the socket away, cancels what is being handled, waits for it and frees the server.
 */
void control_server_stop(struct control_server *s);
