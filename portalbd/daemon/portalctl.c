/* portalctl: pools, volumes and snapshots from the command line.
 *
 * A command runs in a fiber of a loop on the main thread and blocks it; nothing else happens there.
 * Where a daemon of this node has the volume open, its control socket is asked (docs/control.md);
 * otherwise the store alone (the catalog) is enough.
 *
 * Results go to stdout, as a table or as JSON; everything else to stderr. */
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/log.h"
#include "common/mem.h"
#include "portalbd/catalog/background.h"
#include "portalbd/control/client.h"
#include "portalbd/daemon/pool.h"

#define SECONDS(n) (UINT64_C(1000000) * (n))

/* --- options --- */

struct config {
    struct pool_options pool;
    char *run_dir;
    uint64_t timeout_us;
    int output;
    uint64_t size;
    char *source;
    char *cluster_id;
    bool any_cluster;
    bool force;
    bool yes;
    int log_level;
};

enum command {
    POOL_CREATE,
    POOL_CHECK,
    POOL_DELETE,
    VOLUME_CREATE,
    VOLUME_LIST,
    VOLUME_SHOW,
    VOLUME_GROW,
    VOLUME_CLONE,
    VOLUME_DELETE,
    SNAPSHOT_CREATE,
    SNAPSHOT_LIST,
    SNAPSHOT_SHOW,
    SNAPSHOT_DELETE,
    STATUS,
    STATS,
    FLUSH,
    GC,
};

enum { OUTPUT_TABLE, OUTPUT_JSON };
static const char *const output_names[] = {"table", "json", NULL};

static const struct option_spec options[] = {
    POOL_OPTION_SPECS(config),
    {"run-dir", OPTION_STRING, offsetof(struct config, run_dir), .def = RUN_DIR_DEFAULT,
     .arg = "DIR", .group = "General",
     .help = "Where the daemons of this node have their control "
             "sockets."},
    {"timeout", OPTION_DURATION, offsetof(struct config, timeout_us), .def = "60s",
     .min = 1000 * 1000, .max = SECONDS(86400),
     .help = "How long to wait for the store, or for a daemon."},
    {"output", OPTION_ENUM, offsetof(struct config, output), .letter = 'o', .def = "table",
     .choices = output_names, .help = "How results look."},
    {"log-level", OPTION_ENUM, offsetof(struct config, log_level), .def = "warn",
     .choices = log_level_names, .help = "The least important lines to print."},
    {"size", OPTION_SIZE, offsetof(struct config, size), .letter = 's', .group = "Commands",
     .commands = OPTION_FOR(VOLUME_CREATE) | OPTION_FOR(VOLUME_CLONE),
     .help = "Size of the volume: 100G and 100Gi are both multiples of 1024; rounded up to 4096."},
    {"source", OPTION_STRING, offsetof(struct config, source), .arg = "ID",
     .commands = OPTION_FOR(VOLUME_CREATE), .help = "Snapshot or volume to clone, by id."},
    {"cluster-id", OPTION_STRING, offsetof(struct config, cluster_id),
     .commands = OPTION_FOR(POOL_CREATE) | OPTION_FOR(POOL_CHECK),
     .help = "The cluster that the pool is for."},
    {"any-cluster", OPTION_BOOL, offsetof(struct config, any_cluster),
     .commands = OPTION_FOR(POOL_CREATE) | OPTION_FOR(POOL_CHECK),
     .help = "Use a pool although it is another cluster's."},
    {"force", OPTION_BOOL, offsetof(struct config, force), .letter = 'f',
     .commands = OPTION_FOR(VOLUME_DELETE), .help = "Also a volume that is published to a node."},
    {"yes", OPTION_BOOL, offsetof(struct config, yes), .letter = 'y',
     .commands = OPTION_FOR(POOL_DELETE), .help = "Really: every volume and snapshot is lost."},
    {0}};

