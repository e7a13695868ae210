"""The paper's findings, checked on its own Table II and on tables that say the opposite."""

import numpy as np
import pandas as pd
import pytest

from dns_jax.evaluation.findings import COLUMNS, list_findings
from dns_jax.evaluation.tables import DIFFERENCE, METHODS, PAPER_COLUMNS, PAPER_TABLE2, write_csv

CURVE_COLUMNS = ("machine", "seed", "curve", "x", "line", "value", "std")
NO_CURVES = pd.DataFrame(columns=CURVE_COLUMNS)
GAINS = ["fan", "pump", "slider", "gearbox", "valve", "all_hmean"]


def make_table2(seed="0", paper=True, **changes):
    """The paper's table as a run's own, with {method_column: value} changed."""
    rows = []
    for system, values in PAPER_TABLE2.items():
        ours = dict(zip(PAPER_COLUMNS, values, strict=True))
        for name, value in changes.items():
            of, _, column = name.partition("__")
            if of == system:
                ours[column.replace("_5", "-5")] = value
        method = METHODS[system]
        if paper:
            rows.append(["paper", "", method, *values])
        rows.append(["ours", seed, method, *ours.values()])
    return pd.DataFrame(rows, columns=["source", "seed", "method", *PAPER_COLUMNS])


def make_curve(values, machine="fan", curve="neighbours"):
    """{line: values for K = 1, 2, 4, ...} as `curves.csv` has it."""
    rows = [
        (machine, 0, curve, 2**i, line, value, np.nan)
        for line, of_line in values.items()
        for i, value in enumerate(of_line)
    ]
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def look_up(findings, start):
    """The (holds, here) of the only finding that begins so."""
    rows = findings[findings["finding"].str.startswith(f"{start}:")]
    assert len(rows) == 1, rows
    return rows["holds"].item(), rows["here"].item()


# Table II


def test_the_papers_own_table_has_what_its_text_finds():
    findings = list_findings(make_table2(), NO_CURVES)
    assert tuple(findings) == COLUMNS
    assert set(findings["holds"]) == {"yes"}
    assert findings["finding"].str.partition(":")[0].tolist() == [*GAINS, "valve", "ToyCar-5"]
    # In its words: 13 % for fan, pump and slider; 7 % over all; Oracle 22 % in valve.
    assert findings["here"].tolist() == [
        *("+16.1 points", "+17.1 points", "+13.5 points", "+4.9 points", "+5.7 points"),
        *("+7.1 points", "+22.0 points", "33.6 and 72.1 %"),
    ]


@pytest.mark.parametrize(
    ("start", "changes"),
    [
        *(
            (name, {f"proposed__{name}": 60, f"ae__{name}": 60})
            for name in GAINS
            if name != "valve"
        ),
        ("fan", {"proposed__fan": 70, "ae__fan": 57.1}),
        ("all_hmean", {"proposed__all_hmean": 63.0, "ae__all_hmean": 56.2}),
        ("gearbox", {"proposed__gearbox": 59.4}),
        ("ToyCar-5", {"serial_oe__ToyCar_5": 50.5}),
        ("ToyCar-5", {"proposed__ToyCar_5": 49.9}),
    ],
)
def test_what_a_table_does_not_show_is_not_found(start, changes):
    findings = list_findings(make_table2(**changes), NO_CURVES)
    assert look_up(findings, start)[0] == "no"
    assert (findings["holds"] == "no").sum() == 1


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({"proposed__valve": 51.0}, ["no", "yes"]),  # the choice on validation sections gains not
        ({"oracle__valve": 72.6}, ["yes", "no"]),
        ({"oracle__valve": 72.8}, ["yes", "yes"]),  # 22 points as the paper rounds
    ],
)
def test_the_gain_in_valve_is_looked_at_twice(changes, holds):
    findings = list_findings(make_table2(**changes), NO_CURVES)
    valve = findings[findings["finding"].str.startswith("valve:")]
    assert valve["holds"].tolist() == holds
    assert "best K" in valve["finding"].iloc[1]


