/* Moving: the garbage collector rewrites what is live of an old object into a moved one, whose map
 * entries go into the list of runs at the age of the checkpoint that they were computed from, while
 * writes, checkpoints, merges, snapshots and deletions go on and the writer may crash at any step.
 * docs/protocol.md has the rules.
 *
 * A volume of two sectors. Segment q holds one write (segment 0 both sectors). Where a run has a
 * sector is a place: 0 nowhere, else 1 + the object. Objects: segments, then the one moved object.
 * The writers that follow each other are one process (log.pml is about two at once).
 *
 * Checked after every step: all that the newest root needs is in the store; the map and the log
 * behind it give what was written last, from objects that are in the store; a pin's root gives what
 * was there when it was cut, from such objects.
 *
 * Mutants (-D): LIVE_TAIL (liveness from the live map instead of the manifest's runs), INSERT_TOP,
 * CROSS_MERGE (a merge across the move's age), DROP_PLANNED (a merge drops what an unstored move is
 * going to evacuate), EVACUATE_EARLY (condemns the old object before the manifest that says so),
 * FORGET_EVACUATED (the list of evacuated objects is emptied while a run still names one),
 * PIN_IGNORED. */
#ifndef SEGMENTS
#define SEGMENTS 4
#endif
#define MOVED SEGMENTS
#define OBJECTS (SEGMENTS + 1)
#define RUNS 4
#define NOWHERE 0
#define PLACE(object) (1 + (object))
#define IS_IN(mask, object) (((mask) >> (object)) & 1)

typedef Run {
    byte place[2];
}
typedef Root {
    Run runs[RUNS]; /* newest first */
    byte run_count;
    byte next;      /* segments below it are in runs */
    byte evacuated; /* mask of objects */
}

byte objects = 1;          /* in the store */
byte sector_of[SEGMENTS];  /* of the write in a segment; segment 0 has both */
byte value_in_moved[2];    /* what the moved object holds for a sector */
byte cut = 1, frontier = 1; /* segments made, and stored in order */
Root newest;               /* the newest manifest's */
byte condemned;            /* ... and its list */
byte history[2 * (SEGMENTS + 1)]; /* who wrote sector s last, after so many segments */

Root pin;
byte pin_end; /* its tail: segments from pin.next to here */
bool pin_claim, pin_root, pin_was;

/* The segment whose write sector s has, by way of a place. */
#define VALUE(p, s) ((p) == PLACE(MOVED) -> value_in_moved[s] : (p) - 1)

/* The first run that has sector s. */
inline look_up(r, s, ret) {
    look = 0;
    ret = NOWHERE;
    do
    :: look == r.run_count -> break
    :: look < r.run_count && r.runs[look].place[s] != NOWHERE ->
        ret = r.runs[look].place[s];
        break
    :: look < r.run_count && r.runs[look].place[s] == NOWHERE -> look++
    od;
    look = 0
}

/* Runs, then the segments from r.next to `end`. */
inline view(r, end, s, ret) {
    look_up(r, s, ret);
    look = r.next;
    do
    :: look >= end -> break
    :: look < end ->
        if
        :: sector_of[look] == s -> ret = PLACE(look)
        :: else
        fi;
        look++
    od;
    look = 0
}

/* All that its runs name and that is not evacuated, and its tail up to `end`. */
inline needs(r, end, ret) {
    ret = 0;
    look = 0;
    do
    :: look == r.run_count -> break
    :: look < r.run_count ->
        if
        :: r.runs[look].place[0] != NOWHERE -> ret = ret | (1 << (r.runs[look].place[0] - 1))
        :: else
        fi;
        if
        :: r.runs[look].place[1] != NOWHERE -> ret = ret | (1 << (r.runs[look].place[1] - 1))
        :: else
        fi;
        look++
    od;
    named = ret;
    ret = ret & ~r.evacuated;
    look = r.next;
    do
    :: look >= end -> break
    :: look < end -> ret = ret | (1 << look); look++
    od;
    look = 0
}

inline check() {
    d_step {
        needs(newest, frontier, q);
        assert((q & ~objects) == 0);
        view(newest, frontier, 0, p);
        assert(IS_IN(objects, p - 1) && VALUE(p, 0) == history[2 * frontier]);
        view(newest, frontier, 1, p);
        assert(IS_IN(objects, p - 1) && VALUE(p, 1) == history[2 * frontier + 1]);
        if
        :: pin_was ->
            view(pin, pin_end, 0, p);
            assert(IS_IN(objects, p - 1) && VALUE(p, 0) == history[2 * pin_end]);
            view(pin, pin_end, 1, p);
            assert(IS_IN(objects, p - 1) && VALUE(p, 1) == history[2 * pin_end + 1])
        :: else
        fi;
        p = 0;
        q = 0;
        named = 0
    }
}