static const struct option_command commands[] = {
    [POOL_CREATE] = {"pool create", NULL, 0, 0,
                     "make the pool; prove first that the store keeps what it promises"},
    [POOL_CHECK] = {"pool check", NULL, 0, 0, "is there a pool, and can it be used?"},
    [POOL_DELETE] = {"pool delete", NULL, 0, 0, "delete everything under the pool's prefix"},
    [VOLUME_CREATE] = {"volume create", "NAME", 1, 1, "create a volume of --size"},
    [VOLUME_LIST] = {"volume list", NULL, 0, 0, "the volumes of the pool"},
    [VOLUME_SHOW] = {"volume show", "VOLUME", 1, 1, "one volume"},
    [VOLUME_GROW] = {"volume grow", "VOLUME SIZE", 2, 2,
                     "make it larger; it may be in use on this node, or closed"},
    [VOLUME_CLONE] = {"volume clone", "SOURCE NAME", 2, 2,
                      "a new volume with the content of a volume or of volume@snapshot"},
    [VOLUME_DELETE] = {"volume delete", "VOLUME", 1, 1, "delete it; its snapshots and clones stay"},
    [SNAPSHOT_CREATE] = {"snapshot create", "VOLUME NAME", 2, 2,
                         "what the volume holds now, as volume@name"},
    [SNAPSHOT_LIST] = {"snapshot list", "[VOLUME]", 0, 1,
                       "the snapshots of the pool, or of one "
                       "volume"},
    [SNAPSHOT_SHOW] = {"snapshot show", "SNAPSHOT", 1, 1, "one snapshot"},
    [SNAPSHOT_DELETE] = {"snapshot delete", "SNAPSHOT", 1, 1, "delete it"},
    [STATUS] = {"status", "[VOLUME]", 0, 1, "how volumes that this node serves are"},
    [STATS] = {"stats", "VOLUME", 1, 1, "counters of the daemon that serves the volume here"},
    [FLUSH] = {"flush", "VOLUME", 1, 1, "wait until everything written is in the store"},
    [GC] = {"gc", NULL, 0, 0, "finish deletions that died half way, free what nobody needs"},
    {0}};

static const struct option_program program = {
    .name = "portalctl",
    .summary = "manages pools, volumes and snapshots",
    .description =
        "A VOLUME is a name or an id; a SNAPSHOT is volume@name, another name, or an id. Exit "
        "codes: 0 done, 1 failed, 2 the command line, 3 there is no such thing, 4 it exists "
        "already "
        "and differs, 5 it is in use, 6 the store or the daemon did not answer in time.",
    .env_prefix = "PORTALBD_",
    .options = options,
    .commands = commands,
};

static int exit_code_of(int rc) {
    switch (-rc) {
    case 0:
        return 0;
    case ERR_INVALID:
    case ERR_NO_SPACE:
        return 2;
    case ERR_NOT_FOUND:
        return 3;
    case ERR_EXISTS:
        return 4;
    case ERR_IN_USE:
    case ERR_FENCED:
        return 5;
    case ERR_TIMEOUT:
    case ERR_TRANSIENT:
    case ERR_BUSY:
    case ERR_STALE:
    case ERR_CANCELLED:
        return 6;
    default:
        return 1;
    }
}

struct ctl {
    struct config config;
    enum command command;
    char **argv;
    struct loop *loop;
    struct env *env;
    struct fiber *fiber;
    struct err refused; /* by the store, in a way that waiting does not heal */
    struct pool pool;
    struct catalog *catalog; /* of pool */
    json_t *result;          /* an object, or an array of them */
    int rc;
    struct err e;
};

/* --- results --- */

