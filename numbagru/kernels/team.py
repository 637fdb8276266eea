"""Threads inside a kernel: who does what, and who waits for whom.

A kernel that may run on several threads puts its work into a ``body(words, helper,
data)``; what `sharing` makes of it runs it on the calling thread and on each helper
(kernels/threads.py) that comes while it does. Two ways to divide the work:

apart      `next_item` deals out blocks of rows; nobody waits for anybody.
together   all work on the same rows, each on some of the units, and `meet` after every
           step. Helpers enter at the end of a step (`turn`). When they keep the calling
           thread waiting, because others use the cores, it goes on alone: a wait
           for a helper's next time slice took 4 ms, a step of 256 units takes 5 µs.

No thread ever waits for one that is not running already, so nothing can hang when there
are fewer threads than asked for. Results do not depend on who does what.

The words are int64, those that different threads write on cache lines of their own.
"""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.kernels.atomics import (
    add,
    call_address,
    give_way,
    load,
    raise_failure,
    replace,
    rest,
    store,
    task_of,
    words_at,
)
from numbagru.kernels.simd import at

MOST_HELPERS = 63
_LINE = 8
# FAILED has to be the first: `atomics.task_of` writes there.
FAILED, HELPERS, NEXT, JOINED, ARRIVED, ADMITTED, SIZES = range(0, 7 * _LINE, _LINE)
TOGETHER, SHARED, WAITED = HELPERS + 1, HELPERS + 2, FAILED + 1
MAILBOXES = SIZES + _LINE
_ENTRIES = MAILBOXES + MOST_HELPERS + 1
LENGTH = _ENTRIES + 2 * (MOST_HELPERS + 1)

# A mailbox has its state, the address of a function and that of its argument.
MAILBOX = _LINE
SLEEPING, SPINNING, POSTED, RUNNING = range(4)

# What each thread keeps for itself, three words at the start of its working memory. In
# numbers of that: all of a cache line, and with what `simd.aligned` may skip before.
_SIZE, _TARGET, _ME = range(3)
OWN = 16
OWN_ALIGNED = 2 * OWN

# Rounds of `rest`, 25 ns each on Zen 4, before a thread that waits lets others run, and
# the calling thread decides to go on alone.
_SPINS = 5000


@routine
def _wait_a_little(spins):
    if spins < _SPINS:
        rest()
    else:
        give_way()
    return spins + 1


def sharing(bodies):
    """Make ``share(kind, words, data)``: a body here and in helpers that come in time.

    `bodies` and `kind` are those of `variant.body_of`.
    """
    task = task_of(bodies)

    @section
    def share(kind, words, data):
        function, for_helpers, for_us = task(kind, words, data)
        if words[HELPERS] == 0:
            call_address(function, for_us)
        else:
            _call_together(words, function, for_helpers, for_us)
        raise_failure(for_us)

    return share


@routine
def _call_together(words, function, for_helpers, for_us):
    helpers = words[HELPERS]
    for word in (FAILED, WAITED, NEXT, JOINED, ARRIVED, ADMITTED):
        words[word] = 0
    for i in range(helpers):
        mailbox = words_at(words[MAILBOXES + i])
        mailbox[1] = function
        mailbox[2] = for_helpers
        store(mailbox, POSTED)
    call_address(function, for_us)
    _wait_for_helpers(words)


@routine
def _wait_for_helpers(words):
    """Take back what helpers have not begun, and wait for the end of what they have."""
    for i in range(words[HELPERS]):
        mailbox = words_at(words[MAILBOXES + i])
        if replace(mailbox, POSTED, SLEEPING) == 0:
            spins = 0
            while load(mailbox) == RUNNING:
                spins = _wait_a_little(spins)


@routine
def serve(mailbox, patience):
    """Run what is posted; return after `patience` rounds without work."""
    replace(mailbox, SLEEPING, SPINNING)
    idle = 0
    while True:
        state = load(mailbox)
        if state == POSTED:
            if replace(mailbox, POSTED, RUNNING) != 0:
                call_address(mailbox[1], mailbox[2])
                store(mailbox, SPINNING)
            idle = 0
        elif state == SLEEPING:
            replace(mailbox, SLEEPING, SPINNING)
        elif idle > patience and replace(mailbox, SPINNING, SLEEPING) != 0:
            return
        else:
            idle += 1
            rest()


@routine
def next_item(words, item):
    """Which item to do after `item`, -1 at first; counts on when there are no more."""
    if words[HELPERS] == 0:
        return item + 1
    return add(at(words, NEXT), 1)


@routine
def enter(words, helper, own):
    """Begin to work together: the step to start with, -1 if there is nothing to do."""
    be_alone(own)
    if not helper or words[TOGETHER] == 0:
        return 0
    me = add(at(words, JOINED), 1) + 1
    spins = 0
    admitted = load(at(words, ADMITTED))
    while abs(admitted) <= me:
        if admitted < 0 or load(at(words, FAILED)) != 0:
            return -1
        spins = _wait_a_little(spins)
        admitted = load(at(words, ADMITTED))
    step = words[_ENTRIES + 2 * me]
    own[_ME] = me
    own[_TARGET] = words[_ENTRIES + 2 * me + 1]
    _wait_for_all(words, own)
    own[_SIZE] = words[SIZES + (step & 1)]
    return step


@routine
def leave(words, helper, own):
    """End working together; the calling thread may then free what all worked in."""
    if not helper and words[TOGETHER] != 0:
        store(at(words, ADMITTED), -own[_SIZE])
        _wait_for_helpers(words)


@routine
def be_alone(own):
    """Make words of a thread that shares nothing and meets nobody."""
    own[_SIZE] = 1
    own[_TARGET] = 0
    own[_ME] = 0


@routine
def share_of(own, count, whole):
    """First and last of `count` that are this thread's, in multiples of `whole`."""
    groups = (count + whole - 1) // whole
    size, me = own[_SIZE], own[_ME]
    first = groups * me // size * whole
    return first, min(count, groups * (me + 1) // size * whole)


@routine
def is_first(own):
    """Whether this is the thread that helpers help."""
    return own[_ME] == 0


@routine
def meet(words, own):
    """Wait until all have come here."""
    if own[_SIZE] > 1:
        own[_TARGET] += own[_SIZE]
        add(at(words, ARRIVED), 1)
        _wait_for_all(words, own)


@routine
def _wait_for_all(words, own):
    spins = 0
    while load(at(words, ARRIVED)) < own[_TARGET]:
        if load(at(words, FAILED)) != 0:
            return
        spins = _wait_a_little(spins)
    if spins > _SPINS and own[_ME] == 0:
        words[WAITED] = 1


@routine
def turn(words, own, step):
    """End a step: `meet`, and let helpers in or go; whether to go on."""
    if words[TOGETHER] == 0:
        return True
    following = SIZES + ((step + 1) & 1)
    size = own[_SIZE]
    if own[_ME] == 0:
        joined = load(at(words, JOINED)) + 1
        words[following] = size
        if words[WAITED] != 0:
            words[following] = 1
            store(at(words, ADMITTED), -size)
        elif joined > size:
            words[following] = joined
            for i in range(size, joined):
                words[_ENTRIES + 2 * i] = step + 1
                words[_ENTRIES + 2 * i + 1] = own[_TARGET] + (size if size > 1 else 0)
            store(at(words, ADMITTED), joined)
    meet(words, own)
    own[_SIZE] = load(at(words, following))
    return own[_ME] < own[_SIZE]
