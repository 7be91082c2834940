/* The log of one volume: open, fence, window, flush, checkpoint, deletion of old segments and
 * manifests, by writers of which each may fall asleep for ever, or for a while, at any step (a
 * process that the search never schedules again has crashed). docs/protocol.md has the rules.
 *
 * Small on purpose: a window of 2, a jump of 3, one flush for each segment. A view is the set of
 * (writer, number) that an image was made of; the image itself is not needed: replay is a function
 * of it.
 *
 * Checked at every step:
 *   - who opens has every acknowledged flush, and a prefix of what every writer did
 *   - no flush is acknowledged that a later writer, open already, does not have
 *   - no two writers share an epoch; none comes to serve beneath a newer one that serves already
 *   - a manifest names only what was stored
 *
 * Mutants (-D): NO_LOOK_AFTER_FENCE, JUMP_1, WINDOW_BY_COUNT, FENCE_NEXT, DELETE_FENCES,
 * CHECKPOINT_OWN, CHECKPOINT_AT_FENCE. */
#ifndef SEGS_A
#define SEGS_A 2
#endif
#ifndef SEGS_B
#define SEGS_B 1
#endif
#ifndef SEGS_C
#define SEGS_C 1
#endif
#define WRITERS 3
#define NUMBERS 10
#define MANIFESTS 5
#define WINDOW 2
#ifdef JUMP_1
#define JUMP 1
#else
#define JUMP (WINDOW + 1)
#endif

#define VIEW(w, q) (1 << ((w) * NUMBERS + (q)))
#define SEGMENT(w) (1 + 2 * (w))
#define FENCE(w) (2 + 2 * (w))
#define IS_FENCE(o) ((o) % 2 == 0)
#define OWNER(o) (((o) - 1) / 2)

/* The store. */
byte log_[NUMBERS]; /* 0: nothing there */
bool manifest_there[MANIFESTS];
byte manifest_epoch[MANIFESTS];
byte manifest_next[MANIFESTS]; /* next_seq */
bool manifest_first[MANIFESTS]; /* of its epoch: the one of an open */
int manifest_view[MANIFESTS];

/* What PUTs of segments are under way, and how they ended; by number. */
typedef Writer {
    byte epoch;
    bool serving;
    int view;        /* all that its image was made of */
    int opened_with; /* the same when it began to serve */
    byte first;      /* its first number */
    byte frontier;   /* the number behind the last that is acknowledged in order */
    byte next;       /* of its next segment */
    short flying, stored, refused;
    byte late; /* number + 1 of a duplicate of a PUT that is still in the network */
    bool late_used;
}
Writer writer[WRITERS];
int acknowledged, ever_stored;

inline newest(ret) {
    ret = MANIFESTS - 1;
    do
    :: manifest_there[ret] -> break
    :: else -> ret--
    od
}

/* Everything of `o` that comes before its number q. */
inline own_below(ret, o, q) {
    ret = 0;
    own_q = writer[o].first;
    do
    :: own_q < q -> ret = ret | VIEW(o, own_q); own_q++
    :: else -> break
    od;
    own_q = 0
}

inline check_open(me) {
    assert((acknowledged & ~writer[me].view) == 0);
    other = 0;
    do
    :: other == WRITERS -> break
    :: else ->
        i = 0;
        do
        :: i == NUMBERS -> break
        :: else ->
            if
            :: (writer[me].view & VIEW(other, i)) != 0 ->
                own_below(seen, other, i);
                assert(((writer[other].opened_with | seen) & ~writer[me].view) == 0)
            :: else
            fi;
            i++
        od;
        assert(other == me || !writer[other].serving || writer[other].epoch < writer[me].epoch);
        other++
    od;
    i = 0; other = 0; seen = 0
}

inline check_acknowledged(me, what) {
    other = 0;
    do
    :: other == WRITERS -> break
    :: else ->
        assert(other == me || !writer[other].serving || writer[other].epoch < writer[me].epoch ||
               (what & ~writer[other].view) == 0);
        other++
    od;
    other = 0
}

