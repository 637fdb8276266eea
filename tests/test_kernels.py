"""All kernel families against the oracle of reference.py, on one table of cases."""

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numba import njit

import reference
from numbagru import dispatch, functional
from numbagru.activations import Activation
from numbagru.config import GRUConfig

FAMILIES = {"cpu_tiles": "auto", "cpu_plain": False}  # name: use_cudnn that takes it


@dataclass(frozen=True)
class Case:
    """Shapes B, T, F, U and what differs from a plain call with all gradients."""

    shape: tuple[int, int, int, int]
    mask: str | None = None
    go_backwards: bool = False
    use_bias: bool = True
    initial_state: bool = True
    zero_output: bool = False
    first_output: str = "zero"
    time_major: bool = False
    dropout: str | None = None
    return_sequences: bool = True
    gradients: tuple[str, ...] = ("last", "outputs", "state")
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    dtype: str = "float32"


# The numbers of units lie around one, two, three and four vectors of 16, 8, 4 and 2
# lanes, those of rows around tiles of 8, 4, 2 and 1.
CASES = {
    **{
        f"{B}x{T}x{F}x{U}": Case((B, T, F, U))
        for B, T, F, U in [
            (0, 2, 3, 5),
            (2, 0, 3, 5),
            (1, 1, 1, 1),
            (1, 5, 3, 16),
            (1, 5, 9, 33),
            (1, 2, 8, 70),
            (2, 5, 3, 8),
            (3, 2, 1, 15),
            (7, 2, 8, 17),
            (8, 2, 17, 48),
            (9, 5, 9, 49),
            (17, 2, 3, 33),
            (33, 5, 17, 70),  # enough work for several threads
        ]
    },
    # Beyond the blocks of rows, the parts of rows and the chunks of time.
    "many rows": Case((2100, 2, 1, 3)),
    "several blocks": Case((150, 3, 3, 17), mask="gaps"),
    "many steps": Case((9, 150, 3, 17), mask="gaps"),
    "many steps of one row": Case((1, 600, 2, 5)),
    # One row: inputs multiplied some steps ahead, units shared among threads.
    "one row of wide inputs": Case((1, 19, 40, 5)),
    "one wide row": Case((1, 13, 33, 100), initial_state=False),
    "one wide row, gaps": Case((1, 9, 20, 100), mask="gaps"),
    "some wide rows": Case((5, 6, 3, 130), mask="right"),
    "left mask": Case((7, 5, 3, 17), mask="left"),
    "right mask": Case((9, 5, 3, 17), mask="right"),
    "right mask, many rows and steps": Case((70, 80, 9, 17), mask="right"),
    "gaps": Case((17, 5, 9, 33), mask="gaps"),
    "empty row": Case((3, 5, 3, 16), mask="empty row"),
    "all masked": Case((3, 5, 3, 8), mask="all"),
    "mask, no state": Case((3, 5, 3, 5), mask="gaps", initial_state=False),
    "state, no mask": Case((9, 2, 3, 5)),
    "neither, several threads": Case((33, 5, 17, 70), initial_state=False),
    "neither": Case((9, 5, 3, 17), initial_state=False),
    "only the last output": Case(
        (9, 5, 3, 17),
        initial_state=False,
        return_sequences=False,
        gradients=("last",),
    ),
    "masked, only the last output": Case(
        (9, 5, 3, 17), mask="right", return_sequences=False, gradients=("last", "state")
    ),
    "only gradients of outputs": Case((8, 5, 3, 16), gradients=("outputs",)),
    "only gradients of the state": Case(
        (2, 5, 3, 5), mask="gaps", gradients=("state",)
    ),
    "no gradients": Case((2, 2, 3, 5), gradients=()),
    "backwards": Case((7, 5, 3, 17), go_backwards=True),
    "backwards, gaps": Case((7, 5, 3, 17), go_backwards=True, mask="gaps"),
    "backwards, left mask": Case((9, 5, 3, 8), go_backwards=True, mask="left"),
    "no bias": Case((9, 5, 3, 17), use_bias=False),
    "zeros": Case((9, 5, 3, 17), mask="gaps", zero_output=True),
    "zeros, empty row": Case((3, 5, 3, 8), mask="empty row", zero_output=True),
    "state first": Case((7, 5, 3, 17), mask="left", first_output="state"),
    "state first, empty row": Case(
        (3, 5, 3, 8), mask="empty row", first_output="state"
    ),
    "state first, zeros": Case(
        (7, 5, 3, 8), mask="left", first_output="state", zero_output=True
    ),
    "no steps, state first": Case((2, 0, 3, 5), first_output="state"),
    "time major": Case((7, 5, 3, 17), time_major=True),
    "time major, gaps, backwards": Case(
        (7, 5, 3, 17), time_major=True, mask="gaps", go_backwards=True
    ),
    "dropout": Case((7, 5, 3, 17), dropout="constant"),
    "dropout per step": Case((7, 5, 3, 17), dropout="per step", go_backwards=True),
    "dropout per step, time major": Case(
        (7, 5, 3, 17), dropout="per step", time_major=True, mask="gaps"
    ),
    "dropout per gate": Case((7, 5, 3, 17), dropout="per gate", mask="gaps"),
    "recurrent dropout": Case((7, 5, 3, 17), dropout="recurrent"),
    "recurrent dropout, right mask": Case(
        (19, 8, 3, 17), mask="right", dropout="recurrent"
    ),
    "recurrent dropout of a wide row": Case((1, 9, 20, 100), dropout="both"),
    "both dropouts": Case((3, 5, 3, 8), dropout="both", go_backwards=True),
}


