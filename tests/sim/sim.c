/* sim: runs of the simulator, a process each.
 *
 * A failed CHECK, a sanitizer's report or a hang ends only that run's process; the parent says
 * which seed it was and how to see it again. */
#include <argp.h>
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "tests/sim/sim.h"

#if __has_include(<sim_commit.h>)
#include <sim_commit.h>
#else
#define SIM_COMMIT "unknown"
#endif

enum { JOBS_MAX = 64, RUN_SECONDS_MAX = 300, OPERATIONS_DEFAULT = 2000 };

struct arguments {
    uint64_t seed;
    uint64_t seeds;
    uint64_t operations;
    unsigned jobs;
    const char *mutant;
    const char *list;
    bool trace;
    bool verbose;
    bool expect_finding;
    bool keep_going;
    const char *program;
};

/* What a run's process hands to its parent through a pipe. */
struct report {
    bool good;
    char finding[SIM_FINDING_MAX];
    struct sim_totals totals;
};

/* One run to do. */
struct item {
    uint64_t seed;
    uint64_t operations;
};

struct job {
    pid_t pid; /* 0: free */
    int fd;
    struct item item;
};

struct batch {
    const struct arguments *args;
    struct item *items; /* owned */
    size_t count;
    struct sim_totals totals;
    uint64_t passed;
    uint64_t failed;
    uint64_t first_failed;
    uint64_t first_digest;
};

static void run_child(const struct arguments *a, const struct item *item, int fd) {
    alarm(RUN_SECONDS_MAX);
    struct sim_options options = {.seed = item->seed,
                                  .operations = item->operations,
                                  .trace = a->trace,
                                  .verbose = a->verbose};
    struct report *r = NEW(struct report);
    r->good = sim_run(&options, &r->totals, r->finding);
    fflush(stdout);
    const uint8_t *at = (const uint8_t *)r;
    for (size_t done = 0; done < sizeof *r;) {
        ssize_t n = write(fd, at + done, sizeof *r - done);
        if (n <= 0)
            exit(2);
        done += (size_t)n;
    }
    free(r);
    exit(0); /* so that leaks are looked for */
}

static void start_job(const struct arguments *a, struct job *j, const struct item *item) {
    int fds[2];
    CHECK(pipe(fds) == 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(fds[0]);
        run_child(a, item, fds[1]);
    }
    close(fds[1]);
    *j = (struct job){.pid = pid, .fd = fds[0], .item = *item};
}

