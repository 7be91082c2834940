/* The S3 store's thread.
 *
 *   owner thread                           S3 thread
 *   submit --inbox (mutex), wakeup--> queue --handle free, credentials valid--> active
 *   done <--env_post------------------- finished, refused, cancelled
 *
 * The thread runs curl's multi handle: up to connections_max transfers over kept-alive connections,
 * in the order of their submission. Everything that curl sees belongs to this thread alone; a
 * request belongs to it from the inbox to the post.
 *
 * Credentials are renewed RENEW_EARLY_S before they expire, while requests go on with the old ones;
 * without valid ones requests wait for the renewal under way, or fail with its error.
 *
 * I1 A call is on exactly one list: inbox, queue or active; or it has been posted.
 * I2 A call has a curl handle exactly while it is active. */
#include "portalbd/objstore/s3.h"

#include <signal.h>
#include <stdlib.h>

#include "portalbd/objstore/layer_internal.h"
#include "portalbd/objstore/s3_internal.h"

enum {
    CONNECTIONS_MAX = 64,
    CONNECT_TIMEOUT_MS = 10 * 1000,
    STALL_TIMEOUT_MS = 20 * 1000,
    TOTAL_TIMEOUT_MS = 120 * 1000,
    RENEW_EARLY_S = 300,  /* before credentials expire */
    EXPIRED_EARLY_S = 30, /* from then on they are not used any more */
    RELOAD_PAUSE_S = 5,   /* between two attempts to get credentials */
    IDLE_POLL_MS = 60 * 1000,
    BUSY_POLL_MS = 1000,
    STS_TEXT_MAX = 64 * 1024,
    STACK_SIZE = 512 * 1024,
};

#define CA_FILE "/etc/ssl/certs/ca-certificates.crt"

/* The request to STS, at most one at a time. */
struct sts {
    CURL *easy;      /* NULL: none under way */
    struct buf form; /* secret */
    struct buf text; /* secret */
    char curl_error[CURL_ERROR_SIZE];
};

struct s3_store {
    struct objstore store;
    size_t under_way; /* owner thread's */
    pthread_t thread;

    struct {
        pthread_mutex_t mutex;
        struct list_node calls; /* s3_call.node */
        bool cancels;           /* some call's `cancelled` was set */
        bool stop;
    } inbox;

    /* The S3 thread's, once it runs. */
    CURLM *multi;
    struct s3_client client;
    struct s3_credentials_source source;
    struct list_node queue;
    struct list_node active;
    unsigned active_count;
    unsigned connections_max;
    CURL *idle[CONNECTIONS_MAX]; /* owned handles */
    unsigned idle_count;
    struct sts sts;
    bool stale;            /* the store refused the credentials: load them again */
    uint64_t last_load_s;  /* when that was last tried */
    struct err load_error; /* code 0: the last load went well */
};

static struct s3_store *store_of(struct objstore *store) {
    return container_of(store, struct s3_store, store);
}

/* --- completion --- */

/* Owner thread. */
static void on_done_turn(struct env_event *event) {
    struct obj_request *req = container_of(event, struct obj_request, event);
    struct s3_call *c = req->priv;
    struct s3_store *s = container_of(c->client, struct s3_store, client);
    s->under_way--;
    free(c);
    req->done(req);
}

/* S3 thread: the call leaves it. */
static void post(struct s3_store *s, struct s3_call *c) {
    list_remove(&c->node);
    c->req->event.fn = on_done_turn;
    env_post(s->store.env, &c->req->event);
}

static void deactivate(struct s3_store *s, struct s3_call *c) {
    CHECK(curl_multi_remove_handle(s->multi, c->easy) == CURLM_OK);
    s->idle[s->idle_count++] = c->easy;
    s->active_count--;
    s3_call_release(c);
}

/* --- credentials --- */

static bool have_credentials(const struct s3_store *s) {
    const struct s3_credentials *c = &s->client.credentials;
    return c->access_key_id && (c->expires_s == 0 || s3_now_s() + EXPIRED_EARLY_S < c->expires_s);
}

