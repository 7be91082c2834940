/* Allocation for sizes that come from code: out of memory aborts. Sizes from input are capped by
 * their decoder before they get here. Memory is owned by who gets the pointer. Any thread. */
#pragma once

#include "common/base.h"

void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size); /* zeroed; overflow of the product aborts */
void *xrealloc(void *ptr, size_t size);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t len);
char *xasprintf(const char *fmt, ...) PRINTF_LIKE(1, 2);

void freep_(void *ptr_to_ptr);
#define CLEANUP_FREE CLEANUP(freep_)

#define NEW(type) ((type *)xcalloc(1, sizeof(type)))
