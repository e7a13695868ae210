"""Any year of DCASE Task 2 with the paper's method, which the paper tried on 2021 alone.

    python -m dns_jax.main --config=configs/dcase.py:2023 --workdir=runs/dcase2023 \
        --config.data_dir=DIR --config.data.labels=EVALUATOR

DIR holds `dev_data/` and `eval_data/` as unpacked, EVALUATOR is the year's official evaluator with
its ground truth (2020: the `eval_data_list.csv` of Zenodo record 3951620); names and sources are in
`dns_jax/data/years.py`. `:2023:bandsaw` evaluates one machine type.

- 2020: the IDs for development choose K, clusters and Data, those for evaluation are reported.
  `:2020` takes fan, pump, slider and valve, which share their IDs; `:2020:ToyCar` and
  `:2020:ToyConveyor` have others. No domain is shifted: Source and All are the same data.
- 2021 and 2022: sections 0 to 2 choose, 3 to 5 are reported.
- 2023 to 2025: a machine type has one section, so that nothing is left to choose on: it is reported
  with the default K and clusters. Types for development and for evaluation stand apart in
  `official.csv`.

Nothing is expected of years other than 2021, for which see `configs/dcase2021.py`.
"""

import ml_collections

from configs import default
from dns_jax.data.years import YEARS, Sections, name_years


def get_config(choice: str = "2021") -> ml_collections.ConfigDict:
    """Return the configuration of a year, as "2023", or of one of its machine types.

    Args:
      choice: "YEAR" or "YEAR:MACHINE".

    Raises:
      LookupError: there is no such year or machine type.
    """
    name, _, machine = choice.partition(":")
    years = {str(year): year for year in YEARS}
    if name not in years:
        raise LookupError(f"configs/dcase.py:{name}: the year may be {name_years(YEARS)}")
    machines = YEARS[years[name]].machines
    if machine and machine not in machines:
        raise LookupError(
            f"configs/dcase.py:{choice}: the machine types of {name} are {', '.join(machines)}"
        )
    parts = {m: _take_parts(sections) for m, sections in machines.items()}
    of_machine = parts[machine or next(iter(parts))]
    alike = (machine,) if machine else tuple(m for m in parts if parts[m] == of_machine)

    config = default.get_config()
    config.data.year = years[name]
    config.machines = () if len(alike) == len(parts) else alike  # (): all that have tests
    config.validation_sections, config.evaluation_sections = of_machine
    return config


def _take_parts(sections: Sections) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sections that choose and those that are reported."""
    return sections if all(sections) else ((), sections.evaluation or sections.development)
