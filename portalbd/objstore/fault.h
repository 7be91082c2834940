/* A layer that makes a store misbehave as real ones do, by rules: for conformance, for sweeps that
 * fail the Nth operation, and for a pool that one wants to see in trouble. Its dice are env's. */
#pragma once

#include "portalbd/objstore/objstore.h"

enum fault_kind {
    FAULT_FAIL,         /* answers `code`, the store below sees nothing */
    FAULT_LOSE,         /* the store below carries it out; the answer is `code` */
    FAULT_DELAY,        /* before it reaches the store below */
    FAULT_DELAY_ANSWER, /* after the store below has answered */
    FAULT_HANG,         /* no answer until it is cancelled; the store below sees nothing */
    FAULT_HANG_ANSWER,  /* carried out, then no answer until it is cancelled */
    FAULT_TRUNCATE, /* GET: the second half of the answer is missing, which looks like success */
    FAULT_FLIP,     /* GET: one bit of the answer is wrong */
};

struct fault_rule {
    enum fault_kind kind;
    unsigned verbs; /* bits 1 << OBJ_x; 0: all */
    const char
        *key_part;   /* only keys (of a DELETE: its first) that contain this; borrowed; NULL: all */
    uint64_t nth;    /* only the nth request that matches so far, from 1; 0: each */
    uint64_t after;  /* only requests behind so many that match */
    unsigned chance; /* of 1,000,000; 0: always */
    unsigned times;  /* then the rule is used up; 0: never */
    int code;        /* FAIL, LOSE: -ERR_x; 0: -ERR_TRANSIENT */
    uint64_t retry_after_us; /* FAIL, LOSE */
    uint64_t delay_us_min;   /* DELAY, DELAY_ANSWER: uniform between the two */
    uint64_t delay_us_max;
};

enum { FAULT_RULES_MAX = 32 };

/* `below` is owned. Without rules the layer changes nothing. */
struct objstore *objstore_fault_new(struct objstore *below);

/* The first rule that applies to a request is the one that does. Owner thread, at any time. */
void objstore_fault_add(struct objstore *layer, const struct fault_rule *rule);
void objstore_fault_clear(struct objstore *layer);

uint64_t objstore_fault_requests(const struct objstore *layer); /* seen since the start */
uint64_t objstore_fault_hits(const struct objstore *layer);     /* of these, met by a rule */
