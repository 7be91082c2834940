/* See ram_journal.h. A memory file: mapped shared while its user lives, privately once it is dead.
 * What is given back stays in the file and is cleared when it is reserved again: pages of a file
 * cost much more than that. */
#include "tests/support/ram_journal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/mem.h"

enum { PAGE = 4096 };

static struct ram_journal *of_memory(struct journal_memory *m) {
    return container_of(m, struct ram_journal, memory);
}

static void set_pages(struct ram_journal *r, uint64_t off, uint64_t len, int protection) {
    CHECK(off <= r->memory.size && len <= r->memory.size - off);
    CHECK(mprotect(r->memory.base + off, len, protection) == 0);
    if (r->frozen)
        return;
    for (uint64_t p = off / PAGE; p < (off + len) / PAGE; p++) {
        if (protection != PROT_NONE && r->old[p])
            memset(r->memory.base + p * PAGE, 0, PAGE);
        r->old[p] = protection == PROT_NONE && (r->old[p] || r->readable[p]);
        r->readable[p] = protection != PROT_NONE;
    }
}

static bool reserve(struct journal_memory *m, uint64_t off, uint64_t len) {
    struct ram_journal *r = of_memory(m);
    r->reserves++;
    bool there = true;
    for (uint64_t p = off / PAGE; p < DIV_UP(off + len, (uint64_t)PAGE); p++)
        there &= r->readable[p];
    if (!there && (r->full || r->refuse_next > 0)) {
        r->refuse_next -= r->refuse_next > 0;
        r->refusals++;
        return false;
    }
    uint64_t first = off / PAGE * PAGE;
    set_pages(r, first, ALIGN_UP(off + len, (uint64_t)PAGE) - first, PROT_READ | PROT_WRITE);
    return true;
}

static void punch(struct journal_memory *m, uint64_t off, uint64_t len) {
    struct ram_journal *r = of_memory(m);
    if (r->frozen)
        return;
    r->punches++;
    uint64_t first = ALIGN_UP(off, (uint64_t)PAGE), end = (off + len) / PAGE * PAGE;
    if (first >= end)
        return;
    set_pages(r, first, end - first, PROT_NONE);
}

static int set_aside(struct journal_memory *m, uint64_t writes, uint64_t bytes, struct err *e) {
    struct ram_journal *r = of_memory(m);
    (void)e;
    if (r->frozen)
        return 0;
    r->set_asides++;
    r->writes_lost = writes;
    r->bytes_lost = bytes;
    return 0;
}

static void map(struct ram_journal *r, int flags) {
    void *p = mmap(r->memory.base, r->memory.size, PROT_NONE, flags, r->fd, 0);
    CHECK(p != MAP_FAILED);
    r->memory.base = p;
    for (uint64_t i = 0, n, pages = r->memory.size / PAGE; i < pages; i += n + 1) {
        for (n = 0; i + n < pages && r->readable[i + n];)
            n++;
        if (n > 0)
            CHECK(mprotect(r->memory.base + i * PAGE, n * PAGE, PROT_READ | PROT_WRITE) == 0);
    }
}

void ram_journal_init(struct ram_journal *r, uint64_t size) {
    CHECK(size % PAGE == 0);
    *r = (struct ram_journal){
        .memory = {.size = size, .reserve = reserve, .punch = punch, .set_aside = set_aside}};
    r->fd = memfd_create("journal", MFD_CLOEXEC);
    CHECK(r->fd >= 0 && ftruncate(r->fd, (off_t)size) == 0);
    r->readable = xcalloc(size / PAGE, sizeof *r->readable);
    r->old = xcalloc(size / PAGE, sizeof *r->old);
    map(r, MAP_SHARED);
}

void ram_journal_release(struct ram_journal *r) {
    if (r->memory.base) {
        munmap(r->memory.base, r->memory.size);
        close(r->fd);
    }
    free(r->readable);
    free(r->old);
    *r = (struct ram_journal){0};
}

void ram_journal_reset(struct ram_journal *r) {
    punch(&r->memory, 0, r->memory.size);
}

void ram_journal_freeze(struct ram_journal *r) {
    r->frozen = true;
    map(r, MAP_PRIVATE | MAP_FIXED);
}

void ram_journal_thaw(struct ram_journal *r) {
    r->frozen = false;
    map(r, MAP_SHARED | MAP_FIXED);
}

uint64_t ram_journal_pages(const struct ram_journal *r) {
    uint64_t n = 0;
    for (uint64_t p = 0; p < r->memory.size / PAGE; p++)
        n += r->readable[p];
    return n;
}
