"""`muscaling space`: laws as a page that predicts in the browser, in a folder or on the Hub."""

from collections.abc import Sequence

from hf_muscaling.commands.parser import Parser
from hf_muscaling.errors import ConfigurationError


def run(arguments: Sequence[str] | None) -> None:
    """Write or publish the page that the flags describe."""
    parser = Parser(
        prog="muscaling space",
        description="Write a page that predicts in the browser: one index.html, no server, no other address.",
        epilog="Several laws are compared in one page. --push needs `hf auth login`.",
    )
    parser.add_argument(
        "sources", nargs="+", metavar="LAW",
        help="law.json, a folder of run-series or of save_pretrained, or a repository (user/name)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="folder for index.html and its data")
    parser.add_argument("--push", metavar="USER/NAME", help="publish as a static Space")
    parser.add_argument("--private", action="store_true", help="make the Space private")
    parser.add_argument("--title", help="default: the first law's name")
    parser.add_argument("--license", help="SPDX id for the Space's card, such as apache-2.0")
    flags = parser.parse_args(arguments)
    if not flags.output and not flags.push:
        raise ConfigurationError("Say where the page goes: --output DIR, --push USER/NAME, or both.")
    from hf_muscaling.space import push_space, write_space

    options = {"title": flags.title, "license": flags.license}
    if flags.output:
        print(write_space(flags.sources, flags.output, **options))
    if flags.push:
        print(push_space(flags.sources, flags.push, private=flags.private or None, **options))
