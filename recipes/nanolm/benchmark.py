"""nanoLM's claims on scaled-down twins, as figures with numbers, and its leaderboard.

    python recipes/nanolm/benchmark.py                                        # all claims, below runs/nanolm-twin
    python recipes/nanolm/benchmark.py --only landscapes published            # some
    python recipes/nanolm/benchmark.py --add DESIGN.yaml --report_dir recipes/nanolm     # one more design
    python recipes/nanolm/benchmark.py --quick --only parametrization         # shows that it runs, nothing else

Trains on the embedded corpus, single-threaded runs side by side on the cores there are. The same command continues
where it was interrupted, and claims share their runs. The paper's own sizes: recipes/nanolm/README.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hf_muscaling.cli import guarded

NAMES = (
    "landscapes", "parametrization", "basin", "averaging", "architectures", "embeddings", "published", "cost",
)  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("runs/nanolm-twin"), help="runs; the same folder continues")
    add("--report_dir", type=Path, help="figures, claims, results and RESULTS.md; default: output_dir")
    add("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="CLAIM", help=", ".join(NAMES))
    add("--add", type=Path, nargs="+", default=[], metavar="DESIGN.yaml", help="train these designs instead of claims")
    add("--quick", action="store_true", help="a dozen steps a run: the numbers mean nothing")
    add("--threads", type=int, default=0, help="cores to use, a run each; default: all of this machine")
    add("--placement", default="apart", help="apart, together or auto, as in run_series.py")
    return parser.parse_args(arguments)


def main() -> None:
    """Check the claims or train the added designs, write every record as soon as it is known, and RESULTS.md."""
    args = parse(sys.argv[1:])

    from claims import TRAINED, Benchmark
    from figures import save
    from from_tables import FROM_TABLES
    from leaderboard import (
        QUICK,
        check_kind,
        claim_verdict,
        design_record,
        mark_quick,
        read_designs,
        save_design,
        write_results,
    )  # fmt: skip
    from twins import Options, Twin

    from hf_muscaling.folders import writable_folder
    from hf_muscaling.interruption import listening
    from hf_muscaling.runs import write_json

    report = writable_folder(args.report_dir or args.output_dir)
    read_designs(report)  # a damaged record, or one of the other kind, is found before any compute
    check_kind(report, args.quick, FROM_TABLES)
    mark = mark_quick if args.quick else dict
    options = Options(args.output_dir, args.threads, args.placement, args.quick)
    started = time.monotonic()
    with listening():
        for twin in [Twin(path, options) for path in args.add]:
            path = save_design(mark(design_record(twin.name, twin.result)), report)
            print(f"{twin.name}: {path}", flush=True)
        benchmark = Benchmark(options)
        for name in [] if args.add else [name for name in NAMES if name in args.only]:
            claim = FROM_TABLES[name]() if name in FROM_TABLES else TRAINED[name](benchmark)
            for record in claim.designs:
                save_design(mark(record), report)
            record = claim.to_dict() if name in FROM_TABLES else mark(claim.to_dict())
            write_json(report / "claims" / f"{name}.json", record)
            if claim.figure is not None:
                (report / "figures").mkdir(exist_ok=True)
                save(claim.figure, report / "figures" / f"{name}.png", QUICK if record.get("quick") else "")
            passed = time.monotonic() - started
            print(f"\n[{passed:6.0f} s] {claim.source} {claim_verdict(record)}: {record['headline']}", flush=True)
    print(f"\n{write_results(report, NAMES)}")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
