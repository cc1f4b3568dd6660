"""The flags of the commands and recipes that fit laws to runs of any origin: the path, what it lacks, and the law."""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_muscaling.errors import ConfigurationError, RecordError
from hf_muscaling.laws import AnnealingLaw, ChinchillaLaw, KaplanLaw, KaplanStepLaw, PowerLaw, ScalingLaw
from hf_muscaling.readers import FORMATS, RunTable, read_runs

from .parser import Parser

LAWS: dict[str, tuple[Callable[..., ScalingLaw], dict[str, Any]]] = {
    "chinchilla": (ChinchillaLaw, {}),
    "kaplan": (KaplanLaw, {}),
    "kaplan-step": (KaplanStepLaw, {}),
    "power": (PowerLaw, {}),
    "power-D": (PowerLaw, {"variable": "D"}),
    "power-C": (PowerLaw, {"variable": "C"}),
}
"""Names of laws on the command line: L(N, D) of Hoffmann and of Kaplan, L(N, S, B), and L(N), L(D), L(C)."""

ONE_MODEL: dict[str, tuple[Callable[..., ScalingLaw], dict[str, Any]]] = {"annealing": (AnnealingLaw, {})}
"""Laws of one model's curves, which have no larger model to be scored at."""


def add_reader_flags(parser: argparse.ArgumentParser, path_optional: bool = False, stated: str = "") -> None:
    """Add the path and what a file of runs may not say, as flags.

    `stated` goes before N, D, B and loss in their flags' names, for a command whose own --N is another.
    """
    count: dict[str, Any] = {"nargs": "?"} if path_optional else {}
    parser.add_argument(
        "path", help="a CSV, JSON, JSONL or parquet file, or a folder of runs, checkpoints or event files", **count
    )
    add = parser.add_argument_group("what the files do not say").add_argument
    add("--format", choices=list(FORMATS), help="which tool wrote them; recognised by default")
    numbers = {
        "N": "parameters: a number, RUN=NUMBER (repeatable), or 'name'",
        "D": "tokens a run saw: a number or RUN=NUMBER (repeatable)",
        "B": "tokens per optimizer step: a number or RUN=NUMBER (repeatable)",
    }
    for name, text in numbers.items():
        add(f"--{stated}{name}", dest=name, action="append", metavar="VALUE", help=text)
    text = "what the file calls a column, where that is no usual name: N=params_non_embed D=tokens"
    add("--columns", nargs="+", action="extend", default=[], metavar="NAME=COLUMN", help=text)
    add("--count", choices=["total", "non_embedding"], help="which parameters N counts")
    add(f"--{stated}loss", dest="loss", metavar="COLUMN", help="name of the loss column")
    add("--loss_unit", choices=["nats", "bits", "perplexity"], help="unit of the loss, per token")
    add("--where", action="append", default=[], metavar="COLUMN=VALUE", help="keep these rows only (repeatable)")
    add("--epochs", type=float, help="keep rows with D of at most so many times unique_tokens (repeated data: 4, say)")
    add("--drop_bad", action="store_true", help="leave out rows without a usable number (diverged runs)")
    add("--ladder_config", metavar="JSON", help="an OLMo-ladder config, for N")


def read(args: argparse.Namespace, *laws: ScalingLaw) -> RunTable:
    """Read the runs that the flags describe, with the columns that the laws need."""
    return read_columns(args, {column for law in laws for column in law.needs})


def read_columns(args: argparse.Namespace, columns: Iterable[str]) -> RunTable:
    """Read the runs that the flags describe, with these columns and the loss."""
    needed = [*sorted(columns), "loss"]
    options: dict[str, Any] = {
        "N": _stated(args.N, "--N"), "D": _stated(args.D, "--D"), "B": _stated(args.B, "--B"), "count": args.count,
        "loss": args.loss, "loss_unit": args.loss_unit, "drop_bad": args.drop_bad, "need": needed,
        "where": dict(split(word, "--where") for word in args.where) or None,
        "columns": dict(split(word, "--columns") for word in args.columns) or None,
    }  # fmt: skip
    if args.ladder_config:
        table = read_runs(args.path, "ladder", config=args.ladder_config, **options)
    else:
        table = read_runs(args.path, args.format, **options)
    return table if args.epochs is None else _repeated_at_most(table, args.epochs)


def _repeated_at_most(table: RunTable, epochs: float) -> RunTable:
    if not {"D", "unique_tokens"} <= set(table):
        raise ConfigurationError(f"--epochs needs the columns tokens and unique_tokens; {table.source} lacks one.")
    keep = table["D"] <= epochs * table["unique_tokens"] * 1.001
    if not keep.any():
        raise ConfigurationError(
            f"--epochs {epochs:g} leaves no row of {table.source}: every run repeats its data more."
        )
    return table.take(keep)


