"""What differs between the years of DCASE Task 2: names, folders, labels, machines, official score.

One table, `YEARS`; what it does not hold is not known here. In brackets the source of each fact:

- [B20] y-kawagu/dcase2020_task2_baseline@ebfcc2a, [E20] y-kawagu/dcase2020_task2_evaluator@3e5464f
- [B21] y-kawagu/dcase2021_task2_baseline_ae@7d7f5cc, [E21] y-kawagu/dcase2021_task2_evaluator
  @1787468
- [B22] Kota-Dohi/dcase2022_task2_baseline_ae@8ab52e1, [E22] Kota-Dohi/dcase2022_evaluator@de8719b
- [E23] nttcslab/dcase2023_task2_evaluator@3aa8a9f, [E24] nttcslab/dcase2024_task2_evaluator@b5d17f6
- [E25] the README of nttcslab/dcase2025_task2_evaluator alone; its script was not to be had, but
  the two official scores stated there are what [E24] makes of the AUCs beside them
- [N] nttcslab/dcase2023_task2_baseline_ae@9b64dc4: README_legacy.md (layouts),
  datasets/machine_type_*.yaml (machines, sections), datasets/eval_data_list_*.csv (names, labels)
- [A] TakuyaFujimura/dcase-asd-toolkit@ed27d82: labels/ (every name of 2023 and 2024) and
  data/README.md (mistakes in the lists)

Not read, in all years: `attributes_SS.csv`, the renamed copies in `test_rename/` [N], and the
`supplemental/` recordings of 2025, of whose names there are contradictory accounts.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

DOMAINS = ("source", "target")
UNKNOWN_DOMAIN = "unknown"  # nothing says it, nor whether the clip is normal

_SECTION = r"(?P<section>\d\d|[1-9]\d{2,})"
_DOMAIN = r"(?P<domain>source|target)"
_LABEL = r"(?P<label>normal|anomaly)"
_LABELLED = rf"(?P<split>train|test)_{_LABEL}_\d{{4,}}(?:_(?P<attributes>.+))?"
_LABELLED_NAME = "section_SS_{source|target}_{train|test}_{normal|anomaly}_NNNN[_<attribute>]"


class Sections(NamedTuple):
    """The sections of a machine type: product IDs, in 2020 the machine IDs."""

    development: tuple[int, ...] = ()
    evaluation: tuple[int, ...] = ()


class Official(NamedTuple):
    """The official measures.

    Attributes:
      mixed: the AUC of a domain is that of its normal clips and the anomalies of both, the pAUC
        that of the section; otherwise both are of the clips of the domain.
      missing: why there is no official score; then nothing but AUC, pAUC and their arithmetic mean
        over a machine is official. "": there is one.
    """

    mixed: bool
    missing: str = ""


class Year(NamedTuple):
    """What holds in one year.

    Attributes:
      clip: matches the stem of a clip. Groups: section and, as far as names say them, domain,
        split, label and attributes. A name without a label is that of a test clip.
      labelled: the same for people, of a name with a label.
      unlabelled: and of one without.
      domain: of a clip whose name says none.
      test_folder: where test clips lie, beside `train`; holds `{domain}` where it depends on it.
      cell: in the names of the evaluator's files, `<kind>_<cell>.csv`.
      truth: what the evaluator's `ground_truth_<cell>.csv` say of test clips ("label", "domain").
      list_columns: of `eval_data_list*.csv`: old name, name with label, in 2020 the label again.
      list_refused: why such lists are not believed; "" where they are.
      keeps_number: the name with label holds the number of the name without.
      machines: the machine types and their sections.
      official: the official measures.
    """

    clip: re.Pattern
    labelled: str
    unlabelled: str
    domain: str
    test_folder: str
    cell: str
    truth: tuple[str, ...]
    list_columns: int
    list_refused: str
    keeps_number: bool
    machines: dict[str, Sections]
    official: Official

    @property
    def grammar(self) -> str:
        """What the stem of a clip may be, for people."""
        return f"{self.labelled} or {self.unlabelled}"

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of a machine that hold its clips."""
        tests = (self.test_folder.format(domain=domain) for domain in DOMAINS)
        return ("train", *dict.fromkeys(tests))

    @property
    def layout(self) -> str:
        """Where the clips of a data set lie, for people."""
        return f"<machine>/{{{','.join(self.folders)}}}/*.wav or *.flac"

    @property
    def truth_names(self) -> re.Pattern:
        """Matches the evaluator's ground-truth files; groups machine, section and maybe domain."""
        cell = self.cell.format(machine="(?P<machine>.+)", section=_SECTION, domain=_DOMAIN)
        return re.compile(rf"ground_truth_{cell}\.csv", re.ASCII)

    @property
    def development_machines(self) -> tuple[str, ...]:
        """The machine types that are not evaluated, of the years whose task is first-shot."""
        return tuple(m for m, sections in self.machines.items() if not sections.evaluation)


