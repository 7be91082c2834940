/* Values of options: text to number and back. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/options_internal.h"

struct suffix {
    const char *text;
    uint64_t factor;
};

static const struct suffix size_suffixes[] = {
    {"Ti", UINT64_C(1) << 40},
    {"Gi", UINT64_C(1) << 30},
    {"Mi", UINT64_C(1) << 20},
    {"Ki", UINT64_C(1) << 10},
    {"T", UINT64_C(1) << 40},
    {"G", UINT64_C(1) << 30},
    {"M", UINT64_C(1) << 20},
    {"K", UINT64_C(1) << 10},
    {"k", UINT64_C(1) << 10},
    {"Pi", UINT64_C(1) << 50},
    {"P", UINT64_C(1) << 50},
    {"Ei", UINT64_C(1) << 60},
    {"E", UINT64_C(1) << 60},
    {"B", 1},
    {"", 1},
};

static const struct suffix duration_suffixes[] = {
    {"us", 1},
    {"ms", 1000},
    {"s", UINT64_C(1000000)},
    {"m", UINT64_C(60000000)},
    {"h", UINT64_C(3600000000)},
};

/* Digits at the start of text; false: none, or more than 64 bits. */
static bool read_digits(const char *text, uint64_t *ret_value, const char **ret_rest) {
    if (*text < '0' || *text > '9')
        return false;
    uint64_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return false;
    *ret_value = value;
    *ret_rest = text;
    return true;
}

static bool read_scaled(const char *text, const struct suffix *suffixes, size_t count,
                        uint64_t *ret_value) {
    uint64_t value;
    const char *rest;
    if (!read_digits(text, &value, &rest))
        return false;
    for (size_t i = 0; i < count; i++)
        if (strcmp(rest, suffixes[i].text) == 0)
            return !__builtin_mul_overflow(value, suffixes[i].factor, ret_value);
    return false;
}

int option_parse_u64(const char *text, uint64_t *ret_value, struct err *e) {
    const char *rest;
    uint64_t value;
    if (!read_digits(text, &value, &rest) || *rest)
        return err_set(e, -ERR_INVALID, "'%.64s' is not a whole number; write for example 8", text);
    *ret_value = value;
    return 0;
}

int option_parse_size(const char *text, uint64_t *ret_bytes, struct err *e) {
    if (!read_scaled(text, size_suffixes, ARRAY_LEN(size_suffixes), ret_bytes))
        return err_set(e, -ERR_INVALID,
                       "'%.64s' is not a size; write bytes, or for example 64Ki, 16M, 10Gi", text);
    return 0;
}

int option_parse_duration(const char *text, uint64_t *ret_us, struct err *e) {
    if (strcmp(text, "0") == 0) {
        *ret_us = 0;
        return 0;
    }
    if (!read_scaled(text, duration_suffixes, ARRAY_LEN(duration_suffixes), ret_us))
        return err_set(e, -ERR_INVALID,
                       "'%.64s' is not a duration; write for example 500us, 20ms, 30s, 5m or 1h",
                       text);
    return 0;
}

int option_parse_bool(const char *text, bool *ret_value, struct err *e) {
    static const char *const words[2][4] = {{"false", "no", "off", "0"},
                                            {"true", "yes", "on", "1"}};
    for (size_t value = 0; value < 2; value++)
        for (size_t i = 0; i < 4; i++)
            if (strcmp(text, words[value][i]) == 0) {
                *ret_value = value == 1;
                return 0;
            }
    return err_set(e, -ERR_INVALID, "'%.64s' is neither true nor false", text);
}

