"""The command line of `aqua-daemon`: serve a node, keep its memory, or play an owner.

Exit status: 0 it ended as it should, 1 it could not do it, 2 it was asked wrongly. What the words
may be is config.py's; what is done with them is assembly's and the keeper's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aqua_daemon import __version__, config, config_sources
from aqua_daemon.config_words import ConfigError, parse_bytes, parse_seconds

OK, FAILED, USAGE = 0, 1, 2

_COMMANDS = """commands:
  aqua-daemon [flags]         serve this node (what `aqua-daemon` without a command does)
  aqua-daemon keeper ...      keep the memory of a GPU, or of stand-ins; daemons come and go
  aqua-daemon load ...        use memory of a stand-in GPU, as an owner of it would
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        match words:
            case ["keeper", *rest]:
                return _keep(rest)
            case ["load", *rest]:
                return _load(rest)
            case _:
                return _serve(words)
    except ConfigError as error:
        sys.stderr.write(f"aqua-daemon: {error}\n")
        return USAGE


def serving_parser() -> argparse.ArgumentParser:
    """The flags of the daemon; each is a setting of config.py, its words not yet checked."""
    parser = argparse.ArgumentParser(
        prog="aqua-daemon",
        description="Lends the idle GPU memory of this node, as leases that can be taken back.",
        epilog=_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aqua-daemon {__version__}")
    _setting(
        parser, "shm_gpus", "N", "how many stand-in GPUs of shared memory to serve; default: none"
    )
    _setting(parser, "shm_gpu_bytes", "SIZE", "the size of each, such as 256MiB")
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="UUID",
        help="a CUDA GPU to lend, once for each; default: all",
    )
    _setting(parser, "handles", "legacy|vmm", "what CUDA memory travels as")
    _setting(parser, "socket", "PATH", "where clients come (or AQUA_SOCKET)")
    _setting(parser, "group", "NAME", "whose members may use the sockets; default: the daemon's")
    _setting(parser, "admin_group", "NAME", "whose members are admins; default: nobody's")
    _setting(parser, "metrics", "ADDRESS:PORT", "where Prometheus scrapes; port 0 picks one")
    _claim(parser, "metrics_any_address", "allow --metrics on more than loopback")
    _setting(parser, "keepers", "spawn|external", "start keepers, or only use those that run")
    _claim(parser, "lend_to_own_gpu", "lend a process memory of the GPU it borrows for")
    _setting(
        parser, "host_pool_bytes", "SIZE", "host memory for data of class store; default: half"
    )
    _setting(parser, "tenant_host_bytes", "SIZE", "of it, for one tenant; default: all")
    _setting(parser, "tenant_quota_bytes", "SIZE", "GPU memory for one tenant; default: all")
    _setting(parser, "tenant_quota_leases", "N", "leases for one tenant")
    _setting(parser, "tenant_quota_sessions", "N", "sessions for one tenant")
    _setting(parser, "connections_per_uid", "N", "presence connections for one user")
    _setting(parser, "sessions_per_process", "N", "sessions for one process")
    _setting(parser, "calls_per_process", "N", "calls under way for one process")
    _setting(parser, "calls_per_uid", "N", "calls under way for one user")
    _setting(parser, "calls_per_second_per_process", "N", "calls a second for one process")
    _setting(parser, "calls_per_second_per_uid", "N", "calls a second for one user")
    _setting(parser, "lending", "POLICY", "what of a GPU is lent: auto, offered or never")
    _setting(parser, "lending_of", "GPU=POLICY,...", "the same, of single GPUs")
    _setting(parser, "settle_seconds", "S", "`auto` lends what nobody has used for so long")
    _setting(parser, "newcomer_seconds", "S", "a new process's GPU is left alone for so long")
    _setting(parser, "ramp_seconds", "S", "a GPU that begins to lend lends all after so long")
    _setting(parser, "rebalance_seconds", "S", "how often fair shares are brought about; 0: never")
    _setting(parser, "rest_seconds", "S", "a GPU whose keepers keep ending rests at first so long")
    _claim(parser, "lend_over_pcie", "lend where GPUs are linked by PCIe alone")
    _setting(parser, "host_bytes_per_second", "SIZE", "of the way to host memory, for evacuations")
    _setting(parser, "term_seconds", "S", "how long a lease lives without a sign of its holder")
    _setting(parser, "state_dir", "PATH", "where what admins set is kept (or STATE_DIRECTORY)")
    _config_file(parser)
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="print the settings that are in force and where each comes from, and end",
    )
    return parser


def given_settings(words: Sequence[str]) -> dict[str, str]:
    """What the flags say, by setting name."""
    return _settings_of(serving_parser().parse_args(words))


def _settings_of(found: argparse.Namespace) -> dict[str, str]:
    given = {
        key: text
        for key, text in vars(found).items()
        if text is not None and key in config.DEFAULTS
    }
    return given | ({"gpu": ",".join(given["gpu"])} if "gpu" in given else {})


def _serve(words: Sequence[str]) -> int:
    found = serving_parser().parse_args(words)
    settings = config_sources.read_settings(_settings_of(found), path=_path(found))
    if found.check_config:
        sys.stdout.write(config_sources.in_toml(settings))
        return OK
    from aqua_daemon.assembly import serve

    return serve(settings.config)


