/* sim: runs of the simulator, a process each.
 *
 * A failed CHECK, a sanitizer's report or a hang ends only that run's process; the parent says
 * which seed it was and how to see it again. */
#include <argp.h>
#include <inttypes.h>
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "tests/sim/shrink.h"

#if __has_include(<sim_commit.h>)
#include <sim_commit.h>
#else
#define SIM_COMMIT "unknown"
#endif

enum {
    JOBS_MAX = 64,
    JOBS_WINDOW = 16, /* runs that are not looked at yet, for each that runs at a time */
    OPERATIONS_DEFAULT = 2000,
    SAVE_EVERY = 100,        /* runs between two notes of the progress */
    SCENARIOS_WITHIN = 1000, /* runs: each scenario must have been met by then */
};

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
    bool no_shrink;
    bool shrink_all;
    uint64_t seconds; /* no run begins after so many; 0: no limit */
    uint64_t first;   /* the first seed that was asked for; `seed`: where to go on */
    const char *progress;
    struct sim_plan plan;
    const char *program;
};

/* One run to do. */
struct item {
    uint64_t seed;
    uint64_t operations;
};

struct job {
    struct run_child child;
    struct item item;
    bool reported;
};

struct batch {
    const struct arguments *args;
    struct item *items; /* owned */
    size_t count;
    size_t repeats; /* items that only repeat the first */
    struct sim_totals totals;
    uint64_t passed;
    uint64_t failed;
    uint64_t first_failed;
    uint64_t first_digest;
    struct timespec began;
};

static struct sim_options options_of(const struct arguments *a, const struct item *item) {
    return (struct sim_options){.seed = item->seed,
                                .operations = item->operations,
                                .plan = a->plan,
                                .trace = a->trace,
                                .verbose = a->verbose};
}

static void start_job(const struct arguments *a, struct job *j, const struct item *item) {
    struct sim_options o = options_of(a, item);
    *j = (struct job){.item = *item};
    run_child_start(&j->child, &o);
}

static void say_replay(const struct arguments *a, const struct item *item,
                       const struct sim_plan *plan) {
    char text[PLAN_TEXT_MAX];
    plan_format(plan, text);
    printf("  replay: %s%s%s%s --seed %" PRIu64 " --ops %" PRIu64 "%s --trace\n",
           a->mutant ? "PORTALBD_MUTANT=" : "", a->mutant ? a->mutant : "", a->mutant ? " " : "",
           a->program, item->seed, item->operations, text);
}

static void say_finding(const struct batch *b, const struct item *item,
                        const struct run_report *r) {
    const struct arguments *a = b->args;
    if (a->expect_finding && !a->verbose)
        return;
    printf("FOUND seed %" PRIu64 " commit %s\n  %s\n", item->seed, SIM_COMMIT, r->finding);
    say_replay(a, item, &a->plan);
    fflush(stdout);
    struct shrunk s;
    struct sim_options o = options_of(a, item);
    bool wanted = !a->trace && !a->no_shrink && (b->failed == 0 || a->shrink_all);
    if (!wanted)
        return;
    if (!shrink(&o, r->finding, &s)) {
        printf("  a second run does not find it again\n");
    } else {
        const struct sim_totals *t = &s.report.totals;
        printf("  shrunk by %u runs: %zu of %zu steps, %" PRIu64 " operations, %" PRIu64
               " daemons, %" PRIu64 " controllers, %" PRIu64 " crashes\n  %s\n",
               s.runs, s.plan.end > 0 ? s.plan.count : s.steps_before, s.steps_before,
               t->operations, t->daemons, t->controllers, t->crashes, s.report.finding);
        say_replay(a, item, &s.plan);
    }
    plan_release(&s.plan);
    fflush(stdout);
}

/* Everything is decided by the seed: the first run is done twice. */
static bool is_repeated(struct batch *b, const struct job *j, const struct run_report *r) {
    if (b->passed == 0 && b->first_digest == 0) {
        b->first_digest = r->totals.digest;
        return true;
    }
    return j->item.seed != b->items[0].seed || r->totals.digest == b->first_digest;
}

static void end_job(struct batch *b, struct job *j) {
    CLEANUP_FREE struct run_report *r = NEW(struct run_report);
    run_child_end(&j->child, r);
    if (r->good && !is_repeated(b, j, r)) {
        r->good = false;
        snprintf(r->finding, sizeof r->finding, "the same seed ran differently the second time");
    }
    if (!r->good) {
        say_finding(b, &j->item, r);
        if (b->failed++ == 0)
            b->first_failed = j->item.seed;
        return;
    }
    b->passed++;
    sim_totals_add(&b->totals, &r->totals);
}

