"""The arithmetic behind the tables, and Markdown."""

import math
import statistics

import numpy as np

# Up to here one tile of the kernels takes all rows: a step reads each weight once.
FEW_ROWS = 8


def flops(what, shape):
    """Return the multiplications and additions of the products of one call.

    Training is the forward pass, the adjoints and the gradients of the weights. States
    are zero at first, and need no products, nor does anybody ask for their gradients.
    """
    passes = {"inference": 1, "training": 3}[what]
    batch, steps, features, units = shape
    multiplied = steps * features + steps_with_states(steps) * units
    return 6 * passes * batch * units * multiplied


def steps_with_states(steps):
    """Return in how many steps old states have to be multiplied."""
    return max(0, steps - 1)


def weight_bytes(shape, dtype):
    """Return the size of kernel and recurrent kernel."""
    _, _, features, units = shape
    return np.dtype(dtype).itemsize * 3 * units * (features + units)


def bandwidth(roof, size, count=-1):
    """Return bytes per second from the nearest cache that holds `size` bytes.

    `count` is the place in ``roof["threads"]``; a thread has its part of the caches.
    """
    part = roof["threads"][count] / roof["threads"][-1]
    for level in roof["read"]:
        if level["holds"] is None or size <= level["holds"] * part:
            return 1e9 * level["GB/s"][count]
    raise ValueError(f"no level of the roof holds {size} bytes")


def shares(what, shape, dtype, ms, roof):
    """Return the shares of FMA peak and of cache bandwidth that a time reaches.

    The second is NaN unless there are few rows and reading the weights, once per step
    and in training once more on the way back, takes longer than multiplying. A kernel
    that multiplies several steps of the input at a time reads less, so it may exceed 1.
    """
    seconds = 1e-3 * ms
    multiplying = flops(what, shape) / (1e9 * roof["fma"][dtype][-1])
    size = weight_bytes(shape, dtype)
    passes = {"inference": 1, "training": 2}[what]
    of_states = size * shape[3] / (shape[2] + shape[3])
    steps = steps_with_states(shape[1])
    read = passes * (shape[1] * (size - of_states) + steps * of_states)
    reading = read / bandwidth(roof, size)
    bound = shape[0] <= FEW_ROWS and reading > multiplying
    return multiplying / seconds, reading / seconds if bound else math.nan


def ratio(times, aside=()):
    """Return the fastest peer's time over numbagru's, NaN where one is missing.

    Engines set `aside` are no peers.
    """
    peers = [ms for name, ms in times.items() if name not in {"numbagru", *aside}]
    ours = times.get("numbagru", math.nan)
    return min(peers, default=math.nan) / ours


def geometric_mean(values):
    """Return the geometric mean; NaN if any value is, or if there is none."""
    values = list(values)
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan


def exponent(sizes, times):
    """Return p of the power law time = c size^p, by least squares over the upper half.

    The lower half holds what every call costs.
    """
    half = len(sizes) // 2
    logs = np.log([sizes[half:], times[half:]])
    return float(np.polyfit(*logs, 1)[0])


def cell(number):
    """Format a number with three digits."""
    if math.isnan(number):
        return "-"
    if number == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:.{digits}f}"


def percent(share):
    """Format a share."""
    return "-" if math.isnan(share) else f"{100 * share:.0f} %"


def markdown(head, rows):
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def figures(what, dtype, family, shape, times, roof, bound, aside=()):
    """Return all that one shape's times say, ready for JSON; `bound` is in seconds."""
    ours = times.get("numbagru", math.nan)
    peak, read = shares(what, shape, dtype, ours, roof)
    return {
        "what": what,
        "dtype": dtype,
        "family": family,
        "shape": str(shape),
        "ms": times,
        "ratio": ratio(times, aside),
        "share_of_peak": peak,
        "share_of_bandwidth": read,
        "share_of_bound": 1e3 * bound / ours,
    }


def comparison(rows, engines, aside=()):
    """Return the Markdown table of the `figures` of one family."""
    first = rows[0]
    head = [
        f"{first['what']} {first['dtype']}, ms (BxTxFxU)",
        *(f"({name})" if name in aside else name for name in engines),
        "fastest peer / numbagru",
        "FMA peak",
        "cache bandwidth",
        "bound",
    ]
    body = [
        [
            row["shape"],
            *(cell(row["ms"].get(engine, math.nan)) for engine in engines),
            cell(row["ratio"]),
            percent(row["share_of_peak"]),
            percent(row["share_of_bandwidth"]),
            percent(row["share_of_bound"]),
        ]
        for row in rows
    ]
    means = [geometric_mean(r["ms"].get(e, math.nan) for r in rows) for e in engines]
    mean_ratio = geometric_mean(row["ratio"] for row in rows)
    body.append(["geometric mean", *map(cell, [*means, mean_ratio]), "", "", ""])
    return markdown(head, body)


def verdict(rows):
    """Return one line about the ratios of all families."""
    known = [row for row in rows if not math.isnan(row["ratio"])]
    title = f"{rows[0]['what']} {rows[0]['dtype']}"
    if not known:
        return f"{title}: no ratio, numbagru or every peer is missing."
    below = [row["shape"] for row in known if row["ratio"] < 1]
    least = min(row["ratio"] for row in known)
    mean = geometric_mean(row["ratio"] for row in known)
    most = geometric_mean(row["ratio"] / row["share_of_bound"] for row in known)
    return (
        f"{title}: geometric mean of {len(known)} ratios {cell(mean)}, least "
        f"{cell(least)}, below 1 {'at ' + ', '.join(below) if below else 'nowhere'}. "
        f"With all of them at the bound the mean would be {cell(most)}."
    )


def roof_table(roof):
    """Return the Markdown table of what `roofline` measured."""
    head = ["most that this machine does"]
    head += [f"{n} thread{'s' if n > 1 else ''}" for n in roof["threads"]]
    rows = [
        [f"FMA {dtype}, vectors of {roof['vector_bits']} bits, GFLOP/s"]
        + [cell(figure) for figure in figures]
        for dtype, figures in roof["fma"].items()
    ]
    rows += [
        [f"{dtype}, {name}, 1e9/s", *map(cell, figures)]
        for dtype, measured in roof["bound"].items()
        for name, figures in measured.items()
    ]
    rows += [
        [f"reading {level['level']}, {level['bytes'] >> 10} KiB per thread, GB/s"]
        + [cell(figure) for figure in level["GB/s"]]
        for level in roof["read"]
    ]
    return markdown(head, rows)