/* PUTs land, or are refused, at any time, also after the death of whoever sent them. */
proctype network(byte me) {
    byte q;
end:
    do
    :: atomic {
        writer[me].flying != 0 ->
        q = 0;
        do
        :: (writer[me].flying & (1 << q)) != 0 -> break
        :: q < NUMBERS - 1 -> q++
        :: q == NUMBERS - 1 -> break
        od;
        if
        :: (writer[me].flying & (1 << q)) == 0
        :: else ->
            writer[me].flying = writer[me].flying & ~(1 << q);
            if
            :: log_[q] == 0 ->
                log_[q] = SEGMENT(me);
                ever_stored = ever_stored | VIEW(me, q);
                writer[me].stored = writer[me].stored | (1 << q);
                if
                :: !writer[me].late_used -> writer[me].late_used = true; writer[me].late = q + 1
                :: true
                fi
            :: log_[q] != 0 -> writer[me].refused = writer[me].refused | (1 << q)
            fi
        fi;
        q = 0
    }
    :: atomic {
        writer[me].late != 0 ->
        q = writer[me].late - 1;
        writer[me].late = 0;
        if
        :: log_[q] == 0 -> log_[q] = SEGMENT(me)
        :: else
        fi;
        q = 0
    }
    od
}

proctype life(byte me; byte segments) {
    byte n;    /* its newest manifest */
    byte pos;  /* where its walk is */
    byte next; /* next_seq of its newest manifest */
    bool saw_missing;
    byte k, i, other, own_q;
    int seen;

    if
    :: writer[me].serving -> goto serve
    :: else
    fi;
open:
    atomic {
        newest(n);
        writer[me].epoch = manifest_epoch[n] + 1;
        writer[me].view = manifest_view[n];
        pos = manifest_next[n]
    }
    atomic {
        if
        :: n + 1 == MANIFESTS -> goto fenced
        :: n + 1 < MANIFESTS && manifest_there[n + 1] ->
            writer[me].epoch = 0;
            writer[me].view = 0;
            n = 0;
            pos = 0;
            goto open
        :: n + 1 < MANIFESTS && !manifest_there[n + 1] ->
            n++;
            manifest_there[n] = true;
            manifest_epoch[n] = writer[me].epoch;
            manifest_next[n] = pos;
            manifest_first[n] = true;
            manifest_view[n] = writer[me].view;
            next = pos
        fi
    }
    do
    :: pos >= NUMBERS -> goto fenced
    :: atomic {
        pos < NUMBERS && log_[pos] == 0 ->
        if
        :: !saw_missing -> saw_missing = true
        :: saw_missing && pos + JUMP > NUMBERS -> goto fenced /* the model has no more numbers */
        :: saw_missing && pos + JUMP <= NUMBERS ->
            log_[pos] = FENCE(me);
            saw_missing = false;
            writer[me].first = pos + JUMP;
            writer[me].frontier = pos + JUMP;
            writer[me].next = pos + JUMP;
            break
        fi
    }
    :: atomic {
        pos < NUMBERS && log_[pos] != 0 ->
        k = OWNER(log_[pos]);
        if
        :: k != me && writer[k].epoch >= writer[me].epoch -> k = 0; goto fenced
        :: (k == me || writer[k].epoch < writer[me].epoch) && IS_FENCE(log_[pos]) ->
#ifdef FENCE_NEXT
            pos = (saw_missing -> pos + 1 : pos + JUMP)
#else
            pos = pos + JUMP
#endif
        :: else ->
            writer[me].view = writer[me].view | VIEW(k, pos);
            pos++
        fi;
        saw_missing = false;
        k = 0
    }
    od;
    atomic {
#ifndef NO_LOOK_AFTER_FENCE
        newest(k);
        if
        :: k != n -> k = 0; goto fenced
        :: else
        fi;
        k = 0;
#endif
        writer[me].opened_with = writer[me].view;
        writer[me].serving = true;
        pos = 0;
        check_open(me)
    }
serve:
    do
    :: atomic { /* a cut */
        writer[me].next < NUMBERS && writer[me].next - writer[me].first < segments;
        k = 0;
#ifdef WINDOW_BY_COUNT
        i = 0;
        do
        :: i == NUMBERS -> break
        :: else -> k = k + ((writer[me].flying >> i) & 1); i++
        od;
        i = 0;
        if
        :: k >= WINDOW -> k = 1
        :: else -> k = 0
        fi;
#else
        if
        :: writer[me].next >= writer[me].frontier + WINDOW -> k = 1
        :: else
        fi;
#endif
        if
        :: k == 0 ->
            writer[me].flying = writer[me].flying | (1 << writer[me].next);
            writer[me].next++
        :: else
        fi;
        k = 0
    }
    :: atomic { /* the frontier passes: the flush is acknowledged */
        writer[me].frontier < writer[me].next &&
            (writer[me].stored & (1 << writer[me].frontier)) != 0;
        seen = VIEW(me, writer[me].frontier);
        writer[me].stored = writer[me].stored & ~(1 << writer[me].frontier);
        writer[me].view = writer[me].view | seen;
        acknowledged = acknowledged | seen;
        writer[me].frontier++;
        check_acknowledged(me, seen);
        seen = 0
    }
    :: atomic { writer[me].refused != 0 -> goto fenced }
    :: atomic { /* a checkpoint */
        n + 1 < MANIFESTS;
        k = writer[me].frontier;
        seen = writer[me].view;
#ifdef CHECKPOINT_OWN
        if
        :: writer[me].stored != 0 ->
            do
            :: k < NUMBERS && (writer[me].stored & (1 << k)) == 0 -> k++
            :: else -> break
            od;
            k++;
            own_below(seen, me, k);
            seen = seen | writer[me].view
        :: true
        fi;
#endif
#ifdef CHECKPOINT_AT_FENCE
        if
        :: k == writer[me].first -> k = writer[me].first - JUMP + 1
        :: else
        fi;
#endif
        if
        :: k == next
        :: k != next && manifest_there[n + 1] -> goto fenced
        :: k != next && !manifest_there[n + 1] ->
            n++;
            next = k;
            assert((seen & ~ever_stored) == 0);
            manifest_there[n] = true;
            manifest_epoch[n] = writer[me].epoch;
            manifest_next[n] = next;
            manifest_first[n] = false;
            manifest_view[n] = seen
        fi;
        seen = 0;
        k = 0
    }
    :: atomic { /* GC deletes a segment below its newest manifest's next_seq */
        next > 0;
        k = 0;
        do
        :: k < next - 1 -> k++
        :: break
        od;
        if
        :: log_[k] != 0 && !IS_FENCE(log_[k]) -> log_[k] = 0
#ifdef DELETE_FENCES
        :: log_[k] != 0 && IS_FENCE(log_[k]) -> log_[k] = 0
#endif
        :: else
        fi;
        k = 0
    }
    :: atomic { /* ... or a manifest that is neither its newest nor the first of an epoch */
        n > 0;
        k = 0;
        do
        :: k < n - 1 -> k++
        :: break
        od;
        if
        :: manifest_there[k] && !manifest_first[k] ->
            manifest_there[k] = false;
            manifest_epoch[k] = 0;
            manifest_next[k] = 0;
            manifest_view[k] = 0
        :: else
        fi;
        k = 0
    }
    od;
fenced:
    skip
}

init {
    atomic {
        manifest_there[0] = true;
        manifest_epoch[0] = 1;
        manifest_first[0] = true;
        writer[0].epoch = 1;
        writer[0].serving = true;
        run network(0);
        run network(1);
        run network(2);
        run life(0, SEGS_A);
        run life(1, SEGS_B);
        run life(2, SEGS_C)
    }
}