static void format_bytes(uint64_t bytes, char *text, size_t size) {
    static const char *const units[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
    unsigned unit = 0;
    double value = (double)bytes;
    while (value >= 1024 && unit + 1 < ARRAY_LEN(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(text, size, value == (double)(uint64_t)value ? "%.0f%s" : "%.1f%s", value,
             units[unit]);
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

/* A value as a table shows it. */
static void format_value(const char *name, const json_t *value, char *text, size_t size) {
    uint64_t number = (uint64_t)json_integer_value(value);
    if (json_is_string(value)) {
        snprintf(text, size, "%s", json_string_value(value)[0] ? json_string_value(value) : "-");
    } else if (json_is_boolean(value)) {
        snprintf(text, size, "%s", json_is_true(value) ? "yes" : "no");
    } else if (json_is_integer(value) && ends_with(name, "bytes")) {
        format_bytes(number, text, size);
    } else if (json_is_integer(value) && ends_with(name, "_ms")) {
        time_t seconds = (time_t)(number / 1000);
        struct tm tm;
        strftime(text, size, "%Y-%m-%d %H:%M:%S", gmtime_r(&seconds, &tm));
    } else {
        char *dump = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        snprintf(text, size, "%s", dump ? dump : "?");
        free(dump);
    }
}

enum { CELL = 160, COLUMNS_MAX = 16 };

static void print_rows(const json_t *rows) {
    const char *names[COLUMNS_MAX];
    int widths[COLUMNS_MAX] = {0};
    size_t columns = 0;
    json_t *value;
    const char *name;
    char cell[CELL];
    json_object_foreach(json_array_get(rows, 0), name, value) {
        if (columns < COLUMNS_MAX)
            names[columns++] = name;
    }
    for (size_t c = 0; c < columns; c++) {
        widths[c] = (int)strlen(names[c]);
        for (size_t r = 0; r < json_array_size(rows); r++) {
            format_value(names[c], json_object_get(json_array_get(rows, r), names[c]), cell, CELL);
            widths[c] = MAX(widths[c], (int)strlen(cell));
        }
    }
    for (size_t c = 0; c < columns; c++)
        printf("%-*s%s", c + 1 < columns ? widths[c] : 0, names[c], c + 1 < columns ? "  " : "\n");
    for (size_t r = 0; r < json_array_size(rows); r++) {
        for (size_t c = 0; c < columns; c++) {
            format_value(names[c], json_object_get(json_array_get(rows, r), names[c]), cell, CELL);
            printf("%-*s%s", c + 1 < columns ? widths[c] : 0, cell, c + 1 < columns ? "  " : "\n");
        }
    }
}

static void print_members(const json_t *object, int indent) {
    const char *name;
    json_t *value;
    char cell[1024];
    json_object_foreach((json_t *)object, name, value) {
        if (json_is_object(value)) {
            printf("%*s%s:\n", indent, "", name);
            print_members(value, indent + 2);
        } else {
            format_value(name, value, cell, sizeof cell);
            printf("%*s%-*s %s\n", indent, "", 20 - indent, name, cell);
        }
    }
}

static void print_result(const struct ctl *c) {
    if (!c->result)
        return;
    if (c->config.output == OUTPUT_JSON) {
        json_dumpf(c->result, stdout, JSON_INDENT(2));
        printf("\n");
    } else if (json_is_array(c->result)) {
        print_rows(c->result);
    } else {
        print_members(c->result, 0);
    }
}

/* --- things as JSON --- */

static const char *const state_names[] = {[VOLUME_READY] = "ready",
                                          [VOLUME_FENCING] = "fencing",
                                          [VOLUME_RESTORING] = "restoring",
                                          [VOLUME_DELETED] = "deleted"};

static json_t *encode_volume(const struct volume_info *i) {
    const struct volume_record *r = &i->record;
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:b,s:I,s:s,s:I}", "name", r->name, "id", i->id,
                     "size_bytes", (json_int_t)i->size_bytes, "state", state_names[r->state],
                     "node", r->node, "closed", i->closed, "publish_epoch",
                     (json_int_t)r->publish_epoch, "source", r->source, "created_ms",
                     (json_int_t)r->created_ms);
}

static json_t *encode_snapshot(const struct snapshot_info *i) {
    const struct snapshot_record *r = &i->record;
    return json_pack("{s:s,s:s,s:s,s:s,s:I,s:I}", "name", r->name, "id", i->id, "volume",
                     i->source_id, "volume_name", r->source_name, "size_bytes",
                     (json_int_t)r->size_bytes, "created_ms", (json_int_t)r->created_ms);
}

/* --- finding things --- */

static bool is_id(const char *text, enum id_kind kind) {
    struct parsed_id id;
    return id_parse(&id, text, NULL) == 0 && id.kind == kind;
}

/* A daemon waits for such a store; a person wants to know. */
static void on_trouble(void *arg, const struct err *why) {
    struct ctl *c = arg;
    if (!why || (why->code != -ERR_NO_BUCKET && why->code != -ERR_DENIED))
        return;
    c->refused = *why;
    fiber_cancel(c->fiber);
}

static int need_pool(struct ctl *c, struct err *e) {
    if (c->catalog)
        return 0;
    struct pool_how how = {.give_up_us = c->config.timeout_us,
                           .make_folder = c->command == POOL_CREATE,
                           .on_trouble = on_trouble,
                           .arg = c};
    int rc = pool_open(c->loop, &c->config.pool, &how, &c->pool, e);
    if (rc < 0)
        return rc;
    c->catalog = &c->pool.catalog;
    if (c->command == POOL_CREATE || c->command == POOL_DELETE)
        return 0;
    struct pool_record record;
    struct pool_create any = {.allow_other_cluster = true};
    rc = catalog_pool_check(c->catalog, &any, &record, e);
    if (rc == 0)
        pool_record_release(&record);
    return rc;
}

static int find_volume(struct ctl *c, const char *name, struct volume_info *ret, struct err *e) {
    int rc = need_pool(c, e);
    if (rc < 0)
        return rc;
    return is_id(name, ID_VOLUME) ? catalog_volume_get(c->catalog, name, ret, e)
                                  : catalog_volume_find(c->catalog, name, ret, e);
}

static int find_snapshot(struct ctl *c, const char *name, struct snapshot_info *ret,
                         struct err *e) {
    int rc = need_pool(c, e);
    if (rc < 0)
        return rc;
    return is_id(name, ID_SNAPSHOT) ? catalog_snapshot_get(c->catalog, name, ret, e)
                                    : catalog_snapshot_find(c->catalog, name, ret, e);
}

static int ask(struct ctl *c, const char *volume, const char *verb, json_t *args, json_t **ret,
               struct err *e) {
    int rc = control_call(c->config.run_dir, volume, verb, args, c->config.timeout_us, ret, e);
    json_decref(args);
    return rc;
}

/* The id of a volume that a daemon of this node serves, by id or name: asks the daemons, so that it
 * works without the store. False: none does. */
static bool find_served(struct ctl *c, const char *name, char ret_id[ID_MAX]) {
    char **ids = NULL;
    size_t count = 0;
    bool found = false;
    if (control_list(c->config.run_dir, &ids, &count, NULL) < 0)
        return false;
    for (size_t i = 0; i < count; i++) {
        json_t *status = NULL;
        if (!found && strlen(ids[i]) < ID_MAX &&
            (is_id(ids[i], ID_VOLUME) || is_id(ids[i], ID_SNAPSHOT))) {
            if (strcmp(ids[i], name) == 0)
                found = control_is_live(c->config.run_dir, ids[i]);
            else if (ask(c, ids[i], "status", NULL, &status, NULL) == 0)
                found = strcmp(json_string_value(json_object_get(status, "name")) ?: "", name) == 0;
            if (found)
                strcpy(ret_id, ids[i]);
        }
        json_decref(status);
        free(ids[i]);
    }
    free(ids);
    return found;
}

/* The daemon's volume when there is one (also one that was attached by id alone). */
static bool find_daemon(struct ctl *c, const char *name, char ret_id[ID_MAX]) {
    if (find_served(c, name, ret_id))
        return true;
    struct volume_info info;
    if (is_id(name, ID_VOLUME) || find_volume(c, name, &info, NULL) < 0)
        return false;
    memcpy(ret_id, info.id, ID_MAX);
    volume_info_release(&info);
    return control_is_live(c->config.run_dir, ret_id);
}

/* "volume@name": what portalctl calls a snapshot of a volume. */
static char *snapshot_name(const char *volume, const char *name) {
    return strchr(name, '@') ? xstrdup(name) : xasprintf("%s@%s", volume, name);
}

/* --- pool --- */

static int pool_create_or_check(struct ctl *c, struct err *e) {
    struct pool_create options_ = {.cluster_id = c->config.cluster_id,
                                   .allow_other_cluster = c->config.any_cluster};
    struct pool_record record;
    int rc = need_pool(c, e);
    if (rc == 0)
        rc = c->command == POOL_CREATE ? catalog_pool_create(c->catalog, &options_, &record, e)
                                       : catalog_pool_check(c->catalog, &options_, &record, e);
    if (rc < 0)
        return rc;
    char uuid[RANDOM_ID_HEX];
    random_id_to_hex(&record.uuid, uuid);
    c->result = json_pack("{s:s,s:s,s:s,s:b,s:I}", "pool", c->pool.name, "uuid", uuid, "cluster_id",
                          record.cluster_id, "conditional_put", record.conditional_put,
                          "created_ms", (json_int_t)record.created_ms);
    pool_record_release(&record);
    return 0;
}

/* Everything goes but what others may have put there; the pool's own record goes last, so that a
 * deletion that was cut off can be repeated. */
static int pool_delete(struct ctl *c, struct err *e) {
    enum { BATCH = OBJ_LIST_MAX };
    char pool_key[KEY_MAX];
    uint64_t deleted = 0;
    if (!c->config.yes)
        return err_set(e, -ERR_INVALID,
                       "pool delete: every volume and snapshot of the pool is lost; say --yes");
    int rc = need_pool(c, e);
    key_pool(pool_key);
    static const char *const prefixes[] = {"volumes/", "snapshots/", "records/", "nodes/", ""};
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(prefixes); i++) {
        struct obj_list list = {0};
        do {
            obj_list_release(&list);
            rc = objstore_list(c->pool.store, prefixes[i], NULL, BATCH, &list, e);
            const char *keys[BATCH];
            size_t count = 0;
            for (size_t k = 0; rc == 0 && k < list.count; k++) {
                /* The last round: the pool's record and its probe, nothing of strangers. */
                if (prefixes[i][0] || strncmp(list.entries[k].key, "portalbd", 8) == 0)
                    keys[count++] = list.entries[k].key;
            }
            if (rc == 0 && count)
                rc = objstore_delete(c->pool.store, keys, count, e);
            deleted += rc == 0 ? count : 0;
            if (!prefixes[i][0])
                break;
        } while (rc == 0 && list.count);
        obj_list_release(&list);
    }
    if (rc == 0)
        c->result = json_pack("{s:I}", "objects_deleted", (json_int_t)deleted);
    return rc;
}

/* --- volumes --- */

static int create(struct ctl *c, const struct volume_create *req, struct err *e) {
    struct volume_info info;
    int rc = catalog_volume_create(c->catalog, req, &info, e);
    if (rc < 0)
        return rc;
    c->result = encode_volume(&info);
    volume_info_release(&info);
    return 0;
}

static int volume_create(struct ctl *c, struct err *e) {
    int rc = need_pool(c, e);
    if (rc < 0)
        return rc;
    if (!c->config.size && !c->config.source)
        return err_set(e, -ERR_INVALID, "volume create: --size is missing");
    return create(c,
                  &(struct volume_create){
                      .name = c->argv[0], .size_bytes = c->config.size, .source = c->config.source},
                  e);
}

/* A volume, or a snapshot; a volume that is open here is flushed first. */
static int find_source(struct ctl *c, const char *name, char ret_id[ID_MAX], struct err *e) {
    struct snapshot_info snapshot;
    struct volume_info volume;
    json_t *flushed = NULL;
    int rc;
    if (is_id(name, ID_SNAPSHOT) || strchr(name, '@')) {
        rc = find_snapshot(c, name, &snapshot, e);
        if (rc < 0)
            return rc;
        memcpy(ret_id, snapshot.id, ID_MAX);
        snapshot_info_release(&snapshot);
        return 0;
    }
    rc = find_volume(c, name, &volume, e);
    if (rc < 0)
        return rc;
    memcpy(ret_id, volume.id, ID_MAX);
    volume_info_release(&volume);
    rc = ask(c, ret_id, "flush", NULL, &flushed, e);
    json_decref(flushed);
    return rc == -ERR_NOT_FOUND ? 0 : rc;
}

static int volume_clone(struct ctl *c, struct err *e) {
    char source[ID_MAX];
    int rc = find_source(c, c->argv[0], source, e);
    if (rc < 0)
        return rc;
    return create(
        c,
        &(struct volume_create){.name = c->argv[1], .size_bytes = c->config.size, .source = source},
        e);
}

static int volume_list(struct ctl *c, struct err *e) {
    struct volume_list page = {0};
    int rc = need_pool(c, e);
    if (rc < 0)
        return rc;
    c->result = json_array();
    do {
        char token[CATALOG_TOKEN_MAX];
        memcpy(token, page.next_token, sizeof token);
        volume_list_release(&page);
        rc = catalog_volume_list(c->catalog, token, 0, &page, e);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < page.count; i++)
            json_array_append_new(c->result, encode_volume(&page.items[i]));
    } while (page.next_token[0]);
    volume_list_release(&page);
    return 0;
}

