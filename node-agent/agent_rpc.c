/* gRPC handlers: each runs on a worker thread, hands its question to the agent's owner thread as a
 * fiber and waits there for the answer. */
#include "node-agent/agent_rpc.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

enum { MARGIN_MS = 250 }; /* of the caller's deadline, kept for the way back */

struct question {
    const struct agent_rpc *rpc;
    uint64_t limit_us;
    struct agent_attach attach;
    const char *volume;
    bool force;
    uint64_t size_bytes;

    bool abnormal;
    struct attachment_info info;
    struct attachment_info *items; /* owned; LIST */
    size_t count;
    int rc;
    struct err *e;
};

static int ask(struct rpc_call *call, struct question *q, void (*fn)(void *question),
               struct err *e) {
    q->rpc = rpc_call_user(call);
    q->e = e;
    q->limit_us = q->rpc->wait_us_max;
    int64_t left_ms = rpc_call_time_left_ms(call) - MARGIN_MS;
    if (left_ms < (int64_t)(q->limit_us / 1000))
        q->limit_us = left_ms > 0 ? (uint64_t)left_ms * 1000 : 0;
    loop_call(q->rpc->loop, fn, q);
    return q->rc;
}

static int check_volume(const char *volume, struct err *e) {
    return volume[0] ? 0 : err_set(e, -ERR_INVALID, "volume_id is empty");
}

/* --- attach --- */

static void ask_attach(void *arg) {
    struct question *q = arg;
    q->rc = agent_attach(q->rpc->agent, &q->attach, q->limit_us, &q->info, q->e);
}

/* Keys that are not ours belong to somebody else who shares the Secret. */
static int take_secrets(const Portalbd__Agent__V1__AttachVolumeRequest *request,
                        struct pool_config *ret, struct err *e) {
    for (size_t i = 0; i < request->n_secrets; i++) {
        const char *key = request->secrets[i]->key;
        struct view value = view_of_str(request->secrets[i]->value);
        bool fits = true;
        if (strcmp(key, "access_key_id") == 0) {
            free(ret->access_key_id);
            ret->access_key_id = xstrndup((const char *)value.data, value.len);
        } else if (strcmp(key, "secret_access_key") == 0) {
            fits = secret_set(&ret->secret_access_key, value);
        } else if (strcmp(key, "session_token") == 0) {
            fits = secret_set(&ret->session_token, value);
        }
        if (!fits)
            return err_set(e, -ERR_INVALID, "the secret %s is too long", key);
    }
    if (!ret->access_key_id != secret_empty(&ret->secret_access_key))
        return err_set(e, -ERR_INVALID, "secrets: access_key_id and secret_access_key go together");
    return 0;
}

static int on_attach(struct rpc_call *call, const Portalbd__Agent__V1__AttachVolumeRequest *request,
                     Portalbd__Agent__V1__AttachVolumeResponse *response, struct err *e) {
    CLEANUP(pool_config_release) struct pool_config credentials = {0};
    int rc = check_volume(request->volume_id, e);
    if (rc == 0)
        rc = take_secrets(request, &credentials, e);
    if (rc < 0)
        return rc;
    struct question q = {
        .attach = {.volume = request->volume_id,
                   .publish_epoch = request->publish_epoch,
                   .read_only = request->read_only,
                   .backend = request->backend,
                   .cache_bytes = request->cache_bytes,
                   .journal_bytes = request->journal_bytes,
                   .disk_cache_bytes = request->disk_cache_bytes,
                   .no_disk_cache = request->no_disk_cache,
                   .credentials = credentials.access_key_id ? &credentials : NULL}};
    rc = ask(call, &q, ask_attach, e);
    if (rc < 0)
        return rc;
    response->device_path = rpc_strdup(call, q.info.device);
    response->size_bytes = q.info.size_bytes;
    return 0;
}

/* --- detach, grow --- */

static void ask_detach(void *arg) {
    struct question *q = arg;
    q->rc = agent_detach(q->rpc->agent, q->volume, q->force, q->limit_us, q->e);
}

static int on_detach(struct rpc_call *call, const Portalbd__Agent__V1__DetachVolumeRequest *request,
                     Portalbd__Agent__V1__DetachVolumeResponse *response, struct err *e) {
    (void)response;
    struct question q = {.volume = request->volume_id, .force = request->force};
    int rc = check_volume(request->volume_id, e);
    return rc < 0 ? rc : ask(call, &q, ask_detach, e);
}

static void ask_grow(void *arg) {
    struct question *q = arg;
    q->rc = agent_grow(q->rpc->agent, q->volume, q->size_bytes, q->limit_us, &q->size_bytes, q->e);
}

static int on_grow(struct rpc_call *call, const Portalbd__Agent__V1__GrowVolumeRequest *request,
                   Portalbd__Agent__V1__GrowVolumeResponse *response, struct err *e) {
    struct question q = {.volume = request->volume_id, .size_bytes = request->size_bytes};
    int rc = check_volume(request->volume_id, e);
    if (rc == 0)
        rc = ask(call, &q, ask_grow, e);
    response->size_bytes = q.size_bytes;
    return rc;
}

/* --- questions --- */

