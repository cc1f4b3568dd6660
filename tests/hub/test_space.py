"""The page as a static Space on the loopback Hub, from a law that is on the Hub too."""

from pathlib import Path

import pytest
import yaml

from hf_muscaling.cli import main
from hf_muscaling.space import push_space
from tests.browser import browser, driver  # noqa: F401  fixtures
from tests.hub.helpers import small_law


def test_the_page_becomes_a_static_space(hub, no_pictures, tmp_path, capsys):
    from huggingface_hub import HfApi, hf_hub_download

    law = small_law()
    law.push_to_hub("me/law")
    assert main(["space", "me/law", "--push", "me/page", "--private", "--license", "apache-2.0"]) == 0
    assert "/spaces/me/page (revision " in capsys.readouterr().out
    info = HfApi().space_info("me/page")
    assert info.private and {f.rfilename for f in info.siblings} >= {"index.html", "README.md", "space.json"}
    card = Path(hf_hub_download("me/page", "README.md", repo_type="space")).read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["sdk"], front["models"], front["license"]) == ("static", ["me/law"], "apache-2.0")
    page = Path(hf_hub_download("me/page", "index.html", repo_type="space")).read_text(encoding="utf-8")
    assert f'"b":{law.params_["b"]!r}' in page
    again = push_space("me/law", "me/page", license="apache-2.0")
    assert again.revision == info.sha, "an unchanged page is not sent again"


def test_the_space_reads_in_a_browser_what_the_law_predicts(hub, no_pictures, tmp_path, browser):  # noqa: F811
    from huggingface_hub import snapshot_download

    law = small_law()
    law.push_to_hub("me/law")
    push_space("me/law", "me/page")
    folder = Path(snapshot_download("me/page", repo_type="space", local_dir=tmp_path / "page"))
    browser.open(folder / "index.html")
    browser.choose("design", "any")
    browser.type("size", "1.5M")
    expected = law.predict(N=1.5e6)
    found = [browser.value(name) for name in ("loss", "low", "high")]
    assert found == pytest.approx([expected.loss, expected.low, expected.high], rel=1e-7)
    assert browser.value("check") < 1e-7 and browser.complaints() == []
