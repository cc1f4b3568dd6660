"""Laws on the Hub: the same law comes back, of the right class, with a card that a stranger can read."""

import json
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from hf_muscaling import ChinchillaLaw, KaplanLaw, KaplanStepLaw, PowerLaw, ScalingLaw
from hf_muscaling.errors import ConfigurationError, FitError, RecordError
from hf_muscaling.hub.client import push_files
from hf_muscaling.hub.laws import Provenance, law_files
from hf_muscaling.laws.base import IdentificationWarning
from hf_muscaling.space.record import space_record
from hf_muscaling.space.sources import Source, read_sources
from tests.hub.conftest import environment
from tests.hub.helpers import small_law, small_series
from tests.hub.markdown import headings, html_of, images, links, tables, text_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TARGETS = {"N": [1.2e6, 2.4e6], "loss": [3.35, 3.26]}


def several_variables():
    rng = np.random.default_rng(0)
    n, d = (v.ravel() for v in np.meshgrid([1e7, 4e7, 1.6e8, 6e8], [2e8, 1e9, 5e9]))
    loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * (1 + 0.002 * rng.standard_normal(n.size))
    return {"N": n, "D": d, "loss": loss}


@pytest.fixture(scope="module")
def chinchilla():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ChinchillaLaw(objective="huber").fit(several_variables())


def test_a_law_comes_back_to_the_last_bit(hub):
    law = small_law()
    pushed = law.push_to_hub("me/llama-law", targets=TARGETS)
    assert set(hub.repo("me/llama-law").files) == {"README.md", "config.json", "law.png"}
    for back in (
        PowerLaw.from_pretrained("me/llama-law"),
        ScalingLaw.from_pretrained("me/llama-law", revision=pushed.revision),
        ScalingLaw.from_pretrained("me/llama-law", revision="main"),
    ):
        assert type(back) is PowerLaw and back.to_json() == law.to_json()
        assert back.predict(N=3.3e6, level=0.8) == law.predict(N=3.3e6, level=0.8)
    other = small_law(objective="lad")
    other.push_to_hub("me/llama-law")
    assert PowerLaw.from_pretrained("me/llama-law").objective == "lad"
    assert PowerLaw.from_pretrained("me/llama-law", revision=pushed.revision).objective == law.objective


def test_the_other_side_needs_neither_torch_nor_the_objects_here(hub, tmp_path):
    law = small_law()
    law.push_to_hub("me/llama-law")
    program = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from hf_muscaling import ScalingLaw\n"
        "law = ScalingLaw.from_pretrained('me/llama-law')\n"
        "p = law.predict(N=1e6)\n"
        "print(type(law).__name__, p.loss.hex(), p.low.hex(), p.high.hex())\n"
        "print({'torch', 'transformers', 'matplotlib', 'jinja2', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(hub, tmp_path / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    p = law.predict(N=1e6)
    assert done.stdout.splitlines() == [f"PowerLaw {p.loss.hex()} {p.low.hex()} {p.high.hex()}", "set()"]


def test_pushing_the_same_law_again_makes_no_commit(hub):
    law = small_law()
    assert law.push_to_hub("me/llama-law") == law.push_to_hub("me/llama-law")
    assert len(hub.repo("me/llama-law").branches["main"]) == 2
    small_law(objective="lad").push_to_hub("me/llama-law")
    assert len(hub.repo("me/llama-law").branches["main"]) == 3


def test_private(hub):
    small_law().push_to_hub("me/llama-law", private=True)
    assert hub.repo("me/llama-law").private


def test_the_class_is_checked(hub, chinchilla):
    chinchilla.push_to_hub("me/chinchilla")
    assert type(ScalingLaw.from_pretrained("me/chinchilla")) is ChinchillaLaw
    assert ChinchillaLaw.from_pretrained("me/chinchilla").to_json() == chinchilla.to_json()
    for wrong in (PowerLaw, KaplanLaw, KaplanStepLaw):
        with pytest.raises(RecordError, match="ChinchillaLaw"):
            wrong.from_pretrained("me/chinchilla")


@pytest.mark.parametrize("name", ["a/b/c", "../x", "me/", "a b", "me/x--y", "", None, 3])
def test_names_that_no_repository_can_have(hub, name):
    with pytest.raises(ConfigurationError, match="cannot be a repository"):
        small_law().push_to_hub(name)
    assert not hub.seen


def test_a_subclass_is_not_taken_for_its_parent(tmp_path):
    class OwnPowerLaw(PowerLaw):
        """A law of somebody's own."""

    OwnPowerLaw().fit({"N": [1e6, 2e6, 4e6, 8e6], "loss": [4.0, 3.6, 3.35, 3.2]}).save_pretrained(tmp_path)
    assert type(ScalingLaw.from_pretrained(tmp_path)) is OwnPowerLaw
    with pytest.raises(RecordError, match="holds a OwnPowerLaw, not a PowerLaw"):
        PowerLaw.from_pretrained(tmp_path)