static int volume_show(struct ctl *c, struct err *e) {
    struct volume_info info;
    int rc = find_volume(c, c->argv[0], &info, e);
    if (rc < 0)
        return rc;
    c->result = encode_volume(&info);
    volume_info_release(&info);
    return 0;
}

static int volume_grow(struct ctl *c, struct err *e) {
    struct volume_info info;
    uint64_t size;
    bool needs_node;
    int rc = option_parse_size(c->argv[1], &size, e);
    if (rc < 0 || (rc = find_volume(c, c->argv[0], &info, e)) < 0)
        return rc;
    char id[ID_MAX];
    memcpy(id, info.id, ID_MAX);
    volume_info_release(&info);
    rc = catalog_volume_expand(c->catalog, id, size, 0, &info, &needs_node, e);
    if (rc < 0)
        return rc;
    c->result = encode_volume(&info);
    volume_info_release(&info);
    if (!needs_node)
        return 0;
    json_t *answer = NULL;
    rc = ask(c, id, "grow", json_pack("{s:I}", "size_bytes", (json_int_t)size), &answer, e);
    if (rc == -ERR_NOT_FOUND)
        return err_set(e, -ERR_IN_USE,
                       "the new size is on record, but the volume is open elsewhere: it grows when "
                       "portalctl volume grow runs on that node, or when it is closed");
    if (rc < 0)
        return rc;
    json_object_set(c->result, "size_bytes", json_object_get(answer, "size_bytes"));
    json_decref(answer);
    return 0;
}

