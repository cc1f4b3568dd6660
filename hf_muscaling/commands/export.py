"""`muscaling export`: a saved μP model as a stock one."""

import argparse
from collections.abc import Sequence


def run(arguments: Sequence[str] | None) -> None:
    """Export the folder that the flags name."""
    parser = argparse.ArgumentParser(
        prog="muscaling export",
        description="Fold a saved μP model into a stock transformers model with the same outputs.",
    )
    parser.add_argument("folder", help="what save_pretrained wrote, with its tokenizer if it has one")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument(
        "--format",
        choices=["standard", "granite"],
        default="standard",
        help="standard: the stock class, multipliers folded into weights; granite: a Llama's multipliers in the config",
    )
    flags = parser.parse_args(arguments)
    from hf_muscaling.export import export_folder

    difference = export_folder(flags.folder, flags.output, flags.format)
    print(f"{flags.output}: its outputs differ from those of {flags.folder} by at most {difference:.1e}")