def test_folders(tmp_path):
    law = small_law()
    law.save_pretrained(tmp_path / "a" / "b")
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == {"README.md", "config.json", "law.png"}
    assert PowerLaw.from_pretrained(tmp_path / "a" / "b").to_json() == law.to_json()
    (tmp_path / "run").mkdir()
    law.to_json(tmp_path / "run" / "law.json")  # an experiment's folder
    assert PowerLaw.from_pretrained(str(tmp_path / "run")).to_json() == law.to_json()
    with pytest.raises(RecordError, match=r"holds no config.json or law.json"):
        PowerLaw.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Cannot write"):
        law.save_pretrained(tmp_path / "file" / "x")


def test_an_edited_law_is_named_by_what_was_given(hub, tmp_path, monkeypatch, no_pictures):
    """Not by the dict or the cache it was read through: a folder, a repository, a file."""
    law = small_law()
    files = law_files(law, "me/edited")
    files["config.json"] = files["config.json"].replace(b'"a": ', b'"a": 1')
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "config.json").write_bytes(files["config.json"])
    push_files("me/edited", files, private=False, revision=None, token=None, message="edited")
    monkeypatch.chdir(tmp_path)
    for given, name in (("edited", "edited/config.json"), ("me/edited", "me/edited/config.json")):
        with pytest.raises(RecordError, match=f"^Not a stored law, '{name}': params do not go with the rows"):
            PowerLaw.from_pretrained(given)
    for given in ("edited", "edited/config.json"):
        with pytest.raises(RecordError, match="^Not a stored law, 'edited/config.json': params do not go with"):
            read_sources([given])


def test_an_unfitted_law_has_nothing_to_share(hub, tmp_path):
    for share in (lambda law: law.save_pretrained(tmp_path / "x"), lambda law: law.push_to_hub("me/x")):
        with pytest.raises(FitError, match="not fitted"):
            share(PowerLaw())
    assert not hub.seen and not (tmp_path / "x").exists()


def test_where_it_comes_from(hub):
    series = small_series()
    law = small_law()
    law.push_to_hub("me/law", series=series, proxies=["me/w16@0123456", "me/w32"])
    back = PowerLaw.from_pretrained("me/law")
    assert back.provenance_ == Provenance("", ("me/w16@0123456", "me/w32"), "d" * 64, "e" * 64)
    back.push_to_hub("me/again", series="me/series@abcdef0")  # what is known stays known
    assert PowerLaw.from_pretrained("me/again").provenance_.proxies == ("me/w16@0123456", "me/w32")
    for bad in ("../x", "a/b/c", "x y/z", "me/x@../..", "javascript:alert(1)", "me/x](http://evil)", 3):
        with pytest.raises(RecordError, match="must be a repository"):
            law.push_to_hub("me/law", proxies=[bad])


# -- cards -------------------------------------------------------------------------------------------------------------


def test_the_card_is_valid_and_says_everything(hub):
    law = small_law()
    law.push_to_hub(
        "me/llama-law", targets=TARGETS, series="me/llama-series@0123456789", proxies=["me/w16@abcdef0"], license="mit"
    )
    content = hub.repo("me/llama-law").files["README.md"].decode()
    card = ModelCard(content)
    card.validate()
    assert card.data.library_name == "hf_muscaling" and card.data.license == "mit"
    assert card.data.tags == ["scaling-law", "mup", "hf_muscaling"] and card.data.datasets == ["me/llama-series"]
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    own, tested = law.evaluate(json.loads(law.to_json())["rows"]), law.evaluate(TARGETS)
    assert results == pytest.approx({
        ("train", "are"): own.are, ("train", "coverage"): own.coverage,
        ("test", "are"): tested.are, ("test", "coverage"): tested.coverage,
    }, rel=1e-5)  # fmt: skip
    info = HfApi(endpoint=hub.url).model_info("me/llama-law")
    assert info.library_name == "hf_muscaling" and info.tags == card.data.tags

    parameters, variables, targets, fitted, ahead = tables(card.text)
    assert [row[0] for row in parameters[1:]] == ["a", "b", "c"]
    assert [float(row[1].replace(",", "")) for row in parameters[1:]] == pytest.approx(
        list(law.params_.values()), rel=1e-5
    )
    low, high = law.parameter_interval("b")
    assert parameters[2][2] == f"{low:.4g} … {high:.4g}" and low < law.params_["b"] < high
    assert variables[1] == ["N", "parameters with embeddings", "100,000", "440,000"]
    assert [row[1] for row in targets[1:]] == ["3.2600", "3.3500"]  # the largest first
    assert float(targets[1][2]) == pytest.approx(law.predict(N=2.4e6).loss, abs=1e-4)
    assert len(fitted) == 6 and all(row[-1] in ("yes", "no") for row in fitted[1:])
    p = law.predict(N=float(ahead[3][0].replace(",", "")))
    assert ahead[3][1:3] == [f"{p.loss:.4f}", f"{p.low:.4f} … {p.high:.4f}"]
    words = text_of(card.text)
    for part in ("scaling law", "L(N) = a·N^b + c", "nats per token", "not a model", "Limits", "Cite"):
        assert part in words
    assert [image.target for image in images(card.text)] == ["law.png"]
    assert {link.target for link in links(card.text)} == {
        f"{hub.url}/datasets/me/llama-series/tree/0123456789", f"{hub.url}/me/w16/tree/abcdef0",
    }  # fmt: skip
    assert 'from_pretrained("me/llama-law")' in card.text


