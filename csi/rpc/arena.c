/* Memory for the messages of one call: a list of blocks that are filled from the front. */
#include "csi/rpc/arena.h"

#include <stdlib.h>

#include "common/mem.h"

struct arena_block {
    struct arena_block *next;
    size_t cap;
    size_t len;
    _Alignas(16) uint8_t bytes[];
};

enum { ALIGNMENT = 16, BLOCK_SIZE = 4096 - sizeof(struct arena_block) };

void *arena_alloc(struct arena *a, size_t size) {
    if (size > a->max_bytes || ALIGN_UP(size, ALIGNMENT) > a->max_bytes - a->used_bytes) {
        a->exhausted = true;
        return NULL;
    }
    size = ALIGN_UP(size, ALIGNMENT);
    struct arena_block *b = a->blocks;
    if (!b || b->cap - b->len < size) {
        size_t cap = MAX(size, (size_t)BLOCK_SIZE);
        b = xmalloc(sizeof *b + cap);
        *b = (struct arena_block){.next = a->blocks, .cap = cap};
        a->blocks = b;
    }
    void *p = b->bytes + b->len;
    b->len += size;
    a->used_bytes += size;
    return p;
}

void arena_release(struct arena *a) {
    while (a->blocks) {
        struct arena_block *b = a->blocks;
        a->blocks = b->next;
        free(b);
    }
    a->used_bytes = 0;
    a->exhausted = false;
}

static void *allocator_alloc(void *arena, size_t size) {
    return arena_alloc(arena, size);
}

static void allocator_free(void *arena, void *p) {
    (void)arena;
    (void)p;
}

ProtobufCAllocator arena_allocator(struct arena *a) {
    return (ProtobufCAllocator){
        .alloc = allocator_alloc, .free = allocator_free, .allocator_data = a};
}
