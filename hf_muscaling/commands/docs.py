"""`muscaling docs`: the documentation's pages in the terminal."""

import os
import sys
from collections.abc import Sequence

from hf_muscaling.docs import pages, read_page

from .parser import Parser


def run(arguments: Sequence[str]) -> None:
    """List the pages, or print the one that is named."""
    parser = Parser(prog="muscaling docs", description="List the pages of the documentation, or print one.")
    parser.add_argument("page", nargs="?", help="the page to print; without it, a list of all")
    page = parser.parse_args(list(arguments)).page
    if page:
        text = read_page(page)
    else:
        names = pages()
        width = max(map(len, names))
        text = "\n".join(f"{name:{width}}  {title}" for name, title in names.items())
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `muscaling docs laws | head`: whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