def lengths(rng, shape):
    return rng.integers(1, shape[1] + 1, shape[0])[:, None]


MASKS = {
    "left": lambda rng, shape: np.arange(shape[1]) >= shape[1] - lengths(rng, shape),
    "right": lambda rng, shape: np.arange(shape[1]) < lengths(rng, shape),
    "gaps": lambda rng, shape: rng.random(shape) < 0.6,
    "empty row": lambda rng, shape: np.arange(shape[0])[:, None] + np.zeros(shape) != 1,
    "all": lambda rng, shape: np.zeros(shape, bool),
}


class Problem:
    """The arrays of a case in float32 numbers, so that every type sees the same."""

    def __init__(self, case):
        B, T, F, U = case.shape
        rng = np.random.default_rng([B, T, F, U])

        def normal(*shape, scale=1.0):
            return scale * rng.normal(size=shape).astype(np.float32)

        def multipliers(*shape):
            return rng.choice(np.float32([0, 2]), shape)

        rows = 2 if case.reset_after else 1
        self.kernel = normal(F, 3 * U, scale=F**-0.5)
        self.recurrent_kernel = normal(U, 3 * U, scale=U**-0.5)
        self.bias = normal(rows, 3 * U) if case.use_bias else None
        self.h0 = normal(B, U) if case.initial_state else None
        self.x = normal(B, T, F)
        self.mask = MASKS[case.mask](rng, (B, T)) if case.mask else None
        if case.mask:
            self.x[~self.mask] = np.nan  # what is masked is never read
        self.factor, self.x_drop, self.h_drop = None, None, None
        if case.dropout == "constant":
            self.factor = multipliers(B, 1, F)
        if case.dropout == "per step":
            self.factor = multipliers(B, T, F)
        if case.dropout in ("per gate", "both"):
            self.x_drop = multipliers(3, B, F)
        if case.dropout in ("recurrent", "both"):
            self.h_drop = multipliers(3, B, U)
        shapes = {"last": (B, U), "outputs": (B, T, U), "state": (B, U)}
        self.gradients = {
            name: normal(*shapes[name]) if name in case.gradients else None
            for name in shapes
        }


@functools.cache
def problem_of(case):
    return Problem(replace(case, dtype="float32"))


def expected(case, dtype, order=None):
    """Evaluate outputs and gradients by the oracle in dtype.

    With rows and units in an order of their own, which `order` is the seed of.
    """
    return _expected(replace(case, dtype=dtype), order)


def numpy_errors(case):
    """Return how far from float64 NumPy is in float32, at the most, by name.

    Whatever the order of rows and units: in one, roundings may happen to cancel.
    """
    exact = expected(case, "float64")
    errors = [
        {name: np.abs(single[name] - exact[name]).max(initial=0) for name in NAMES}
        for single in (expected(case, "float32", order) for order in (None, 0, 1, 2))
    ]
    return {name: max(error[name] for error in errors) for name in NAMES}


