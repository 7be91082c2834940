/* Pins against garbage collection: a snapshot S that anybody cuts and deletes, a clone C of it, a
 * restore of it in place, a sweeper, the deletion of the volume, while two writers in turn overwrite
 * objects, condemn and delete them. docs/protocol.md has the rules. Every process may fall asleep
 * for ever, or for a while, at any step.
 *
 * Objects are bits of a mask. A manifest has a root (objects it needs) and a list of condemned ones.
 * Pin 0 is the clone's, pin 1 the snapshot's. LISTs of pins come in two pages, so that they are not
 * atomic. The log and its fences are abstracted: a writer whose manifest is refused, or not the
 * newest, is fenced (log.pml).
 *
 * Checked at every step: whatever the newest manifest, a live snapshot or a committed clone names is
 * in the store.
 *
 * Parts (-D): RESTORE, CLONE, SWEEP, DELETE_VOLUME, LATE_ROOT (a duplicate of the PUT of S's root
 * stays in the network), ONE_WRITER.
 * Mutants (-D): NO_LOOK_AFTER_PINS, LIST_ONCE, ROOT_FIRST (delete a pin's root before its claim),
 * IGNORE_CLAIMS, RESTORE_READS_EARLY, CLONE_TRUSTS_RECORD (does not read record and root again),
 * SWEEP_BLIND (does not look again after the tombstone), SWEEP_NO_TOMBSTONE, DELETE_VOLUME_FIRST
 * (deletes before a manifest says so). */
#define OBJECTS 4
#define MANIFESTS 7
#define NONE 255

mtype = { NOTHING, LIVE, TOMBSTONE, REAL, EXPIRED };

byte objects = 3; /* in the store */
byte next_object = 2;

typedef Manifest {
    bool there;
    byte writer;
    byte root;
    byte condemned;
    bool deleted;
}
Manifest manifest[MANIFESTS];

typedef Pin {
    bool claim;
    mtype root;
    byte holds;
}
Pin pin[2];

mtype snapshot = NOTHING; /* the record of S */
byte snapshot_holds;
mtype clone = NOTHING; /* the first manifest of C */
byte clone_holds;
byte late_root = NONE;

inline newest(ret) {
    ret = MANIFESTS - 1;
    do
    :: manifest[ret].there -> break
    :: else -> ret--
    od
}

inline check() {
    d_step {
        newest(c);
        assert(manifest[c].deleted || (manifest[c].root & ~objects) == 0);
        assert(snapshot != LIVE || (snapshot_holds & ~objects) == 0);
        assert(clone != LIVE || (clone_holds & ~objects) == 0);
        c = 0
    }
}

/* A page of a LIST of pins: protects, blocks, and what it looked like. */
inline list_page(p) {
    if
    :: pin[p].root == REAL -> protected = protected | pin[p].holds
    :: else
    fi;
#ifndef IGNORE_CLAIMS
    if
    :: pin[p].claim && pin[p].root == NOTHING -> blocked = true
    :: else
    fi;
#endif
    looks = looks | ((pin[p].claim -> 1 : 0) | (pin[p].root != NOTHING -> 2 : 0)) << (2 * p)
}

/* role 0: writes and collects, from the start. 1: opens later; restores when asked to, else like 0.
 * 2: opens to delete the volume. */
