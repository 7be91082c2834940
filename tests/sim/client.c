/* Clients of a daemon: each sends one request after another and tells the model what it hears. */
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

enum {
    REFUSALS_MAX = 4,     /* requests that a client still sends to a fenced daemon */
    READ_CHUNK_MAX = 1024 /* sectors of one READ of client_read_all */
};

/* A block request and what the model has to hear when it ends. */
struct call {
    struct bd_request req;
    struct daemon *d;
    struct fiber_done done;
    uint8_t *data;             /* owned */
    struct bd_extent *extents; /* owned */
    struct read_check check;
    size_t token;    /* FLUSH */
    size_t position; /* of its records */
    size_t records;
};

/* --- one request --- */

static void tell_block_status(struct call *c) {
    uint64_t sector = c->req.off / SECTOR_SIZE, left = c->req.len / SECTOR_SIZE;
    for (size_t i = 0; i < c->req.extents.count; i++) {
        const struct bd_extent *x = &c->req.extents.items[i];
        uint64_t n = x->len / SECTOR_SIZE;
        if (x->len == 0 || x->len % SECTOR_SIZE != 0 || n > left) {
            sim_fail(c->d->sim, "%s: block status extent %zu has %llu bytes", c->d->proc.name, i,
                     (unsigned long long)x->len);
            return;
        }
        if (x->state & BD_EXTENT_ZERO)
            model_zero_seen(c->d->reign, &c->check, sector, n);
        sector += n;
        left -= n;
    }
    if (c->req.extents.count == 0)
        sim_fail(c->d->sim, "%s: block status without extents", c->d->proc.name);
}

/* Tells the model the answer, in the turn of the answer. */
static void tell(struct call *c) {
    struct daemon *d = c->d;
    struct reign *r = d->reign;
    bool heard = !d->dead && r;
    switch (c->req.op) {
    case BD_READ:
        if (c->check.state)
            model_read_end(r, &c->check, heard && c->req.rc == 0 ? c->data : NULL);
        break;
    case BD_BLOCK_STATUS:
        if (heard && c->req.rc == 0)
            tell_block_status(c);
        model_read_end(r, &c->check, NULL);
        break;
    case BD_FLUSH:
        if (heard && c->req.rc == 0)
            model_flush_acked(r, c->token);
        break;
    case BD_WRITE:
    case BD_TRIM:
    case BD_WRITE_ZEROES:
        if (heard)
            model_answer(r, c->position, c->records, c->req.rc, c->req.flags & BD_FUA);
        break;
    case BD_CACHE:
    case BD_OPS:
        break;
    }
}

static void on_done(struct bd_request *req) {
    struct call *c = container_of(req, struct call, req);
    tell(c);
    fiber_done_set(&c->done);
}

/* fiber. Submits and waits, also when cancelled. */
static int run_call(struct call *c) {
    fiber_done_init(&c->done);
    c->req.done = on_done;
    bool ended = bd_submit(volume_blockdev(c->d->volume), &c->req);
    bounds_check(c->d);
    if (ended) {
        tell(c);
        return c->req.rc;
    }
    c->d->sim->totals.writes_waited += c->req.op == BD_WRITE && !(c->req.flags & BD_FUA);
    fiber_done_wait_always(&c->d->proc.env, &c->done);
    return c->req.rc;
}

static void release(struct call *c) {
    free(c->data);
    free(c->extents);
}

/* --- reading everything --- */

struct chunk {
    struct daemon *d;
    uint32_t *found;
    uint64_t sector;
    uint32_t count;
    uint32_t place;
    int rc;
};

static void read_chunk(void *arg) {
    struct chunk *k = arg;
    k->rc = -ERR_CANCELLED;
    if (!k->d->volume) /* killed before this fiber ran */
        return;
    struct call c = {.d = k->d,
                     .req = {.op = BD_READ,
                             .off = k->sector * SECTOR_SIZE,
                             .len = (uint64_t)k->count * SECTOR_SIZE}};
    c.data = c.req.read_buf = xmalloc(c.req.len);
    k->rc = run_call(&c);
    for (uint32_t i = 0; k->rc == 0 && i < k->count; i++)
        k->found[k->place + i] = stamp_read(c.data + (size_t)i * SECTOR_SIZE, k->sector + i);
    release(&c);
}

