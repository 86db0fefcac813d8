"""The sums of the benchmark: percentiles, medians over rounds, ratios, and the JSON entry."""

import pytest

from bench.figures import Figure, Samples, median, percentile, ratio_of, rounded


def test_a_percentile_is_the_nearest_rank() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert percentile(values, 50) == 3.0
    assert percentile(values, 60) == 3.0
    assert percentile(values, 61) == 4.0
    assert percentile(values, 100) == 5.0


def test_p99_of_a_hundred_values_leaves_one_out() -> None:
    assert percentile(range(1, 101), 99) == 99


def test_one_value_is_every_percentile() -> None:
    assert percentile([7.0], 1) == percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_that_makes_no_sense_is_refused(
    values: list[float], percent: float
) -> None:
    with pytest.raises(ValueError):
        percentile(values, percent)


def test_the_median_of_two_rounds_is_their_mean() -> None:
    assert median([3.0, 1.0]) == 2.0
    assert median([3.0, 1.0, 100.0]) == 3.0
    assert median([]) is None


def test_the_ratio_is_to_the_prototype_and_only_without_one_to_direct() -> None:
    assert ratio_of(3.0, 2.0, 10.0) == 1.5
    assert ratio_of(3.0, None, 10.0) == 0.3
    assert ratio_of(None, 2.0, 10.0) is None
    assert ratio_of(3.0, 0.0, 10.0) is None
    assert ratio_of(3.0, None, None) is None


def test_figures_are_medians_of_the_rounds_with_metrics_of_a_workload_together() -> (
    None
):
    samples = Samples()
    samples.add("a", "rate", "1/s", "tunnel", 10)
    samples.add("b", "rate", "1/s", "tunnel", 5)
    samples.add("a", "rate", "1/s", "tunnel", 30)
    samples.add("a", "rate", "1/s", "prototype", 40)
    # A metric that only one column has, seen late: it still belongs to its workload.
    samples.add("a", "cpu", "s/10k", "tunnel", 0.5)
    first, second, third = samples.figures()
    assert (first.workload, first.metric) == ("a", "rate")
    assert (first.direct, first.prototype, first.tunnel, first.ratio) == (
        None,
        40,
        20,
        0.5,
    )
    assert (second.workload, second.metric) == ("a", "cpu")
    assert third.workload == "b"


def test_an_entry_of_the_json_has_exactly_the_promised_fields() -> None:
    figure = Figure(
        workload="raw-request-16",
        metric="rate",
        unit="1/s",
        direct=None,
        prototype=16_200.0,
        tunnel=15_391.23,
    )
    assert figure.as_json() == {
        "workload": "raw-request-16",
        "metric": "rate",
        "unit": "1/s",
        "tunnel": 15_390.0,
        "prototype": 16_200.0,
        "direct": None,
        "ratio": 0.9501,
    }


def test_numbers_are_cut_to_four_significant_digits() -> None:
    assert rounded(0.000123456) == 0.0001235
    assert rounded(None) is None
    assert rounded(0.0) == 0.0