def test_of_several_seeds_the_mean_counts():
    seeds = [make_table2("0", proposed__fan=50), make_table2("1", False, proposed__fan=80)]
    mean, std = make_table2("mean", False, proposed__fan=65), make_table2("std", False)
    table = pd.concat([*seeds, mean, std], ignore_index=True)
    assert look_up(list_findings(table, NO_CURVES), "fan") == ("no", "+7.9 points")


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_rows_of_the_difference_and_its_interval_are_left_alone(seeds):
    # Their seed is "mean", too, and with one seed no other row has it.
    rows = [["ours", seed, DIFFERENCE, *9 * [1.0]] for seed in ("mean", "2.5%", "97.5%")]
    table = make_table2()
    difference = pd.DataFrame(rows, columns=table.columns)
    parts = [table] if seeds == 1 else [table, make_table2("1", False), make_table2("mean", False)]
    findings = list_findings(pd.concat([*parts, difference], ignore_index=True), NO_CURVES)
    assert set(findings["holds"]) == {"yes"}
    assert len(findings) == 8


def test_without_the_papers_rows_there_is_nothing_to_check():
    findings = list_findings(make_table2(paper=False), make_curve({"all": (0.5, 0.6, 0.5)}))
    assert tuple(findings) == COLUMNS
    assert len(findings) == 0


def test_a_machine_that_is_not_there_is_not_spoken_of():
    table = make_table2().drop(columns=["pump", "valve", "ToyCar", "ToyCar-5", "all_hmean"])
    findings = list_findings(table, NO_CURVES)
    assert findings["finding"].str.partition(":")[0].tolist() == ["fan", "slider", "gearbox"]


def test_the_gain_over_all_machines_is_that_of_all_seven():
    table = make_table2().drop(columns=["pump", "valve", "ToyCar", "ToyCar-5"])
    table.loc[table["source"] == "paper", "all_hmean"] = np.nan  # as `make_table2` has it
    assert not list_findings(table, NO_CURVES)["finding"].str.startswith("all").any()


@pytest.mark.parametrize(
    "unknown",
    [
        "proposed__fan",
        "ae__all_hmean",
        "oracle__valve",
        "serial_oe__ToyCar_5",
        "proposed__ToyCar_5",
    ],
)
def test_what_was_not_evaluable_is_not_spoken_of(unknown):
    findings = list_findings(make_table2(**{unknown: np.nan}), NO_CURVES)
    assert len(findings) == 7
    assert set(findings["holds"]) == {"yes"}
    assert not findings["here"].str.contains("nan").any()


# The curves


@pytest.mark.parametrize(
    ("values", "holds", "here"),
    [
        ((0.5, 0.7, 0.6), "yes", "70.0 % with K = 2, 60.0 % with K = 4"),
        ((0.5, 0.6, 0.7), "no", "70.0 % with K = 4, 70.0 % with K = 4"),
        ((0.5, 0.6, 0.55, np.nan), "yes", "60.0 % with K = 2, 55.0 % with K = 4"),
    ],
)
def test_too_large_a_k_harms_where_the_curve_falls_in_the_end(values, holds, here):
    curves = pd.concat(
        [
            make_curve({"source": (0.5, 0.59, 0.58), "all": values}),
            make_curve({"all, other recordings": (0.9, 0.95, 0.1)}),
            make_curve({"all": (0.99, 0.1)}, curve="own_windows"),
            make_curve({"drawn": (0.99, 0.1)}, curve="pool"),
        ]
    )
    findings = list_findings(make_table2(), curves.iloc[::-1])
    assert len(findings) == 9
    assert look_up(findings.tail(1), "fan") == (holds, here)


def test_every_machine_has_its_curve_also_as_the_report_joins_them():
    parts = [
        make_curve({"all": (0.5, 0.7, 0.6)}, "pump"),
        make_curve({"source": (0.5, 0.6, 0.8)}, "ToyCar"),
    ]
    curves = pd.concat([NO_CURVES, *parts])
    findings = list_findings(make_table2(), curves).tail(2)
    assert look_up(findings, "pump")[0] == "yes"
    assert look_up(findings, "ToyCar")[0] == "no"
    assert findings["finding"].str.endswith("too large a K harms").all()


def test_a_curve_that_nothing_was_evaluable_for_says_nothing():
    findings = list_findings(make_table2(), make_curve({"all": (np.nan, np.nan)}))
    assert len(findings) == 8


def test_findings_can_be_written_and_read_like_any_table(tmp_path):
    findings = list_findings(make_table2(), make_curve({"all": (0.5, 0.7, 0.6)}))
    write_csv(findings, tmp_path / "findings.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "findings.csv"), findings)