static bool want_credentials(const struct s3_store *s) {
    const struct s3_credentials *c = &s->client.credentials;
    return !have_credentials(s) || s->stale ||
           (c->expires_s != 0 && s3_now_s() + RENEW_EARLY_S >= c->expires_s);
}

static size_t on_sts_write(char *data, size_t size, size_t count, void *arg) {
    struct sts *sts = arg;
    if (sts->text.len + size * count > STS_TEXT_MAX)
        return 0;
    buf_append(&sts->text, data, size * count);
    return size * count;
}

static void sts_clear(struct sts *sts) {
    secret_wipe(sts->form.data, sts->form.cap);
    secret_wipe(sts->text.data, sts->text.cap);
    buf_release(&sts->form);
    buf_release(&sts->text);
    if (sts->easy)
        curl_easy_cleanup(sts->easy);
    sts->easy = NULL;
}

static void start_sts(struct s3_store *s) {
    struct sts *sts = &s->sts;
    if (s3_credentials_sts_form(&s->source, &sts->form, &s->load_error) < 0) {
        sts_clear(sts);
        return;
    }
    sts->easy = curl_easy_init();
    CHECK(sts->easy);
    s3_easy_setup(&s->client, sts->easy, sts->curl_error);
    curl_easy_setopt(sts->easy, CURLOPT_URL, s->source.sts_url);
    curl_easy_setopt(sts->easy, CURLOPT_POST, 1L);
    curl_easy_setopt(sts->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)sts->form.len);
    curl_easy_setopt(sts->easy, CURLOPT_POSTFIELDS, sts->form.data);
    curl_easy_setopt(sts->easy, CURLOPT_WRITEFUNCTION, on_sts_write);
    curl_easy_setopt(sts->easy, CURLOPT_WRITEDATA, sts);
    CHECK(curl_multi_add_handle(s->multi, sts->easy) == CURLM_OK);
}

static void finish_sts(struct s3_store *s, CURLcode result) {
    struct sts *sts = &s->sts;
    struct err why = {0};
    if (result != CURLE_OK)
        err_set_text(&why, -ERR_TRANSIENT, "STS: %s",
                     sts->curl_error[0] ? sts->curl_error : curl_easy_strerror(result));
    else
        s3_credentials_sts_parse(buf_view(&sts->text), &s->client.credentials, &why);
    err_copy(&s->load_error, &why);
    if (why.code == 0)
        s->stale = false;
    CHECK(curl_multi_remove_handle(s->multi, sts->easy) == CURLM_OK);
    sts_clear(sts);
}

static void load_credentials(struct s3_store *s) {
    uint64_t now_s = s3_now_s();
    bool again_soon = s->last_load_s != 0 && now_s < s->last_load_s + RELOAD_PAUSE_S;
    if (!want_credentials(s) || s->sts.easy || again_soon)
        return;
    s->last_load_s = now_s;
    if (s->source.kind == S3_CREDENTIALS_WEB_IDENTITY) {
        start_sts(s);
        return;
    }
    struct err why = {0};
    s3_credentials_load(&s->source, &s->client.credentials, &why);
    err_copy(&s->load_error, &why);
    s->stale = false;
}

/* --- the thread --- */

static void take_inbox(struct s3_store *s, bool *ret_cancels, bool *ret_stop) {
    pthread_mutex_lock(&s->inbox.mutex);
    struct list_node *n;
    while ((n = list_pop_front(&s->inbox.calls)))
        list_push_back(&s->queue, n);
    *ret_cancels = s->inbox.cancels;
    *ret_stop = s->inbox.stop;
    s->inbox.cancels = false;
    pthread_mutex_unlock(&s->inbox.mutex);
}

static void end_cancelled(struct s3_store *s, struct list_node *list) {
    list_for_each (list, node) {
        struct s3_call *c = list_entry(node, struct s3_call, node);
        if (!__atomic_load_n(&c->cancelled, __ATOMIC_ACQUIRE))
            continue;
        if (c->easy)
            deactivate(s, c);
        obj_request_release(c->req);
        obj_request_fail(c->req, -ERR_CANCELLED, "cancelled");
        post(s, c);
    }
}

