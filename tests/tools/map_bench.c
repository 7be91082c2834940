/* The map of a volume full of scattered 4 KiB extents: made without the data, then opened, looked
 * up at random, and merged into; each figure beside its goal.
 *
 *   map_bench [--extents N] [--folder DIR] [--lookups N] [--scattered]
 *
 * By default the map of 1 TiB: 2^28 extents, each anywhere in any of the objects of 8 MiB that hold
 * them, about 3 GB in a folder under $TMPDIR that is removed at the end. --scattered also merges a
 * run of an eighth as many extents from all over the volume, which writes all of the map again. */
#include <getopt.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/loop.h"
#include "portalbd/objstore/file.h"
#include "portalbd/objstore/stats.h"
#include "portalbd/volume/manifest_store.h"
#include "portalbd/volume/run_merge.h"
#include "portalbd/volume/volume.h"

enum {
    SECTORS = 8, /* of an extent */
    STORED = FRAME_HEADER_SIZE + SECTORS * SECTOR_SIZE,
    EXTENTS_PER_OBJECT = 2040, /* 8 MiB of them */
    MIB = 1024 * 1024,
    IDLE_US = 3 * 1000 * 1000,
    PAUSE_US = 1000, /* how often somebody looks whether the owner thread is free */
};

struct bench {
    uint64_t extents;
    uint64_t lookups;
    bool scattered;
    char folder[512];
    struct env *env;
    struct objstore *store;
    const struct objstore_stats *stats;
    struct volume_key key;
    uint64_t rng;
    uint64_t longest_pause_us;
    uint64_t longest_work_us; /* ... of which the owner thread had the processor */
    bool watching;
    int failed;
};

static uint64_t rng(struct bench *b, uint64_t below) {
    b->rng ^= b->rng << 13;
    b->rng ^= b->rng >> 7;
    b->rng ^= b->rng << 17;
    return b->rng % below;
}

static void ok(int rc, const struct err *e) {
    if (rc >= 0)
        return;
    fprintf(stderr, "map_bench: %s\n", e->text);
    exit(1);
}

/* --- figures --- */