proctype life(byte me) {
    byte n, k, c, v;
    byte fresh = NONE; /* stored, in no manifest yet */
    byte protected, plan, looks, looked;
    bool blocked, again;
    byte rounds;
    byte restore_root = NONE;
    bool restored;

    if
    :: me == 0 -> goto work
    :: else
    fi;
open:
#ifdef RESTORE_READS_EARLY
    if
    :: me == 1 && snapshot == LIVE && pin[1].root == REAL -> atomic { restore_root = pin[1].holds }
    :: true
    fi;
#endif
    atomic {
        newest(n);
        if
        :: manifest[n].deleted -> goto fenced
        :: else
        fi
    }
    atomic {
        if
        :: n + 1 == MANIFESTS -> goto fenced
        :: n + 1 < MANIFESTS && manifest[n + 1].there -> n = 0; goto open
        :: n + 1 < MANIFESTS && !manifest[n + 1].there ->
            n++;
            manifest[n].there = true;
            manifest[n].writer = me;
            manifest[n].root = manifest[n - 1].root;
            manifest[n].condemned = manifest[n - 1].condemned;
            if
            :: me == 2 ->
#ifndef DELETE_VOLUME_FIRST
                manifest[n].deleted = true;
                manifest[n].condemned = manifest[n].condemned | manifest[n].root;
                manifest[n].root = 0
#endif
            :: else
            fi
        fi;
        check()
    }
work:
    do
    :: atomic { /* a write is stored */
        me != 2 && fresh == NONE && next_object < OBJECTS && rounds < 2;
        fresh = next_object;
        next_object++;
        rounds++;
        objects = objects | (1 << fresh)
    }
    :: atomic { /* ... and its manifest shadows another object, and condemns it */
        fresh != NONE && n + 1 < MANIFESTS;
        if
        :: manifest[n + 1].there -> goto fenced
        :: else
        fi;
        v = 0;
        do
        :: v < OBJECTS - 1 -> v++
        :: break
        od;
        if
        :: v != fresh && (manifest[n].root & (1 << v)) != 0 ->
            n++;
            manifest[n].there = true;
            manifest[n].writer = me;
            manifest[n].root = (manifest[n - 1].root & ~(1 << v)) | (1 << fresh);
            manifest[n].condemned = manifest[n - 1].condemned | (1 << v);
            fresh = NONE
        :: else
        fi;
        v = 0;
        check()
    }
#ifdef RESTORE
#ifndef RESTORE_READS_EARLY
    :: atomic {
        me == 1 && !restored && restore_root == NONE && snapshot == LIVE && pin[1].root == REAL;
        restore_root = pin[1].holds
    }
#endif
    :: atomic {
        me == 1 && !restored && restore_root != NONE && fresh == NONE && n + 1 < MANIFESTS;
        if
        :: manifest[n + 1].there -> goto fenced
        :: else
        fi;
        n++;
        manifest[n].there = true;
        manifest[n].writer = me;
        manifest[n].root = restore_root;
        manifest[n].condemned = (manifest[n - 1].condemned | manifest[n - 1].root) & ~restore_root;
        restored = true;
        check()
    }
#endif
    :: (manifest[n].condemned != 0 || me == 2) && !(restore_root != NONE && !restored) ->
        /* a GC round */
list:
        atomic { list_page(0) }
        atomic { list_page(1) }
        atomic {
#ifndef LIST_ONCE
            if
            :: !again || looks != looked -> /* until two in a row agree */
                again = true;
                looked = looks;
                looks = 0;
                protected = 0;
                blocked = false;
                goto list
            :: else
            fi;
            again = false;
            looked = 0;
#endif
            looks = 0;
#ifdef DELETE_VOLUME_FIRST
            plan = (manifest[n].condemned | (me == 2 -> manifest[n].root : 0)) & ~protected;
#else
            plan = manifest[n].condemned & ~protected;
#endif
            if
            :: blocked -> plan = 0
            :: else
            fi;
            protected = 0;
            blocked = false
        }
#ifndef NO_LOOK_AFTER_PINS
        atomic {
            newest(k);
            if
            :: k != n -> k = 0; goto fenced
            :: else
            fi;
            k = 0
        }
#endif
        do
        :: atomic {
            plan != 0;
            v = 0;
            do
            :: (plan & (1 << v)) != 0 -> break
            :: else -> v++
            od;
            plan = plan & ~(1 << v);
            objects = objects & ~(1 << v);
            v = 0;
            check()
        }
        :: plan == 0 -> break
        od
    od;
fenced:
    skip
}