def make_law(name: str, args: argparse.Namespace) -> ScalingLaw:
    """The law of a name in `LAWS` or `ONE_MODEL`, with the flags' objective and window."""
    known = LAWS | ONE_MODEL
    if name not in known:
        raise ConfigurationError(f"law {name!r} is not known. Choose one of: {', '.join(known)}.")
    build, settings = known[name]
    options = {key: getattr(args, key, None) for key in ("objective", "window")}
    return build(**settings, **{key: value for key, value in options.items() if value is not None})


def law_parser(prog: str, description: str, epilog: str, extra: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A parser with the flags of the readers and of the law (`LAWS` and `extra`); errors are ConfigurationErrors."""
    parser = Parser(prog=prog, description=description, epilog=epilog)
    add_reader_flags(parser)
    add = parser.add_argument_group("the law").add_argument
    add(
        "--law",
        default="chinchilla",
        choices=[*LAWS, *extra],
        help="chinchilla (default), kaplan, kaplan-step, power, …",
    )
    add("--objective", help="what the fit minimises; the law's own by default")
    add("--window", type=float, help="share of each run's training, by tokens, left out at its beginning")
    add("--level", type=float, default=0.9, help="confidence of intervals (default 0.9)")
    return parser


def split(word: str, flag: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, value = word.partition("=") if flag in ("--where", "--columns") else word.rpartition("=")
    if not equals or not name:
        raise ConfigurationError(f"{flag} {word!r} must be written NAME=VALUE.")
    return name.strip(), value.strip()


def _stated(words: list[str] | None, flag: str) -> Any:
    """What --N, --D or --B say: None, a number, 'name', or {run: number}."""
    if not words:
        return None
    if len(words) == 1 and "=" not in words[0]:
        return "name" if flag == "--N" and words[0] == "name" else number_flag(words[0], flag)
    return {run: number_flag(value, flag) for run, value in (split(word, flag) for word in words)}


def assignments(words: Sequence[str], flag: str) -> dict[str, float]:
    """What `N=7e9 D=2T` says, as numbers."""
    return {name: number_flag(value, flag) for name, value in (split(word, flag) for word in words)}


def points(groups: Sequence[Sequence[str]], flag: str) -> list[list[str]]:
    """One list of NAME=VALUE a point, from groups in which a name may come several times.

    `N=1e9 N=4e9 D=2e10` is two points of one D; names that come several times come equally often and go in step.

    >>> points([["N=1e9", "N=4e9", "D=2e10"]], "--predict")
    [['N=1e9', 'D=2e10'], ['N=4e9', 'D=2e10']]
    """
    found = []
    for words in groups:
        values: dict[str, list[str]] = {}
        for name, value in (split(word, flag) for word in words):
            values.setdefault(name, []).append(value)
        count = max(map(len, values.values()))
        if any(len(given) not in (1, count) for given in values.values()):
            times = ", ".join(f"{name} {len(given)} times" for name, given in values.items())
            raise ConfigurationError(
                f"{flag} gives {times}: give each once, or as often as the others. {flag} itself may be repeated."
            )
        found += [
            [f"{name}={given[i if len(given) > 1 else 0]}" for name, given in values.items()] for i in range(count)
        ]
    return found


def number_flag(text: str, flag: str) -> float:
    """A number as a flag writes it, 7e9 or 7B."""
    from hf_muscaling.readers.names import number

    try:
        value = number(text, short=True)
    except ValueError:
        value = None
    if value is None or not math.isfinite(value):
        raise ConfigurationError(f"{flag}: {text!r} is not a number such as 7e9 or 7B.")
    return value


def number_or_text(text: str) -> Any:
    """A number where the text is one, else the text."""
    try:
        return float(text)
    except ValueError:
        return text


def one_family(table: RunTable) -> None:
    """Refuse a table of several families, naming the flag that chooses one."""
    if len(found := table.families()) > 1:
        raise ConfigurationError(
            f"{table.source} holds {len(found)} families ({', '.join(found[:4])}, …) and one law describes one. Choose "
            f"with --where, for example --where 'family={found[0]}'."
        )


def writable(path: str, ending: str) -> Path:
    """A file to write, refused early when its folder is missing or its ending another."""
    target = Path(path)
    if target.suffix.lower() != ending:
        raise ConfigurationError(f"{path!r} must end in {ending}.")
    if not target.parent.is_dir():
        raise RecordError(f"Cannot write {path!r}: there is no folder {str(target.parent)!r}. Make it first.")
    if not os.access(target.parent, os.W_OK) or target.is_dir():
        raise RecordError(f"Cannot write {path!r}: it is a folder or its folder is read-only. Choose another path.")
    return target


def mark(axes: Any, place: str, x: float, value: float, ends: tuple[float, float], text: str = ".4f") -> None:
    """Draw a prediction and its interval into a law's figure."""
    low, high = ends
    axes.errorbar(
        x, value, [[value - low], [high - value]], fmt="D", ms=6, capsize=4, color="black",
        label=f"{place}: {value:{text}}",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8)


class as_notes(warnings.catch_warnings):
    """Within it, warnings are printed as one paragraph each, without the line of code that raised them."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
        return entered
