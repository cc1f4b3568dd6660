"""`muscaling compare`: which of several designs wins at the target, from proxies, with the verdict's probability."""

from collections.abc import Sequence

from .parser import Parser

DESCRIPTION = """Compare designs, a YAML file each: grid search, proxies, law and prediction of every one on the same
batches, then which has the lower loss at the target, with what probability, or that it is too close to call. Any other
flag is one of run-series and holds for all designs:
muscaling compare llama.yaml gpt2.yaml --target_N 1.3e6 --seed 1 --verify"""


def run(arguments: Sequence[str] | None, description: str | None = None) -> None:
    """Compare the designs that the arguments name and print the verdict."""
    import sys

    words = list(sys.argv[1:] if arguments is None else arguments)
    files = words[: next((k for k, word in enumerate(words) if word.startswith("-")), len(words))]
    parser = Parser(
        prog="muscaling compare", usage="%(prog)s A.yaml B.yaml … [flags]", description=description or DESCRIPTION,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--target_N", "--target-N", type=float, metavar="N", help="parameters; each design takes its nearest width")
    add("--target_width", "--target-width", type=int, metavar="W", help="one width for all; default: each design's own")
    add("--threshold", type=float, help="probability from which a pair is called (default: 0.95)")
    add("--verify", action="store_true", help="train the targets too and say whether the verdict was right")
    add("--heldout_of", "--heldout-of", metavar="NAME", help="whose held-out text all are evaluated on")
    add("--different_horizons", "--different-horizons", action="store_true", help="allow different numbers of tokens")
    add("--output_dir", "--output-dir", default="runs/compare", help="default: runs/compare")
    given, rest = parser.parse_known_args(words[len(files) :])

    from hf_muscaling.errors import ConfigurationError

    if "--config" in rest:
        raise ConfigurationError("Each design is a file of its own: muscaling compare A.yaml B.yaml, without --config.")
    from hf_muscaling.designs.compare import compare_designs, read_designs
    from hf_muscaling.designs.report import headline
    from hf_muscaling.designs.verdict import CALL

    threshold = CALL if given.threshold is None else given.threshold
    comparison = compare_designs(
        read_designs(files, rest), given.target_N, target_width=given.target_width,
        output_dir=given.output_dir, verify=given.verify, threshold=threshold,
        heldout_of=given.heldout_of, different_horizons=given.different_horizons,
    )  # fmt: skip
    if comparison.is_main_process:
        print(f"\n{headline(comparison)}\nReport: {given.output_dir}/comparison.md")