static size_t plan_chunks(struct daemon *d, uint32_t *found, struct chunk *chunks) {
    struct sim *s = d->sim;
    uint64_t sectors = bd_size_bytes(volume_blockdev(d->volume)) / SECTOR_SIZE;
    struct place_range parts[SPANS_MAX];
    size_t n = checker_places(&s->checker, 0, sectors, parts), count = 0;
    for (size_t i = 0; i < n; i++) {
        for (uint32_t done = 0; done < parts[i].count;) {
            uint32_t len = (uint32_t)sim_between(&s->world, 1, READ_CHUNK_MAX);
            len = MIN(len, parts[i].count - done);
            if (chunks)
                chunks[count] = (struct chunk){.d = d,
                                               .found = found,
                                               .sector = parts[i].sector + done,
                                               .count = len,
                                               .place = parts[i].place + done};
            count++;
            done += chunks ? len : 1;
        }
    }
    return count;
}

int client_read_all(struct daemon *d, uint32_t *found) {
    struct chunk *chunks = xcalloc(d->sim->checker.places, sizeof *chunks);
    size_t count = plan_chunks(d, found, chunks);
    struct fiber_group group;
    fiber_group_init(&group, &d->proc.env);
    int rc = 0;
    for (size_t i = 0; i < count && rc == 0; i += 16) {
        for (size_t k = i; k < MIN(i + 16, count); k++)
            fiber_group_start(&group, read_chunk, &chunks[k]);
        rc = fiber_group_wait(&group);
        for (size_t k = i; k < MIN(i + 16, count) && rc == 0; k++)
            rc = chunks[k].rc;
    }
    free(chunks);
    return rc;
}

/* --- what clients do --- */

struct client {
    struct daemon *d;
    unsigned refusals;
};

/* A range inside the model's spans and the volume, of 1 .. max sectors. */
static void draw_range(struct daemon *d, uint64_t max, uint64_t *ret_sector, uint64_t *ret_count) {
    struct sim *s = d->sim;
    struct sim_world *w = &s->world;
    uint64_t sectors = bd_size_bytes(volume_blockdev(d->volume)) / SECTOR_SIZE;
    struct place_range parts[SPANS_MAX];
    size_t n = checker_places(&s->checker, 0, sectors, parts);
    const struct place_range *part = &parts[sim_chance(w, 940) ? 0 : sim_below(w, n)];
    uint64_t count = sim_skewed(w, 1, MIN(max, part->count));
    uint64_t at = sim_chance(w, 300) ? sim_skewed(w, 0, part->count - count)
                                     : sim_below(w, part->count - count + 1);
    if (sim_chance(w, 500)) {
        at -= at % 8;
        count = MIN(ALIGN_UP(count, 8), part->count - at);
    }
    *ret_sector = part->sector + at;
    *ret_count = count;
}

static uint64_t draw_length_max(struct sim *s) {
    if (sim_chance(&s->world, 15))
        return s->hot_sectors;
    return sim_chance(&s->world, 200) ? 256 : 32;
}

static void init_range(struct call *c, struct daemon *d, enum bd_op op, uint64_t sector,
                       uint64_t count) {
    *c = (struct call){.d = d,
                       .req = {.op = op, .off = sector * SECTOR_SIZE, .len = count * SECTOR_SIZE}};
}

/* Sometimes reaches into what nobody ever writes to. */
static uint64_t stretch(struct daemon *d, uint64_t sector, uint64_t count, uint64_t more_max) {
    struct sim_world *w = &d->sim->world;
    uint64_t sectors = bd_size_bytes(volume_blockdev(d->volume)) / SECTOR_SIZE;
    if (!sim_chance(w, 50))
        return count;
    uint64_t more = sim_skewed(w, 1, more_max);
    return MIN(count + more, sectors - sector);
}

static int do_read(struct daemon *d, uint64_t sector, uint64_t count) {
    count = stretch(d, sector, count, 200);
    struct call c;
    init_range(&c, d, BD_READ, sector, count);
    c.data = c.req.read_buf = xmalloc(c.req.len);
    model_read_begin(d->reign, &c.check, sector, count);
    int rc = run_call(&c);
    release(&c);
    return rc;
}

static int do_block_status(struct daemon *d, uint64_t sector, uint64_t count) {
    count = stretch(d, sector, count, 300000);
    struct call c;
    init_range(&c, d, BD_BLOCK_STATUS, sector, count);
    c.extents = xcalloc(BD_STATUS_EXTENTS_MAX, sizeof *c.extents);
    c.req.extents.items = c.extents;
    c.req.flags = sim_chance(&d->sim->world, 300) ? BD_REQ_ONE : 0;
    model_read_begin(d->reign, &c.check, sector, count);
    int rc = run_call(&c);
    release(&c);
    return rc;
}

