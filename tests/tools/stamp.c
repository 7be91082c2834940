/* stamp: proves what a block server promises about acknowledged writes, by killing it.
 *
 *     stamp [options] -- SERVER ARGS...
 *
 * It starts the server, writes to the export through libnbd from several connections, kills the
 * server with SIGKILL at a random moment, starts it again, reads everything back and checks:
 *
 *   P1  every write that was acknowledged before an acknowledged FLUSH was sent (and every FUA
 * write) is there P2  what is there is a prefix: if a write is there, so is every write
 * acknowledged before that one was sent P8  TRIM and WRITE_ZEROES read as zeroes and changed
 * nothing else
 *
 *   P3  with --nothing-lost: every write that was acknowledged is there
 *
 * and so on, round after round, on the content that the last round left; with --after-round COMMAND
 * that must succeed, too, each time. With --second SERVER the
 * server is not killed: a second one takes the volume over while the first still has clients, and
 * the check is made on the second (P4).
 *
 * Each sector carries the number of its write. Every client owns every CLIENTS-th stripe of the
 * volume and waits for each answer, so the writes of one sector have a total order; writes of
 * different clients are ordered by a global counter that is read before a request is sent and after
 * its answer came.
 *
 * Exit code: 0 all rounds passed, 1 a promise was broken (what and where is printed), 2 the test
 * itself failed. */
#include <errno.h>
#include <getopt.h>
#include <libnbd.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    SECTOR = 512,
    CLIENTS = 4,
    STRIPE_SECTORS = 256,
    REQUEST_SECTORS_MAX = 64,
    START_TIMEOUT_S = 60
};

struct stamp { /* at the start of a sector; the rest repeats it */
    uint64_t write;
    uint64_t sector;
};

enum kind { KIND_WRITE, KIND_TRIM, KIND_ZERO };

struct record {              /* one request */
    uint64_t first, count;   /* sectors */
    uint64_t sent, answered; /* of the global counter; answered 0: no answer came */
    bool fua;
    enum kind kind;
};

struct flush {
    uint64_t sent, answered;
};

struct client {
    pthread_t thread;
    unsigned index;
    uint64_t seed;
};

static struct options {
    const char *uri;
    const char *second_uri;
    char *second_command;
    const char *after_round;
    int rounds;
    double seconds;
    uint64_t seed;
    uint64_t sectors;
    int flush_percent;
    bool nothing_lost;
} opt = {.rounds = 10, .seconds = 1.0, .seed = 1, .sectors = 32768, .flush_percent = 5};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct record *records; /* by write number; [0] unused */
static uint64_t record_count = 1, record_cap;
static struct flush *flushes;
static uint64_t flush_count, flush_cap;
static uint64_t counter = 1; /* global order of sends and answers */
static uint64_t *base;       /* by sector: the write that the last check saw there; 0: zeroes */
static volatile bool stop;
static uint64_t answered_flushes, answered_writes;

static void die(const char *what) {
    fprintf(stderr, "stamp: %s: %s\n", what, errno ? strerror(errno) : nbd_get_error());
    exit(2);
}

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void pause_ms(long ms) {
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&ts, NULL);
}

static uint32_t next_random(uint64_t *seed) {
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 33);
}

/* --- the server --- */

