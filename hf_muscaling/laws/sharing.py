"""Laws on the Hub: save, push and load, the work of which is in `hf_muscaling.hub`, imported when it is asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..hub.client import Pushed
    from ..hub.laws import Provenance

L = TypeVar("L", bound="SharedLaw")


class SharedLaw:
    """What a fitted law needs to live in a repository. A mixin of `ScalingLaw`."""

    provenance_: Provenance
    """Series, proxies and hashes of a law that was loaded."""

    def save_pretrained(self, folder: str | os.PathLike[str], **card: Any) -> None:
        """Write the law, its card and its plot to a folder, which `from_pretrained` reads.

        Takes the card's options of `push_to_hub`. Raises `RecordError` if the folder cannot be written.

        >>> from hf_muscaling import PowerLaw, ScalingLaw
        >>> runs = {"N": [1e6, 2e6, 4e6, 8e6], "loss": [2 + 40 * n**-0.25 for n in (1e6, 2e6, 4e6, 8e6)]}
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PowerLaw().fit(runs).save_pretrained(folder)
        ...     print(ScalingLaw.from_pretrained(folder).equation_text)
        L(N) = a·N^b + c
        """
        from ..hub.laws import save_law

        self._check_fitted()  # type: ignore[attr-defined]
        save_law(self, folder, **card)  # type: ignore[arg-type]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        message: str | None = None,
        **card: Any,
    ) -> Pushed:
        """Push the law, its card and its plot to a model repository in one commit, and return where it is.

        `private` makes a new repository private (and refuses a public one); `revision` is a branch. What did not
        change is not sent again. The card's options: `title`; `targets`, a table of runs that were not fitted, which
        the card compares with the prediction; `level` of the intervals (0.9); `series`, the `Series` fitted or its
        `repo@revision`; `proxies`, the models' `repo@revision`; `license`, an SPDX id; `tags`.

        Raises `HubError` with the reason and how to continue; the files are kept.
        """
        from ..hub.laws import push_law

        self._check_fitted()  # type: ignore[attr-defined]
        return push_law(
            self,  # type: ignore[arg-type]
            repo_id,
            private=private,
            revision=revision,
            token=token,
            message=message,
            **card,
        )

    @classmethod
    def from_pretrained(
        cls: type[L],
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> L:
        """Load a law from a repository or a folder; it predicts what the original does, to the last bit.

        `ScalingLaw.from_pretrained` finds the class, `PowerLaw.from_pretrained` takes a `PowerLaw` only. `revision` is
        a branch, a tag or a commit. Only JSON is read, and the stored parameters are checked against the stored runs.

        Raises `RecordError` for what is no law or was edited by hand, `HubError` if the Hub refuses.
        """
        from ..hub.laws import load_law

        return load_law(cls, source, revision=revision, token=token)  # type: ignore[arg-type]
