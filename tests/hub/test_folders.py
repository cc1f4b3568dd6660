"""A whole experiment to the Hub and back: one Collection, pinned revisions, no pickles, nothing twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, snapshot_download

from hf_muscaling import PowerLaw, Series
from hf_muscaling.cli import main
from hf_muscaling.errors import ConfigurationError, HubError, RecordError
from hf_muscaling.hub.folders import pull_experiment, push_experiment
from tests.browser import browser, driver  # noqa: F401  fixtures
from tests.hub.conftest import environment
from tests.hub.helpers import WIDTHS, experiment_folder, small_law, small_run, small_series
from tests.hub.markdown import images, links, tables
from tests.series_helpers import flags, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore")
PROXIES = [f"me/tiny-w{width}-s0" for width in WIDTHS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment's folder with models, below a home folder whose name must not get out."""
    return experiment_folder(tmp_path_factory.mktemp("home") / "runs" / "tiny", models=True)


@pytest.fixture
def folder(tmp_path):
    return experiment_folder(tmp_path / "runs" / "tiny")


def test_everything_goes_up_and_comes_back(hub, trained, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    import hf_muscaling.models

    monkeypatch.setenv("HOME", str(trained.parents[1]))
    pushed = push_experiment(trained, "me/tiny", private=True)
    assert [p.repo_id for p in pushed.proxies] == PROXIES
    assert {name for _, name in hub.repos} == {*PROXIES, "me/tiny-series", "me/tiny-law"}
    assert all(repo.private for repo in hub.repos.values())
    (collection,) = hub.collections.values()
    assert collection["private"] and pushed.collection == f"{hub.url}/collections/{collection['slug']}"
    assert [i["id"] for i in collection["items"]] == ["me/tiny-law", "me/tiny-series", *PROXIES]

    for (kind, name), repo in hub.repos.items():
        assert not [path for path in repo.files if path.endswith((".bin", ".pt", ".py"))]
        assert str(trained.parents[1]).encode() not in b"".join(repo.files.values()), name
        card = ModelCard(repo.files["README.md"].decode(), ignore_metadata_errors=True)
        card.validate(repo_type=kind)
        assert {image.target for image in images(card.text)} <= set(repo.files)
        for link in links(card.text):  # every link leads to a repository that is there, at a commit that is there
            path = link.target.removeprefix(hub.url).strip("/").removeprefix("datasets/")
            target, _, revision = path.partition("/tree/")
            (found,) = [r for (_, n), r in hub.repos.items() if n == target]
            assert found.at(revision or "main") is not None

    card = ModelCard(hub.repo(PROXIES[1]).files["README.md"].decode())
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    facts, shapes, rates, settings = tables(card.text)
    assert (
        ["width", "`16`", "`32`"] in shapes and rates[1][1:] == ["0.01", "0.005"] and rates[2][1:] == ["0.01", "0.01"]
    )
    assert ["parametrisation over width", "`mup`"] in settings
    assert card.data.eval_results[0].metric_value == pytest.approx(small_run(32).loss, rel=1e-5)

    law, series = pull_experiment("me/tiny", tmp_path / "pulled")
    stored = PowerLaw.from_json(trained / "law.json")
    assert law.predict(N=1e8) == stored.predict(N=1e8)
    assert series is not None and list(series) == list(Series.from_jsonl(trained / "runs.jsonl"))
    assert law.provenance_.series == pushed.series.reference
    assert PowerLaw.from_json(tmp_path / "pulled" / "law.json").to_json() == stored.to_json()
    assert list(Series.from_jsonl(tmp_path / "pulled" / "runs.jsonl")) == list(series)
    tokens = torch.arange(12)[None] % 64
    for width, name in zip(WIDTHS, PROXIES, strict=True):
        (run,) = [r for r in series if r.width == width and r.role == "proxy"]
        here = AutoModelForCausalLM.from_pretrained(trained / "runs" / run.run_id / "model").eval()
        there = AutoModelForCausalLM.from_pretrained(tmp_path / "pulled" / "models" / name.split("/")[1]).eval()
        online = AutoModelForCausalLM.from_pretrained(name).eval()
        stock = LlamaForCausalLM.from_pretrained(name, subfolder="standard").eval()
        assert type(there) is hf_muscaling.MuLlamaForCausalLM and type(stock) is LlamaForCausalLM
        with torch.no_grad():
            expected = here(tokens).logits
            assert torch.equal(there(tokens).logits, expected) and torch.equal(online(tokens).logits, expected)
            assert torch.allclose(stock(tokens).logits, expected, atol=1e-5)
        assert there.generate(tokens, max_new_tokens=3, do_sample=False).shape == (1, 15)


def test_what_is_there_is_not_sent_again_and_a_broken_push_continues(hub, trained):
    hub.fail("PUT /storage", 500, times=3)  # passes
    hub.fail("datasets/me/tiny-series/commit", 503, times=99)
    with pytest.raises(HubError, match=r"answered 503 .*Pushed so far: me/tiny-w16-s0.*the same command continues"):
        push_experiment(trained, "me/tiny")
    assert ("model", "me/tiny-law") not in hub.repos
    hub.faults.clear()
    with hub.watch() as seen:
        first = push_experiment(trained, "me/tiny")
    assert not [s for s in seen if "/commit/" in s.path and "w16" in s.path]
    with hub.watch() as seen:
        assert push_experiment(trained, "me/tiny") == first
    assert not [s for s in seen if "/commit/" in s.path or s.method == "PUT" or s.path.endswith("/items")]
    assert all(len(repo.branches["main"]) == 2 for repo in hub.repos.values())


def test_a_models_own_push_to_hub(hub, trained):
    """A proxy is a transformers model: its own method works, with the generic card."""
    from transformers import AutoModelForCausalLM

    import hf_muscaling.models  # noqa: F401

    (model,) = trained.glob("runs/w0016*/model")
    AutoModelForCausalLM.from_pretrained(model).push_to_hub("me/own")
    back = AutoModelForCausalLM.from_pretrained("me/own")
    assert type(back).__name__ == "MuLlamaForCausalLM" and "model.safetensors" in hub.repo("me/own").files


def test_a_folder_of_another_model_is_refused(hub, trained, tmp_path):
    copy = tmp_path / "tiny"
    shutil.copytree(trained, copy)
    (one,), (other,) = copy.glob("runs/w0016*"), copy.glob("runs/w0032*")
    shutil.rmtree(one / "model")
    shutil.copytree(other / "model", one / "model")
    with pytest.raises(RecordError, match="another model than that of the run"):
        push_experiment(copy, "me/tiny")
    shutil.rmtree(one / "model")
    (one / "model").mkdir()
    (one / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(RecordError, match="Pickled weights are not taken"):
        push_experiment(copy, "me/tiny")
    assert not hub.repos


def test_without_models(hub, folder, tmp_path, no_pictures, capsys):
    assert main(["push", str(folder), "--to", "me/tiny", "--license", "mit"]) == 0
    shown = capsys.readouterr().out
    assert f"{hub.url}/me/tiny-law (revision" in shown and "Collection: " in shown
    assert not hub.repo("me/tiny-law").private
    assert main(["pull", "me/tiny", "--output", str(tmp_path / "pulled")]) == 0
    shown = capsys.readouterr().out
    assert "L(N) = a·N^b + c" in shown and "6 runs, 0 models" in shown
    assert {p.name for p in (tmp_path / "pulled").iterdir()} == {"law.json", "runs.jsonl"}
    targets = tables(ModelCard(hub.repo("me/tiny-law").files["README.md"].decode()).text)[2]
    assert len(targets) == 2 and targets[1][1] == f"{small_run(256).loss:.4f}"


def test_pushing_series_and_law_needs_no_torch(hub, folder, tmp_path):
    program = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from hf_muscaling.cli import main\n"
        f"assert main(['push', {str(folder)!r}, '--to', 'me/tiny']) == 0\n"
        f"assert main(['pull', 'me/tiny', '--output', {str(tmp_path / 'pulled')!r}]) == 0\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(hub, tmp_path / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "words, message",
    [
        (["push", "nowhere", "--to", "me/tiny"], "no finished experiment"),
        (["push", "FOLDER", "--to", "tiny"], "must be 'user/name'"),
        (["push", "FOLDER", "--to", "me/../x"], "must be 'user/name'"),
        (["push", "FOLDER", "--to", "you/tiny"], "may not do that"),
        (["pull", "me/nothing", "--output", "OUT"], "no such model"),
        (["pull", "me/nothing", "--output", "FOLDER"], "not an empty folder"),
    ],
)
def test_mistakes_are_one_paragraph(hub, folder, tmp_path, capsys, no_pictures, words, message):
    places = {"FOLDER": str(folder), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown and not (tmp_path / "out").exists()


def hostile_proxy(hub, files):
    hub.create("me/evil").commit(files, "")
    small_law().push_to_hub("me/tiny-law", proxies=["me/evil@main"])


CONFIG = b'{"model_type": "mu_llama"}'


@pytest.mark.parametrize(
    "files, message",
    [
        ({"config.json": CONFIG, "pytorch_model.bin": b"\x80\x04"}, "pickled weights only .*pytorch_model.bin"),
        ({"config.json": CONFIG}, "no model"),
        ({"config.json": CONFIG, "model.safetensors": b"x", "../../evil.json": b"{}"}, "no plain name"),
        ({"config.json": CONFIG, "model.safetensors": b"x", "/etc/evil.json": b"{}"}, "no plain name"),
        ({"config.json": CONFIG, "model.safetensors": b"x", "a\\..\\evil.json": b"{}"}, "no plain name"),
        ({"config.json": b"{" * 100_000, "model.safetensors": b"x"}, "more than the 5,000 allowed|not valid JSON"),
        ({"config.json": b"[" * 4000, "model.safetensors": b"x"}, "not valid JSON"),
        ({"config.json": b'{"auto_map": {"AutoConfig": "evil.Config"}}', "model.safetensors": b"x"}, "code of its own"),
        ({"config.json": CONFIG, "model.safetensors": b"x" * 10_000}, "more than the 5,000 allowed"),
    ],
)
def test_hostile_proxies(hub, tmp_path, no_pictures, files, message):
    hostile_proxy(hub, files)
    with pytest.raises(RecordError, match=message):
        pull_experiment("me/tiny", tmp_path / "a" / "out", max_bytes=5000)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and "hub-cache" not in p.parts]
    hub.repo("me/evil").commit({"config.json": CONFIG, "model.safetensors": b"x"}, "mended")
    pull_experiment("me/tiny", tmp_path / "a" / "out", max_bytes=5000)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


def test_code_and_pickles_beside_good_weights_stay_there(hub, tmp_path, no_pictures):
    files = {
        "config.json": CONFIG,
        "model.safetensors": b"x",
        "training_args.bin": b"\x80",
        "modeling.py": b"import os",
    }
    hostile_proxy(hub, files | {"deep/er/config.json": b"{}", "README.md": b"# x"})
    pull_experiment("me/tiny", tmp_path / "out")
    there = {p.name for p in (tmp_path / "out" / "models" / "evil").rglob("*")}
    assert there == {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize("run_id", ["../../evil", "/etc/x", "a/../../b", "x" * 300])
def test_a_run_that_leads_out_of_its_folder(hub, folder, run_id, no_pictures):
    Series([small_run(run_id=run_id), *small_series()]).to_jsonl(folder / "runs.jsonl")
    with pytest.raises(RecordError, match="no plain name"):
        push_experiment(folder, "me/tiny")
    assert not hub.repos


def test_a_series_that_would_be_shared_is_checked_before_it_trains(hub, tmp_path, monkeypatch, capsys):
    config = tiny_experiment(tmp_path, push_to_hub="me/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["run-series", *flags(config)]) == 2
    assert "hf auth login" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigurationError, match="user/name"):
        from hf_muscaling.hub.folders import check_login

        check_login("tiny")


@pytest.mark.slow
def test_train_push_wipe_pull_predict_generate(hub, tmp_path, monkeypatch, request):
    """Two machines: one trains and pushes with one command, the other has only the Hub; the numbers are the same, in
    Python to the last bit and in the Space's page, where there is a browser.
    """
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))
    config = tiny_experiment(tmp_path, learning_rates=[1e-2], verify=True, push_to_hub="me/tiny", hub_private_repo=True)
    assert main(["run-series", *flags(config)]) == 0
    assert len(hub.repos) == len(config.widths) + 1 + 2  # proxies, target, series, law
    assert not [path for repo in hub.repos.values() for path in repo.files if path.endswith(".bin")]
    everything = b"".join(content for repo in hub.repos.values() for content in repo.files.values())
    assert str(tmp_path).encode() not in everything and b"hf_loopback" not in everything
    for (kind, _), repo in hub.repos.items():
        ModelCard(repo.files["README.md"].decode(), ignore_metadata_errors=True).validate(repo_type=kind)
    stored = json.loads((Path(config.output_dir) / "prediction.json").read_text())
    assert main(["space", config.output_dir, "--output", str(tmp_path / "out" / "page"), "--push", "me/page"]) == 0
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "cache")
    program = (
        "import json, sys, warnings; warnings.simplefilter('ignore')\n"
        "from hf_muscaling.hub.folders import pull_experiment\n"
        f"law, series = pull_experiment('me/tiny', {str(tmp_path / 'pulled')!r})\n"
        f"p = law.predict(N={stored['N']}, level={stored['level']})\n"
        "import hf_muscaling.models\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"folder = {str(tmp_path / 'pulled' / 'models' / 'tiny-w64-s0')!r}\n"
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)\n"
        "ids = model.generate(**tokenizer('def', return_tensors='pt'), max_new_tokens=8, do_sample=False)\n"
        "print(json.dumps([p.loss, p.low, p.high, len(series), len(ids[0])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(hub, tmp_path / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loss, low, high, runs, length = json.loads(done.stdout.splitlines()[-1])
    assert (loss, low, high) == (stored["loss"], stored["low"], stored["high"])
    assert runs == len(config.widths) + 1 and length > 8
    assert HfApi(endpoint=hub.url).model_info("me/tiny-law").library_name == "hf_muscaling"
    page = snapshot_download("me/page", repo_type="space", local_dir=tmp_path / "page")
    shown = request.getfixturevalue("browser")  # skips here without one, all else checked
    shown.open(Path(page) / "index.html")
    shown.choose("design", "any")
    shown.type("size", str(stored["N"]))
    found = [shown.value(name) for name in ("loss", "low", "high")]
    assert found == pytest.approx([loss, low, high], rel=1e-7)
    assert shown.complaints() == []


def test_every_relative_link_and_image_of_a_card_is_in_its_folder(tmp_path):
    """Of the law's and the series' cards without a Hub; the proxies' are seen in the push above."""
    from hf_muscaling.hub.laws import law_files
    from hf_muscaling.hub.series import series_files

    for files in (law_files(small_law(), "me/law"), series_files(small_series(), "me/series", landscape=b"\x89PNG")):
        text = ModelCard(files["README.md"].decode(), ignore_metadata_errors=True).text
        targets = [found.target for found in (*images(text), *links(text))]
        assert targets and {target for target in targets if "://" not in target} <= set(files)
        widest = max(len(table[0]) for table in tables(text))
        assert widest <= 9