/* A manifest: newest was changed. What its root has no need of is condemned; an object that no run
 * names is evacuated no longer. */
inline put_manifest() {
    needs(newest, SEGMENTS, q);
#ifdef FORGET_EVACUATED
    newest.evacuated = 0;
#else
    newest.evacuated = newest.evacuated & named;
#endif
    condemned = objects & ~q;
    if
    :: move_stored -> condemned = condemned & ~(1 << MOVED) /* work in flight */
    :: else
    fi;
    q = 0
}

proctype writer() {
    byte rotated;           /* a checkpoint up to here is under way; 0: none */
    bool merging;
    byte merge_at;          /* of this run and the next older one */
    byte merged[2];
    byte victim = OBJECTS;  /* of a move; OBJECTS: none */
    byte move_age;          /* runs in front of the place that its entries belong to */
    byte moves;             /* mask of sectors */
    bool move_stored;       /* its object is in the store */
    bool move_done;         /* ... and in a manifest */
    byte plan;
    byte p, q, look, named, k;

    do
    :: atomic { /* a write and its segment */
        cut < SEGMENTS;
        if
        :: sector_of[cut] = 0
        :: sector_of[cut] = 1
        fi;
        history[2 * cut + 2] = (sector_of[cut] == 0 -> cut : history[2 * cut]);
        history[2 * cut + 3] = (sector_of[cut] == 1 -> cut : history[2 * cut + 1]);
        cut++
    }
    :: atomic { /* ... is stored */
        frontier < cut;
        objects = objects | (1 << frontier);
        frontier++;
        check()
    }
    :: atomic { rotated == 0 && frontier > newest.next && newest.run_count < RUNS; rotated = frontier }
    :: atomic { /* a checkpoint's manifest */
        rotated != 0 && newest.run_count < RUNS;
        k = newest.run_count;
        do
        :: k == 0 -> break
        :: k > 0 ->
            newest.runs[k].place[0] = newest.runs[k - 1].place[0];
            newest.runs[k].place[1] = newest.runs[k - 1].place[1];
            k--
        od;
        newest.runs[0].place[0] = NOWHERE;
        newest.runs[0].place[1] = NOWHERE;
        newest.run_count++;
        k = newest.next;
        do
        :: k == rotated -> break
        :: k < rotated -> newest.runs[0].place[sector_of[k]] = PLACE(k); k++
        od;
        newest.next = rotated;
        rotated = 0;
        k = 0;
        if
        :: victim != OBJECTS -> move_age++
        :: else
        fi;
        if
        :: merging -> merge_at++
        :: else
        fi;
        put_manifest();
        check()
    }
    :: atomic { /* a merge of two neighbours begins */
        !merging && newest.run_count >= 2;
        merge_at = 0;
        do
        :: merge_at < newest.run_count - 2 -> merge_at++
        :: break
        od;
        if
#ifndef CROSS_MERGE
        :: victim != OBJECTS && move_age == merge_at + 1 -> skip
        :: victim == OBJECTS || move_age != merge_at + 1 ->
#else
        :: true ->
#endif
            merging = true;
            plan = newest.evacuated;
#ifdef DROP_PLANNED
            if
            :: victim != OBJECTS -> plan = plan | (1 << victim)
            :: else
            fi;
#endif
            k = 0;
            do
            :: k == 2 -> break
            :: k < 2 ->
                merged[k] = newest.runs[merge_at].place[k];
                if
                :: merged[k] != NOWHERE && IS_IN(plan, merged[k] - 1) -> merged[k] = NOWHERE
                :: else
                fi;
                p = newest.runs[merge_at + 1].place[k];
                if
                :: merged[k] == NOWHERE && p != NOWHERE && !IS_IN(plan, p - 1) -> merged[k] = p
                :: else
                fi;
                p = 0;
                k++
            od;
            k = 0;
            plan = 0
        fi;
        if
        :: !merging -> merge_at = 0
        :: else
        fi
    }
    :: atomic { /* ... and its manifest */
        merging;
        newest.runs[merge_at].place[0] = merged[0];
        newest.runs[merge_at].place[1] = merged[1];
        newest.run_count--;
        k = merge_at + 1;
        do
        :: k == newest.run_count -> break
        :: k < newest.run_count ->
            newest.runs[k].place[0] = newest.runs[k + 1].place[0];
            newest.runs[k].place[1] = newest.runs[k + 1].place[1];
            k++
        od;
        newest.runs[k].place[0] = NOWHERE;
        newest.runs[k].place[1] = NOWHERE;
        k = 0;
        if
        :: victim != OBJECTS && move_age > merge_at -> move_age--
        :: else
        fi;
        merging = false;
        merge_at = 0;
        merged[0] = NOWHERE;
        merged[1] = NOWHERE;
        put_manifest();
        check()
    }
    :: atomic { /* a move begins: what is live of an object, by the newest manifest's runs */
        victim == OBJECTS && !move_done;
        victim = 0;
        do
        :: victim < SEGMENTS - 1 -> victim++
        :: break
        od;
        k = 0;
        do
        :: k == 2 -> break
        :: k < 2 ->
#ifdef LIVE_TAIL
            view(newest, frontier, k, p);
#else
            look_up(newest, k, p);
#endif
            if
            :: p == PLACE(victim) -> moves = moves | (1 << k)
            :: else
            fi;
            k++
        od;
        k = 0;
        p = 0;
        if
        :: moves == 0 || victim >= newest.next -> victim = OBJECTS; moves = 0
        :: else
        fi
    }
    :: atomic { /* ... its object is stored */
        victim != OBJECTS && !move_stored;
        value_in_moved[0] = (IS_IN(moves, 0) -> victim : SEGMENTS);
        value_in_moved[1] = (IS_IN(moves, 1) -> victim : SEGMENTS);
        objects = objects | (1 << MOVED);
        move_stored = true;
#ifdef EVACUATE_EARLY
        condemned = condemned | (1 << victim)
#endif
    }
    :: atomic { /* ... and its manifest */
        move_stored && !move_done && newest.run_count < RUNS;
#ifdef INSERT_TOP
        move_age = 0;
#endif
        k = newest.run_count;
        do
        :: k == move_age -> break
        :: k > move_age ->
            newest.runs[k].place[0] = newest.runs[k - 1].place[0];
            newest.runs[k].place[1] = newest.runs[k - 1].place[1];
            k--
        od;
        newest.runs[k].place[0] = (IS_IN(moves, 0) -> PLACE(MOVED) : NOWHERE);
        newest.runs[k].place[1] = (IS_IN(moves, 1) -> PLACE(MOVED) : NOWHERE);
        newest.run_count++;
        newest.evacuated = newest.evacuated | (1 << victim);
        if
        :: merging && merge_at >= move_age -> merge_at++
        :: else
        fi;
        k = 0;
        victim = OBJECTS;
        move_age = 0;
        moves = 0;
        move_stored = false;
        move_done = true;
        put_manifest();
        check()
    }
    :: atomic { /* a GC round; the LIST of the pins (pins.pml is about that) */
        plan == 0 && condemned != 0;
        plan = condemned;
        if
#ifndef PIN_IGNORED
        :: pin_claim && !pin_root -> plan = 0
        :: pin_root -> needs(pin, pin_end, q); plan = plan & ~q; q = 0
#endif
        :: else
        fi;
        named = 0
    }
    :: atomic { /* ... deletes */
        plan != 0;
        objects = objects & ~plan;
        condemned = condemned & ~plan;
        plan = 0;
        check()
    }
    :: atomic { /* a crash: what is not in the store is forgotten */
        cut = frontier;
        rotated = 0;
        merging = false;
        merge_at = 0;
        merged[0] = NOWHERE;
        merged[1] = NOWHERE;
        if
        :: move_stored -> move_done = true /* an object that nobody names: for the scrub */
        :: else
        fi;
        victim = OBJECTS;
        move_age = 0;
        moves = 0;
        move_stored = false;
        plan = 0
    }
    od
}

proctype snapshot() {
    byte k, end;
    atomic { pin_claim = true }
    atomic { end = frontier } /* the LIST of the log */
    atomic { /* the newest manifest, again */
        pin.run_count = newest.run_count;
        do
        :: k == RUNS -> break
        :: k < RUNS ->
            pin.runs[k].place[0] = newest.runs[k].place[0];
            pin.runs[k].place[1] = newest.runs[k].place[1];
            k++
        od;
        k = 0;
        pin.next = newest.next;
        pin.evacuated = newest.evacuated;
        pin_end = (end > newest.next -> end : newest.next)
    }
    atomic { pin_root = true }
    atomic { pin_was = true } /* the record */
    atomic { pin_was = false } /* deleted: the record, then the pin */
    atomic { pin_claim = false }
    atomic { pin_root = false }
}

init {
    atomic {
        sector_of[0] = 2;
        newest.runs[0].place[0] = PLACE(0);
        newest.runs[0].place[1] = PLACE(0);
        newest.run_count = 1;
        newest.next = 1;
        run writer();
        run snapshot()
    }
}
