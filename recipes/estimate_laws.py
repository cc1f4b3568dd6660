"""How many models, how long trained, does a prediction need? The heat maps of the Hitchhiker's Guide, on your runs.

    python recipes/estimate_laws.py runs.csv --output_dir runs/estimate-laws
    python recipes/estimate_laws.py                                # a made-up family, to see what the maps look like

Fits every law × window × number of models × percentage of training, scores each at the largest model (ARE), and writes
`heatmap.png` and `are.json`. It takes the flags of `muscaling fit` for what the files do not say.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the fits are small, and the processes share the cores
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hf_muscaling.cli import guarded


def parse(arguments: list[str]) -> argparse.Namespace:
    """The recipe's flags, on top of the readers'."""
    from hf_muscaling.commands.law_flags import LAWS, add_reader_flags

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reader_flags(parser, path_optional=True)
    parser.add_argument("--laws", nargs="+", default=["chinchilla", "kaplan"], choices=list(LAWS), help="laws to fit")
    parser.add_argument("--windows", nargs="+", type=float, default=[0.0, 0.1, 0.3, 0.5], help="shares left out")
    parser.add_argument("--seen", nargs="+", type=float, help="shares of training; 0.1 0.2 … 1 by default")
    parser.add_argument("--models", nargs="+", type=int, help="numbers of models; 3 to all by default")
    parser.add_argument("--objective", help="what the fits minimise; each law's own by default")
    parser.add_argument("--target", default="largest", help="the run to predict, by default the largest")
    parser.add_argument("--checkpoints", type=int, default=30, help="rows kept of each run, evenly")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that share the fits")
    parser.add_argument("--output_dir", default="runs/estimate-laws")
    return parser.parse_args(arguments)


def main() -> None:
    """Read or make the table, fit the grid with a progress bar, write the maps."""
    from tqdm.auto import tqdm

    from hf_muscaling import extrapolation_grid
    from hf_muscaling.commands.law_flags import as_notes, make_law, read
    from hf_muscaling.laws.grid import PERCENTAGES
    from hf_muscaling.plotting import save_figure
    from hf_muscaling.runs import write_json

    args = parse(sys.argv[1:])
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if args.path is None:
        args.path = made_up(folder / "made-up.csv")
    laws = {name: make_law(name, args) for name in args.laws}
    table = read(args, *laws.values())
    print(table)
    for family in table.families() or [None]:
        part = table if family is None else table.take(table["family"] == family)
        pace = 0.5 if sys.stderr.isatty() else 10.0
        with as_notes(), tqdm(desc=family or "laws", unit="law", mininterval=pace, dynamic_ncols=True) as bar:

            def advance(done: int, whole: int, bar: tqdm = bar) -> None:
                bar.total = whole
                bar.update(done - bar.n)

            grid = extrapolation_grid(
                part, laws, args.windows, args.seen or PERCENTAGES, args.models, target=args.target,
                checkpoints=args.checkpoints, progress=advance, processes=args.processes,
            )  # fmt: skip
        name = "" if family is None else "-" + "".join(c if c.isalnum() else "_" for c in family)
        save_figure(grid.plot(family or table.source), folder / f"heatmap{name}.png")
        write_json(folder / f"are{name}.json", {"cells": grid.rows(), "seconds": grid.seconds, "fits": grid.fits})
        print(f"\n{family or ''}{grid}\nHeat map: {folder}/heatmap{name}.png")


def made_up(path: Path) -> str:
    """Nine runs of a known law, `1.8 + 480/N^0.35 + 2100/D^0.37`, with a bump at the start and 0.3 % noise a run."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = ["run_id,N,D,loss"]
    for i, n in enumerate(np.geomspace(1e7, 1e10, 9)):
        run = 1 + 0.003 * rng.normal()
        for d in np.linspace(0.02, 1.0, 50) * 4e10:
            loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * run * (1 + 0.001 * rng.normal()) + np.exp(-d / 1.5e9)
            lines.append(f"made-up-{i},{n:.6g},{d:.6g},{loss:.6f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