static CURL *take_handle(struct s3_store *s) {
    if (s->idle_count > 0)
        return s->idle[--s->idle_count];
    CURL *easy = curl_easy_init();
    CHECK(easy);
    return easy;
}

static void start_calls(struct s3_store *s) {
    if (list_empty(&s->queue))
        return;
    load_credentials(s);
    bool ready = have_credentials(s);
    while (!list_empty(&s->queue) && s->active_count < s->connections_max) {
        struct s3_call *c = list_entry(s->queue.next, struct s3_call, node);
        if (!ready && s->sts.easy)
            return; /* they come soon */
        if (!ready) {
            int rc = s->load_error.code < 0 ? s->load_error.code : -ERR_DENIED;
            obj_request_fail(c->req, rc, "%s",
                             s->load_error.code < 0 ? s->load_error.text
                                                    : "the credentials have expired");
            post(s, c);
            continue;
        }
        list_remove(&c->node);
        s3_call_prepare(c, take_handle(s));
        list_push_back(&s->active, &c->node);
        s->active_count++;
        CHECK(curl_multi_add_handle(s->multi, c->easy) == CURLM_OK);
    }
}

static void end_finished(struct s3_store *s) {
    CURLMsg *msg;
    int left;
    while ((msg = curl_multi_info_read(s->multi, &left))) {
        CURL *easy = msg->easy_handle;
        CURLcode result = msg->data.result;
        if (easy == s->sts.easy) {
            finish_sts(s, result);
            continue;
        }
        char *private = NULL;
        curl_easy_getinfo(easy, CURLINFO_PRIVATE, &private);
        struct s3_call *c = (struct s3_call *)(void *)private;
        if (s3_call_finish(c, result) == S3_HINT_CREDENTIALS)
            s->stale = s->source.kind != S3_CREDENTIALS_FIXED || s->source.renew;
        deactivate(s, c);
        post(s, c);
    }
}

static void *thread_main(void *arg) {
    struct s3_store *s = arg;
    for (;;) {
        bool cancels, stop;
        int running = 0;
        take_inbox(s, &cancels, &stop);
        if (stop)
            return NULL;
        if (cancels) {
            end_cancelled(s, &s->queue);
            end_cancelled(s, &s->active);
        }
        start_calls(s);
        CHECK(curl_multi_perform(s->multi, &running) == CURLM_OK);
        end_finished(s);
        if (!list_empty(&s->queue) && (s->active_count < s->connections_max) && !s->sts.easy)
            continue; /* something ended: there is room */
        bool idle = s->active_count == 0 && !s->sts.easy;
        CHECK(curl_multi_poll(s->multi, NULL, 0, idle ? IDLE_POLL_MS : BUSY_POLL_MS, NULL) ==
              CURLM_OK);
    }
}

/* --- the owner's side --- */

static void wake(struct s3_store *s) {
    curl_multi_wakeup(s->multi);
}

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct s3_store *s = store_of(store);
    obj_request_check(req);
    struct s3_call *c = NEW(struct s3_call);
    c->req = req;
    c->client = &s->client;
    req->priv = c;
    req->rc = 0;
    s->under_way++;
    pthread_mutex_lock(&s->inbox.mutex);
    list_push_back(&s->inbox.calls, &c->node);
    pthread_mutex_unlock(&s->inbox.mutex);
    wake(s);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    struct s3_store *s = store_of(store);
    struct s3_call *c = req->priv; /* lives until on_done_turn, which runs on this thread */
    __atomic_store_n(&c->cancelled, true, __ATOMIC_RELEASE);
    pthread_mutex_lock(&s->inbox.mutex);
    s->inbox.cancels = true;
    pthread_mutex_unlock(&s->inbox.mutex);
    wake(s);
}

static void client_release(struct s3_client *c) {
    free(c->origin);
    free(c->host);
    free(c->base_path);
    free(c->prefix);
    free(c->region);
    free(c->ca_file);
    s3_credentials_release(&c->credentials);
}