@functools.cache
def _expected(case, order):
    given = problem_of(case)
    B, _, _, U = case.shape
    rows, units = np.arange(B), np.arange(U)
    if order is not None:
        rng = np.random.default_rng(order)
        rows, units = rng.permutation(rows), rng.permutation(units)
    gates = np.concatenate([gate * U + units for gate in range(3)])

    def by_row(array, axis=0, columns=slice(None)):
        return None if array is None else np.take(array, rows, axis)[..., columns]

    shared = {
        "reset_after": case.reset_after,
        "activation": case.activation,
        "recurrent_activation": case.recurrent_activation,
        "go_backwards": case.go_backwards,
        "zero_output": case.zero_output,
        "first_output": case.first_output,
    }
    factor = 1 if given.factor is None else by_row(given.factor)
    *outputs, tape = reference.forward(
        by_row(given.x) * factor,
        given.kernel[:, gates],
        given.recurrent_kernel[units][:, gates],
        None if given.bias is None else given.bias[:, gates],
        h0=by_row(given.h0, 0, units),
        mask=by_row(given.mask),
        x_drop=by_row(given.x_drop, 1),
        h_drop=by_row(given.h_drop, 1, units),
        dtype=case.dtype,
        **shared,
    )
    d = {name: by_row(array, 0, units) for name, array in given.gradients.items()}
    gradients = reference.backward(
        tape,
        0 if d["last"] is None else d["last"],
        d["outputs"],
        0 if d["state"] is None else d["state"],
        **shared,
    )
    d_x, d_h0, d_kernel, d_recurrent_kernel, d_bias = gradients
    rows, units, gates = np.argsort(rows), np.argsort(units), np.argsort(gates)
    results = [by_row(array, 0, units) for array in outputs]
    results += [by_row(d_x * factor), by_row(d_h0, 0, units), d_kernel[:, gates]]
    results += [d_recurrent_kernel[units][:, gates], d_bias[..., gates]]
    return dict(zip(NAMES, results, strict=True))


NAMES = [
    "last", "outputs", "state",
    "d_inputs", "d_initial_state", "d_kernel", "d_recurrent_kernel", "d_bias",
]  # fmt: skip


@njit
def squash(x):
    return x / (1 + abs(x))


@njit
def d_squash(x):
    return 1 / (1 + abs(x)) ** 2


# Has a formula in the oracle, but is a user's function here.
USERS = {"softsign": Activation(squash, d_squash)}


def config_of(case, family):
    per_gate = case.dropout in ("per gate", "both")
    return GRUConfig(
        units=case.shape[3],
        activation=USERS.get(case.activation, case.activation),
        recurrent_activation=USERS.get(
            case.recurrent_activation, case.recurrent_activation
        ),
        use_bias=case.use_bias,
        reset_after=case.reset_after,
        go_backwards=case.go_backwards,
        time_major=case.time_major,
        return_sequences=case.return_sequences,
        zero_output_for_mask=case.zero_output,
        compat="keras3-jax" if case.first_output == "state" else "keras3",
        use_cudnn=FAMILIES[family],
        implementation=1 if per_gate else 2,
        dtype=case.dtype,
    )


def arguments(case, family):
    """Make the arguments of `functional.gru`."""
    given = problem_of(case)
    config = config_of(case, family)
    bias = given.bias
    if case.use_bias and not case.reset_after:
        bias = bias[0]
    weights = functional.Weights(
        *(
            None if array is None else array.astype(case.dtype)
            for array in (given.kernel, given.recurrent_kernel, bias)
        ),
        case.reset_after,
    )
    drop = given.x_drop if given.factor is None else given.factor
    if case.dropout == "constant":
        drop = drop[:, 0]
    if case.dropout == "per step":
        drop = by_time(case, drop)
    mask = None if given.mask is None else by_time(case, given.mask)
    return config, weights, by_time(case, given.x), given.h0, mask, drop, given.h_drop


def by_time(case, array):
    """Swap rows and time where the case has time first."""
    if array is None or not case.time_major:
        return array
    return np.ascontiguousarray(array.swapaxes(0, 1))


def run(case, family):
    """Evaluate outputs and gradients by a kernel family, rows first."""
    given = arguments(case, family)
    assert chosen(given[0]) == family
    outputs, pullback = functional.gru_vjp(*given)
    d = problem_of(case).gradients
    gradients = pullback(d["last"], by_time(case, d["outputs"]), d["state"])
    results = dict(zip(NAMES, [*outputs, *gradients], strict=True))
    for name in ("outputs", "d_inputs"):
        results[name] = by_time(case, results[name])
    return results


def chosen(config):
    return functional.explain(config).split(":")[0]