proctype snapshot_maker() {
    byte k, c, root;
    atomic { pin[1].claim = true }
    atomic {
        newest(k);
        root = manifest[k].root;
        if
        :: manifest[k].deleted -> k = 0; goto given_up
        :: else
        fi;
        k = 0
    }
    atomic {
        if
        :: pin[1].root == NOTHING ->
            pin[1].root = REAL;
            pin[1].holds = root;
#ifdef LATE_ROOT
            late_root = root
#endif
        :: else -> goto given_up /* expired */
        fi
    }
    atomic {
        if
        :: snapshot == NOTHING ->
            snapshot = LIVE;
            snapshot_holds = root;
            check()
        :: else
        fi
    }
given_up:
    skip
}

proctype late_put() {
    atomic {
        late_root != NONE;
        if
        :: pin[1].root == NOTHING ->
            pin[1].root = REAL;
            pin[1].holds = late_root
        :: else
        fi;
        late_root = NONE
    }
}

/* The claim first, then a real root. */
inline give_up_pin(p) {
#ifdef ROOT_FIRST
    atomic { if :: pin[p].root == REAL -> pin[p].root = NOTHING :: else fi }
    atomic { pin[p].claim = false }
#else
    atomic { pin[p].claim = false }
    atomic { if :: pin[p].root == REAL -> pin[p].root = NOTHING :: else fi }
#endif
}

proctype snapshot_deleter() {
    atomic { snapshot == LIVE; snapshot = TOMBSTONE }
    give_up_pin(1)
}

proctype cloner() {
    byte c, root;
    atomic { snapshot == LIVE; root = snapshot_holds }
    atomic { pin[0].claim = true }
#ifndef CLONE_TRUSTS_RECORD
    atomic {
        if
        :: snapshot == LIVE && pin[1].root == REAL
        :: else -> goto given_up
        fi
    }
#endif
    atomic {
        if
        :: pin[0].root == NOTHING -> pin[0].root = REAL; pin[0].holds = root
        :: else -> goto given_up
        fi
    }
    atomic {
        if
        :: clone == NOTHING -> clone = LIVE; clone_holds = root; check()
        :: else
        fi
    }
given_up:
    skip
}

/* Two looks, ten minutes apart, saw the pin unnamed: modelled as one look at any time. */
proctype sweeper(byte p) {
    byte c;
    atomic {
        pin[p].claim || pin[p].root != NOTHING;
        if
        :: (p == 1 -> snapshot : clone) == LIVE -> goto left_alone
        :: else
        fi
    }
#ifndef SWEEP_NO_TOMBSTONE
    atomic {
        if
        :: p == 1 && snapshot == NOTHING -> snapshot = TOMBSTONE
        :: p == 0 && clone == NOTHING -> clone = TOMBSTONE
        :: else
        fi
    }
#ifndef SWEEP_BLIND
    atomic {
        if
        :: (p == 1 -> snapshot : clone) == LIVE -> goto left_alone
        :: else
        fi
    }
#endif
#endif
    atomic {
        if
        :: pin[p].root == NOTHING -> pin[p].root = EXPIRED
        :: else
        fi
    }
    give_up_pin(p);
left_alone:
    skip
}

init {
    atomic {
        manifest[0].there = true;
        manifest[0].root = 3;
        pin[0].root = NOTHING;
        pin[1].root = NOTHING;
        run life(0);
#ifndef ONE_WRITER
        run life(1);
#endif
#ifdef DELETE_VOLUME
        run life(2);
#endif
        run snapshot_maker();
        run snapshot_deleter();
#ifdef LATE_ROOT
        run late_put();
#endif
#ifdef CLONE
        run cloner();
#endif
#ifdef SWEEP
        run sweeper(1);
#ifdef CLONE
        run sweeper(0);
#endif
#endif
    }
}