static int do_write(struct daemon *d, uint64_t sector, uint64_t count) {
    struct checker *k = &d->sim->checker;
    struct call c;
    init_range(&c, d, BD_WRITE, sector, count);
    c.req.flags = sim_chance(&d->sim->world, 60) ? BD_FUA : 0;
    c.data = xmalloc(c.req.len);
    c.req.write_data = c.data;
    uint32_t stamp = k->next_stamp;
    for (uint64_t i = 0; i < count; i++) /* a stamp for each record */
        stamp_fill(c.data + i * SECTOR_SIZE, stamp + (uint32_t)(i / RECORD_SECTORS_MAX),
                   sector + i);
    k->next_stamp += (uint32_t)DIV_UP(count, RECORD_SECTORS_MAX);
    c.position = d->reign->count;
    for (uint64_t i = 0; i < count; i += RECORD_SECTORS_MAX) {
        size_t n;
        model_submit(d->reign, sector + i, MIN((uint64_t)RECORD_SECTORS_MAX, count - i),
                     stamp + (uint32_t)(i / RECORD_SECTORS_MAX), &n);
        c.records += n;
    }
    int rc = run_call(&c);
    release(&c);
    return rc;
}

/* Many small extents, so that the map is larger than a part of it may be. */
static void fill(struct daemon *d) {
    struct sim *s = d->sim;
    while (s->fill_left > 0 && !d->stop && !d->dead && !s->stopping && !s->quiet) {
        uint64_t at = --s->fill_left; /* others fill too */
        if (do_write(d, at * 2 % s->hot_sectors, 1) < 0)
            return;
    }
}

static int do_zero(struct daemon *d, enum bd_op op) {
    struct sim_world *w = &d->sim->world;
    uint64_t sector, count;
    draw_range(d, draw_length_max(d->sim), &sector, &count);
    uint64_t sectors = bd_size_bytes(volume_blockdev(d->volume)) / SECTOR_SIZE;
    if (sim_chance(w, 30))
        count = sectors - sector; /* to the very end */
    else if (sim_chance(w, 20))
        sector = 0, count = sectors;
    struct call c;
    init_range(&c, d, op, sector, count);
    c.req.flags = sim_chance(w, 60) ? BD_FUA : 0;
    if (op == BD_WRITE_ZEROES && sim_chance(w, 500))
        c.req.flags |= BD_NO_HOLE;
    c.position = model_submit(d->reign, sector, count, 0, &c.records);
    return run_call(&c);
}

static int do_flush(struct daemon *d) {
    struct volume_status st;
    volume_status(d->volume, &st);
    d->sim->totals.window_full += st.segments_in_flight >= WINDOW - WINDOW / 4;
    struct call c = {.d = d, .req = {.op = BD_FLUSH}};
    c.token = model_flush_begin(d->reign);
    return run_call(&c);
}

static int do_prefetch(struct daemon *d, uint64_t sector, uint64_t count) {
    struct call c;
    init_range(&c, d, BD_CACHE, sector, count);
    return run_call(&c);
}

/* Calls of the daemon itself, beside the data path. */
static int do_volume_flush(struct daemon *d) {
    struct err e = {0};
    size_t token = model_flush_begin(d->reign);
    int rc = volume_flush(d->volume, &e);
    if (rc == 0 && !d->dead)
        model_flush_acked(d->reign, token);
    return rc;
}

static int do_checkpoint(struct daemon *d) {
    struct err e = {0};
    return volume_checkpoint(d->volume, &e);
}

static int do_collect(struct daemon *d) {
    struct err e = {0};
    int rc = volume_collect(d->volume, &e);
    d->sim->totals.collects += rc == 0;
    struct volume_status st;
    volume_status(d->volume, &st);
    /* What it stopped for is told to the requests. */
    return rc == -ERR_CANCELLED && st.health == VOLUME_HEALTH_FENCED ? -ERR_FENCED : rc;
}

static int do_grow(struct daemon *d) {
    struct model_volume *m = d->vol->model;
    uint64_t size = bd_size_bytes(volume_blockdev(d->volume));
    uint64_t more = 4096 * sim_between(&d->sim->world, 1, 4);
    if (size + more > VOLUME_SIZE_MAX)
        return 0;
    size += more;
    m->size_wanted = MAX(m->size_wanted, size);
    struct err e = {0};
    int rc = volume_grow(d->volume, size, &e);
    if (rc == 0 && !d->dead) {
        m->size_acked = MAX(m->size_acked, size);
        d->sim->totals.grows++;
    }
    return rc;
}