def test_the_card_of_a_law_in_several_variables(chinchilla, tmp_path):
    chinchilla.save_pretrained(tmp_path, targets={"N": [2e9], "D": [2e10], "loss": [2.45]})
    card = ModelCard.load(tmp_path / "README.md")
    parameters, variables, targets, fitted, ahead = tables(card.text)
    assert {row[0] for row in parameters[1:]} == {"E", "A", "B", "alpha", "beta"}
    assert all("…" in row[2] for row in parameters[1:])
    assert [row[0] for row in variables[1:]] == ["N", "D"] and len(fitted) == 13
    assert ahead[1][:2] == ["1.2e+09", "1e+10"] or ahead[1][:2] == ["1,200,000,000", "1e+10"]
    assert len(ahead[1]) == len(ahead[0]) and len(targets) == 2


def test_the_card_and_the_page_say_what_the_fit_says(no_pictures):
    """All caveats, also those of rows that the law is far from: here one run in other units."""
    table = several_variables()
    table["loss"][7] *= 3
    with pytest.warns(IdentificationWarning) as caught:
        law = ChinchillaLaw().fit(table)
    said = law.caveats()
    assert "units, or drop it" in said[-1] and {str(w.message) for w in caught} >= set(said)
    card = law_files(law, "me/law")["README.md"].decode()
    page = space_record([Source("law", law)], "page")["laws"][0]["notes"]
    assert page == said and all(message in law.summary() for message in said)
    assert [message for message in said if message not in card] == []


def test_a_long_table_is_cut_and_says_so(tmp_path):
    sizes = np.geomspace(1e5, 1e7, 120)
    law = PowerLaw("least_squares").fit({"N": sizes, "loss": 2 + 40 * sizes**-0.25})
    law.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "The 40 largest of 120 rows" in card.text
    assert len(tables(card.text)[2]) == 41 and tables(card.text)[2][1][0] == "10,000,000"


def test_whole_curves_are_scored_on_a_sample(no_pictures):
    """An interval costs milliseconds a row; a hundred thousand rows must not take minutes."""
    tokens = np.geomspace(1e6, 1e9, 20_000)
    law = PowerLaw("least_squares", variable="D").fit({"D": tokens, "loss": 2 + 400 * tokens**-0.35})
    started = time.process_time()
    card = law_files(law, "me/law")["README.md"].decode()
    assert time.process_time() - started < 60
    assert "mean error on 400 of them" in card and "The 40 largest of 20,000 rows" in card.replace("20000", "20,000")


HOSTILE = [
    "x\n---\nlicense: evil\n---\n",
    "</td><script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![p](http://evil/p.png)",
    "` | ``` <b>",
    "{{ 7*7 }} {% raw %}",
    "\u202etxt.exe\u200b\x1b[31m",
    "# Title\n\n## More",
    "www.evil.example http://evil.example me@evil.example",
    "a" * 5000,
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_titles_and_ids_stay_text(hub, name, no_pictures):
    from hf_muscaling.hub.series import series_files
    from hf_muscaling.runs import Series
    from tests.hub.helpers import small_run

    run = small_run(run_id=name, family=name, role=name, data_hash=name, config={"model_type": name})
    files = law_files(small_law(), "me/law", title=name)
    for content in (files["README.md"], series_files(Series([run], name), "me/s", title=name)["README.md"]):
        text = content.decode()
        front, body = text.removeprefix("---\n").split("\n---\n", 1)
        data = yaml.safe_load(front)
        assert "license" not in data and set(data) <= {"library_name", "tags", "model-index", "pretty_name", "configs"}
        ModelCard(text, ignore_metadata_errors=True).validate()
        assert not [link for link in links(body) if "evil" in link.target or "javascript" in link.target]
        assert {image.target for image in images(body)} <= {"law.png", "curves.png"}
        assert not html_of(body) and not {"More", "Title"} & set(headings(body))
        assert "\x1b" not in text and "\u202e" not in text and "49" not in body.split("##")[0]
        assert max(map(len, text.splitlines())) < 1500