def _share(names: str, *sections: tuple[int, ...]) -> dict[str, Sections]:
    return dict.fromkeys(names.split(), Sections(*sections))


_SIX_SECTIONS = (0, 1, 2), (3, 4, 5)
_FIRST_SHOT = _share("bearing fan gearbox slider ToyCar ToyTrain valve", (0,))  # [N] [A]

_2020 = Year(
    clip=re.compile(rf"(?:{_LABEL}_)?id_{_SECTION}_\d{{8,}}", re.ASCII),  # [B20] [N]
    labelled="{normal|anomaly}_id_SS_NNNNNNNN",
    unlabelled="id_SS_NNNNNNNN",
    domain="source",  # there is no shift
    test_folder="test",  # [B20]
    cell="{machine}_id_{section}",  # [B20] [E20]
    truth=(),  # [E20] reads the list alone
    list_columns=3,  # [E20] [N]
    list_refused="",
    keeps_number=False,  # [N] id_01_00000000 is normal_id_01_00000098
    machines={  # [N]
        **_share("fan pump slider valve", (0, 2, 4, 6), (1, 3, 5)),
        **_share("ToyCar", (1, 2, 3, 4), (5, 6, 7)),
        **_share("ToyConveyor", (1, 2, 3), (4, 5, 6)),
    },
    official=Official(  # [E20]
        mixed=False,
        missing="its evaluator averages AUC and pAUC over the IDs of each machine type, no further",
    ),
)

_2021 = Year(
    clip=re.compile(rf"section_{_SECTION}_{_DOMAIN}_(?:{_LABELLED}|test_\d{{4,}})", re.ASCII),
    labelled=_LABELLED_NAME,  # [B21] [N]
    unlabelled="section_SS_{source|target}_test_NNNN",
    domain=UNKNOWN_DOMAIN,
    test_folder="{domain}_test",  # [B21]
    cell="{machine}_section_{section}_{domain}_test",  # [E21]
    truth=("label",),  # [E21]
    list_columns=2,  # [N]
    list_refused="",
    keeps_number=True,  # [N]
    machines=_share("fan gearbox pump slider ToyCar ToyTrain valve", *_SIX_SECTIONS),  # [N]
    official=Official(mixed=False),  # [E21]
)

_2022 = Year(
    # [B22] and [N] write section_SS_test_NNNN, but the lists in [N] and the files of [E22] have
    # section_SS_NNNN, and [A] finds the clips by these.
    clip=re.compile(rf"section_{_SECTION}_(?:{_DOMAIN}_{_LABELLED}|\d{{4,}})", re.ASCII),
    labelled=_LABELLED_NAME,
    unlabelled="section_SS_NNNN",
    domain=UNKNOWN_DOMAIN,
    test_folder="test",  # [B22] [N]
    cell="{machine}_section_{section}_test",  # [E22]
    truth=("label", "domain"),  # [E22] 0 or 1 in ground_truth_data/ and ground_truth_domain/
    list_columns=2,  # [N]
    list_refused="the published ones contradict the official evaluator in 608 labels and 592 "
    "domains of ToyCar and ToyTrain",  # [N] against [E22], counted; the labels also by [A]
    keeps_number=False,  # [N] that of the two toys changes
    machines=_share("bearing fan gearbox slider ToyCar ToyTrain valve", *_SIX_SECTIONS),  # [N]
    official=Official(mixed=True),  # [E22]
)

_2023 = _2022._replace(  # names and files [N] [A] [E23], official measures [E23]
    list_refused="",  # agree with [E23] in all labels and domains, counted
    machines=_FIRST_SHOT
    | _share("bandsaw grinder shaker ToyDrone ToyNscale ToyTank Vacuum", (), (0,)),  # [N] [E23]
)

YEARS = {
    2020: _2020,
    2021: _2021,
    2022: _2022,
    2023: _2023,
    2024: _2023._replace(  # names and files [N] [A] [E24], measures and lists as before [E24]
        machines=_FIRST_SHOT
        | _share(
            "3DPrinter AirCompressor BrushlessMotor HairDryer HoveringDrone RoboticArm Scanner "
            "ToothBrush ToyCircuit",
            (),
            (0,),
        ),  # [N] [E24]
    ),
    2025: _2023._replace(  # names [N], files and official measures [E25]
        machines=_FIRST_SHOT
        | _share(
            "AutoTrash BandSealer CoffeeGrinder HomeCamera Polisher ScrewFeeder ToyPet ToyRCCar",
            (),
            (0,),
        ),  # [N] [E25]
    ),
}


def name_years(years: Iterable[int]) -> str:
    """Return "2020", "2020 or 2021" or "2020, 2021 or 2022"."""
    *others, last = map(str, years)
    return f"{', '.join(others)} or {last}" if others else last
