/* portalctl: what the daemons of this node say. */
#include <stdlib.h>
#include <string.h>

#include "portalbd/control/client.h"
#include "portalbd/daemon/portalctl_internal.h"

/* --- daemons --- */

static int not_served(struct ctl *c, struct err *e) {
    return err_set(e, -ERR_NOT_FOUND, "no daemon of this node serves volume '%s' (run folder %s)",
                   c->argv[0], c->config.run_dir);
}

static int ask_about(struct ctl *c, const char *verb, struct err *e) {
    char id[ID_MAX];
    if (!ctl_find_daemon(c, c->argv[0], id))
        return not_served(c, e);
    int rc = ctl_check_store_of(c, id, e);
    return rc < 0 ? rc : ctl_ask(c, id, verb, NULL, &c->result, e);
}

/* All of this node: the few members that a table has room for. */
static int status_all(struct ctl *c, struct err *e) {
    static const char *const columns[] = {"volume",          "name", "health", "size_bytes",
                                          "unflushed_bytes", "why"};
    char **ids;
    size_t count;
    int rc = control_list(c->config.run_dir, &ids, &count, e);
    if (rc < 0)
        return rc;
    c->result = json_array();
    for (size_t i = 0; i < count; i++) {
        json_t *status = NULL;
        if ((ctl_is_id(ids[i], ID_VOLUME) || ctl_is_id(ids[i], ID_SNAPSHOT)) &&
            ctl_ask(c, ids[i], "status", NULL, &status, NULL) == 0) {
            json_t *row = c->config.output == OUTPUT_JSON ? json_incref(status) : json_object();
            for (size_t k = 0; k < ARRAY_LEN(columns); k++)
                json_object_set(row, columns[k], json_object_get(status, columns[k]));
            json_array_append_new(c->result, row);
        }
        json_decref(status);
        free(ids[i]);
    }
    free(ids);
    return 0;
}

int ctl_status(struct ctl *c, struct err *e) {
    return c->argv[0] ? ask_about(c, "status", e) : status_all(c, e);
}

int ctl_stats(struct ctl *c, struct err *e) {
    return ask_about(c, "stats", e);
}

int ctl_flush(struct ctl *c, struct err *e) {
    return ask_about(c, "flush", e);
}