void option_format(enum option_type type, uint64_t value, char *text, size_t size) {
    static const struct suffix durations[] = {{"h", UINT64_C(3600000000)},
                                              {"m", UINT64_C(60000000)},
                                              {"s", UINT64_C(1000000)},
                                              {"ms", 1000},
                                              {"us", 1}};
    static const struct suffix sizes[] = {{"Ei", UINT64_C(1) << 60}, {"Pi", UINT64_C(1) << 50},
                                          {"Ti", UINT64_C(1) << 40}, {"Gi", UINT64_C(1) << 30},
                                          {"Mi", UINT64_C(1) << 20}, {"Ki", UINT64_C(1) << 10}};
    const struct suffix *suffixes = type == OPTION_SIZE ? sizes : durations;
    size_t count = type == OPTION_SIZE       ? ARRAY_LEN(sizes)
                   : type == OPTION_DURATION ? ARRAY_LEN(durations)
                                             : 0;
    for (size_t i = 0; i < count && value > 0; i++)
        if (value % suffixes[i].factor == 0) {
            snprintf(text, size, "%" PRIu64 "%s", value / suffixes[i].factor, suffixes[i].text);
            return;
        }
    snprintf(text, size, "%" PRIu64, value);
}

static int check_range(const struct option_spec *o, uint64_t value, struct err *e) {
    char got[32], min[32], max[32];
    option_format(o->type, value, got, sizeof got);
    option_format(o->type, o->min, min, sizeof min);
    option_format(o->type, o->max, max, sizeof max);
    if (value < o->min)
        return err_set(e, -ERR_INVALID, "%s is too small; the minimum is %s", got, min);
    if (o->max > 0 && value > o->max)
        return err_set(e, -ERR_INVALID, "%s is too large; the maximum is %s", got, max);
    return 0;
}

static int set_u64(const struct option_spec *o, const char *text, uint64_t *at, struct err *e) {
    uint64_t value = 0;
    int rc = o->type == OPTION_SIZE       ? option_parse_size(text, &value, e)
             : o->type == OPTION_DURATION ? option_parse_duration(text, &value, e)
                                          : option_parse_u64(text, &value, e);
    if (rc == 0)
        rc = check_range(o, value, e);
    if (rc == 0)
        *at = value;
    return rc;
}

static int set_enum(const struct option_spec *o, const char *text, int *at, struct err *e) {
    for (int i = 0; o->choices[i]; i++)
        if (strcmp(o->choices[i], text) == 0) {
            *at = i;
            return 0;
        }
    char list[ERR_TEXT_MAX] = "";
    for (size_t i = 0; o->choices[i]; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "",
                 o->choices[i]);
    return err_set(e, -ERR_INVALID, "'%.64s' is none of: %s", text, list);
}

static void set_string(const char *text, char **at) {
    free(*at);
    *at = *text ? xstrdup(text) : NULL;
}

void option_strings_release(struct option_strings *list) {
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (struct option_strings){0};
}

int option_strings_add(struct option_strings *list, const char *text, size_t len, struct err *e) {
    if (list->count == OPTION_STRINGS_MAX)
        return err_set(e, -ERR_INVALID, "more than %d values; give fewer", OPTION_STRINGS_MAX);
    list->items = xrealloc(list->items, (list->count + 1) * sizeof list->items[0]);
    list->items[list->count++] = xstrndup(text, len);
    return 0;
}

int option_set(const struct option_spec *o, const char *text, bool split, void *config,
               struct err *e) {
    if (strlen(text) > OPTION_VALUE_MAX)
        return err_set(e, -ERR_INVALID, "longer than %d bytes; give a shorter value",
                       OPTION_VALUE_MAX);
    void *at = (char *)config + o->off;
    switch (o->type) {
    case OPTION_STRING:
    case OPTION_SECRET_FILE:
        set_string(text, at);
        return 0;
    case OPTION_BOOL:
        return option_parse_bool(text, at, e);
    case OPTION_U64:
    case OPTION_SIZE:
    case OPTION_DURATION:
        return set_u64(o, text, at, e);
    case OPTION_ENUM:
        return set_enum(o, text, at, e);
    case OPTION_STRINGS:
        break;
    }
    int rc = 0;
    while (rc == 0 && *text) {
        size_t len = split ? strcspn(text, ",") : strlen(text);
        if (len > 0)
            rc = option_strings_add(at, text, len, e);
        text += len + (text[len] == ',');
    }
    return rc;
}
