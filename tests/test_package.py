"""What importing costs: the package itself nothing, a law no torch."""

import subprocess
import sys

import pytest

import hf_muscaling


def _modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_brings_neither_torch_nor_transformers():
    loaded = _modules_after("import hf_muscaling")
    assert not loaded & {"torch", "transformers", "numpy", "scipy", "matplotlib"}


def test_fitting_a_law_brings_no_torch():
    table = "{'N': [1e6, 2e6, 4e6, 8e6, 16e6], 'loss': [4.0, 3.7, 3.5, 3.35, 3.25]}"
    loaded = _modules_after(
        "import warnings; warnings.simplefilter('ignore')\nfrom hf_muscaling import PowerLaw, Series\n"
        f"print(PowerLaw().fit({table}).predict(N=3e7))"
    )
    assert not loaded & {"torch", "transformers", "matplotlib"}


@pytest.mark.parametrize("name", sorted(set(hf_muscaling.__all__) - {"__version__"}))
def test_every_public_name_exists(name):
    assert getattr(hf_muscaling, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'MuLama'"):
        hf_muscaling.MuLama  # noqa: B018