static void op_close(struct objstore *store) {
    struct s3_store *s = store_of(store);
    CHECK(s->under_way == 0);
    pthread_mutex_lock(&s->inbox.mutex);
    s->inbox.stop = true;
    pthread_mutex_unlock(&s->inbox.mutex);
    wake(s);
    pthread_join(s->thread, NULL);
    CHECK(list_empty(&s->queue) && list_empty(&s->active));
    if (s->sts.easy)
        curl_multi_remove_handle(s->multi, s->sts.easy);
    sts_clear(&s->sts);
    while (s->idle_count > 0)
        curl_easy_cleanup(s->idle[--s->idle_count]);
    curl_multi_cleanup(s->multi);
    client_release(&s->client);
    s3_credentials_source_release(&s->source);
    pthread_mutex_destroy(&s->inbox.mutex);
    free(s);
}

static const struct objstore_ops s3_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

/* --- opening --- */

static void init_curl(void) {
    CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK);
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static bool is_aws(const char *host) {
    return ends_with(host, ".amazonaws.com") || ends_with(host, ".amazonaws.com.cn");
}

static bool starts_with(const char *s, const char *start) {
    return strncmp(s, start, strlen(start)) == 0;
}

static void client_init(struct s3_client *c, const struct s3_config *config) {
    bool https = starts_with(config->endpoint, "https://");
    CHECK(https || starts_with(config->endpoint, "http://"));
    const char *scheme = https ? "https" : "http";
    const char *host = config->endpoint + strlen(scheme) + 3;
    const char *port = https ? ":443" : ":80";
    size_t host_len = strlen(host) - (ends_with(host, port) ? strlen(port) : 0);
    if (config->path_style) {
        c->host = xstrndup(host, host_len);
        c->base_path = xasprintf("/%s", config->bucket);
    } else {
        c->host = xasprintf("%s.%.*s", config->bucket, (int)host_len, host);
        c->base_path = xstrdup("");
    }
    c->origin = xasprintf("%s://%s", scheme, c->host);
    c->prefix = xstrdup(config->prefix);
    c->region = xstrdup(config->region);
    c->ca_file = xstrdup(config->ca_file ? config->ca_file : CA_FILE);
    c->hash_bodies = !https && is_aws(c->host);
    c->connect_timeout_ms =
        config->connect_timeout_ms ? config->connect_timeout_ms : CONNECT_TIMEOUT_MS;
    c->stall_timeout_ms = config->stall_timeout_ms ? config->stall_timeout_ms : STALL_TIMEOUT_MS;
    c->total_timeout_ms = config->total_timeout_ms ? config->total_timeout_ms : TOTAL_TIMEOUT_MS;
}

/* All signals are for other threads. */
static void start_thread(struct s3_store *s) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_t attr;
    CHECK(pthread_attr_init(&attr) == 0);
    CHECK(pthread_attr_setstacksize(&attr, STACK_SIZE) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &old) == 0);
    CHECK(pthread_create(&s->thread, &attr, thread_main, s) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    pthread_attr_destroy(&attr);
    pthread_setname_np(s->thread, "s3");
}

struct objstore *objstore_s3_open(struct env *env, const struct s3_config *config) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_curl);
    struct s3_store *s = NEW(struct s3_store);
    s->store = (struct objstore){.ops = &s3_ops, .env = env};
    client_init(&s->client, config);
    s->source = *config->source;
    *config->source = (struct s3_credentials_source){0};
    s->connections_max = config->connections_max ? config->connections_max : CONNECTIONS_MAX;
    CHECK(s->connections_max <= CONNECTIONS_MAX);
    pthread_mutex_init(&s->inbox.mutex, NULL);
    list_init(&s->inbox.calls);
    list_init(&s->queue);
    list_init(&s->active);
    s->multi = curl_multi_init();
    CHECK(s->multi);
    CHECK(curl_multi_setopt(s->multi, CURLMOPT_MAXCONNECTS, (long)s->connections_max + 1) ==
          CURLM_OK);
    CHECK(curl_multi_setopt(s->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS,
                            (long)s->connections_max + 1) == CURLM_OK);
    start_thread(s);
    return &s->store;
}
