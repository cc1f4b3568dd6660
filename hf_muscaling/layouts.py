"""Checkpoints of one layout read in another: written by K processes, continued in one, in K', sharded or not.

Trainer writes three layouts, none of which reads another:

* plain (one process, DDP): `optimizer.pt`, Adam's moments by number, in the order of the groups;
* full (FSDP2, FULL_STATE_DICT): `pytorch_model_fsdp.bin` and `optimizer.bin`, moments by parameter name;
* sharded (FSDP2, SHARDED_STATE_DICT): the same as folders of `torch.distributed.checkpoint`.

Names decide, never numbers: a checkpoint whose groups are not the model's is refused.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp

from hf_muscaling.errors import RecordError

Layout = Literal["plain", "full", "sharded"]

# The names under which Trainer and Accelerate write.
_MODEL, _OPTIMIZER = "pytorch_model_fsdp", "optimizer"
_SHARED = ("trainer_state.json", "scheduler.pt", "scaler.pt", "training_args.bin", "config.json")


def checkpoint_layout(checkpoint: Path) -> Layout:
    """Return the layout of a Trainer checkpoint. Raises RecordError if it has none, or no optimizer."""
    files: dict[Layout, tuple[str, ...]] = {
        "full": (f"{_MODEL}.bin", f"{_OPTIMIZER}.bin"),
        "sharded": (f"{_MODEL}_0", f"{_OPTIMIZER}_0"),
        "plain": ("optimizer.pt",),
    }
    for layout, names in files.items():
        if all((checkpoint / name).exists() for name in names):
            return layout
    raise RecordError(
        f"{checkpoint} holds no optimizer (neither optimizer.pt, optimizer.bin nor optimizer_0): it is not a whole "
        "checkpoint; continue from another one."
    )


@contextmanager
def readable(
    checkpoint: str | Path | None, layout: Layout, model: torch.nn.Module, groups: Sequence[Sequence[str]]
) -> Iterator[str | None]:
    """Give the path of a checkpoint in a layout: itself, or a translation beside it for as long as the context lasts.

    `groups` are the parameter names of the optimizer's groups, `model` says which names the weights have. Every process
    calls it; the first translates. Raises RecordError if the checkpoint's groups are not these.
    """
    if checkpoint is None or checkpoint_layout(Path(checkpoint)) == layout:
        yield None if checkpoint is None else str(checkpoint)
        return
    state = PartialState()
    found: list[Any] = [None, None]
    if state.is_main_process:
        try:
            found[0] = tempfile.mkdtemp(dir=Path(checkpoint).parent, prefix=f".{Path(checkpoint).name}-{layout}-")
            translate(Path(checkpoint), Path(found[0]), layout, model, groups)
        except (OSError, RecordError) as error:
            found[1] = error
    broadcast_object_list(found)
    try:
        if found[1] is not None:
            raise found[1]
        yield found[0]
        state.wait_for_everyone()
    finally:
        if state.is_main_process and found[0] is not None:
            shutil.rmtree(found[0], ignore_errors=True)


def translate(
    checkpoint: Path, folder: Path, layout: Layout, model: torch.nn.Module, groups: Sequence[Sequence[str]]
) -> None:
    """Write a checkpoint into `folder` in another layout. Raises RecordError if its groups are not `groups`."""
    for name in _SHARED:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, folder / name)
    weights = _read_weights(checkpoint, folder, model)
    optimizer = _matched(_read_optimizer(checkpoint, folder, groups), groups, checkpoint)
    if layout == "plain":
        torch.save(weights, folder / "pytorch_model.bin")
        torch.save(_numbered(optimizer), folder / "optimizer.pt")
    elif layout == "full":
        torch.save(weights, folder / f"{_MODEL}.bin")
        torch.save(optimizer, folder / f"{_OPTIMIZER}.bin")
    else:
        for name, content in ((_MODEL, {"model": weights}), (_OPTIMIZER, {"optimizer": optimizer})):
            torch.save(content, folder / "whole.bin")
            torch_save_to_dcp(folder / "whole.bin", folder / f"{name}_0")
        (folder / "whole.bin").unlink()


def _read_weights(checkpoint: Path, folder: Path, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return every weight by name; a safetensors file leaves out the second name of a tied one."""
    layout = checkpoint_layout(checkpoint)
    if layout == "full":
        return _load(checkpoint / f"{_MODEL}.bin")
    if layout == "sharded":
        return _load_sharded(checkpoint / f"{_MODEL}_0", folder)["model"]
    weights: dict[str, torch.Tensor] = {}
    for path in checkpoint.glob("*.safetensors"):
        weights |= load_file(path)
    if not weights:
        raise RecordError(f"{checkpoint} holds no model.safetensors; continue from another checkpoint.")
    tensors: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), []).append(name)
    for names in tensors.values():
        stored = next((name for name in names if name in weights), None)
        if stored is None:
            raise RecordError(f"{checkpoint} lacks the weight {names[0]}: it belongs to another model.")
        weights |= dict.fromkeys(names, weights[stored])
    return weights


def _read_optimizer(checkpoint: Path, folder: Path, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the optimizer's state by parameter name."""
    layout = checkpoint_layout(checkpoint)
    if layout == "full":
        return _load(checkpoint / f"{_OPTIMIZER}.bin")
    if layout == "sharded":
        return _load_sharded(checkpoint / f"{_OPTIMIZER}_0", folder)["optimizer"]
    stored = _load(checkpoint / "optimizer.pt")
    sizes = [len(group["params"]) for group in stored["param_groups"]]
    if sizes != [len(group) for group in groups]:
        raise _mismatch(checkpoint, f"{sizes} parameters", f"{[len(g) for g in groups]}")
    names = {
        n: name
        for group, members in zip(stored["param_groups"], groups, strict=True)
        for n, name in zip(group["params"], members, strict=True)
    }
    renamed = [{**group, "params": [names[n] for n in group["params"]]} for group in stored["param_groups"]]
    return {"state": {names[n]: state for n, state in stored["state"].items()}, "param_groups": renamed}


def _matched(optimizer: dict[str, Any], groups: Sequence[Sequence[str]], checkpoint: Path) -> dict[str, Any]:
    """Return the state with its groups and their members in the order of `groups`."""
    stored = {frozenset(group["params"]): group for group in optimizer["param_groups"]}
    if set(stored) != {frozenset(members) for members in groups}:
        raise _mismatch(checkpoint, "other parameters", f"those of {len(groups)} groups")
    ordered = [{**stored[frozenset(members)], "params": list(members)} for members in groups]
    return {"state": optimizer["state"], "param_groups": ordered}


def _numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return a state by name as torch's own `state_dict`, numbered through the groups."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    number = {name: n for n, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    state = {number[name]: state for name, state in optimizer["state"].items() if name in number}
    return {"state": state, "param_groups": groups}


def _mismatch(checkpoint: Path, found: str, expected: str) -> RecordError:
    return RecordError(
        f"The optimizer groups of {checkpoint} hold {found}, the model's hold {expected}: it was written for another "
        "model or another weight decay; start anew, or restore the settings that it was written with."
    )


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_sharded(path: Path, scratch: Path) -> dict[str, Any]:
    """Return the content of a folder of torch.distributed.checkpoint, read in this process alone."""
    whole = scratch / "whole.bin"
    dcp_to_torch_save(path, whole)
    content = _load(whole)
    whole.unlink()
    return content