static uint64_t heap_bytes(void) {
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

/* What the process has had at most since the last call. */
static double peak_mib(void) {
    char line[128];
    unsigned long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %lu kB", &kib) == 1)
            break;
    if (status)
        fclose(status);
    FILE *reset = fopen("/proc/self/clear_refs", "w");
    if (reset) {
        fputs("5", reset);
        fclose(reset);
    }
    return (double)kib / 1024;
}

static uint64_t cpu_us(clockid_t of) {
    struct timespec t;
    clock_gettime(of, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

struct marks {
    uint64_t us, cpu_us, gets, puts, received, sent;
};

static struct marks marks(const struct bench *b) {
    return (struct marks){
        .us = env_now_us(b->env),
        .cpu_us = cpu_us(CLOCK_PROCESS_CPUTIME_ID),
        .gets = objstore_stats_requests(b->stats, OBJ_GET),
        .puts = objstore_stats_requests(b->stats, OBJ_PUT),
        .received = metrics_counter_get(&b->stats->verbs[OBJ_GET].received),
        .sent = metrics_counter_get(&b->stats->verbs[OBJ_PUT].sent),
    };
}

static void print_marks(const struct bench *b, const char *what, const struct marks *from) {
    struct marks now = marks(b);
    printf(
        "%-34s %8.2f s (%.2f of processor), %llu GETs, %.1f MiB, %llu PUTs, %.1f MiB; %.0f MiB of "
        "memory\n",
        what, (double)(now.us - from->us) / 1e6, (double)(now.cpu_us - from->cpu_us) / 1e6,
        (unsigned long long)(now.gets - from->gets), (double)(now.received - from->received) / MIB,
        (unsigned long long)(now.puts - from->puts), (double)(now.sent - from->sent) / MIB,
        peak_mib());
    fflush(stdout);
}

static void print_goal(struct bench *b, const char *what, double value, double goal,
                       const char *unit) {
    bool good = value <= goal;
    b->failed += !good;
    printf("%-34s %8.2f %s, at most %.2f wanted: %s\n", what, value, unit, goal,
           good ? "good" : "MISSED");
}

/* How long the owner thread does nothing else at a time, while a merge runs: by the clock, in which
 * a busy machine counts too, and by what it worked. */
static void watch_pauses(void *arg) {
    struct bench *b = arg;
    b->longest_pause_us = b->longest_work_us = 0;
    while (b->watching) {
        uint64_t before = env_now_us(b->env), cpu = cpu_us(CLOCK_THREAD_CPUTIME_ID);
        fiber_sleep_us(b->env, PAUSE_US);
        uint64_t late = env_now_us(b->env) - before - PAUSE_US;
        b->longest_pause_us = MAX(b->longest_pause_us, late);
        b->longest_work_us = MAX(b->longest_work_us, cpu_us(CLOCK_THREAD_CPUTIME_ID) - cpu);
    }
}

/* --- the map --- */

/* Extents first, first + step, ...; their bytes are anywhere in objects [seq, seq + objects). */
static struct root_run make_run(struct bench *b, uint64_t first, uint64_t count, uint64_t step,
                                uint64_t seq, uint64_t objects) {
    struct err e = {0};
    struct root_run run;
    uint16_t len = STORED;
    struct run_writer *w = run_writer_new(b->env, b->store, &b->key, (struct run_shape){0});
    struct map_entry m = {
        .count = SECTORS, .kind = EXTENT_DATA, .lens = &len, .len_count = 1, .ref.kind = OBJ_LOG};
    for (uint64_t i = 0; i < count; i++) {
        m.sector = (first + i * step) * SECTORS;
        m.off = (uint32_t)(SEGMENT_HEADER_SIZE + rng(b, EXTENTS_PER_OBJECT) * STORED);
        m.ref.seq = seq + rng(b, objects);
        ok(run_writer_add(w, &m, &b->key, &e), &e);
    }
    ok(run_writer_finish(w, &run, &e), &e);
    run_writer_free(w);
    return run;
}

static void put_manifest(struct bench *b, const struct root_run *run) {
    struct err e = {0};
    struct manifest m = {
        .number = 1, .size_bytes = b->extents * SECTORS * SECTOR_SIZE, .block_size = 4096};
    env_random(b->env, m.nonce.bytes, sizeof m.nonce.bytes);
    root_init(&m.root, &b->key);
    m.root.next_seq = UINT64_C(1) << 40;
    m.root.runs = xcalloc(1, sizeof *m.root.runs);
    m.root.runs[0] = *run;
    m.root.runs[0].age = 1;
    m.root.run_count = 1;
    ok(manifest_put(b->store, &b->key, &m, &e), &e);
    manifest_release(&m);
}

static struct root_run make_map(struct bench *b) {
    struct marks from = marks(b);
    uint64_t objects = DIV_UP(b->extents, EXTENTS_PER_OBJECT);
    struct root_run run = make_run(b, 0, b->extents, 1, 1, objects);
    put_manifest(b, &run);
    print_marks(b, "making the map", &from);
    print_goal(b, "bytes an extent on the store", (double)run.size / (double)b->extents, 12, "B");
    return run;
}

/* --- the open volume --- */

struct sync_request {
    struct bd_request req;
    struct fiber_done done;
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct sync_request, req)->done);
}

static void look_up(struct bench *b, struct volume *v, uint64_t extent) {
    struct bd_extent answer[BD_STATUS_EXTENTS_MAX];
    struct sync_request s = {.req = {.op = BD_BLOCK_STATUS,
                                     .flags = BD_REQ_ONE,
                                     .off = extent * SECTORS * SECTOR_SIZE,
                                     .len = SECTORS * SECTOR_SIZE,
                                     .extents = {.items = answer},
                                     .done = on_done}};
    fiber_done_init(&s.done);
    if (!bd_submit(volume_blockdev(v), &s.req))
        fiber_done_wait_always(b->env, &s.done);
    if (s.req.rc < 0 || s.req.extents.count != 1 || answer[0].state != 0) {
        fprintf(stderr, "map_bench: extent %llu is not there\n", (unsigned long long)extent);
        exit(1);
    }
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void open_and_look(struct bench *b) {
    struct volume_config c = {.env = b->env,
                              .store = b->store,
                              .key = b->key,
                              .publish_epoch = 1,
                              .journal_size = 4 * MIB,
                              .cache_size = 1 * MIB,
                              .gc_off = true};
    struct err e = {0};
    struct volume *v;
    uint64_t before = heap_bytes();
    struct marks from = marks(b);
    ok(volume_open(&c, &v, &e), &e);
    print_marks(b, "open", &from);
    uint64_t opened = heap_bytes();
    print_goal(b, "heap of the open volume", (double)(opened - before) / MIB, 16 + 1,
               "MiB"); /* 1 MiB of cache */
    from = marks(b);
    for (uint64_t i = 0; i < b->lookups; i++)
        look_up(b, v, rng(b, b->extents));
    struct marks now = marks(b);
    print_marks(b, "random lookups", &from);
    print_goal(b, "GETs a cold lookup", (double)(now.gets - from.gets) / (double)b->lookups, 1,
               "GETs");
    printf("%-34s %8.2f MiB\n", "page cache after them", (double)(heap_bytes() - opened) / MIB);
    from = marks(b);
    for (uint64_t i = 0; i < b->lookups; i++)
        look_up(b, v, b->extents / 2 + rng(b, 300));
    print_marks(b, "lookups of cached pages", &from);
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(v, on_freed, &freed);
    fiber_done_wait_always(b->env, &freed);
}

/* --- merging --- */

static struct run_reader *open_run(struct bench *b, struct page_cache *pages,
                                   const struct root_run *run) {
    struct run_reader *r;
    struct err e = {0};
    ok(run_reader_open(b->env, b->store, pages, run, &b->key, 1, &r, &e), &e);
    return r;
}

/* The same machine without a merge, to compare with. */
static void measure_idle(struct bench *b) {
    struct fiber_group group;
    b->watching = true;
    fiber_group_init(&group, b->env);
    fiber_group_start(&group, watch_pauses, b);
    fiber_sleep_us(b->env, IDLE_US);
    b->watching = false;
    fiber_group_wait(&group);
    printf("%-34s %8.1f ms at most\n", "the owner thread, idle, is late",
           (double)b->longest_pause_us / 1000);
}

static void merge_into(struct bench *b, const char *what, const struct root_run *bottom,
                       const struct root_run *upper) {
    struct page_cache *pages = page_cache_new(b->env, b->store, MIB);
    struct run_reader *sources[] = {open_run(b, pages, upper), open_run(b, pages, bottom)};
    struct run_merge_options o = {.env = b->env, .store = b->store, .own = b->key, .bottom = true};
    struct run_merge_stats stats;
    struct root_run merged;
    struct err e = {0};
    size_t parts = run_reader_index(sources[1])->part_count;
    b->watching = true;
    struct fiber_group group;
    fiber_group_init(&group, b->env);
    fiber_group_start(&group, watch_pauses, b);
    struct marks from = marks(b);
    ok(run_merge(&o, sources, 2, &merged, NULL, &stats, &e), &e);
    b->watching = false;
    fiber_group_wait(&group);
    print_marks(b, what, &from);
    printf("%-34s %llu extents into %llu; %llu of %zu parts named again\n", "",
           (unsigned long long)upper->entry_count, (unsigned long long)bottom->entry_count,
           (unsigned long long)stats.parts_reused, parts);
    printf("%-34s late by %.1f ms at most, at work for %.1f ms at most\n", "the owner thread was",
           (double)b->longest_pause_us / 1000, (double)b->longest_work_us / 1000);
    fflush(stdout);
    run_reader_unref(sources[0]);
    run_reader_unref(sources[1]);
    page_cache_free(pages);
}

static void run(void *arg) {
    struct bench *b = arg;
    struct root_run bottom = make_map(b), upper;
    open_and_look(b);
    measure_idle(b);
    uint64_t seq = UINT64_C(1) << 32;
    upper = make_run(b, b->extents / 3, b->extents / 1000, 2, seq, 50);
    merge_into(b, "merging local writes", &bottom, &upper);
    struct map_entry half = {.sector = 0, .count = b->extents / 2 * SECTORS, .kind = EXTENT_HOLE};
    struct err e = {0};
    struct run_writer *w = run_writer_new(b->env, b->store, &b->key, (struct run_shape){0});
    ok(run_writer_add(w, &half, NULL, &e), &e);
    ok(run_writer_finish(w, &upper, &e), &e);
    run_writer_free(w);
    merge_into(b, "merging a TRIM of half of it", &bottom, &upper);
    if (b->scattered) {
        uint64_t count = b->extents / 8;
        upper = make_run(b, 3, count, 8, seq, DIV_UP(count, EXTENTS_PER_OBJECT));
        merge_into(b, "merging writes from all over", &bottom, &upper);
    }
}

/* --- */

static void open_store(void *arg) {
    struct bench *b = arg;
    b->store = objstore_stats_new(objstore_file_open(b->env, b->folder), NULL, NULL);
    b->stats = objstore_stats(b->store);
}

static void close_store(void *arg) {
    struct bench *b = arg;
    objstore_close(b->store);
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"extents", required_argument, NULL, 'e'},
                                            {"folder", required_argument, NULL, 'f'},
                                            {"lookups", required_argument, NULL, 'l'},
                                            {"scattered", no_argument, NULL, 's'},
                                            {0}};
    struct bench b = {.extents = UINT64_C(1) << 28, .lookups = 20000, .rng = 88172645463325252u};
    const char *folder = getenv("TMPDIR");
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'e')
            b.extents = strtoull(optarg, NULL, 0);
        else if (c == 'f')
            folder = optarg;
        else if (c == 'l')
            b.lookups = strtoull(optarg, NULL, 0);
        else if (c == 's')
            b.scattered = true;
        else
            return 2;
    }
    snprintf(b.folder, sizeof b.folder, "%s/map_bench.XXXXXX", folder ? folder : "/tmp");
    if (b.extents < 100000 || !mkdtemp(b.folder)) {
        fprintf(stderr, "map_bench: at least 100000 extents, and a folder that can be written\n");
        return 2;
    }
    struct loop *loop = loop_new(1);
    b.env = loop_env(loop);
    id_format_key(&b.key, ID_VOLUME, "0123456789abcdef0123456789abcdef", 1);
    loop_thread_start(loop, "map_bench");
    loop_call(loop, open_store, &b);
    loop_call(loop, run, &b);
    loop_call(loop, close_store, &b);
    loop_thread_stop(loop);
    loop_free(loop);
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", b.folder);
    if (system(command) != 0)
        fprintf(stderr, "map_bench: %s stays\n", b.folder);
    return b.failed > 0;
}