static bool read_report(int fd, struct report *ret) {
    uint8_t *at = (uint8_t *)ret;
    for (size_t done = 0; done < sizeof *ret;) {
        ssize_t n = read(fd, at + done, sizeof *ret - done);
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static void add_totals(struct sim_totals *to, const struct sim_totals *from) {
    uint64_t *t = (uint64_t *)to;
    const uint64_t *f = (const uint64_t *)from;
    for (size_t i = 0; i < sizeof *to / sizeof *t; i++)
        t[i] += f[i];
}

static void say_finding(const struct batch *b, const struct item *item, const char *text) {
    const struct arguments *a = b->args;
    if (a->expect_finding && !a->verbose)
        return;
    printf("FOUND seed %" PRIu64 " commit %s\n  %s\n", item->seed, SIM_COMMIT, text);
    printf("  replay: %s%s%s%s --seed %" PRIu64 " --seeds 1 --ops %" PRIu64 " --trace\n",
           a->mutant ? "PORTALBD_MUTANT=" : "", a->mutant ? a->mutant : "", a->mutant ? " " : "",
           a->program, item->seed, item->operations);
    fflush(stdout);
}

/* Everything is decided by the seed: the first run is done twice. */
static bool is_repeated(struct batch *b, const struct job *j, const struct report *r) {
    if (b->passed == 0 && b->first_digest == 0) {
        b->first_digest = r->totals.digest;
        return true;
    }
    return j->item.seed != b->items[0].seed || r->totals.digest == b->first_digest;
}

static void end_job(struct batch *b, struct job *j) {
    CLEANUP_FREE struct report *r = NEW(struct report);
    bool complete = read_report(j->fd, r);
    close(j->fd);
    int status;
    CHECK(waitpid(j->pid, &status, 0) == j->pid);
    j->pid = 0;
    char text[128] = "";
    if (complete && !r->good)
        say_finding(b, &j->item, r->finding);
    else if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "the run was ended by signal %d (%s)", WTERMSIG(status),
                 WTERMSIG(status) == SIGALRM ? "it takes too long" : strsignal(WTERMSIG(status)));
    else if (!complete || WEXITSTATUS(status) != 0)
        snprintf(text, sizeof text, "the run exited with %d", WEXITSTATUS(status));
    else if (!is_repeated(b, j, r))
        snprintf(text, sizeof text, "the same seed ran differently the second time");
    if (text[0])
        say_finding(b, &j->item, text);
    if (text[0] || !r->good) {
        if (b->failed++ == 0)
            b->first_failed = j->item.seed;
        return;
    }
    b->passed++;
    add_totals(&b->totals, &r->totals);
}

/* Job i runs every args->jobs-th item: they end in the order of their starts. */
static void run_batch(struct batch *b) {
    const struct arguments *a = b->args;
    struct job jobs[JOBS_MAX] = {0};
    size_t next = 0, ended = 0;
    while (ended < b->count) {
        bool go_on = b->failed == 0 || a->keep_going;
        while (go_on && next < b->count && next < ended + a->jobs) {
            start_job(a, &jobs[next % a->jobs], &b->items[next]);
            next++;
        }
        if (ended == next)
            return;
        end_job(b, &jobs[ended % a->jobs]);
        ended++;
    }
}

static void add_item(struct batch *b, uint64_t seed, uint64_t operations) {
    b->items = xrealloc(b->items, (b->count + 1) * sizeof *b->items);
    b->items[b->count++] = (struct item){.seed = seed, .operations = operations};
}

/* Lines "SEED OPERATIONS  what it once found"; # begins a comment. */
static void read_list(struct batch *b, const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) {
        perror(path);
        exit(2);
    }
    char line[512];
    while (fgets(line, sizeof line, f)) {
        uint64_t seed, operations;
        if (line[0] != '#' && sscanf(line, "%" SCNu64 " %" SCNu64, &seed, &operations) == 2)
            add_item(b, seed, operations);
    }
    fclose(f);
}

#define SHOW(name) printf("  %-40s %12" PRIu64 "\n", #name, t->name)

static void show_totals(const struct sim_totals *t, uint64_t runs) {
    printf("totals of %" PRIu64 " runs\n", runs);
    SHOW(operations);
    SHOW(reads_checked);
    SHOW(cuts_checked);
    SHOW(records_lost);
    SHOW(opens);
    SHOW(opens_fenced);
    SHOW(crashes);
    SHOW(sleeps);
    SHOW(closes);
    SHOW(fenced);
    SHOW(respawns);
    SHOW(resumes_fenced);
    SHOW(nothing_lost_checked);
    SHOW(replays);
    SHOW(writes_replayed);
    SHOW(journals_set_aside);
    SHOW(reserves_refused);
    SHOW(snapshots);
    SHOW(clones);
    SHOW(restores);
    SHOW(deletes);
    SHOW(read_only_opens);
    SHOW(grows);
    SHOW(checkpoints);
    SHOW(merges);
    SHOW(gc_rounds);
    SHOW(gc_deleted);
    SHOW(gc_moves);
    SHOW(cache_hits);
    SHOW(cache_misses);
    SHOW(flushes);
    SHOW(writes_waited);
    SHOW(window_full);
    SHOW(blackouts);
    SHOW(lists);
    printf("  %-40s %12" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", "GET PUT LIST DELETE",
           t->requests[OBJ_GET], t->requests[OBJ_PUT], t->requests[OBJ_LIST],
           t->requests[OBJ_DELETE]);
    SHOW(store_errors);
    SHOW(late_effects);
    SHOW(duplicates);
    SHOW(tasks);
    SHOW(tasks_killed);
    SHOW(pins_swept);
    SHOW(objects_left);
    SHOW(objects_fences);
    SHOW(objects_manifests);
    SHOW(turns);
    SHOW(virtual_ms);
    printf("scenarios met\n");
    for (size_t i = 0; i < SCENARIO_COUNT; i++)
        printf("  %-40s %12" PRIu64 "\n", scenario_names[i], t->scenarios[i]);
}

