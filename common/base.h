/* The attributes, small macros and checks that every file of the project uses.
 *
 * CHECK() is for a programmer's error: it is always on, prints the condition and aborts. Input
 * (wire, store, config, command line) is never CHECKed, it is refused with an error (common/err.h).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PRINTF_LIKE(fmt, first) __attribute__((format(printf, fmt, first)))
#define MUST_CHECK              __attribute__((warn_unused_result))
#define NORETURN                __attribute__((noreturn))
#define UNUSED                  __attribute__((unused))
#define CLEANUP(fn)             __attribute__((cleanup(fn)))

#ifndef __has_feature /* clang's; tells which sanitizer is on */
#define __has_feature(x) 0
#endif

#define ARRAY_LEN(a)                    (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)                       ((a) < (b) ? (a) : (b))
#define MAX(a, b)                       ((a) > (b) ? (a) : (b))
#define DIV_UP(n, d)                    (((n) + (d)-1) / (d))
#define ALIGN_UP(n, a)                  (DIV_UP(n, a) * (a))
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* Moves the ownership of a pointer out of a variable with a cleanup attribute. */
#define TAKE_PTR(p)                                                                                \
    ({                                                                                             \
        __typeof__(p) *take_from_ = &(p);                                                          \
        __typeof__(p) take_value_ = *take_from_;                                                   \
        *take_from_ = NULL;                                                                        \
        take_value_;                                                                               \
    })

NORETURN void check_failed(const char *condition, const char *file, int line, const char *func);

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (__builtin_expect(!(cond), 0))                                                          \
            check_failed(#cond, __FILE__, __LINE__, __func__);                                     \
    } while (0)

enum { SECTOR_SIZE = 512 }; /* the unit of the address space, bytes */
