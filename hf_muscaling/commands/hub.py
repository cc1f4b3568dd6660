"""`muscaling push` and `muscaling pull`: an experiment to the Hub, and back."""

import argparse
from collections.abc import Sequence


def push(arguments: Sequence[str] | None) -> None:
    """Push the experiment that the flags name and print where it is."""
    parser = argparse.ArgumentParser(
        prog="muscaling push",
        description="Push an experiment's proxies, series, law and plots to the Hub as one Collection.",
        epilog="Log in first with `hf auth login`. Pushing again sends only what changed.",
    )
    parser.add_argument("folder", help="what `muscaling run-series` wrote (--output_dir)")
    parser.add_argument("--to", required=True, metavar="USER/NAME", help="the experiment's name on the Hub")
    parser.add_argument("--private", action="store_true", help="make the repositories and the Collection private")
    parser.add_argument("--no_proxies", action="store_true", help="push series and law only")
    parser.add_argument("--license", help="SPDX id for the cards, such as apache-2.0")
    flags = parser.parse_args(arguments)
    from hf_muscaling.hub.folders import push_experiment

    pushed = push_experiment(
        flags.folder, flags.to, private=flags.private or None, proxies=not flags.no_proxies, license=flags.license
    )
    print(pushed)


def pull(arguments: Sequence[str] | None) -> None:
    """Pull the experiment that the flags name and print its law."""
    parser = argparse.ArgumentParser(
        prog="muscaling pull", description="Fetch a law, the series and the proxies behind it from the Hub."
    )
    parser.add_argument("name", metavar="USER/NAME", help="what `muscaling push` was given as --to")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--revision", help="branch, tag or commit of the law; it names those of the others")
    parser.add_argument("--no_proxies", action="store_true", help="fetch law and series only")
    flags = parser.parse_args(arguments)
    from hf_muscaling.hub.folders import pull_experiment

    law, series = pull_experiment(flags.name, flags.output, revision=flags.revision, proxies=not flags.no_proxies)
    print(law.summary())
    runs = "" if series is None else f"{len(series)} runs, "
    print(f"\n{flags.output}: {runs}{0 if flags.no_proxies else len(law.provenance_.proxies)} models")
