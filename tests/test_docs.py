"""What the README and the documentation show is true: code runs, links lead somewhere, flags exist."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest

from hf_muscaling.cli import COMMANDS, main
from hf_muscaling.docs import pages, read_page
from hf_muscaling.errors import MuScalingError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "hf_muscaling" / "docs").glob("*.md"))]
"""Globbed: a page is tested because it is there."""
COMMUNITY = [*sorted((ROOT / ".github").glob("*.md")), ROOT / "notebooks" / "README.md"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    """Return the page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


# --- code ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.stem)
def test_the_python_blocks_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, block in enumerate(blocks(page, "python"), 1):
            exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    if page.name == "README.md":
        assert "90 % interval" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_after_the_made_up_scores_runs(tmp_path, monkeypatch, capsys):
    page = ROOT / "hf_muscaling" / "docs" / "downstream.md"
    monkeypatch.chdir(tmp_path)
    exec(blocks(page, "python")[0], {})
    words = shlex.split(blocks(page, "bash")[-1])
    assert words[0] == "muscaling" and main(words[1:]) == 0
    assert "N = 2e+09" in capsys.readouterr().out and (tmp_path / "score.png").is_file()
    assert main([*words[1 : words.index("N=2e9")], "N=2e9", "D=2e12"]) == 2  # as the page says
    assert "Predict from N alone" in capsys.readouterr().err


# --- links --------------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """Return the page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", [*PAGES, *COMMUNITY], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_relative_link_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, here\n[a](page.md) [b](gone.md) [c](#a-title-here) [d](page.md#nowhere) [e](https://x)\n"
    )
    assert broken_links(page) == ["gone.md", "page.md#nowhere"]


# --- flags --------------------------------------------------------------------------------------------------------


@cache
def known_flags(command: str) -> frozenset[str]:
    """Return the flags that `muscaling COMMAND --help` or `python recipes/… --help` lists."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit), pytest.MonkeyPatch.context() as patch:
        if command.endswith(".py"):
            if (
                "parse" not in (ROOT / command).read_text(encoding="utf-8")
                and "cli" not in (ROOT / command).read_text()
            ):
                return frozenset()  # it takes none, and --help would run it
            patch.setattr(sys, "argv", [command, "--help"])
            patch.syspath_prepend(str((ROOT / command).parent))  # as `python FILE` does
            runpy.run_path(str(ROOT / command), run_name="__main__")
        else:
            main([command, "--help"])
    flags = frozenset(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", shown.getvalue()))
    passed_on = re.search("flag is one of run-series|same as `muscaling sweep`", " ".join(shown.getvalue().split()))
    return flags | known_flags("run-series") if passed_on else flags


def commands_shown(text: str) -> list[tuple[str, set[str]]]:
    """Return each `muscaling COMMAND` and `recipes/….py` that a page's code shows, with the flags given to it."""
    fenced = [
        code
        for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if language in ("", "bash", "sh", "text")
    ]
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *(" ".join(code.split()) for code in inline)]:
        for part in re.split(r"&&|\|\||[;|]", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a sentence with an apostrophe, not a command
                continue
            for place, word in enumerate(words):
                is_command = (
                    word == "muscaling" and place + 1 < len(words) and re.fullmatch(r"[a-z-]+", words[place + 1])
                )
                is_recipe = re.fullmatch(r"(.*/)?recipes/[\w/]+\.py", word)
                if is_command or is_recipe:
                    rest = words[place + 1 :]
                    flags = {w.partition("=")[0] for w in rest if re.match(r"--[a-zA-Z]", w)}
                    found.append((rest[0] if is_command else word[word.index("recipes/") :], flags))
                    break
    return found


def wrong_commands(text: str) -> list[str]:
    """Return what is wrong with the commands that a text shows."""
    wrong = []
    for command, flags in commands_shown(text):
        if command.endswith(".py"):
            if not (ROOT / command).is_file():
                wrong.append(f"{command} does not exist")
                continue
        elif command not in COMMANDS:
            wrong.append(f"muscaling {command} does not exist")
            continue
        if flags:
            wrong += [f"{command} has no flag {flag}" for flag in sorted(flags - known_flags(command) - {"--help"})]
    return wrong


@pytest.mark.parametrize("page", [*PAGES, *COMMUNITY], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_command_and_flag_exists(page):
    assert wrong_commands(page.read_text(encoding="utf-8")) == []


def test_a_wrong_command_is_found():
    text = (
        "`muscaling fit runs.csv --law chinchilla --colour red` `muscaling guess`\n```bash\n"
        "accelerate launch --num_processes 8 recipes/run_series.py --steps 3 \\\n    --stepz 4   # --no-flag-here\n"
        "python recipes/gone.py && muscaling docs\n```\n"
    )
    assert wrong_commands(text) == [
        "recipes/run_series.py has no flag --stepz",
        "recipes/gone.py does not exist",
        "fit has no flag --colour",
        "muscaling guess does not exist",
    ]


# --- `muscaling docs` ---------------------------------------------------------------------------------------------


def test_every_page_has_a_title_and_is_listed(capsys):
    assert main(["docs"]) == 0
    listed = capsys.readouterr().out
    for name, title in pages().items():
        assert title, f"{name}.md has no '# title'"
        assert f"{name} " in listed and title in listed
    assert {f"{name}.md" for name in pages()} == {page.name for page in PAGES[1:]}


def test_a_page_is_printed(capsys):
    assert main(["docs", "index"]) == 0
    assert capsys.readouterr().out.strip() == read_page("index.md").strip()


def test_a_reader_may_stop_early():
    code = "from hf_muscaling.cli import main; raise SystemExit(main(['docs', 'reference']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shown:
        shown.stdout.close()
        assert shown.stderr.read() == b""
    assert shown.returncode == 0


def test_a_page_that_is_none_is_refused(capsys):
    assert main(["docs", "indx"]) == 2
    assert "no page 'indx'" in capsys.readouterr().err
    with pytest.raises(MuScalingError):
        read_page("../errors")


# --- the API reference --------------------------------------------------------------------------------------------


def test_the_reference_is_up_to_date():
    from hf_muscaling.docs.reference import reference

    assert read_page("reference") == reference(), "run `python -m hf_muscaling.docs.reference`"


def test_every_public_name_is_in_the_reference():
    import hf_muscaling

    listed = set(re.findall(r"^### `(\w+)`$", read_page("reference"), re.MULTILINE))
    assert listed == set(hf_muscaling.__all__) - {"__version__"}


def test_the_index_lists_every_page_and_the_readme_the_features():
    linked = set(re.findall(r"\]\((\w[\w-]*)\.md\)", read_page("index")))
    assert linked == set(pages()) - {"index"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in pages() if f"hf_muscaling/docs/{name}.md" not in readme and name != "reference"]
    assert missing == []
