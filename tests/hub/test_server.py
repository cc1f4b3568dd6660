"""The loopback Hub answers the real client as the Hub does; what our tests conclude rests on this."""

import io
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url)


def upload(api, path, content, **settings):
    return api.upload_file(path_or_fileobj=io.BytesIO(content), path_in_repo=path, repo_id="me/x", **settings)


def test_create_commit_list_and_download(hub, api, tmp_path):
    assert api.create_repo("me/x").repo_id == "me/x"
    api.create_repo("me/x", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("me/x")
    first = upload(api, "a/b.txt", b"one")
    second = upload(api, "w.safetensors", b"\0" * 1000)
    assert api.list_repo_files("me/x") == ["a/b.txt", "w.safetensors"]
    assert [f.path for f in api.list_repo_tree("me/x")] == ["a", "w.safetensors"]
    assert api.model_info("me/x").sha == second.oid != first.oid
    assert Path(hf_hub_download("me/x", "a/b.txt", revision=first.oid)).read_text() == "one"
    folder = snapshot_download("me/x", revision=second.oid)
    assert Path(folder, "w.safetensors").read_bytes() == b"\0" * 1000
    assert api.get_paths_info("me/x", ["w.safetensors"])[0].lfs.size == 1000
    api.delete_file("a/b.txt", "me/x")
    assert api.list_repo_files("me/x") == ["w.safetensors"]


def test_the_same_content_is_not_uploaded_again(hub, api):
    api.create_repo("me/x")
    upload(api, "w.safetensors", b"\0" * 1000)
    with hub.watch() as seen:
        upload(api, "w.safetensors", b"\0" * 1000)
    assert not [s for s in seen if s.method == "PUT" or "/commit/" in s.path]
    with hub.watch() as seen:
        upload(api, "w.safetensors", b"\1" * 1000)
    assert [s.size for s in seen if s.method == "PUT"] == [1000]


def test_branches_and_tags(hub, api):
    api.create_repo("me/x")
    made = upload(api, "a.txt", b"one")
    api.create_tag("me/x", tag="v1")
    api.create_branch("me/x", branch="next")
    upload(api, "a.txt", b"two", revision="next")
    assert Path(hf_hub_download("me/x", "a.txt", revision="v1")).read_text() == "one"
    assert Path(hf_hub_download("me/x", "a.txt", revision="next")).read_text() == "two"
    refs = api.list_repo_refs("me/x")
    assert [b.name for b in refs.branches] == ["main", "next"]
    assert refs.tags[0].target_commit == made.oid


def test_who_may_do_what(hub, api, monkeypatch):
    api.create_repo("me/x", private=True)
    api.create_repo("me/open")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("you/x")
    assert api.whoami()["name"] == "me"
    monkeypatch.setenv("HF_TOKEN", "hf_you")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/x")
    assert api.model_info("me/open").id == "me/open"
    monkeypatch.setenv("HF_TOKEN", "hf_loopback_reader")
    with pytest.raises(HfHubHTTPError, match="403"):
        upload(api, "a.txt", b"one")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami()


def test_the_errors_that_the_client_tells_apart(hub, api, monkeypatch):
    api.create_repo("me/x")
    hub.create("you/gated", gated=True).commit({"a.txt": b"one"}, "")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/nowhere", "a.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/x", "a.txt", revision="nowhen")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/x", "a.txt")
    with pytest.raises(GatedRepoError):
        hf_hub_download("you/gated", "a.txt")
    with pytest.raises(HfHubHTTPError, match="412"):
        upload(api, "a.txt", b"one", parent_commit="0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        api.whoami()


def test_faults_strike_as_often_as_told(hub, api):
    hub.fail("GET /api/whoami-v2", 503, times=2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="503"):
            api.whoami()
    assert api.whoami()["name"] == "me"


def test_an_upload_cut_in_the_middle_is_tried_again_by_the_client(hub, api):
    api.create_repo("me/x")
    hub.fail("PUT /storage", cut=100_000)
    upload(api, "w.safetensors", b"\0" * 1_000_000)
    assert [s.status for s in hub.requests("PUT /storage")] == [0, 200]
    assert hub.repo("me/x").files["w.safetensors"] == b"\0" * 1_000_000


def test_cards_are_validated(hub, api):
    ModelCard("---\ntags: [a]\nlibrary_name: b\n---\n# Title\n").validate()
    api.create_repo("me/x")
    for bad in ("tags: a", "library_name: [b]", "model-index: [{name: x}]", "a: [", "datasets: ['no/such/id']"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            upload(api, "README.md", f"---\n{bad}\n---\n".encode())
    upload(api, "README.md", b"---\ntags: [a]\n---\n")
    assert api.model_info("me/x").tags == ["a"]


def test_collections(hub, api):
    api.create_repo("me/x")
    slug = api.create_collection("A Title", namespace="me", private=True).slug
    assert api.create_collection("A Title", namespace="me", exists_ok=True).slug == slug
    api.add_collection_item(slug, "me/x", "model")
    api.add_collection_item(slug, "me/x", "model", exists_ok=True)
    found = api.get_collection(slug)
    assert (found.private, [i.item_id for i in found.items]) == (True, ["me/x"])
    with pytest.raises(HfHubHTTPError, match="404"):
        api.add_collection_item(slug, "me/nowhere", "model")
