"""Every way a push or a pull can fail on the way: tried again where that helps, explained where not, nothing lost."""

import logging
from pathlib import Path

import pytest

from hf_muscaling import PowerLaw, ScalingLaw
from hf_muscaling.errors import HubError, RecordError
from hf_muscaling.hub.client import fetch, is_repo_id, push_files, safe_name
from tests.hub.conftest import TOKEN
from tests.hub.helpers import small_law

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_pictures")]
FILES = {"README.md": b"---\ntags: [a]\n---\n", "big.safetensors": b"\0" * 300_000, "small.json": b"{}"}


def push(**settings):
    return push_files("me/x", FILES, **({"message": "m"} | settings))


def commits(hub, name="me/x", kind="model"):
    return hub.repo(name, kind).branches["main"][1:]


def test_a_push_is_one_commit(hub):
    pushed = push()
    assert hub.repo("me/x").files == FILES
    assert [c.sha for c in commits(hub)] == [pushed.revision]
    assert pushed.reference == f"me/x@{pushed.revision}" and pushed.url == f"{hub.url}/me/x"


def test_pushing_again_sends_only_what_changed(hub):
    first = push()
    with hub.watch() as seen:
        assert push() == first
    assert not [s for s in seen if "/commit/" in s.path or s.method == "PUT"]
    with hub.watch() as seen:
        push_files("me/x", FILES | {"small.json": b"[]"}, message="m")
    assert not [s for s in seen if s.method == "PUT"]
    assert [s.size < 1000 for s in seen if "/commit/" in s.path] == [True]
    assert len(commits(hub)) == 2 and hub.repo("me/x").files["small.json"] == b"[]"


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("where", ["create", "validate-yaml", "preupload", "objects/batch", "PUT /storage", "/commit/"])
def test_an_overloaded_server_is_tried_again(hub, where, status):
    hub.fail(where, status, times=2)
    push()
    assert hub.repo("me/x").files == FILES and len(commits(hub)) == 1
    assert sum(s.status == status for s in hub.seen) == 2


@pytest.mark.parametrize("where", ["create", "preupload", "PUT /storage", "/commit/"])
def test_a_connection_cut_in_the_middle_of_an_upload(hub, where):
    hub.fail(where, cut=20)
    push()
    assert hub.repo("me/x").files == FILES and len(commits(hub)) == 1


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub):
    hub.fail("/commit/", after=True)
    pushed = push()
    assert [c.sha for c in commits(hub)] == [pushed.revision]


def test_a_server_that_stays_down_loses_nothing(hub, tmp_path):
    hub.fail("/commit/", 503, times=99)
    with pytest.raises(HubError, match=r"answered 503 again and again.*Nothing is lost.*unpushed") as caught:
        push()
    kept = tmp_path / "cache" / "unpushed" / "me--x"
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == FILES
    hub.faults.clear()
    with hub.watch() as seen:
        push()
    assert not [s for s in seen if s.method == "PUT"]  # the large file had arrived
    assert hub.repo("me/x").files == FILES
    assert TOKEN not in str(caught.value)


REFUSALS = [
    ("create", 401, "", r"hf auth login"),
    ("create", 403, "", r"may not do that"),
    ("/commit/", 403, "", r"may not do that.*'me'"),
    ("preupload", 404, "RepoNotFound", r"no such model"),
    ("/commit/", 409, "", r"Wait, then repeat"),
    ("/commit/", 412, "", r"somebody else pushed"),
    ("preupload", 403, "GatedRepo", r"gated.*Ask for access"),
    ("/commit/", 400, "", r"injected 400"),
]


@pytest.mark.parametrize("where, status, code, words", REFUSALS, ids=[f"{w}-{s}-{c}" for w, s, c, _ in REFUSALS])
def test_a_refusal_is_explained_once_and_not_repeated(hub, where, status, code, words):
    fault = hub.fail(where, status, times=99, code=code)
    with pytest.raises(HubError, match=f"(?s)Pushing to me/x failed: .*{words}.*Nothing is lost") as caught:
        push()
    assert fault.times == 98 and len(str(caught.value)) < 500


def test_a_stale_parent_is_noticed(hub):
    push()
    head = hub.repo("me/x").files

    def somebody_else(*_):
        hub.repo("me/x").commit(head | {"theirs.txt": b"1"}, "theirs")

    original = hub.fail

    class Late(type(original("nothing"))):
        """A fault that lets somebody else commit between our comparison and our commit."""

        @property
        def status(self):
            somebody_else()
            return 0

        @status.setter
        def status(self, value):
            pass

    hub.faults.append(Late("preupload", times=1))
    with pytest.raises(HubError, match="somebody else pushed to it at the same moment"):
        push_files("me/x", {"small.json": b"[1]"}, message="m")
    assert hub.repo("me/x").files["small.json"] == b"{}"
    push_files("me/x", {"small.json": b"[1]"}, message="m")
    assert hub.repo("me/x").files | {} == FILES | {"small.json": b"[1]", "theirs.txt": b"1"}


def test_private_is_private_and_never_made_public_by_mistake(hub):
    push(private=True)
    assert hub.repo("me/x").private
    push(private=True)
    hub.create("me/open")
    with pytest.raises(HubError, match="is public, and private=True"):
        push_files("me/open", FILES, private=True, message="m")
    assert hub.repo("me/open").files == {}