static const struct argp_option options[] = {
    {"seed", 's', "N", 0, "the first seed (1)", 0},
    {"seeds", 'n', "K", 0, "how many (1)", 0},
    {"ops", 'o', "N", 0, "block operations of a run, at least (2000)", 0},
    {"jobs", 'j', "N", 0, "runs at the same time (the CPUs)", 0},
    {"list", 'l', "FILE", 0, "runs from a file: lines of SEED OPERATIONS", 0},
    {"mutant", 'm', "NAME", 0, "switch a deliberate bug on (built with MUTANTS=1)", 0},
    {"expect-finding", 'x', NULL, 0, "succeed when a seed finds something, fail when none does", 0},
    {"keep-going", 'k', NULL, 0, "do not stop at the first finding", 0},
    {"trace", 't', NULL, 0, "print what happens", 0},
    {"verbose", 'v', NULL, 0, "a line for each run", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct arguments *a = state->input;
    switch (key) {
    case 's':
        a->seed = strtoull(arg, NULL, 0);
        return 0;
    case 'n':
        a->seeds = strtoull(arg, NULL, 0);
        return 0;
    case 'o':
        a->operations = strtoull(arg, NULL, 0);
        return 0;
    case 'j':
        a->jobs = (unsigned)strtoul(arg, NULL, 0);
        return 0;
    case 'l':
        a->list = arg;
        return 0;
    case 'm':
        a->mutant = arg;
        return 0;
    case 'x':
        a->expect_finding = true;
        return 0;
    case 'k':
        a->keep_going = true;
        return 0;
    case 't':
        a->trace = true;
        return 0;
    case 'v':
        a->verbose = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Memory that a dead process of the simulation gives back is the next one's: the kernel need not
 * know. */
static void keep_memory(void) {
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_TOP_PAD, 4 << 20);
}

static void quiet_log(void) {
    log_set_level((enum log_level)(LOG_LEVEL_ERROR + 1));
}

int main(int argc, char **argv) {
    struct arguments a = {
        .seed = 1, .seeds = 1, .operations = OPERATIONS_DEFAULT, .program = argv[0]};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Runs the engine in a simulated world, one run for each seed."};
    argp_parse(&argp, argc, argv, 0, NULL, &a);
    keep_memory();
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (a.jobs == 0)
        a.jobs = (unsigned)MAX(cpus, 1L);
    a.jobs = MIN(a.jobs, (unsigned)JOBS_MAX);
    if (a.mutant)
        setenv("PORTALBD_MUTANT", a.mutant, 1);
    if (!a.trace)
        quiet_log();

    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    printf("sim: seeds from %" PRIu64 " on, commit %s%s%s\n", a.seed, SIM_COMMIT,
           a.mutant ? ", mutant " : "", a.mutant ? a.mutant : "");
    struct batch b = {.args = &a};
    if (a.list)
        read_list(&b, a.list);
    for (uint64_t i = 0; !a.list && i < a.seeds; i++)
        add_item(&b, a.seed + i, a.operations);
    if (b.count > 1 && !a.expect_finding)
        add_item(&b, b.items[0].seed, b.items[0].operations);
    run_batch(&b);
    free(b.items);
    clock_gettime(CLOCK_MONOTONIC, &to);
    double seconds = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
    if (a.expect_finding) {
        if (b.failed > 0)
            printf("ok: mutant %s is found by seed %" PRIu64 " in %.1f s\n",
                   a.mutant ? a.mutant : "-", b.first_failed, seconds);
        else
            printf("FAILED: mutant %s is not found by %" PRIu64 " seeds\n",
                   a.mutant ? a.mutant : "-", b.passed);
        return b.failed > 0 ? 0 : 1;
    }
    if (b.passed > 0)
        show_totals(&b.totals, b.passed);
    printf("%.1f seeds/s\n", (double)(b.passed + b.failed) / seconds);
    printf("%" PRIu64 " passed, %" PRIu64 " failed, 0 skipped\n", b.passed, b.failed);
    return b.failed > 0 ? 1 : 0;
}