static double seconds_since(const struct timespec *from) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - from->tv_sec) + (double)(now.tv_nsec - from->tv_nsec) / 1e9;
}

/* So that a campaign goes on where it was ended: "FIRST NEXT" seeds. */
static void save_progress(const struct batch *b, size_t ended) {
    const struct arguments *a = b->args;
    ended -= MIN(ended, b->repeats);
    if (!a->progress || (b->failed > 0 && !a->keep_going))
        return;
    FILE *f = fopen(a->progress, "w");
    if (!f)
        return;
    fprintf(f, "%" PRIu64 " %" PRIu64 "\n", a->first, a->seed + ended);
    fclose(f);
}

/* Looks which of the runs first .. next-1 have reported, and returns how many have not. */
static size_t look_at_jobs(struct job *jobs, size_t first, size_t next, int timeout_ms) {
    struct pollfd fds[JOBS_MAX * JOBS_WINDOW];
    struct job *of[ARRAY_LEN(fds)];
    size_t n = 0, reported = 0;
    for (size_t i = first; i < next; i++) {
        struct job *j = &jobs[i % ARRAY_LEN(fds)];
        if (j->reported)
            continue;
        of[n] = j;
        fds[n++] = (struct pollfd){.fd = j->child.fd, .events = POLLIN};
    }
    (void)poll(fds, n, timeout_ms);
    for (size_t i = 0; i < n; i++) {
        of[i]->reported = fds[i].revents != 0;
        reported += of[i]->reported;
    }
    return n - reported;
}

/* Runs are looked at in the order of their starts. A long one does not hold up those behind it: up
 * to JOBS_WINDOW times as many as run at a time may have ended before it. */