static pid_t start_server(char **argv) {
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        execvp(argv[0], argv);
        fprintf(stderr, "stamp: %s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    return pid;
}

static struct nbd_handle *try_connect(const char *uri) {
    struct nbd_handle *h = nbd_create();
    if (!h)
        die("nbd_create");
    if (nbd_connect_uri(h, uri) == 0)
        return h;
    nbd_close(h);
    return NULL;
}

static struct nbd_handle *connect_to(const char *uri, pid_t pid) {
    for (double end = now() + START_TIMEOUT_S; now() < end; pause_ms(10)) {
        struct nbd_handle *h = try_connect(uri);
        if (h)
            return h;
        int status;
        if (pid && waitpid(pid, &status, WNOHANG) == pid) {
            fprintf(stderr, "stamp: the server ended with status %d\n", status);
            exit(2);
        }
    }
    errno = 0;
    fprintf(stderr, "stamp: no server at %s: %s\n", uri, nbd_get_error());
    exit(2);
}

/* --- the clients --- */

static uint64_t new_record(const struct record *r) {
    pthread_mutex_lock(&lock);
    if (record_count == record_cap) {
        record_cap *= 2;
        records = realloc(records, record_cap * sizeof *records);
        if (!records)
            die("realloc");
    }
    uint64_t number = record_count++;
    records[number] = *r;
    records[number].sent = counter++;
    pthread_mutex_unlock(&lock);
    return number;
}

static void record_answered(uint64_t number) {
    pthread_mutex_lock(&lock);
    records[number].answered = counter++;
    answered_writes++;
    pthread_mutex_unlock(&lock);
}

static int do_flush(struct nbd_handle *h) {
    pthread_mutex_lock(&lock);
    uint64_t sent = counter++;
    pthread_mutex_unlock(&lock);
    if (nbd_flush(h, 0) < 0)
        return -1;
    pthread_mutex_lock(&lock);
    if (flush_count == flush_cap) {
        flush_cap = flush_cap ? flush_cap * 2 : 256;
        flushes = realloc(flushes, flush_cap * sizeof *flushes);
        if (!flushes)
            die("realloc");
    }
    flushes[flush_count++] = (struct flush){.sent = sent, .answered = counter++};
    answered_flushes++;
    pthread_mutex_unlock(&lock);
    return 0;
}

/* A random stretch inside one of the client's stripes. */
static void pick(struct client *c, struct record *r) {
    uint64_t stripes = opt.sectors / STRIPE_SECTORS / CLIENTS;
    uint64_t stripe = next_random(&c->seed) % stripes * CLIENTS + c->index;
    uint64_t off = next_random(&c->seed) % STRIPE_SECTORS;
    uint64_t count = 1 + next_random(&c->seed) % REQUEST_SECTORS_MAX;
    if (count > STRIPE_SECTORS - off)
        count = STRIPE_SECTORS - off;
    r->first = stripe * STRIPE_SECTORS + off;
    r->count = count;
}

static int do_write(struct nbd_handle *h, struct client *c) {
    static __thread uint8_t data[REQUEST_SECTORS_MAX * SECTOR];
    struct record r = {0};
    pick(c, &r);
    uint32_t what = next_random(&c->seed) % 16;
    r.kind = what == 0 ? KIND_TRIM : what == 1 ? KIND_ZERO : KIND_WRITE;
    r.fua = next_random(&c->seed) % 64 == 0 && opt.flush_percent;
    uint32_t flags = r.fua ? LIBNBD_CMD_FLAG_FUA : 0;
    uint64_t number = new_record(&r);
    uint64_t off = r.first * SECTOR, len = r.count * SECTOR;
    int rc;
    if (r.kind == KIND_TRIM) {
        rc = nbd_trim(h, len, off, flags);
    } else if (r.kind == KIND_ZERO) {
        rc = nbd_zero(h, len, off, flags);
    } else {
        for (uint64_t i = 0; i < r.count; i++) {
            struct stamp s = {.write = number, .sector = r.first + i};
            for (size_t at = 0; at < SECTOR; at += sizeof s)
                memcpy(data + i * SECTOR + at, &s, sizeof s);
        }
        rc = nbd_pwrite(h, data, len, off, flags);
    }
    if (rc == 0)
        record_answered(number);
    return rc;
}

static void *client_main(void *arg) {
    struct client *c = arg;
    struct nbd_handle *h = try_connect(opt.uri);
    if (!h)
        return NULL; /* killed before we came */
    while (!stop) {
        bool flush = (int)(next_random(&c->seed) % 100) < opt.flush_percent;
        if ((flush ? do_flush(h) : do_write(h, c)) < 0)
            break;
    }
    nbd_close(h);
    return NULL;
}

/* --- the check --- */

static int broken(const char *promise, uint64_t sector, uint64_t seen, uint64_t wanted) {
    printf("BROKEN %s: sector %llu has write %llu, must have write %llu or a later one\n", promise,
           (unsigned long long)sector, (unsigned long long)seen, (unsigned long long)wanted);
    if (wanted > 0 && wanted < record_count)
        printf("  write %llu: sectors %llu+%llu kind %d fua %d sent %llu answered %llu\n",
               (unsigned long long)wanted, (unsigned long long)records[wanted].first,
               (unsigned long long)records[wanted].count, records[wanted].kind, records[wanted].fua,
               (unsigned long long)records[wanted].sent,
               (unsigned long long)records[wanted].answered);
    return 1;
}

/* The write whose stamp a sector carries; 0 for zeroes; UINT64_MAX for anything else. */
static uint64_t read_stamp(const uint8_t *data, uint64_t sector) {
    struct stamp s, first;
    memcpy(&first, data, sizeof first);
    for (size_t at = 0; at < SECTOR; at += sizeof s) {
        memcpy(&s, data + at, sizeof s);
        if (s.write != first.write || s.sector != first.sector)
            return UINT64_MAX;
    }
    if (first.write == 0 && first.sector == 0)
        return 0;
    return first.sector == sector && first.write < record_count ? first.write : UINT64_MAX;
}

static uint64_t *read_all(const char *uri) {
    uint64_t *seen = calloc(opt.sectors, sizeof *seen);
    uint8_t *data = malloc(1024 * SECTOR);
    struct nbd_handle *h = connect_to(uri, 0);
    for (uint64_t first = 0; first < opt.sectors; first += 1024) {
        if (nbd_pread(h, data, 1024 * SECTOR, first * SECTOR, 0) < 0) {
            printf("BROKEN: read at sector %llu: %s\n", (unsigned long long)first, nbd_get_error());
            exit(1);
        }
        for (uint64_t i = 0; i < 1024; i++)
            seen[first + i] = read_stamp(data + i * SECTOR, first + i);
    }
    free(data);
    nbd_close(h);
    return seen;
}

static int check(const char *uri, uint64_t round_first) {
    uint64_t *seen = read_all(uri);
    uint64_t flushed = 0; /* the newest send of a FLUSH or FUA write that was answered (P1) */
    for (uint64_t i = 0; i < flush_count; i++)
        if (flushes[i].sent > flushed)
            flushed = flushes[i].sent;
    for (uint64_t n = round_first; n < record_count; n++)
        if (records[n].fua && records[n].answered && records[n].sent > flushed)
            flushed = records[n].sent;
    uint64_t present = 0; /* the newest send of a write that is seen: everything answered before it
                             must be there (P2) */
    for (uint64_t s = 0; s < opt.sectors; s++) {
        if (seen[s] == UINT64_MAX) {
            printf("BROKEN: sector %llu holds what nobody wrote there\n", (unsigned long long)s);
            return 1;
        }
        if (seen[s] >= round_first && records[seen[s]].sent > present)
            present = records[seen[s]].sent;
    }
    /* For each sector: the newest write that must be there, and whether a zero may be seen. */
    uint64_t *must = malloc(opt.sectors * sizeof *must);
    memcpy(must, base, opt.sectors * sizeof *must);
    uint64_t *last_zero = calloc(opt.sectors, sizeof *last_zero);
    for (uint64_t n = round_first; n < record_count; n++) {
        const struct record *r = &records[n];
        bool required = r->answered && (opt.nothing_lost || r->answered < flushed ||
                                        r->answered < present || r->fua);
        for (uint64_t s = r->first; s < r->first + r->count; s++) {
            if (required && n > must[s])
                must[s] = n;
            if (r->kind != KIND_WRITE)
                last_zero[s] = n;
        }
    }
    int rc = 0;
    for (uint64_t s = 0; rc == 0 && s < opt.sectors; s++) {
        uint64_t at = seen[s];
        uint64_t answered = records[must[s]].answered;
        const char *promise = answered < flushed ? "P1" : answered < present ? "P2" : "P3";
        if (at == 0 && base[s] == 0 && must[s] == 0)
            continue; /* nothing had to happen here */
        if (at == 0 && (last_zero[s] == 0 || last_zero[s] < must[s]))
            rc = broken(promise, s, 0, must[s]); /* or P8: a TRIM that took a neighbour with it */
        else if (at != 0 && at < round_first && at != base[s])
            rc = broken("P2 (a write of an earlier round came back)", s, at, base[s]);
        else if (at != 0 && at < must[s])
            rc = broken(promise, s, at, must[s]);
    }
    if (rc == 0)
        memcpy(base, seen, opt.sectors * sizeof *base);
    free(seen);
    free(must);
    free(last_zero);
    return rc;
}

/* --- rounds --- */

static void end_server(pid_t pid, int signum) {
    if (pid <= 0)
        return;
    kill(pid, signum);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

static void start_clients(struct client *clients, int round) {
    stop = false;
    for (unsigned i = 0; i < CLIENTS; i++) {
        clients[i] =
            (struct client){.index = i, .seed = opt.seed * 1000003 + (uint64_t)round * 101 + i};
        if (pthread_create(&clients[i].thread, NULL, client_main, &clients[i]) != 0)
            die("pthread_create");
    }
}

static void join_clients(struct client *clients) {
    for (unsigned i = 0; i < CLIENTS; i++)
        pthread_join(clients[i].thread, NULL);
}

/* The clients run for a random time; then the server dies under them. */
static pid_t kill_round(pid_t pid, char **argv, int round) {
    struct client clients[CLIENTS];
    uint64_t seed = opt.seed + (uint64_t)round;
    double run_s = opt.seconds * (0.2 + (double)(next_random(&seed) % 1000) / 1250.0);
    start_clients(clients, round);
    pause_ms((long)(run_s * 1000));
    end_server(pid, SIGKILL);
    stop = true;
    join_clients(clients);
    return start_server(argv);
}

/* A second server takes the volume over while the first has clients; these go on until the first
 * lets them down. */
static pid_t takeover_round(int round, double *ret_lasted_s) {
    struct client clients[CLIENTS];
    start_clients(clients, round);
    pause_ms((long)(opt.seconds * 500));
    char *argv[] = {"/bin/sh", "-c", opt.second_command, NULL};
    pid_t second = start_server(argv);
    nbd_close(connect_to(opt.second_uri, second));
    double serving = now();
    pause_ms((long)(opt.seconds * 1000));
    stop = true; /* a fenced server fails its clients; one that does not know yet may still take
                    writes, not flushes */
    join_clients(clients);
    *ret_lasted_s = now() - serving;
    return second;
}

/* What else must hold after a round, with the server up. */
static int run_after_round(int round) {
    fflush(stdout);
    int status = opt.after_round ? system(opt.after_round) : 0;
    if (status == 0)
        return 0;
    printf("round %d: '%s' failed (%d)\n", round, opt.after_round, status);
    return 1;
}

static void forget_round(void) {
    flush_count = 0;
}

static int run_rounds(char **argv) {
    pid_t pid = start_server(argv);
    nbd_close(connect_to(opt.uri, pid));
    int rc = 0;
    for (int round = 1; rc == 0 && round <= opt.rounds; round++) {
        uint64_t first = record_count;
        if (opt.second_command) {
            double lasted = 0;
            pid_t second = takeover_round(round, &lasted);
            rc = check(opt.second_uri, first);
            end_server(pid, SIGKILL);
            end_server(second, SIGKILL);
            pid = rc == 0 && round < opt.rounds ? start_server(argv) : 0;
        } else {
            pid = kill_round(pid, argv, round);
            rc = check(opt.uri, first);
        }
        if (pid && opt.second_command)
            nbd_close(connect_to(opt.uri, pid));
        if (rc == 0)
            rc = run_after_round(round);
        if (rc == 0)
            forget_round();
        if (rc == 0 && (round % 10 == 0 || round == opt.rounds))
            printf("round %d of %d: %llu writes and %llu flushes answered, all promises kept\n",
                   round, opt.rounds, (unsigned long long)answered_writes,
                   (unsigned long long)answered_flushes);
        fflush(stdout);
    }
    end_server(pid, SIGTERM);
    return rc;
}

static void usage(void) {
    printf("usage: stamp --uri NBD-URI [--rounds N] [--seconds S] [--seed N] [--sectors N] "
           "[--flush-percent P] [--nothing-lost]\n"
           "             [--after-round SHELL-COMMAND] [--second-uri URI --second SHELL-COMMAND] "
           "-- SERVER ARGS...\n");
}

int main(int argc, char **argv) {
    static const struct option longs[] = {
        {"uri", required_argument, NULL, 'u'},     {"rounds", required_argument, NULL, 'r'},
        {"seconds", required_argument, NULL, 's'}, {"seed", required_argument, NULL, 'e'},
        {"sectors", required_argument, NULL, 'n'}, {"flush-percent", required_argument, NULL, 'f'},
        {"nothing-lost", no_argument, NULL, 'L'},  {"second-uri", required_argument, NULL, 'U'},
        {"second", required_argument, NULL, 'S'},  {"after-round", required_argument, NULL, 'A'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    int c;
    while ((c = getopt_long(argc, argv, "+h", longs, NULL)) != -1) {
        switch (c) {
        case 'u':
            opt.uri = optarg;
            break;
        case 'r':
            opt.rounds = atoi(optarg);
            break;
        case 's':
            opt.seconds = atof(optarg);
            break;
        case 'e':
            opt.seed = strtoull(optarg, NULL, 10);
            break;
        case 'n':
            opt.sectors = strtoull(optarg, NULL, 10);
            break;
        case 'f':
            opt.flush_percent = atoi(optarg);
            break;
        case 'L':
            opt.nothing_lost = true;
            break;
        case 'U':
            opt.second_uri = optarg;
            break;
        case 'S':
            opt.second_command = optarg;
            break;
        case 'A':
            opt.after_round = optarg;
            break;
        default:
            usage();
            return c == 'h' ? 0 : 2;
        }
    }
    if (!opt.uri || optind == argc || opt.sectors % 1024 != 0 ||
        !opt.second_command != !opt.second_uri) {
        usage();
        return 2;
    }
    base = calloc(opt.sectors, sizeof *base);
    records = calloc(record_cap = 4096, sizeof *records);
    if (!base || !records)
        die("calloc");
    signal(SIGPIPE, SIG_IGN);
    return run_rounds(argv + optind);
}