def _keep(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="aqua-daemon keeper",
        description="Owns the memory of one CUDA GPU, or of the stand-ins; outlives daemons.",
        allow_abbrev=False,
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--gpu", metavar="UUID", help="the CUDA GPU to keep")
    kept.add_argument("--shm-gpus", metavar="N", help="how many stand-ins; default: the setting")
    kept.add_argument("--list", action="store_true", help="print the CUDA GPUs as JSON, and end")
    _setting(parser, "shm_gpu_bytes", "SIZE", "the size of each stand-in, such as 256MiB")
    _setting(parser, "handles", "legacy|vmm", "what CUDA memory travels as")
    parser.add_argument(
        "--socket", metavar="PATH", help="where daemons come; default: as they are set to look"
    )
    _config_file(parser)
    parser.add_argument(
        "--linger",
        metavar="S",
        help="end after so many seconds without a daemon, owner or holder; default: never",
    )
    found = parser.parse_args(words)
    if found.list:
        from aqua_daemon.keeper import listing

        return listing.main()
    linger = None if found.linger is None else parse_seconds("linger", found.linger)
    if found.socket is None:
        return _keep_as_set(found, linger)
    path = config.checked_socket(found.socket, suffix="")
    if found.gpu is None:
        count, gpu_bytes = config.read_shm_gpus(found.shm_gpus or "", found.shm_gpu_bytes)
        from aqua_daemon.keeper import program

        return program.keep_shm(gpus=count, gpu_bytes=gpu_bytes, socket=path, linger_seconds=linger)
    gpu, handles = config.checked_gpu(found.gpu), config.checked_handles(found.handles)
    from aqua_daemon.keeper import program

    return program.keep_cuda(gpu=gpu, uses_vmm=handles == "vmm", socket=path, linger_seconds=linger)


def _keep_as_set(found: argparse.Namespace, linger: float | None) -> int:
    """As a unit starts it: what no flag says, the daemon's settings say."""
    names = ("shm_gpus", "shm_gpu_bytes", "handles")
    flags = {key: text for key in names if (text := getattr(found, key)) is not None}
    settings = config_sources.read_settings(flags, path=_path(found)).config
    from aqua_daemon.keeper import program

    if found.gpu is not None:
        gpu, uses_vmm = config.checked_gpu(found.gpu), settings.handles == "vmm"
        path = settings.keeper_socket_of(gpu)
        return program.keep_cuda(gpu=gpu, uses_vmm=uses_vmm, socket=path, linger_seconds=linger)
    if not settings.shm_gpus:
        raise ConfigError("shm_gpus", "", "say what to keep: --gpu UUID, or how many stand-ins")
    return program.keep_shm(
        gpus=settings.shm_gpus,
        gpu_bytes=settings.shm_gpu_bytes,
        socket=settings.keeper_socket,
        linger_seconds=linger,
    )


def _load(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="aqua-daemon load",
        usage="aqua-daemon load --gpu GPU --bytes SIZE [flags] [-- COMMAND ...]",
        description="Uses memory of a stand-in GPU until it ends, alone or as COMMAND.",
        allow_abbrev=False,
    )
    parser.add_argument("--gpu", required=True, help="which one, such as SHM-1")
    parser.add_argument("--bytes", required=True, metavar="SIZE", help="how much, such as 64MiB")
    parser.add_argument(
        "--keeper-socket",
        metavar="PATH",
        default=config.default_socket() + config.KEEPER_SUFFIX,
        help="of the keeper that has the GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--deadline", metavar="S", default="30", help="until it has it all (default: %(default)s)"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="use what each line of its input says next; not as COMMAND",
    )
    own, command = _split_at_command(list(words))
    found = parser.parse_args(own)
    if found.follow and command:
        parser.error("either --follow or COMMAND")
    nbytes = _load_bytes(found.bytes)
    sizes = (_load_bytes(line.strip()) for line in sys.stdin) if found.follow else None
    deadline = parse_seconds("deadline", found.deadline)
    path = config.checked_socket(found.keeper_socket, key="keeper_socket", suffix="")
    from aqua_daemon.keeper import owner

    return owner.run(found.gpu, nbytes, path, command, deadline_seconds=deadline, sizes=sizes)


def _load_bytes(text: str) -> int:
    return parse_bytes("bytes", text, 1, config.LARGEST_GPU_BYTES)


def _split_at_command(words: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _setting(
    parser: argparse.ArgumentParser, key: str, metavar: str, text: str, *, is_required: bool = False
) -> None:
    default = config.DEFAULTS[key]
    shown = f"{text} (default: {default})" if default and not is_required else text
    flag = f"--{key.replace('_', '-')}"
    parser.add_argument(flag, dest=key, metavar=metavar, required=is_required, help=shown)


def _config_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="PATH",
        help=f"a file of settings (default: {config_sources.DEFAULT_PATH}, if it exists)",
    )


def _path(found: argparse.Namespace) -> Path | None:
    return None if found.config is None else Path(found.config)


def _claim(parser: argparse.ArgumentParser, key: str, text: str) -> None:
    flag = f"--{key.replace('_', '-')}"
    parser.add_argument(flag, dest=key, action="store_const", const="true", help=text)