static int volume_delete(struct ctl *c, struct err *e) {
    struct volume_info info;
    int rc = find_volume(c, c->argv[0], &info, e);
    if (rc < 0)
        return rc;
    if (!c->config.force && control_is_live(c->config.run_dir, info.id))
        rc = err_set(e, -ERR_IN_USE, "volume '%s' is served on this node; --force deletes it",
                     c->argv[0]);
    else
        rc = catalog_volume_delete(c->catalog, info.id, c->config.force, e);
    volume_info_release(&info);
    return rc;
}

/* --- snapshots --- */

static int snapshot_create(struct ctl *c, struct err *e) {
    struct volume_info volume;
    struct snapshot_info info;
    int rc = find_volume(c, c->argv[0], &volume, e);
    if (rc < 0)
        return rc;
    CLEANUP_FREE char *name = snapshot_name(volume.record.name, c->argv[1]);
    rc = ask(c, volume.id, "snapshot.create", json_pack("{s:s}", "name", name), &c->result, e);
    if (rc == -ERR_NOT_FOUND) { /* no daemon here: the store is enough */
        rc = catalog_snapshot_create(c->catalog, name, volume.id, &info, e);
        if (rc == 0) {
            c->result = encode_snapshot(&info);
            snapshot_info_release(&info);
        }
    }
    volume_info_release(&volume);
    return rc;
}

