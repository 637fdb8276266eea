import math
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbagru import forecasting
from numbagru.forecasting import InputError, baseline, clock, model
from numbagru.forecasting.clock import Counted, Monthly, Spaced

NAN = math.nan


def gappy(steps=200, season=12.0, seed=0):
    """Make trend + season + noise with a tenth of the values missing."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps)
    y = 0.1 * t + np.sin(2 * np.pi * t / season) + rng.normal(scale=0.2, size=steps)
    y[1:-1][rng.random(steps - 2) < 0.1] = NAN
    return y


def silent(title):
    return []


# -------------------------------------------------------------------------- baseline


def naive_by_hand(y, season, origin, horizon):
    """Do as the words say: same phase, latest value known, plus the drift since."""
    lag = {k: round(k * season) for k in range(len(y))}
    reach = max(lag[10], origin // 4)
    changes = [
        y[t] - y[t - lag[1]]
        for t in range(max(0, origin - reach), origin)
        if t >= lag[1] and not math.isnan(y[t] - y[t - lag[1]])
    ]
    per_season = sum(changes) / len(changes) if changes else 0
    forecast = []
    for t in range(origin, origin + horizon):
        found = [
            y[t - lag[k]] + k * per_season
            for k in range(1, len(y))
            if lag[k] > t - origin and t >= lag[k] and not math.isnan(y[t - lag[k]])
        ]
        forecast.append(found[0] if found else NAN)
    return forecast


@pytest.mark.parametrize("season", [1, 4, 7.3, 12])
@pytest.mark.parametrize("horizon", [1, 12, 30])
def test_baseline_is_what_its_words_say(season, horizon):
    y = gappy()
    for origin in (40, 41, 150, 200):
        np.testing.assert_allclose(
            forecasting.seasonal_naive(y, season, origin, horizon),
            naive_by_hand(y, season, origin, horizon),
            rtol=1e-12,
        )


def test_baseline_continues_season_and_trend():
    t = np.arange(60)
    y = np.tile([1.0, 5.0, 2.0, 8.0], 15) + 0.5 * t
    got = forecasting.seasonal_naive(y[:48], 4, 48, 12)
    np.testing.assert_allclose(got, y[48:], rtol=1e-13)


def test_a_phase_never_seen_has_no_forecast():
    y = np.where(np.arange(60) % 4 == 2, NAN, 1.0)
    got = forecasting.seasonal_naive(y, 4, 60, 4)
    np.testing.assert_array_equal(got, [1, 1, NAN, 1])


def test_seasons_back_reach_the_past_and_no_further():
    for season in (1.0, 5.2, 52.18):
        back = baseline.seasons_back(season, 130)
        distance = baseline.lags(season, 200)
        leads = np.arange(1, 131)
        assert (distance[back] >= leads).all()
        assert (distance[back - 1] < leads).all()


def test_best_season_finds_the_one_there_is():
    t = np.arange(800)
    rng = np.random.default_rng(1)
    weekly = 3.0 * (t % 7 == 2) + rng.normal(scale=0.1, size=800)
    assert forecasting.best_season(weekly, (7.0, 365.2425), 14) == 7
    walk = np.cumsum(rng.normal(size=800))
    assert forecasting.best_season(walk, (7.0, 365.2425), 5) == 1
    # Too long to have been seen three times.
    assert forecasting.best_season(weekly[:20], (7.0,), 5) == 1


# ------------------------------------------------------- the future changes no forecast


@settings(max_examples=30, deadline=None)
@given(
    season=st.sampled_from([1.0, 6.0, 7.3]),
    horizon=st.sampled_from([1, 5, 17]),
    origin=st.integers(60, 199),
    seed=st.integers(0, 99),
)
def test_windows_and_baseline_never_see_the_future(season, horizon, origin, seed):
    y = gappy(seed=seed)
    other = y.copy()
    rng = np.random.default_rng(seed)
    other[origin:] = rng.normal(scale=1e3, size=200 - origin)
    other[origin:][rng.random(200 - origin) < 0.3] = NAN
    origins = np.arange(origin - 5, origin + 1)
    a, b = (model.windows(s, season, origins, 30, horizon) for s in (y, other))
    for part in ("inputs", "mask", "base"):
        np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
    np.testing.assert_array_equal(
        forecasting.seasonal_naive(y, season, origin, horizon),
        forecasting.seasonal_naive(other, season, origin, horizon),
    )


def test_training_and_choice_of_epochs_never_see_the_future():
    y = gappy()
    other = np.concatenate([y[:170], 1e3 * np.ones(30)])
    tasks = [forecasting.Task(s, 12.0, 6, units=3) for s in (y, other)]
    at = [task.windows(np.array([170])) for task in tasks]
    trained = [task.train(170, 2) for task in tasks]
    np.testing.assert_array_equal(trained[0](at[0]), trained[1](at[1]))
    assert len({task.choose_epochs(170, 4) for task in tasks}) == 1


def test_training_targets_end_where_the_past_does():
    task = forecasting.Task(gappy(), 12.0, 6)
    origins = task.training_origins(150)
    assert origins[-1] + task.horizon == 150
    assert origins[0] >= task.first_origin
    assert task.windows(origins).mask.any(axis=1).all()


def test_windows_are_thinned_out_to_a_limit():
    task = forecasting.Task(np.zeros(3 * model.MOST_WINDOWS), 1.0, 4)
    origins = task.training_origins(3 * model.MOST_WINDOWS)
    assert len(origins) <= model.MOST_WINDOWS
    assert origins[-1] == 3 * model.MOST_WINDOWS - 4


# ------------------------------------------------------------------------------- gaps


def test_gaps_are_masked_and_their_fill_is_never_read():
    task = forecasting.Task(gappy(), 12.0, 6, units=3)
    at = task.windows(np.array([150, 200]))
    past = np.array([150, 200])[:, None] + np.arange(-task.context, 0)
    assert not at.mask[np.isnan(task.values[past])].any()
    assert at.mask.any()
    forecast = task.train(150, 1)
    filled = at.inputs.copy()
    filled[~at.mask] = 77
    other = model.Windows(filled, at.mask, at.base, at.target)
    np.testing.assert_array_equal(forecast(at), forecast(other))


def test_missing_targets_have_no_part_in_the_loss():
    loss = model.EachLead("mean_with_sample_weight")
    truth, guess = np.array([[1.0, 0.0]]), np.array([[3.0, 50.0]])
    value, slope = loss.value_and_gradient(truth, guess, [[True, False]])
    assert value == 2
    np.testing.assert_array_equal(slope, [[1, 0]])


def test_level_is_the_latest_residual():
    y = np.arange(80.0)
    y[-3:] += 5
    at = model.windows(y, 4.0, np.array([80]), 24, 4)
    assert at.inputs[0, -1, 0] == 0
    np.testing.assert_allclose(at.inputs[0, 0, 0], at.inputs[0, 1, 0])
    # The anchors go on with the trend, raised by the latest residual.
    assert (at.base > 80).all()


# -------------------------------------------------------------------------- back-test


@pytest.fixture(scope="module")
def result():
    task = forecasting.Task(gappy(), 12.0, 6, units=3)
    origins = forecasting.choose_origins(task, 3)
    return task, forecasting.back_test(task, origins, silent, epochs=2)


def test_measures_are_over_observed_values_only(result):
    task, tested = result
    for name in ("baseline", "gru", "anchor"):
        errors, scaled, count = [], [], 0
        for trial in tested.trials:
            y = task.values[: trial.origin]
            scale = np.nanmean(np.abs(y[12:] - y[:-12]))
            for r, origin in enumerate(trial.origins):
                for h in range(task.horizon):
                    if origin + h < 200 and not math.isnan(task.values[origin + h]):
                        error = getattr(trial, name)[r, h] - task.values[origin + h]
                        errors.append(error)
                        scaled.append(abs(error) / scale)
                        count += 1
        got_count, got = forecasting.measured(tested.trials, name)
        assert got_count == count
        np.testing.assert_allclose(got.mae, np.mean(np.abs(errors)), rtol=1e-12)
        np.testing.assert_allclose(got.rmse**2, np.mean(np.square(errors)), rtol=1e-12)
        np.testing.assert_allclose(got.mase, np.mean(scaled), rtol=1e-12)


def test_origins_roll_up_to_the_next_training(result):
    _, tested = result
    assert [trial.origin for trial in tested.trials] == [182, 188, 194]
    rolled = np.concatenate([trial.origins for trial in tested.trials])
    np.testing.assert_array_equal(rolled, np.arange(182, 200))


def test_band_holds_four_fifths_of_the_errors_and_never_narrows(result):
    task, tested = result
    band = tested.band(task.horizon)
    assert (np.diff(band) >= 0).all()
    errors = [np.abs(trial.gru - trial.truth) for trial in tested.trials]
    inside = np.concatenate(errors)
    inside = (inside <= band)[~np.isnan(inside)]
    assert 0.7 < inside.mean() < 0.95


def test_table_has_a_row_per_training_and_one_for_all(result):
    _, tested = result
    lines = forecasting.table(tested).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["181", "187", "193", "all"]
    _, naive = forecasting.measured(tested.trials, "baseline")
    assert lines[-1].split()[2] == f"{naive.mae:.3f}"
    assert lines[-1].endswith(f"{forecasting.skill(tested):+.0%}")


def test_same_seed_same_bits(result):
    task, tested = result
    again = forecasting.back_test(
        task, [trial.origin for trial in tested.trials], silent, epochs=2
    )
    for one, other in zip(tested.trials, again.trials, strict=True):
        np.testing.assert_array_equal(one.gru, other.gru)


def test_another_seed_another_forecast():
    values = gappy()
    at = forecasting.Task(values, 12.0, 6).windows(np.array([200]))
    forecasts = [
        forecasting.Task(values, 12.0, 6, 3, seed).train(200, 1)(at) for seed in (0, 1)
    ]
    assert (forecasts[0] != forecasts[1]).any()


def test_training_beats_the_anchor_where_there_is_something_to_learn():
    # Noise around zero: the latest value, where the anchor departs, tells nothing.
    y = np.random.default_rng(3).normal(size=500)
    task = forecasting.Task(y, 1.0, 4, units=8)
    at = task.windows(np.arange(420, 496))
    forecast = task.train(420, 10)(at)
    truth = at.base + at.target
    assert np.abs(forecast - truth).mean() < 0.85 * np.abs(at.target).mean()


def test_constant_series_and_long_gaps_are_no_trouble():
    y = np.full(150, 5.0)
    y[60:110] = NAN
    task = forecasting.Task(y, 4.0, 4, units=2)
    tested = forecasting.back_test(task, [146], silent, epochs=1)
    np.testing.assert_array_equal(tested.trials[0].gru[0], 5)
    assert math.isnan(forecasting.skill(tested))
    assert forecasting.table(tested).splitlines()[-1].split()[-1] == "-"


def test_too_short_a_record_says_how_many_rows_it_takes():
    def origins(steps):
        task = forecasting.Task(gappy(steps), 12.0, 6)
        return forecasting.choose_origins(task, 8)

    with pytest.raises(InputError, match=r"need \d+, .* found 40") as caught:
        origins(40)
    needed = int(str(caught.value).split("need ")[1].split(",")[0])
    with pytest.raises(InputError, match="too few rows"):
        origins(needed - 1)
    assert len(origins(needed)) == 1
    task = forecasting.Task(gappy(needed), 12.0, 6, units=2)
    assert task.choose_epochs(needed - 6, 1) == 1


# ------------------------------------------------------------------------------ dates


def days(*numbers):
    return [datetime(2000, 1, 1) + timedelta(days=n) for n in numbers]


@pytest.mark.parametrize(
    ("dates", "expected", "steps"),
    [
        (days(0, 7, 14, 28), Spaced(datetime(2000, 1, 1), timedelta(7)), [0, 1, 2, 4]),
        (days(0, 0.25, 0.5, 1), Spaced(datetime(2000, 1, 1), timedelta(hours=6)),
         [0, 1, 2, 4]),
        ([datetime(2000, m, 1) for m in (1, 2, 3, 6)],
         Monthly(datetime(2000, 1, 1), 1, 1), [0, 1, 2, 5]),
        ([datetime(2000, 1, 31), datetime(2000, 2, 29), datetime(2000, 3, 31),
          datetime(2000, 4, 30)], Monthly(datetime(2000, 1, 31), 1, 31), [0, 1, 2, 3]),
        ([datetime(2000 + m // 12, m % 12 + 1, 15) for m in (0, 3, 6, 12)],
         Monthly(datetime(2000, 1, 15), 3, 15), [0, 1, 2, 4]),
        ([datetime(y, 7, 1) for y in (1990, 1991, 1992, 1994)],
         Monthly(datetime(1990, 7, 1), 12, 1), [0, 1, 2, 4]),
        (days(0, 28, 56, 112), Spaced(datetime(2000, 1, 1), timedelta(28)),
         [0, 1, 2, 4]),
        (days(0, 1, 2.1, 3, 3.9), Spaced(datetime(2000, 1, 1), timedelta(1)),
         [0, 1, 2, 3, 4]),
    ],
    ids=["weeks", "hours", "months", "month ends", "quarters", "years", "four weeks",
         "jitter"],
)  # fmt: skip
def test_spacing_is_found(dates, expected, steps):
    found, at = clock.place(dates)
    assert found == expected
    assert at.tolist() == steps


def test_clocks_give_dates_labels_and_seasons():
    ends = Monthly(datetime(2000, 1, 31), 1, 31)
    labels = ["2000-01-31", "2000-02-29", "2000-12-31", "2001-01-31"]
    assert [ends.label(i) for i in (0, 1, 11, 12)] == labels
    assert ends.seasons == (12,)
    assert Monthly(datetime(2000, 1, 1), 12, 1).seasons == ()
    hours = Spaced(datetime(2000, 1, 1), timedelta(hours=6))
    assert hours.label(1) == "2000-01-01 06:00:00"
    assert hours.seasons == pytest.approx((4, 28, 1460.97))
    assert Counted(3).label(4) == "7"


def test_dates_without_a_common_spacing_are_refused():
    with pytest.raises(InputError, match="no common spacing"):
        clock.place(days(*np.arange(5) / 86400, 4000))


# -------------------------------------------------------------------------------- CSV


def read(tmp_path, text, **kwargs):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    return forecasting.read_series(path, **kwargs)


def test_missing_rows_and_missing_values_are_gaps(tmp_path):
    series = read(
        tmp_path, "day;flow\n2000-01-01;\n2000-01-02;1,\n".replace(",", ".5")
        + "2000-01-03;NA\n2000-01-06;3\n2000-01-05;2\n2000-01-07;\n",
    )  # fmt: skip
    assert (series.name, series.axis) == ("flow", "day")
    np.testing.assert_array_equal(series.values, [1.5, NAN, NAN, 2, 3])
    assert series.clock.label(0) == "2000-01-02"
    assert (len(series), series.observed, series.merged) == (5, 3, 0)


def test_rows_are_steps_without_dates(tmp_path):
    series = read(tmp_path, "a,b\n,1\n2,\n,\n4,1\n", column="a")
    np.testing.assert_array_equal(series.values, [2, NAN, 4])
    assert series.clock == Counted(1)
    assert series.axis == "row"


def test_rows_on_one_step_of_an_irregular_record_are_averaged(tmp_path):
    text = "t,v\n" + "".join(
        f"2000-01-01 {time},{value}\n"
        for time, value in (
            ("00:00", 1), ("01:10", 2), ("01:20", 4), ("02:20", 5), ("03:20", 6),
        )
    )  # fmt: skip
    series = read(tmp_path, text)
    np.testing.assert_array_equal(series.values, [1, 3, 5, 6])
    assert series.merged == 2


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("2001-12-29", datetime(2001, 12, 29)),
        ("2001-12-29T06:00:00+02:00", datetime(2001, 12, 29, 4)),
        ("2001-12-29T06:00:00Z", datetime(2001, 12, 29, 6)),
        ("2001-12", datetime(2001, 12, 1)),
        ("29.12.2001", datetime(2001, 12, 29)),
        ("12/29/2001", datetime(2001, 12, 29)),
        ("29/12/2001", datetime(2001, 12, 29)),
        ("20011229", datetime(2001, 12, 29)),
        ("2001", datetime(2001, 1, 1)),
    ],
)
def test_forms_of_dates(tmp_path, field, expected):
    other = field.replace("2001", "2002")
    text = f"v,at\n1,{field}\n2,{other}\n"
    assert read(tmp_path, text, date_column="at").clock.start == expected


def test_own_data_is_the_record_of_mauna_loa():
    from numbagru.__main__ import OWN_DATA

    series = forecasting.read_series(OWN_DATA)
    assert (len(series), series.observed) == (2284, 2225)
    assert series.clock == Spaced(datetime(1958, 3, 29), timedelta(7))
    assert (series.values[0], series.values[-1]) == (316.1, 371.5)
    assert "public domain" in OWN_DATA.with_name("co2_origin.txt").read_text("utf-8")