static Portalbd__Agent__V1__AttachmentState state_of(enum attachment_phase phase) {
    switch (phase) {
    case ATTACHMENT_ATTACHING:
        return PORTALBD__AGENT__V1__ATTACHMENT_STATE__ATTACHING;
    case ATTACHMENT_ATTACHED:
        return PORTALBD__AGENT__V1__ATTACHMENT_STATE__ATTACHED;
    case ATTACHMENT_RECOVERING:
        return PORTALBD__AGENT__V1__ATTACHMENT_STATE__RECOVERING;
    case ATTACHMENT_DETACHING:
        return PORTALBD__AGENT__V1__ATTACHMENT_STATE__DETACHING;
    case ATTACHMENT_FAILED:
    case ATTACHMENT_GONE:
        return PORTALBD__AGENT__V1__ATTACHMENT_STATE__FAILED;
    }
    return PORTALBD__AGENT__V1__ATTACHMENT_STATE__ATTACHMENT_STATE_UNSPECIFIED;
}

static void ask_list(void *arg) {
    struct question *q = arg;
    q->count = agent_list(q->rpc->agent, q->items, AGENT_ATTACHMENTS_MAX);
}

static Portalbd__Agent__V1__Attachment *answer_item(struct rpc_call *call,
                                                    const struct attachment_info *info) {
    Portalbd__Agent__V1__Attachment *m =
        RPC_NEW(call, Portalbd__Agent__V1__Attachment, portalbd__agent__v1__attachment__init);
    if (!m)
        return NULL;
    m->volume_id = rpc_strdup(call, info->volume);
    m->state = state_of(info->phase);
    m->device_path = rpc_strdup(call, info->device);
    m->publish_epoch = info->publish_epoch;
    m->read_only = info->read_only;
    m->backend = rpc_strdup(call, info->backend);
    m->daemon_pid = info->daemon_pid;
    m->message = rpc_strdup(call, info->message);
    m->size_bytes = info->size_bytes;
    m->restarts = info->restarts;
    return m;
}

static int on_list(struct rpc_call *call,
                   const Portalbd__Agent__V1__ListAttachmentsRequest *request,
                   Portalbd__Agent__V1__ListAttachmentsResponse *response, struct err *e) {
    (void)request;
    CLEANUP_FREE struct attachment_info *items =
        xcalloc(AGENT_ATTACHMENTS_MAX, sizeof(struct attachment_info));
    struct question q = {.items = items};
    ask(call, &q, ask_list, e);
    response->attachments = RPC_NEW_ARRAY(call, Portalbd__Agent__V1__Attachment *, q.count);
    if (!response->attachments)
        return 0; /* the server knows that the call's memory is used up */
    for (size_t i = 0; i < q.count; i++) {
        response->attachments[i] = answer_item(call, &items[i]);
        if (!response->attachments[i])
            break;
        response->n_attachments++;
    }
    return 0;
}

static void ask_health(void *arg) {
    struct question *q = arg;
    q->rc = agent_health(q->rpc->agent, q->volume, &q->abnormal, &q->info, q->e);
}

static int on_health(struct rpc_call *call,
                     const Portalbd__Agent__V1__GetVolumeHealthRequest *request,
                     Portalbd__Agent__V1__GetVolumeHealthResponse *response, struct err *e) {
    struct question q = {.volume = request->volume_id};
    int rc = check_volume(request->volume_id, e);
    if (rc == 0)
        rc = ask(call, &q, ask_health, e);
    if (rc < 0)
        return rc;
    response->abnormal = q.abnormal;
    response->message = rpc_strdup(call, q.info.message);
    response->state = state_of(q.info.phase);
    return 0;
}

static Portalbd__Agent__V1__Backend *answer_backend(struct rpc_call *call,
                                                    const struct agent_backend *b) {
    Portalbd__Agent__V1__Backend *m =
        RPC_NEW(call, Portalbd__Agent__V1__Backend, portalbd__agent__v1__backend__init);
    if (!m)
        return NULL;
    m->name = rpc_strdup(call, b->name);
    m->usable = b->backend != NULL;
    m->note = rpc_strdup(call, b->note);
    return m;
}

static int on_info(struct rpc_call *call, const Portalbd__Agent__V1__GetInfoRequest *request,
                   Portalbd__Agent__V1__GetInfoResponse *response, struct err *e) {
    (void)request;
    (void)e;
    const struct agent_rpc *rpc = rpc_call_user(call);
    const struct agent_config *config = agent_config(rpc->agent); /* does not change */
    response->version = rpc_strdup(call, rpc->version);
    response->node_id = rpc_strdup(call, config->node_id);
    response->default_backend = rpc_strdup(call, agent_default_backend(config));
    response->backends = RPC_NEW_ARRAY(call, char *, config->backend_count);
    response->all_backends =
        RPC_NEW_ARRAY(call, Portalbd__Agent__V1__Backend *, config->backend_count);
    if (!response->backends || !response->all_backends)
        return 0; /* the server knows that the call's memory is used up */
    for (size_t i = 0; i < config->backend_count; i++) {
        const struct agent_backend *b = &config->backends[i];
        Portalbd__Agent__V1__Backend *m = answer_backend(call, b);
        if (!m)
            break;
        response->all_backends[response->n_all_backends++] = m;
        if (b->backend)
            response->backends[response->n_backends++] = rpc_strdup(call, b->name);
    }
    return 0;
}

const struct agent_ops agent_rpc_ops = {
    .attach_volume = on_attach,
    .detach_volume = on_detach,
    .list_attachments = on_list,
    .grow_volume = on_grow,
    .get_volume_health = on_health,
    .get_info = on_info,
};