static int do_call(struct daemon *d) {
    d->calls++;
    int rc;
    switch (sim_below(&d->sim->world, 7)) {
    case 0:
        rc = do_grow(d);
        break;
    case 6:
        rc = do_collect(d);
        break;
    case 1:
    case 2:
        rc = do_volume_flush(d);
        break;
    default:
        rc = do_checkpoint(d);
        break;
    }
    d->calls--;
    waitq_wake_all(&d->changed);
    return rc;
}

static int do_something(struct daemon *d) {
    struct sim *s = d->sim;
    uint64_t sector, count;
    draw_range(d, draw_length_max(s), &sector, &count);
    unsigned reads = 300, calls = 8, odd = 20;
    uint64_t total = reads + calls + odd + s->write_weight + s->trim_weight + s->flush_weight;
    uint64_t pick = sim_below(&s->world, total);
    if (pick < reads)
        return do_read(d, sector, count);
    pick -= reads;
    if (pick < calls)
        return do_call(d);
    pick -= calls;
    if (pick < odd)
        return pick < 12 ? do_block_status(d, sector, count) : do_prefetch(d, sector, count);
    pick -= odd;
    if (pick < s->write_weight)
        return do_write(d, sector, count);
    pick -= s->write_weight;
    if (pick < s->trim_weight)
        return do_zero(d, pick % 2 ? BD_TRIM : BD_WRITE_ZEROES);
    return do_flush(d);
}

/* What a request may answer besides 0. */
static void judge(struct client *c, int rc) {
    struct daemon *d = c->d;
    if (rc == 0 || d->dead)
        return;
    bool expected =
        rc == -ERR_FENCED || (rc == -ERR_SHUTDOWN && d->stop) || (rc == -ERR_CANCELLED && d->stop);
    if (!expected && d->vol->state != LIVE)
        expected = rc == -ERR_SHUTDOWN;
    if (!expected)
        sim_fail(d->sim, "a request to %s ended with %s", d->proc.name, err_code_name(rc));
    if (c->refusals++ == 0)
        d->sim->totals.fenced += rc == -ERR_FENCED;
}

/* A read-only daemon: what it reads must stay what it was. */
static int read_image(struct daemon *d) {
    struct sim *s = d->sim;
    CLEANUP_FREE uint32_t *found = xcalloc(s->checker.places, sizeof *found);
    int rc = client_read_all(d, found);
    if (rc == 0 && !d->dead)
        model_image_check(d->snap->image, found, 0);
    if (rc == 0 || d->dead || d->stop)
        return rc;
    if (rc != -ERR_SHUTDOWN || d->snap->state == LIVE)
        sim_fail(s, "%s of snapshot %s: a read ended with %s", d->proc.name, d->snap->name,
                 err_code_name(rc));
    return rc;
}

/* They do not all come back at once. */
static void wait_for_noise(struct daemon *d) {
    while (d->sim->quiet && !d->stop)
        if (waitq_wait(&d->proc.env, &d->changed) < 0)
            return;
    fiber_sleep_us(&d->proc.env, sim_between(&d->sim->world, 0, 1000000));
}

static void client_main(void *arg) {
    struct client *c = arg;
    struct daemon *d = c->d;
    struct sim *s = d->sim;
    if (!d->snap)
        fill(d);
    while (!d->stop && !s->stopping && c->refusals < REFUSALS_MAX) {
        uint64_t us = d->snap                      ? sim_between(&s->world, 1, 2000000)
                      : sim_chance(&s->world, 500) ? 0
                                                   : sim_skewed(&s->world, 0, s->think_us);
        if (us > 0 && fiber_sleep_us(&d->proc.env, us) < 0)
            break;
        if (s->quiet) {
            wait_for_noise(d);
            continue;
        }
        if (d->stop || d->dead)
            break;
        if (d->snap) {
            if (read_image(d) < 0)
                break;
            continue;
        }
        s->checker.operations++;
        judge(c, do_something(d));
    }
    if (c->refusals >= REFUSALS_MAX || d->snap)
        d->stop = true;
    free(c);
    d->clients--;
    waitq_wake_all(&d->changed);
}

void client_start(struct daemon *d) {
    struct client *c = NEW(struct client);
    c->d = d;
    d->clients++;
    fiber_start(&d->proc.env, client_main, c);
}