def test_a_branch(hub):
    push()
    other = push_files("me/x", {"small.json": b"[2]"}, revision="next", message="m")
    repo = hub.repo("me/x")
    assert repo.files["small.json"] == b"{}" and repo.at("next").sha == other.revision
    assert repo.at("next").files["small.json"] == b"[2]"


def test_offline(hub, monkeypatch):
    law = small_law()
    pushed = law.push_to_hub("me/law")
    assert PowerLaw.from_pretrained("me/law").params_ == law.params_
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with hub.watch() as seen:
        with pytest.raises(HubError, match=r"offline mode is on. Unset HF_HUB_OFFLINE.*Nothing is lost"):
            law.push_to_hub("me/law")
        assert PowerLaw.from_pretrained("me/law").predict(N=1e6) == law.predict(N=1e6)
        assert PowerLaw.from_pretrained("me/law", revision=pushed.revision).params_ == law.params_
        with pytest.raises(HubError, match="offline mode is on"):
            PowerLaw.from_pretrained("me/other")
    assert not seen


def test_a_slow_server_is_waited_for_and_the_cache_is_used_if_it_is_too_slow(hub, monkeypatch, tmp_path):
    hub.fail("/commit/", wait=0.3)
    law = small_law()
    law.push_to_hub("me/law")
    ScalingLaw.from_pretrained("me/law")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.05)
    hub.fail("HEAD", wait=0.3, times=99)
    with hub.watch() as seen:
        assert ScalingLaw.from_pretrained("me/law").params_ == law.params_
    assert not [s for s in seen if s.method == "GET"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    assert ScalingLaw.from_pretrained("me/law").params_ == law.params_  # nothing cached: waited for after all


def test_a_server_that_is_not_there(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"connection failed .*Check the network.*Nothing is lost"):
        push()


@pytest.mark.parametrize(
    "prepare, words",
    [
        (lambda hub: None, "no such model, or it is private|not yours to see"),
        (lambda hub: hub.create("you/law", gated=True).commit({"config.json": b"{}"}, ""), "gated. Ask for access"),
        (lambda hub: hub.create("you/law", private=True), "no such model, or it is private"),
        (lambda hub: hub.create("you/law"), "holds no such file"),
        (lambda hub: hub.fail("HEAD", 403, times=99), "may not do that"),
    ],
)
def test_pulls_that_are_refused(hub, prepare, words):
    prepare(hub)
    with pytest.raises(HubError, match=f"Reading config.json of you/law failed: .*({words})"):
        ScalingLaw.from_pretrained("you/law")


def test_a_revision_that_is_not_there(hub):
    small_law().push_to_hub("me/law")
    with pytest.raises(HubError, match="no such revision"):
        ScalingLaw.from_pretrained("me/law", revision="v9")


def test_a_wrong_token_is_said_to_be_so(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrong")
    with pytest.raises(HubError, match="hf auth login") as caught:
        push()
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_loopback_reader")
    hub.create("me/x")
    with pytest.raises(HubError, match="may not do that"):
        push()


def test_a_file_too_large_is_not_downloaded(hub):
    hub.create("me/x").commit({"config.json": b" " * 5000}, "")
    with pytest.raises(RecordError, match="5,000 bytes, more than the 4,000 allowed; not downloaded"):
        fetch("me/x", ["config.json"], limit=4000)
    assert not hub.requests("GET", "resolve")
    assert fetch("me/x", ["config.json"], limit=5000).stat().st_size == 5000


@pytest.mark.parametrize(
    "source", ["no/such/folder", "../law", "/nowhere/law", "a b/c", "me/x--y", "", "me/..", "x" * 300]
)
def test_sources_that_are_nothing(hub, source):
    with pytest.raises(HubError, match="neither a folder here nor a repository"):
        fetch(source, ["config.json"], limit=10)
    assert not hub.seen


def test_names():
    assert is_repo_id("me/llama-law_1.0") and is_repo_id("gpt2")
    for name in ("README.md", "standard/model.safetensors", ".gitattributes", "a-b_c.1"):
        assert safe_name(name, "x") == name
    for name in (
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "C:\\x",
        "a\x00b",
        "~/.ssh",
        "a/./b/..",
        "x" * 300,
        "a b",
        "",
    ):
        with pytest.raises(RecordError, match="no plain name"):
            safe_name(name, "x")


def test_the_token_is_nowhere(hub, caplog, tmp_path):
    """Neither in what is stored on the Hub nor in logs, kept files or errors; only the Authorization header has it."""
    caplog.set_level(logging.DEBUG)
    token = "hf_abcdefghijklmnopqrstuvwxyz"
    hub.users[token] = ("me", "write")
    law = small_law()
    law.push_to_hub("me/law", token=token, title=f"my {token} law")
    assert {s.token for s in hub.seen} == {token, ""}  # the storage behind an upload address needs none
    hub.fail("/commit/", 503, times=99)
    with pytest.raises(HubError) as caught:
        law.push_to_hub("me/other", token=token, title=f"my {token} law")
    stored = b"".join(hub.repo("me/law").files.values())
    kept = b"".join(p.read_bytes() for p in Path(tmp_path, "cache").rglob("*") if p.is_file())
    assert kept and token.encode() not in stored + kept
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("hf_muscaling")]
    assert ours and token not in " ".join(ours) + str(caught.value)
