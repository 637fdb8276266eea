import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are written with numba-cuda")

from numbagru import GRU
from numbagru.kernels.call import Call, Outputs
from numbagru.kernels.cuda import passes
from numbagru.kernels.cuda.launch import Launch
from numbagru.kernels.cuda.limits import Chip
from numbagru.kernels.cuda.plans import Plan, seen

REAL = np.dtype("float32")
CHIP = Chip(3, 0, 0)


def task(*arguments):
    return Launch(None, (), (1,), 32, arguments)


def form(array):
    return array.shape, array.strides, array.dtype


def test_arguments_are_those_of_a_call():
    def make(work, a, b, none):
        c = work((3,), np.int64)
        d = work((5,), REAL)
        return [task(a, a[1:, ::-1], -7, b.T), task(none, c, d[2:], True)]

    a, b = np.arange(12, dtype=REAL).reshape(3, 4)[:, ::-1], np.ones((2, 3), REAL)
    plan = Plan(make, [form(a), form(b), ((0, 3), (0, 4), REAL)])
    memory = np.zeros(plan.work_bytes + 1, np.uint8)
    addresses = [x.ctypes.data for x in (a, b)] + [0]
    addresses += [memory.ctypes.data + place for place in plan.work]
    first, second = (one.arguments for one in plan.bound(addresses))
    assert (np.array(first[0]) == a).all()
    assert (np.array(first[1]) == a[1:, ::-1]).all()
    assert first[2] == -7
    assert (np.array(first[3]) == b.T).all()
    second[1][:], second[2][:] = -1, -1
    assert (memory[:24] == 0xFF).all()
    assert (memory[24 : plan.work[1] + 8] == 0).all()  # and nothing in between
    assert second[0].size == 0
    assert plan.place(True) == (-1, 1)


def test_arrays_of_a_device_can_be_shown():
    array = seen(None, (2, 3), REAL, 1 << 48)
    for text in (repr(array), str(array[::-1].T), f"{array}", repr([array])):
        assert "on a CUDA device" in text


def test_sizes_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match=r"2,147,483,648. Take fewer rows"):
        Plan(lambda work: [task(2**31)], [])


def place_of(log):
    """Make a place that keeps plans."""

    class Place:
        key = ()

        def chip(self):
            return CHIP

        def carry_out(self, plan, arrays):
            log.append(plan)

        def sent(self, array):
            return array

    return Place()


def test_plans_are_remembered_up_to_a_number_of_tasks(monkeypatch):
    layer, plans = GRU(4), []
    layer.build((None, None, 2))
    place = place_of(plans)

    def carry_out(steps):
        x, h = np.zeros((1, steps, 2), REAL), np.zeros((1, 4), REAL)
        none = np.empty((0, 0, 0), REAL)
        mask = np.empty((0, 0), np.uint8)
        call = Call(
            layer.config, x, h, True, mask, layer.cell.packed, none, none,
            (False, False), place,
        )  # fmt: skip
        passes.forward_tiled(call, Outputs(none, h, h, none, none), 1)
        return plans[-1]

    monkeypatch.setattr(passes, "_MOST_TASKS", 20)
    passes._plans.clear()
    eight, six = carry_out(8), carry_out(6)
    assert [len(plan.tasks) for plan in (eight, six)] == [9, 7]
    assert carry_out(8) is eight
    four = carry_out(4)  # the six steps were used last of all but for these
    assert carry_out(8) is eight
    assert carry_out(4) is four
    assert carry_out(6) is not six
    more = carry_out(30)
    assert carry_out(30) is more
    assert carry_out(8) is not eight
    passes._plans.clear()
