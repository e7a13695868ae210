"""`python -m dns_jax.main --config=configs/fan.py --workdir=runs/fan --config.data_dir=DIR`.

Any field of the configuration is overridden by `--config.a.b=value`. Started again with the same
workdir, a run goes on where it stopped. Exit status 2 for a mistake in the call, 1 for bad input, 0
also after SIGTERM. `--distributed` joins the processes that a cluster has started on several hosts;
otherwise compiled programs are kept for the next start (`compilation`).
"""

import faulthandler
import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the run writes.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Be one of several hosts; see launch/.")
_GO_ON = "the same command goes on from the last checkpoint"


def _parse_flags(argv):
    for word in argv[1:]:  # configurations import each other as `configs`, wherever they lie
        file = word.split("=")[-1].split(":")[0]  # what follows ":" is for get_config
        if file.endswith(".py"):
            sys.path.insert(0, str(Path(file).absolute().parent.parent))
    try:
        rest = flags.FLAGS(argv)
        if not flags.FLAGS["config"].present:
            raise flags.Error("--config is missing, as in --config=configs/fan.py")
        if not _WORKDIR.value:
            raise flags.Error("--workdir is missing, as in --workdir=runs/fan")
        if rest[1:]:
            raise flags.Error(f"unexpected argument {rest[1]}")
        _CONFIG.value.data_dir  # noqa: B018  a file that is not there fails here
        return rest
    except Exception as error:  # a configuration is a program, anything may go wrong in it
        _stop(_describe(error), 2)


def _describe(error):
    """Put what went wrong while reading the flags into one line."""
    inner = error.args[0] if error.args else ""
    error = inner if isinstance(inner, KeyError) else error
    if isinstance(error, KeyError):
        return f"the configuration has no such field: {' '.join(str(error.args[0]).split())}"
    lines = (str(error) or repr(error)).splitlines()
    if isinstance(error, flags.Error) and len(lines) == 1:
        return lines[0]
    return f"the configuration cannot be read: {lines[-1].strip()}"


def _stop(message, status):
    print(f"dns_jax: {message}", file=sys.stderr, flush=True)
    if status and flags.FLAGS.is_parsed() and _DISTRIBUTED.value:
        os._exit(status)  # JAX's own way out would wait for the other hosts, for minutes
    sys.exit(status)


def main(argv: list[str]) -> None:
    """Run the experiment that the flags describe."""
    del argv
    from dns_jax.memory import keep_freed_memory

    keep_freed_memory()

    from jax.errors import JaxRuntimeError

    from dns_jax import compilation, experiment, hosts
    from dns_jax.data.refusals import ConfigError, DataError
    from dns_jax.training import TrainingError

    config = _CONFIG.value
    if "progress" in config and not sys.stderr.isatty():
        config.progress = False  # a bar in a log would be a line for each of its steps
    try:
        if _DISTRIBUTED.value:
            faulthandler.disable()  # its dump would bury what JAX says when the first host is lost
            hosts.join_hosts()
        else:
            compilation.keep_programs()
        experiment.run(config, Path(_WORKDIR.value))
    except (ConfigError, hosts.HostsError) as error:
        _stop(error, 2)
    except (DataError, TrainingError, OSError) as error:
        _stop(error, 1)
    except (MemoryError, JaxRuntimeError) as error:
        if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).partition("\n")[0]
        _stop(
            f"not enough memory ({said}); try a smaller --config.data.device_gigabytes (0: no "
            "recordings are held on the device) or smaller batches",
            1,
        )
    except hosts.HostLost as error:
        _stop(f"{error}; on all hosts {_GO_ON}", 1)
    except hosts.Preempted:
        _stop(f"stopped by SIGTERM; {_GO_ON}", 0)
    except KeyboardInterrupt:
        _stop(f"stopped; {_GO_ON}", 130)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    app.run(main, flags_parser=_parse_flags)
