r"""The operating phase: score the recordings that land in a folder, one after another, as F grows.

    python -m dns_jax.operation.monitor --workdir=runs/fan --watch=DIR --machine=fan

The workdir is that of a finished run. If it has several machines, the first folder below DIR names
that of a recording, unless --machine does. Section and domain are read from names like the
challenge's (section_00_source_...). A monitor for each machine needs an --out for each.

In --out (default: <workdir>/operation): `pool.sqlite` (F), `ledger.jsonl` (a line about everything
that happened) and `ranking.csv` (the latest recordings, the most suspicious first, by their scores
in F as it is now). A page shows the ranking, the trend and the sounds, and /metrics is for
Prometheus; only this host reaches it, unless --bind says otherwise.

Every recording is scored once and has one line, whatever stops the monitor; started again, it goes
on. While nothing can be written (disk full), it says so, waits and tries again; recordings stay
where they are, as they do when they come faster than they can be scored. Unreadable files and
folders are told once and tried again; what is no usable recording is refused, once. To have
everything scored again, move --out away.

SIGTERM and SIGINT end it after the recording at hand, a second one at once. Exit status 2 for a
mistake in the call, 1 for bad input or what has stopped it, otherwise 0.
"""

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from dns_jax.commands import make_parser, say, stopping
from dns_jax.data.refusals import ConfigError, printable
from dns_jax.operation.board import Board
from dns_jax.operation.ledger import Ledger
from dns_jax.operation.loop import Loop
from dns_jax.operation.page import PageServer
from dns_jax.operation.watching import Watcher


def main(argv: Sequence[str] | None = None) -> None:
    """Watch the folder that the command line names."""
    call = _parse_call(argv)
    from dns_jax.memory import keep_freed_memory

    keep_freed_memory()
    with stopping():
        _run(call)


def _parse_call(argv):
    parser = make_parser("dns_jax.operation.monitor", __doc__)
    parser.add_argument("--workdir", metavar="DIR", help="of a finished run")
    parser.add_argument("--watch", metavar="DIR", help="where the recordings land")
    parser.add_argument("--machine", metavar="NAME", help="of all recordings")
    parser.add_argument("--seed", type=int, help="of the training; default: the first")
    parser.add_argument("--out", metavar="DIR", help="for what is written")
    parser.add_argument(
        "--begin",
        choices=("test", "empty"),
        default="test",
        help="what a new F begins with: the run's test recordings (default), or nothing",
    )
    parser.add_argument(
        "--keep", type=int, metavar="N", help="recordings of a machine, section and domain in F"
    )
    parser.add_argument(
        "--older-than",
        type=float,
        metavar="HOURS",
        help="of operation after which recordings leave F; a pause counts as a tenth at most",
    )
    parser.add_argument(
        "--settle",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="without a change until a file counts as finished; default: 2",
    )
    parser.add_argument("--once", action="store_true", help="deal with what is there, and end")
    parser.add_argument("--no-page", action="store_true", help="serve no page")
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="of the page")
    parser.add_argument("--port", type=int, default=8765, help="of the page; 0: any; default: 8765")
    call = parser.parse_args(argv)
    for name, example in {"workdir": "runs/fan", "watch": "incoming"}.items():
        if not getattr(call, name):
            parser.error(f"--{name} is missing, as in --{name}={example}")
    if not os.path.isdir(call.watch):
        parser.error(f"--watch={call.watch}: there is no such folder")
    if call.keep is not None and call.keep < 1:
        parser.error(f"--keep must be at least 1; it was {call.keep}")
    if call.older_than is not None and not 0 < call.older_than < float("inf"):
        parser.error(f"--older-than must be above 0 hours; it was {call.older_than}")
    if not 0 <= call.settle < float("inf"):
        parser.error(f"--settle must be at least 0 s; it was {call.settle}")
    if not 0 <= call.port <= 65535:
        parser.error(f"--port must be in 0..65535; it was {call.port}")
    return call


def _run(call):
    from dns_jax import compilation  # with it, JAX
    from dns_jax.operation.detector import Detector

    compilation.keep_programs()
    out = Path(call.out or Path(call.workdir) / "operation")
    limits = {"keep": call.keep, "older_than": call.older_than and 3600 * call.older_than}
    with ExitStack() as opened:
        detector = Detector.load(
            Path(call.workdir),
            machine=call.machine,
            seed=call.seed,
            store=out / "pool.sqlite",
            begin=call.begin,
        )
        opened.enter_context(closing(detector))
        ledger = opened.enter_context(closing(Ledger(out / "ledger.jsonl")))
        for part in out.glob(".ranking.csv.*.part"):  # of one that was killed
            part.unlink(missing_ok=True)
        machines = list(detector.machines)
        board = Board(machines)
        loop = Loop(
            detector,
            Watcher(call.watch, ledger.known, settle=call.settle),
            ledger,
            board,
            out / "ranking.csv",
            _say,
            machine=machines[0] if len(machines) == 1 else None,
            limits={name: limit for name, limit in limits.items() if limit is not None},
            once=call.once,
        )
        for notice in (detector.notice, *ledger.notices):
            if notice:
                loop.tell(notice)
        loop.catch_up()
        if not (call.once or call.no_page):
            server = opened.enter_context(closing(_serve(call, board, loop.watcher.folder)))
            _say(f"the page is at {server.url}")
        _end_on_signals(loop)
        _say(f"watching {loop.watcher.folder} for {', '.join(detector.machines)}")
        loop.run()


def _serve(call, board, folder):
    try:
        return PageServer(board, folder, call.bind, call.port)
    except OSError as error:
        raise ConfigError(
            f"--bind={printable(call.bind)} --port={call.port}: the page cannot be served there "
            f"({error.strerror or error}); give another, --port=0 (any that is free) or --no-page"
        ) from None


def _end_on_signals(loop):
    def end(number, frame):
        if loop.stopping:
            os._exit(128 + number)
        loop.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _say(message):
    with suppress(OSError):  # the log may be on the full disk, or its reader gone
        say(message)


if __name__ == "__main__":
    main()
