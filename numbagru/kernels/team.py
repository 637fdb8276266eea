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
from numbagru.kernels.simd import ask_for, at, vector_lanes

MOST_HELPERS = 63
_LINE = 8
# FAILED has to be the first: `atomics.task_of` writes there.
FAILED, HELPERS, NEXT, JOINED, ADMITTED, SIZES, NOW, AHEAD = range(0, 8 * _LINE, _LINE)
TOGETHER, SHARED, WAITED, LAST = HELPERS + 1, HELPERS + 2, FAILED + 1, NEXT + 1
# Rounds of `rest` before a thread that waits lets others run (threads.py).
PATIENCE = HELPERS + 3
MAILBOXES = AHEAD + _LINE
# Of inputs that helpers multiply ahead (kernels/forward_inputs.py): the group of steps
# that the calling thread is at, counted from 1, and what is done of each of so many.
MOST_GROUPS = 4
# Of each helper: the step to start with, the meeting before it, and of how many.
_ENTRIES, _ENTRY = MAILBOXES + MOST_HELPERS + 1, 3
# The last meeting that each thread came to, in a word that it alone writes: two threads
# met in 50 ns. A word in which all counted took 30 or 600 to 770 ns, for seconds the
# one and then the other, by how the two happened to alternate (Zen 4).
_MET, _APART = _ENTRIES + _ENTRY * (MOST_HELPERS + 1), 2 * _LINE
LENGTH = _MET + _APART * (MOST_HELPERS + 1)

# A mailbox has its state, the address of a function and that of its argument.
MAILBOX = _LINE
SLEEPING, SPINNING, POSTED, RUNNING = range(4)

# What each thread keeps for itself, three words at the start of its working memory. In
# numbers of that: all of a cache line, and with what `simd.aligned` may skip before.
_SIZE, _MEETING, _ME = range(3)
OWN = 16
OWN_ALIGNED = 2 * OWN

# After a chunk's gradients of weights, whose new pages threads do not get at the same
# time, the patience of a call counts so many times: of some 20 backward passes of
# 1x50x128x1024 in float64 9, and in a second run 18, went on alone, and calls after
# them too; with so many more 2 (Emerald Rapids).
_AFTER_MUCH_WORK = 11


@routine
def wait_a_little(words, spins):
    """Wait one round of a loop; gives how many rounds those were.

    After the patience of the call others may run on this core.
    """
    if spins < words[PATIENCE]:
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
    for word in (FAILED, WAITED, NEXT, LAST, JOINED, ADMITTED, NOW):
        words[word] = 0
    for i in range(MOST_GROUPS):
        words[AHEAD + i] = 0
    for i in range(helpers + 1):
        words[_MET + i * _APART] = 0
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
                spins = wait_a_little(words, spins)


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
def pieces(count, each):
    """How many items of `each`, the last maybe smaller, make `count`."""
    return (count + each - 1) // each


@routine
def next_item(words, helper, item, count):
    """Which of `count` items to do after `item`, -1 at first; `count` if none is left.

    The calling thread takes them from the front and helpers from the back, so that what
    one wrote in one call is in its own caches in the next.
    """
    if words[HELPERS] == 0:
        return item + 1
    if add(at(words, NEXT), 1) >= count:
        return count
    return count - 1 - add(at(words, LAST), 1) if helper else item + 1


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
        spins = wait_a_little(words, spins)
        admitted = load(at(words, ADMITTED))
    entry = at(words, _ENTRIES + _ENTRY * me)
    step = entry[0]
    own[_ME] = me
    own[_MEETING] = entry[1]
    own[_SIZE] = entry[2]
    _wait_for_others(words, own, 0)
    own[_SIZE] = words[SIZES + (step & 1)]
    return step


@routine
def leave(words, helper, own):
    """End working together; the calling thread may then free what all worked in."""
    if not helper and words[TOGETHER] != 0:
        store(at(words, ADMITTED), -own[_SIZE])
        _wait_for_helpers(words)


@routine
def be_member(own, me, size):
    """Make words of thread `me` of a team that is complete."""
    own[_SIZE] = size
    own[_MEETING] = 0
    own[_ME] = me


@routine
def be_alone(own):
    """Make words of a thread that shares nothing and meets nobody."""
    be_member(own, 0, 1)


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
def team_size(own):
    """How many threads share a step."""
    return own[_SIZE]


@routine
def is_turn_of(own, size, k):
    """Whether piece k of what goes round is this thread's, of a team that had `size`.

    It goes round those who were there then and still are.
    """
    return k % min(size, own[_SIZE]) == own[_ME]


@routine
def ask_for_shared(numbers, count):
    """Ask for what others have computed: products would wait for line after line.

    Of r * h alone, 100 steps of one row of 256 units took 578 µs, and take 526 (Emerald
    Rapids, `reset_after=False`).
    """
    for k in range(0, count, vector_lanes(numbers)):
        ask_for(at(numbers, k))


@routine
def meet(words, own):
    """Wait until all have come here."""
    _meet(words, own, 0)


@routine
def meet_after_much_work(words, own):
    """Wait longer: threads that have written much memory may be milliseconds apart."""
    _meet(words, own, (1 - _AFTER_MUCH_WORK) * words[PATIENCE])


@routine
def _meet(words, own, spins):
    if own[_SIZE] > 1:
        own[_MEETING] += 1
        store(at(words, _MET + own[_ME] * _APART), own[_MEETING])
        _wait_for_others(words, own, spins)


@routine
def _wait_for_others(words, own, spins):
    for i in range(own[_SIZE]):
        met = at(words, _MET + i * _APART)
        while i != own[_ME] and load(met) < own[_MEETING]:
            if load(at(words, FAILED)) != 0:
                return
            spins = wait_a_little(words, spins)
    if own[_ME] == 0:
        note_waiting(words, spins)


@routine
def note_waiting(words, spins):
    """Note whether the calling thread has waited for so long that others must run."""
    if spins > words[PATIENCE]:
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
        new = size
        if words[WAITED] != 0:
            new = 1
            store(at(words, ADMITTED), -size)
        elif joined > size:
            new = joined
            meets = 1 if size > 1 else 0
            for i in range(size, joined):
                entry = at(words, _ENTRIES + _ENTRY * i)
                entry[0] = step + 1
                entry[1] = own[_MEETING] + meets
                entry[2] = size * meets
        # Only what changes: all others would have to fetch its cache line.
        if words[following] != new:
            words[following] = new
        if new > size:
            store(at(words, ADMITTED), new)
    meet(words, own)
    own[_SIZE] = load(at(words, following))
    return own[_ME] < own[_SIZE]