static void run_batch(struct batch *b) {
    const struct arguments *a = b->args;
    struct job jobs[JOBS_MAX * JOBS_WINDOW] = {0};
    size_t next = 0, ended = 0;
    while (ended < b->count) {
        size_t running = look_at_jobs(jobs, ended, next, 0);
        bool go_on = (b->failed == 0 || a->keep_going) &&
                     (a->seconds == 0 || seconds_since(&b->began) < (double)a->seconds);
        bool room = next < b->count && next - ended < a->jobs * JOBS_WINDOW;
        if (ended < next && jobs[ended % ARRAY_LEN(jobs)].reported) {
            end_job(b, &jobs[ended % ARRAY_LEN(jobs)]);
            ended++;
            if (ended % SAVE_EVERY == 0)
                save_progress(b, ended);
        } else if (go_on && room && running < a->jobs) {
            start_job(a, &jobs[next % ARRAY_LEN(jobs)], &b->items[next]);
            next++;
        } else if (ended < next) {
            look_at_jobs(jobs, ended, next, -1);
        } else {
            break;
        }
    }
    save_progress(b, ended);
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

static const struct argp_option options[] = {
    {"seed", 's', "N", 0, "the first seed (1); now: out of the date", 0},
    {"seeds", 'n', "K", 0, "how many (1)", 0},
    {"ops", 'o', "N", 0, "block operations of a run, at least (2000)", 0},
    {"jobs", 'j', "N", 0, "runs at the same time (the CPUs)", 0},
    {"list", 'l', "FILE", 0, "runs from a file: lines of SEED OPERATIONS", 0},
    {"mutant", 'm', "NAME", 0, "switch a deliberate bug on (built with MUTANTS=1)", 0},
    {"expect-finding", 'x', NULL, 0, "succeed when a seed finds something, fail when none does", 0},
    {"keep-going", 'k', NULL, 0, "do not stop at the first finding", 0},
    {"seconds", 'S', "N", 0, "begin no run after so many seconds", 0},
    {"progress", 'p', "FILE", 0, "note which seeds are done, and go on behind them", 0},
    {"steps", 'e', "LIST:END", 0, "of the director's first END steps only these: 3,17-19:60", 0},
    {"without", 'w', "KIND,...", 0, "without these kinds of trouble", 0},
    {"no-shrink", 'n' + 256, NULL, 0, "do not make the first finding small", 0},
    {"shrink-all", 'a' + 256, NULL, 0, "make every finding small", 0},
    {"trace", 't', NULL, 0, "print what happens", 0},
    {"verbose", 'v', NULL, 0, "a line for each run", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct arguments *a = state->input;
    switch (key) {
    case 's':
        a->seed = strcmp(arg, "now") == 0 ? (uint64_t)time(NULL) * 1000 : strtoull(arg, NULL, 0);
        return 0;
    case 'S':
        a->seconds = strtoull(arg, NULL, 0);
        return 0;
    case 'p':
        a->progress = arg;
        return 0;
    case 'e':
        if (!plan_parse_steps(&a->plan, arg))
            argp_error(state, "--steps %s: not LIST:END", arg);
        return 0;
    case 'w':
        if (!plan_parse_without(&a->plan, arg))
            argp_error(state, "--without %s: not kinds that there are", arg);
        return 0;
    case 'n' + 256:
        a->no_shrink = true;
        return 0;
    case 'a' + 256:
        a->shrink_all = true;
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
enum { HEAP_SIZE = 64 << 20 };

static void keep_memory(void) {
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_TOP_PAD, HEAP_SIZE);
    free(xmalloc(1 << 20));
    uintptr_t end = (uintptr_t)sbrk(0), begin = ALIGN_UP(end - HEAP_SIZE, (uintptr_t)2 << 20);
    (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
}

static void quiet_log(void) {
    log_set_level((enum log_level)(LOG_LEVEL_ERROR + 1));
}

/* Behind what a progress file says is done. */
static void go_on_behind(struct arguments *a) {
    a->first = a->seed;
    uint64_t first, next;
    FILE *f = a->progress ? fopen(a->progress, "r") : NULL;
    if (!f)
        return;
    if (fscanf(f, "%" SCNu64 " %" SCNu64, &first, &next) == 2 && first == a->first) {
        uint64_t done = MIN(next - first, a->seeds);
        a->seed += done;
        a->seeds -= done;
    }
    fclose(f);
}

/* In so many runs each scenario has been met, or the simulator has lost something. */
static bool lacks_scenarios(const struct batch *b) {
    bool lacks = false;
    for (size_t i = 0; b->passed >= SCENARIOS_WITHIN && i < SCENARIO_COUNT; i++) {
        if (b->totals.scenarios[i] > 0)
            continue;
        printf("FAILED: %" PRIu64 " runs never met: %s\n", b->passed, scenario_names[i]);
        lacks = true;
    }
    return lacks;
}

static int tell_mutant(const struct batch *b, double seconds) {
    const char *mutant = b->args->mutant ? b->args->mutant : "-";
    if (b->failed > 0)
        printf("ok: mutant %s is found by seed %" PRIu64 " in %.1f s\n", mutant, b->first_failed,
               seconds);
    else
        printf("FAILED: mutant %s is not found by %" PRIu64 " seeds\n", mutant, b->passed);
    return b->failed > 0 ? 0 : 1;
}

static int tell(const struct batch *b) {
    const struct arguments *a = b->args;
    double seconds = seconds_since(&b->began);
    if (a->expect_finding)
        return tell_mutant(b, seconds);
    if (b->passed > 0)
        sim_totals_show(&b->totals, b->passed);
    bool lacks = lacks_scenarios(b);
    printf("%.1f seeds/s\n", (double)(b->passed + b->failed) / seconds);
    printf("%" PRIu64 " passed, %" PRIu64 " failed, 0 skipped\n", b->passed, b->failed + lacks);
    return b->failed > 0 || lacks ? 1 : 0;
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
    go_on_behind(&a);

    struct batch b = {.args = &a};
    clock_gettime(CLOCK_MONOTONIC, &b.began);
    printf("sim: seeds from %" PRIu64 " on, commit %s%s%s\n", a.seed, SIM_COMMIT,
           a.mutant ? ", mutant " : "", a.mutant ? a.mutant : "");
    if (a.list)
        read_list(&b, a.list);
    for (uint64_t i = 0; !a.list && i < a.seeds; i++) {
        add_item(&b, a.seed + i, a.operations);
        b.repeats = i == 0 && a.seeds > 1 && !a.expect_finding ? 1 : b.repeats;
        if (i == 0 && b.repeats > 0)
            add_item(&b, a.seed, a.operations);
    }
    run_batch(&b);
    int rc = tell(&b);
    free(b.items);
    plan_release(&a.plan);
    return rc;
}