static int snapshot_list(struct ctl *c, struct err *e) {
    struct snapshot_list page = {0};
    char volume[ID_MAX] = "";
    int rc = need_pool(c, e);
    if (rc == 0 && c->argv[0]) {
        struct volume_info info;
        rc = find_volume(c, c->argv[0], &info, e);
        if (rc == 0) {
            memcpy(volume, info.id, ID_MAX);
            volume_info_release(&info);
        }
    }
    if (rc < 0)
        return rc;
    c->result = json_array();
    do {
        char token[CATALOG_TOKEN_MAX];
        memcpy(token, page.next_token, sizeof token);
        snapshot_list_release(&page);
        rc = catalog_snapshot_list(c->catalog, volume, token, 0, &page, e);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < page.count; i++)
            json_array_append_new(c->result, encode_snapshot(&page.items[i]));
    } while (page.next_token[0]);
    snapshot_list_release(&page);
    return 0;
}

static int snapshot_show(struct ctl *c, struct err *e) {
    struct snapshot_info info;
    int rc = find_snapshot(c, c->argv[0], &info, e);
    if (rc < 0)
        return rc;
    c->result = encode_snapshot(&info);
    snapshot_info_release(&info);
    return 0;
}

static int snapshot_delete(struct ctl *c, struct err *e) {
    struct snapshot_info info;
    int rc = find_snapshot(c, c->argv[0], &info, e);
    if (rc < 0)
        return rc;
    rc = catalog_snapshot_delete(c->catalog, info.id, e);
    snapshot_info_release(&info);
    return rc;
}

