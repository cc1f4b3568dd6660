import json
import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import packaging
import pytest

from hf_muscaling.data import corpus
from hf_muscaling.data.corpus import load_corpus
from hf_muscaling.data.deduplication import repeated_share, shared_share
from hf_muscaling.data.sources import is_heldout
from hf_muscaling.errors import ConfigurationError, DataError

SMALL = ("packaging", "filelock")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A corpus of two small packages and a standard library of three files."""
    library = tmp_path / "library"
    (library / "test").mkdir(parents=True)
    text = "Return the sentence that only this module of the library has in it."
    (library / "one.py").write_text(f'"""{text}"""\n\n\ndef f():\n    return 1\n', encoding="utf-8")
    (library / "test" / "two.py").write_text(f'"""{text.replace("only", "a test of")}"""\n', encoding="utf-8")
    (library / "broken.py").write_bytes(b'"""\xff of the file is no UTF-8 and so it is not a part of the corpus."""\n')
    monkeypatch.setattr(corpus, "DISTRIBUTIONS", SMALL)
    monkeypatch.setattr(corpus, "CODE_DISTRIBUTIONS", SMALL[:1])
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(library))
    return tmp_path / "cache"


def test_every_distribution_is_one_that_the_package_brings():
    from packaging.requirements import Requirement

    roots = [
        "torch",
        "transformers",
        "accelerate",
        "datasets",
        "evaluate",
        "scipy",
        "matplotlib",
        "huggingface_hub",
        "numpy",
    ]
    found, todo = (
        set(),
        [(name, frozenset()) for name in [*roots, "tokenizers", "safetensors", "tqdm", "pyyaml", "filelock"]],
    )
    while todo:
        name, extras = todo.pop()
        key = name.lower().replace("_", "-")
        if (key, extras) in found:
            continue
        found.add((key, extras))
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, requires):
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in [*extras, ""]
            ):
                todo.append((requirement.name, frozenset(requirement.extras)))
    names = {name for name, _ in found}
    assert {name.lower().replace("_", "-") for name in corpus.DISTRIBUTIONS} - names == set()
    assert set(corpus.CODE_DISTRIBUTIONS) <= set(corpus.DISTRIBUTIONS)


def test_the_harvest_leaves_out_tests_and_unreadable_files(small):
    found = load_corpus("prose", cache_dir=small, progress=False)
    names = {document.name for document in found.documents}
    assert "python/one.py" in names and not names & {"python/test/two.py", "python/broken.py"}
    assert {name.partition("/")[0] for name in names} == {"python", *SMALL}
    assert found.versions["packaging"] == metadata.version("packaging")
    assert not any(str(Path.home()) in name or name.startswith("/") or ".." in name for name in names)


def test_the_cache_is_read(small, monkeypatch):
    first = load_corpus("prose", cache_dir=small, progress=False)
    monkeypatch.setattr(corpus, "harvest", lambda *args, **kwargs: pytest.fail("harvested although it was cached"))
    assert load_corpus("prose", cache_dir=small) == first


@pytest.mark.parametrize("damage", ["flip", "header", "truncate"])
def test_a_damaged_cache_is_harvested_again_with_a_message(small, caplog, damage):
    first = load_corpus("prose", cache_dir=small, progress=False)
    (path,) = (small / "corpus").iterdir()
    good = path.read_bytes()
    bad = {
        "flip": good.replace(b"module of the library", b"module of a library"),
        "header": b"{" + good,
        "truncate": good[: len(good) // 2],
    }[damage]
    assert bad != good
    path.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        again = load_corpus("prose", cache_dir=small, progress=False)
    assert again == first and path.read_bytes() == good
    assert "corrupt" in caplog.text and "harvested again" in caplog.text


def test_another_version_of_a_package_is_another_corpus(small, monkeypatch):
    before = corpus.corpus_key("prose")
    version = metadata.version
    monkeypatch.setattr(corpus.metadata, "version", lambda name: "0.0.1" if name == "packaging" else version(name))
    assert corpus.corpus_key("prose") != before
    assert corpus.corpus_key("code") != corpus.corpus_key("prose")


def test_prose_and_code_share_no_text_and_train_none_with_heldout(small):
    prose = load_corpus("prose", cache_dir=small, progress=False)
    code = load_corpus("code", cache_dir=small, progress=False)
    paragraphs = [p for document in prose.documents for p in document.text.split("\n\n")]
    blocks = [b for document in code.documents for b in document.text.split("\n\n\n")]
    assert len(paragraphs) > 100 and len(blocks) > 50
    # Not 0: the text in verbose regular expressions and below attributes is both; 2 to 3 % by the packages' versions.
    assert shared_share(paragraphs, blocks) < 0.05
    root = Path(packaging.__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in root.glob("*.py")]
    assert shared_share(paragraphs, sources) > 0.3  # docstrings left in would be noticed
    assert len(set(paragraphs)) == len(paragraphs) and repeated_share(paragraphs) < 0.05


def test_the_split_is_by_name_alone():
    names = [f"package/module{i}.py" for i in range(4000)]
    heldout = [name for name in names if is_heldout(name)]
    assert 140 < len(heldout) < 260  # 5 % of 4000, five standard deviations
    assert [name for name in reversed(names) if is_heldout(name)] == heldout[::-1]


def test_unknown_domain_and_empty_library_are_errors_that_help(small, monkeypatch):
    with pytest.raises(ConfigurationError, match="'poems'.*prose, code"):
        load_corpus("poems", cache_dir=small)
    monkeypatch.setattr(corpus, "_source_files", lambda versions: [])
    with pytest.raises(DataError, match="--data-files"):
        load_corpus("prose", cache_dir=small, progress=False)


def test_another_process_and_hash_seed_give_the_same_bytes(small, tmp_path):
    here = load_corpus("prose", cache_dir=small, progress=False).sha256
    script = (
        "import sys; from hf_muscaling.data import corpus\n"
        f"corpus.DISTRIBUTIONS = {SMALL!r}; corpus.CODE_DISTRIBUTIONS = {SMALL[:1]!r}\n"
        "corpus.sysconfig.get_path = lambda name: sys.argv[1]\n"
        "print(corpus.harvest('prose', progress=False).sha256)"
    )
    for seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = [sys.executable, "-c", script, str(tmp_path / "library")]
        assert subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.strip() == here


@pytest.mark.slow
def test_the_real_corpus_is_large_clean_and_the_same_twice(tmp_path):
    found = load_corpus("prose", cache_dir=tmp_path, progress=False)
    assert found.bytes > 15e6 and found.repeated_8grams < 0.03
    paragraphs = {False: [], True: []}
    for document in found.documents:
        paragraphs[is_heldout(document.name)] += document.text.split("\n\n")
    assert not set(paragraphs[True]) & set(paragraphs[False])
    assert shared_share(paragraphs[True], paragraphs[False]) < 0.03
    assert sum(map(len, paragraphs[True])) > 500_000  # well over the 131,072 tokens that are held out
    assert corpus.harvest("prose", progress=False).sha256 == found.sha256
    header = json.loads(next((tmp_path / "corpus").iterdir()).read_bytes().partition(b"\n")[0])
    assert header["sha256"] == found.sha256 and header["versions"] == found.versions
