"""A mix's file: what it may say, what is refused, and the schedule that keeps its proportions."""

import itertools
import random
import re
from fractions import Fraction

import pytest

from hf_muscaling.data import preset_mixtures, read_mixture
from hf_muscaling.data.mixture import PRESETS, schedule
from hf_muscaling.errors import ConfigurationError, DataError

TABLE_5 = {"arxiv": "6.04", "books": "5.22", "refinedweb": "20.81", "refinedweb_wiki_like": "49.78",
           "openwebtext2": "3.11", "stackexchange": "3.81", "github": "10.18", "wikipedia": "1.03"}  # fmt: skip
SHA = "0123456789abcdef" * 2 + "01234567"


def test_the_presets():
    assert preset_mixtures() == sorted(path.stem for path in PRESETS.iterdir())
    for name in preset_mixtures():
        mixture = read_mixture(name)
        assert sum(d.proportion for d in mixture.domains) == 1 and mixture.name == name
        assert all(re.fullmatch("[0-9a-f]{40}", d.revision) and d.dataset for d in mixture.domains)
    nanolm = read_mixture("nanolm")
    assert {d.name: d.proportion * Fraction("99.98") for d in nanolm.domains} == {
        name: Fraction(percent) for name, percent in TABLE_5.items()
    }
    assert nanolm.given_sum == "99.98" and nanolm.tokens is None
    tracks = {track: read_mixture(f"nanolm:{track}").tokens for track in ("100B", "400B", "1T", "2T")}
    assert tracks == {"100B": 10**11, "400B": 4 * 10**11, "1T": 10**12, "2T": 2 * 10**12}
    (c4,), (mc4,) = read_mixture("c4").domains, read_mixture("mc4").domains
    assert (c4.dataset, c4.config, c4.heldout_split) == ("allenai/c4", "en", "validation")
    assert (mc4.dataset, mc4.config) == ("allenai/c4", "multilingual")
    refinedweb = next(d for d in nanolm.domains if d.name == "refinedweb")
    assert refinedweb.text_column == "content"


def test_a_track_limits_the_tokens():
    track = read_mixture("nanolm:100B")
    track.require_tokens(10**11)
    with pytest.raises(ConfigurationError, match="the track 100B of nanolm has 100,000,000,000 tokens"):
        track.require_tokens(10**11 + 1)
    read_mixture("nanolm").require_tokens(10**15)
    assert track.sha256 == read_mixture("nanolm").sha256  # the same stream, only longer


def mix(tmp_path, text, name="mix.yaml"):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / name).write_text(text, "utf-8")
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("domains: {a: {proportion: 1, files: a.jsonl}}\nshard: 2", "unknown key 'shard'; did you mean 'shards'"),
        ("domains: {a: {proportion: 1, file: a.jsonl}}", "domain 'a': unknown key 'file'; did you mean 'files'"),
        ("domains: {a: {proportion: 0.5, files: a.jsonl}}", r"sum to 0.5; they must sum to 1, or to 100"),
        ("domains: {a: {proportion: 99.4, files: a.jsonl}}", "sum to 99.4"),
        ("domains: {a: {proportion: -1, files: a.jsonl}}", "proportion must be a positive number, got -1"),
        ("domains: {a: {proportion: .nan, files: a.jsonl}}", "proportion must be a positive number"),
        ("domains: {a: {proportion: .inf, files: a.jsonl}}", "proportion must be a positive number"),
        ("domains: {a: {files: a.jsonl}}", "proportion must be a positive number, got None"),
        ("domains: {a: {proportion: 1}}", "give dataset .with revision. or files"),
        ("domains: {a: {proportion: 1, dataset: me/web}}", "revision must be a commit of me/web.*commits/main"),
        ("domains: {a: {proportion: 1, dataset: me/web, revision: main}}", "got 'main': a branch changes"),
        ("domains: {a: {proportion: 1, dataset: me/web, revision: 12}}", "revision must be text, got 12"),
        ("domains: {a: {proportion: 1, files: b.txt}}", "of one format with rows"),
        ("domains: {a: {proportion: 1, files: [a.jsonl], config: en}}", "local files have no config"),
        ("domains: {a: {proportion: 1, files: a.jsonl}}\nshards: 0", "shards must be a positive number, got 0"),
        ("domains: {a: {proportion: 1, files: a.jsonl}}\ntracks: {t: much}", "tracks must map names"),
        ("domains: []", "domains must map"),
        ("domains: {a: 3}", "must be a mapping"),
        ("- a", "key: value"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, message):
    with pytest.raises(ConfigurationError, match=message):
        read_mixture(mix(tmp_path, text))


def test_names_that_there_are_not(tmp_path):
    with pytest.raises(ConfigurationError, match="no mixture 'nanolmm'.*c4, mc4, nanodata, nanolm"):
        read_mixture("nanolmm")
    with pytest.raises(ConfigurationError, match="has no track '3T'; it has 100B, 400B, 1T, 2T"):
        read_mixture("nanolm:3T")
    with pytest.raises(DataError, match="does not exist"):
        read_mixture(mix(tmp_path, "domains: {a: {proportion: 1, files: c.jsonl}}"))


def test_the_hash_is_of_what_decides_the_text(tmp_path):
    text = f"domains: {{a: {{proportion: 40, files: a.jsonl}}, b: {{proportion: 60, dataset: me/b, revision: {SHA}}}}}"
    first = read_mixture(mix(tmp_path, text))
    same = read_mixture(mix(tmp_path, f"name: other\ntracks: {{t: 9}}\n{text}", "other.yaml"))
    fractions = read_mixture(mix(tmp_path, text.replace("40", "0.4").replace("60", "0.6")))
    assert first.sha256 == same.sha256 == fractions.sha256
    for changed in (text.replace("40", "39.9"), text.replace(SHA, SHA[::-1]), f"shards: 2\n{text}",
                    text.replace("me/b", "me/c"), text.replace("me/b,", "me/b, text_column: body,")):  # fmt: skip
        assert read_mixture(mix(tmp_path, changed)).sha256 != first.sha256
    assert str(tmp_path) not in str(first.record()) and "a.jsonl" in str(first.record())


def worst(choices, proportions):
    counts, found = [0] * len(proportions), Fraction(0)
    for n, chosen in enumerate(choices, 1):
        counts[chosen] += 1
        found = max(found, *(abs(c - p * n) for c, p in zip(counts, proportions, strict=True)))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_no_domain_is_ever_a_block_off_its_share(seed):
    generator = random.Random(seed)
    weights = [generator.choice([1, 7, generator.randint(1, 10**4)]) for _ in range(generator.randint(2, 12))]
    shares = [Fraction(w, sum(weights)) for w in weights]
    bound = 1 - Fraction(1, 2 * len(shares) - 2)
    assert worst(itertools.islice(schedule(shares), 3000), shares) <= bound


def test_chance_is_off_by_many_blocks():
    """As `interleave_datasets(probabilities=…)` draws: the control."""
    shares = [d.proportion for d in read_mixture("nanolm").domains]
    chosen = random.Random(0).choices(range(len(shares)), [float(s) for s in shares], k=3000)
    assert worst(chosen, shares) > 10


def test_the_schedule_goes_on_from_its_counts():
    shares = [d.proportion for d in read_mixture("nanolm").domains]
    whole = list(itertools.islice(schedule(shares), 400))
    for cut in (1, 57, 200):
        counts = [whole[:cut].count(i) for i in range(len(shares))]
        assert list(itertools.islice(schedule(shares, counts), 200)) == whole[cut : cut + 200]