/* --- daemons --- */

static int not_served(struct ctl *c, struct err *e) {
    return err_set(e, -ERR_NOT_FOUND, "no daemon of this node serves volume '%s' (run folder %s)",
                   c->argv[0], c->config.run_dir);
}

static int ask_about(struct ctl *c, const char *verb, struct err *e) {
    char id[ID_MAX];
    if (!find_daemon(c, c->argv[0], id))
        return not_served(c, e);
    return ask(c, id, verb, NULL, &c->result, e);
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
        if ((is_id(ids[i], ID_VOLUME) || is_id(ids[i], ID_SNAPSHOT)) &&
            ask(c, ids[i], "status", NULL, &status, NULL) == 0) {
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

static int status(struct ctl *c, struct err *e) {
    return c->argv[0] ? ask_about(c, "status", e) : status_all(c, e);
}

static int stats(struct ctl *c, struct err *e) {
    return ask_about(c, "stats", e);
}

static int flush(struct ctl *c, struct err *e) {
    return ask_about(c, "flush", e);
}

static int gc(struct ctl *c, struct err *e) {
    struct background job;
    struct background_result r = {0};
    int rc = need_pool(c, e);
    if (rc < 0)
        return rc;
    background_init(&job, c->catalog);
    rc = background_pass(&job, &r, e);
    background_release(&job);
    if (rc < 0)
        return rc;
    c->result =
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "volumes", (json_int_t)r.volumes, "volumes_finished",
                  (json_int_t)r.volumes_finished, "volumes_waiting", (json_int_t)r.volumes_waiting,
                  "objects_deleted", (json_int_t)r.objects_deleted, "records_pruned",
                  (json_int_t)r.records_pruned, "failures", (json_int_t)r.failures);
    return r.failures ? err_copy(e, &r.first_failure) : 0;
}

/* --- main --- */

static int (*const handlers[])(struct ctl *c, struct err *e) = {
    [POOL_CREATE] = pool_create_or_check,
    [POOL_CHECK] = pool_create_or_check,
    [POOL_DELETE] = pool_delete,
    [VOLUME_CREATE] = volume_create,
    [VOLUME_LIST] = volume_list,
    [VOLUME_SHOW] = volume_show,
    [VOLUME_GROW] = volume_grow,
    [VOLUME_CLONE] = volume_clone,
    [VOLUME_DELETE] = volume_delete,
    [SNAPSHOT_CREATE] = snapshot_create,
    [SNAPSHOT_LIST] = snapshot_list,
    [SNAPSHOT_SHOW] = snapshot_show,
    [SNAPSHOT_DELETE] = snapshot_delete,
    [STATUS] = status,
    [STATS] = stats,
    [FLUSH] = flush,
    [GC] = gc,
};

static void command_fiber(void *arg) {
    struct ctl *c = arg;
    c->rc = handlers[c->command](c, &c->e);
    if (c->rc < 0 && c->refused.code)
        c->rc = err_copy(&c->e, &c->refused);
    pool_close(&c->pool);
    loop_stop(c->loop);
}

int main(int argc, char **argv) {
    struct ctl c = {0};
    struct option_args args;
    options_parse_or_exit(&program, argc, argv, &c.config, &args);
    log_init(
        &(struct log_config){.program = "portalctl", .level = (enum log_level)c.config.log_level});
    signal(SIGPIPE, SIG_IGN);
    c.command = (enum command)args.command;
    c.argv = args.argv; /* like argv, NULL at its end */
    c.loop = loop_new(2);
    c.env = loop_env(c.loop);
    c.fiber = fiber_start(c.env, command_fiber, &c);
    loop_run(c.loop);
    loop_free(c.loop);
    print_result(&c);
    if (c.rc < 0)
        fprintf(stderr, "portalctl: %s\n", c.e.text);
    json_decref(c.result);
    options_release(&program, &c.config);
    return exit_code_of(c.rc);
}