def check(case, family):
    """Compare: at most twice as far from float64 as NumPy in float32 comes.

    Plus eight roundings of the largest number; and for float64 all of that times the
    ratio of the machine epsilons, because rounding errors scale with it, and once more
    NumPy's own error, since float64 is no better.
    """
    exact, errors = expected(case, "float64"), numpy_errors(case)
    eps = np.finfo(np.float32).eps
    ratio = np.finfo(case.dtype).eps / eps
    times = 2 if case.dtype == "float32" else 3
    missing = set()
    for name, result in run(case, family).items():
        if result is None:
            missing.add(name)
            continue
        true = exact[name].reshape(result.shape)
        assert result.dtype == case.dtype
        assert np.isfinite(result).all(), name
        allowed = times * errors[name]
        allowed += 8 * eps * np.abs(true).max(initial=0)
        assert np.abs(result - true).max(initial=0) <= ratio * allowed, name
    wanted = {
        "outputs": case.return_sequences,
        "d_initial_state": case.initial_state,
        "d_bias": case.use_bias,
    }
    assert missing == {name for name, present in wanted.items() if not present}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for name in CASES for family in FAMILIES],
)
def test_against_the_oracle(family, name, reset_after, dtype):
    check(replace(CASES[name], reset_after=reset_after, dtype=dtype), family)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("name", CASES)
def test_all_ways_forward_give_the_same_bits(name, reset_after, dtype):
    """With or without saving for backward, one family or the other."""
    case = replace(CASES[name], reset_after=reset_after, dtype=dtype)
    ways = []
    for family in FAMILIES:
        given = arguments(case, family)
        ways += [functional.gru(*given), functional.gru_vjp(*given)[0]]
    for way in ways[1:]:
        for result, first in zip(way, ways[0], strict=True):
            np.testing.assert_array_equal(result, first)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.mask])
def test_masked_inputs_have_no_gradient(name):
    case = CASES[name]
    for family in FAMILIES:
        assert not run(case, family)["d_inputs"][~problem_of(case).mask].any()


# Every one is compiled for itself, so each stands for a way through the kernels: a
# derivative in the output or in the input, for the candidate or the gates or both; a
# whole row at once; a function that Numba gets from the user.
ACTIVATIONS = [
    ("cpu_tiles", "relu", "hard_sigmoid", True, "float32"),
    ("cpu_tiles", "gelu", "sigmoid", False, "float64"),
    ("cpu_tiles", "softsign", "softsign", True, "float64"),
    ("cpu_tiles", "softmax", "sigmoid", True, "float64"),
    ("cpu_tiles", "tanh", "softmax", False, "float64"),
    ("cpu_plain", "softmax", "sigmoid", True, "float32"),
    ("cpu_plain", "softmax", "softmax", False, "float64"),
    ("cpu_plain", "tanh", "silu", True, "float32"),
    ("cpu_plain", "linear", "hard_sigmoid", True, "float32"),
    ("cpu_plain", "relu", "softmax", False, "float64"),
]


@pytest.mark.parametrize("units", [5, 17])
@pytest.mark.parametrize(
    ("family", "activation", "recurrent_activation", "reset_after", "dtype"),
    ACTIVATIONS,
)
def test_activations(
    family, activation, recurrent_activation, reset_after, dtype, units
):
    case = Case(
        (9, 5, 3, units),
        mask="gaps",
        activation=activation,
        recurrent_activation=recurrent_activation,
        reset_after=reset_after,
        dtype=dtype,
    )
    check(case, family)


@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("name", CASES)
def test_whole_rows(name, reset_after):
    """Where an activation takes all units at once, tiles hand over whole rows."""
    case = replace(CASES[name], reset_after=reset_after, activation="softmax")
    check(case, "cpu_tiles")
    plain = functional.gru(*arguments(case, "cpu_plain"))
    for result, first in zip(
        functional.gru(*arguments(case, "cpu_tiles")), plain, strict=True
    ):
        np.testing.assert_array_equal(result, first)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax"])
def test_whole_rows_are_those_of_the_plain_kernel(name):
    case = Case((9, 3, 3, 17), mask="gaps", activation=name)
    tiles, plain = (functional.gru(*arguments(case, family)) for family in FAMILIES)
    for result, first in zip(tiles, plain, strict=True):
        np.testing.assert_array_equal(result, first)


def test_every_family_is_in_the_table():
    assert {row.name for row in dispatch.rows_of("cpu")} == set(FAMILIES)
