r"""Score recordings by a finished run.

    python -m dns_jax.operation.score --workdir=runs/fan new/*.wav

prints a line for each recording: whether it is anomalous, a_prop and the threshold (dB^2), a_G, how
many neighbours stood behind it, and the recordings that weighed most among them. `--format=csv` and
`--format=json` (one object a line) have the same and more. Neighbours come from the run's test
recordings, with `--begin=empty` from none, and with `--pool=FILE` from what a monitor has seen so
far; nothing is added to them.

The section and the domain are those of a DCASE name, else what `--section` and `--domain` say; a
machine of one section needs neither. A file that cannot be used is said on stderr, and the others
are scored.

Exit status 2 for a mistake in the call, 1 where a file could not be scored.
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dns_jax.commands import make_parser, say, stopping
from dns_jax.data.refusals import ConfigError, printable
from dns_jax.operation.judging import judge

COLUMNS = (
    "file machine section domain anomalous score threshold ae_score k behind seconds note".split()
)
_NEAREST = 3  # recordings that the text names


def main(argv: Sequence[str] | None = None) -> None:
    """Score the files that the command line names."""
    parser = make_parser("dns_jax.operation.score", __doc__)
    parser.add_argument("--workdir", metavar="DIR")
    parser.add_argument("--machine", metavar="NAME")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--section", type=int)
    parser.add_argument("--domain", choices=("source", "target"))
    parser.add_argument("--begin", choices=("test", "empty"), default="test")
    parser.add_argument("--pool", metavar="FILE")
    parser.add_argument("--format", choices=("text", "csv", "json"), default="text")
    parser.add_argument("files", nargs="*", metavar="FILE")
    call = parser.parse_args(argv)
    if not call.workdir:
        parser.error("--workdir is missing, as in --workdir=runs/fan")
    if not call.files:
        parser.error("no recordings are named, as in --workdir=runs/fan new/*.wav")
    from dns_jax.memory import keep_freed_memory

    keep_freed_memory()
    with stopping():
        sys.exit(_score(call))


def _score(call):
    from dns_jax import compilation  # with it, JAX
    from dns_jax.operation.detector import Detector

    compilation.keep_programs()
    failed = 0
    if call.format == "csv":
        print(",".join(COLUMNS))
    with Detector.load(
        Path(call.workdir),
        machine=call.machine,
        seed=call.seed,
        store=call.pool and Path(call.pool),
        writable=False,
        begin=call.begin,
    ) as detector:
        if call.machine is None and len(detector.machines) > 1:
            raise ConfigError(f"--machine is missing; there are {', '.join(detector.machines)}")
        for file in call.files:
            try:
                judgement, reason = judge(detector, file, call.machine, call.section, call.domain)
            except OSError as error:
                judgement, reason = None, error.strerror or str(error)
            if judgement is None:
                failed += 1
                say(f"{file}: {reason}")
            else:
                print(_FORMATS[call.format](file, judgement), flush=True)
    return min(failed, 1)


def _as_text(file, judgement):
    nearest = ", ".join(
        f"{printable(clip)} ({share:.0%})" for clip, share in judgement.neighbors[:_NEAREST]
    )
    return (
        f"{'ANOMALOUS' if judgement.anomalous else 'normal   '} "
        f"{judgement.score:.4g} (threshold {judgement.threshold:.4g}; by itself "
        f"{judgement.ae_score:.4g}) {printable(file)}: K = {judgement.k}, {judgement.behind} "
        f"neighbours{', most of ' if nearest else ''}{nearest}"
        f"{'; ' if judgement.note else ''}{judgement.note}"
    )


def _as_csv(file, judgement):
    values = judgement.to_json() | {"file": file, "anomalous": int(judgement.anomalous)}
    line = _Line()
    csv.writer(line).writerow(["" if values[c] is None else values[c] for c in COLUMNS])
    return line.text


def _as_json(file, judgement):
    return json.dumps({"file": file, **judgement.to_json()}, allow_nan=False)


class _Line:
    def write(self, text):
        self.text = text.rstrip("\r\n")


_FORMATS = {"text": _as_text, "csv": _as_csv, "json": _as_json}


if __name__ == "__main__":
    main()
