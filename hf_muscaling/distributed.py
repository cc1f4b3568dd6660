"""Several processes, one model: what the launcher started, and FSDP2 sharding that keeps the μP groups.

Whoever asks for K processes or for sharding and would get less meets an error here. Sharding swaps every parameter for
a new tensor, so nothing may hang on tensors: groups are kept by parameter name, multipliers are floats on modules.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_muscaling.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

WRAPPERS = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")
"""Path elements that FSDP, `torch.compile` and activation checkpointing put into parameter names; DDP's is in front."""


def launched_processes() -> int:
    """Return the number of processes that train together, 1 without a launcher.

    Raises ConfigurationError if the launcher was asked for more than Accelerate uses (each would train alone), or for a
    way of sharding that is not supported.
    """
    import torch
    from accelerate import PartialState

    _check_request()
    # Without cpu=True Accelerate takes a CPU rank of torchrun for a single process.
    state = PartialState(cpu=not torch.accelerator.is_available())
    _check_processes(state.num_processes)
    return state.num_processes


def fsdp_requested(args: Any = None) -> bool:
    """Whether the launcher's configuration, or `TrainingArguments`, ask for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or bool(getattr(args, "fsdp", None))


def _check_processes(used: int) -> None:
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != used:
        raise ConfigurationError(
            f"The launcher started {asked} processes but Accelerate uses {used}, so each would train "
            "alone: check the distributed type in `accelerate config`, or use torchrun --nproc_per_node."
        )
    # `accelerate launch` has a single-process launcher that takes --num_processes and starts one process; what it
    # leaves of the wish is the address at which the others should have met (accelerate.utils.launch).
    names = os.environ.keys()
    if used == 1 and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= names and "WORLD_SIZE" not in names:
        raise ConfigurationError(
            "accelerate launch was asked for several processes and started one (it does so with --cpu, and with "
            "distributed_type MULTI_CPU or NO): use --config_file recipes/accelerate/ddp_cpu.yaml, or --multi_gpu, "
            "which serves CPUs too. If one process is meant, unset MASTER_ADDR."
        )


def _check_request(args: Any = None) -> None:
    """Refuse what cannot work with μP groups before anything is built."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" or getattr(args, "deepspeed", None):
        raise ConfigurationError(
            "DeepSpeed is not supported: ZeRO-3 leaves empty parameters on every process, whose shapes decide the μP "
            "roles. FSDP2 shards the same states: --config_file recipes/accelerate/fsdp2.yaml."
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if args is not None and precision != "no" and not getattr(args, precision, False):
        raise ConfigurationError(
            f"The launcher asks for mixed precision {precision}, the training arguments do not, and they are what a "
            f"run's record tells: set {precision} there (--bf16), and 'no' in the launcher's configuration."
        )
    if int(os.environ.get("PARALLELISM_CONFIG_TP_SIZE", "1")) > 1:
        raise ConfigurationError(
            "Accelerate's tp_size splits no model, it expects one that is split: load yours with "
            "hf_muscaling.distributed.tensor_parallel and launch with recipes/accelerate/fsdp2_tp.yaml."
        )
    if not fsdp_requested(args):
        return
    config = getattr(args, "fsdp_config", None) if getattr(args, "fsdp", None) else None
    version = (config or {}).get("version", 2) if config is not None else os.environ.get("FSDP_VERSION", "1")
    if int(version) != 2:
        raise ConfigurationError(
            f"FSDP version {version} is not supported (its full checkpoints fail and its sharded ones lose Adam's "
            "state): set fsdp_version: 2 in fsdp_config, or --fsdp_version 2; Accelerate's default is 1."
        )


@contextmanager
def accelerate_for(args: Any, model: Any = None) -> Iterator[None]:
    """Let Accelerate shard on a CPU where that is asked for: a context in which to make an Accelerator.

    Asked for by the launcher or the arguments (FSDP), or by a model that is already sharded (tensor parallelism).

    Raises ConfigurationError as `launched_processes` does.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    _check_request(args)
    if is_split(model):
        _check_split(args)
    args.device  # noqa: B018  makes the process group and Accelerate's state
    state = PartialState()
    # Accelerate turns GPU-like kinds into FSDP and leaves MULTI_CPU as DDP, without a word, and refuses tensor
    # parallelism; no argument, variable or file gets round it. The device stays the CPU and the backend gloo. The one
    # private override of this package.
    sharded = fsdp_requested(args) or is_split(model)
    if sharded and state.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    launched = os.environ.get("ACCELERATE_USE_FSDP")
    try:
        yield
    finally:
        if launched is None:  # an Accelerator would leave its wish to all that are made after it
            os.environ.pop("ACCELERATE_USE_FSDP", None)


def is_split(model: Any) -> bool:
    """Whether a model came out of `tensor_parallel`, or was sharded by transformers at load in another way."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def _check_split(args: Any) -> None:
    if fsdp_requested(args):
        raise ConfigurationError(
            "The model is split already: launch without FSDP (recipes/accelerate/fsdp2_tp.yaml) and give "
            "tensor_parallel its fsdp_size instead."
        )
    if str(getattr(args.save_strategy, "value", args.save_strategy)) != "no":
        raise ConfigurationError(
            "Checkpoints of a tensor-parallel model cannot be continued: Trainer writes the first process's part of "
            "Adam's state only. Set save_strategy='no'; trainer.save_model gathers the whole model at the end."
        )


def check_accelerator(accelerator: "Accelerator", args: Any) -> None:
    """Raise ConfigurationError unless the accelerator does what was asked for; make FSDP2 report fp32 losses."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    _check_processes(accelerator.num_processes)
    if not fsdp_requested(args):
        return
    if not accelerator.is_fsdp2:
        raise ConfigurationError(
            f"FSDP was asked for, but Accelerate chose {accelerator.distributed_type.value}: start the script with a "
            "launcher (accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes K …, or torchrun "
            "--nproc_per_node K), which FSDP needs even for one process."
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.cpu_ram_efficient_loading:
        raise ConfigurationError(
            "fsdp_cpu_ram_efficient_loading leaves every process but the first without weights, and sharding here "
            "takes them layer by layer from the first: set it to false."
        )
    plugin.auto_wrap_policy = None  # `shard_model` chooses the units
    if args.bf16 or accelerator.mixed_precision == "bf16":
        # Accelerate's own policy casts the outputs, the loss among them, to bf16: an error of 1e-2 nats.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    if plugin.activation_checkpointing:
        # Accelerate would wrap the layers after they are sharded; transformers' own needs no wrapper.
        plugin.activation_checkpointing = False
        args.activation_checkpointing = True


def clean_name(name: str) -> str:
    """Return a parameter's name without what wrappers put into it.

    >>> clean_name("module._orig_mod.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    return ".".join(part for part in name.removeprefix("module.").split(".") if part not in WRAPPERS)


def group_names(model: "nn.Module", optimizer: "torch.optim.Optimizer") -> list[list[str]]:
    """Return the parameter names of each of an optimizer's groups, in order.

    Raises ConfigurationError if the optimizer holds a tensor that is no parameter of the model.
    """
    names = {id(p): clean_name(name) for name, p in model.named_parameters()}
    groups = [[names.get(id(p)) for p in group["params"]] for group in optimizer.param_groups]
    if any(name is None for group in groups for name in group):
        raise ConfigurationError(
            "The optimizer holds tensors that are no parameters of this model: build it from the model that is trained."
        )
    return [[name for name in group if name is not None] for group in groups]


def point_groups(model: "nn.Module", optimizer: "torch.optim.Optimizer", names: Sequence[Sequence[str]]) -> None:
    """Make each group hold the model's present parameters of the given names, with its hyperparameters unchanged."""
    parameters = {clean_name(name): p for name, p in model.named_parameters()}
    for group, members in zip(optimizer.param_groups, names, strict=True):
        group["params"] = [parameters[name] for name in members]


def is_sharded(model: "nn.Module") -> bool:
    """Whether `shard_model` (or any FSDP2 sharding) has been applied to the model itself."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(getattr(model, "_orig_mod", model), FSDPModule)


def layer_units(model: "nn.Module") -> Iterator["nn.Module"]:
    """Return the layers that are gathered one at a time: the members of the outermost lists of blocks.

    These are the transformer blocks of every architecture here, a shared block once. Embeddings, readouts, last norms
    and all that ties them stay together in the model's own unit: torch refuses a tie across two units (BERT's bias).
    """
    from torch import nn

    seen = set()
    for child in model.children():
        blocks = list(child) if isinstance(child, nn.ModuleList) else layer_units(child)
        for block in blocks:
            if block not in seen and any(True for _ in block.parameters()):
                seen.add(block)
                yield block


def shard_model(
    model: "nn.Module",
    mesh: "DeviceMesh | None" = None,
    *,
    mp_policy: Any = None,
    offload_policy: Any = None,
    reshard_after_forward: bool = True,
) -> "nn.Module":
    """Shard a model in place with FSDP2, one unit a transformer block, and return it; MuTrainer does so by itself.

    Every process starts from the weights of the first, as under DDP: its own initialisation does not matter. Build the
    optimizer afterwards: `MuAdamW(shard_model(model), lr=…)`.

    Args:
        model: a whole model on any device, the same class on every process.
        mesh: the processes to shard over, by default all of them; (replicas, shards) if it has two dimensions.
        mp_policy: `MixedPrecisionPolicy`; parameters are kept in fp32 if it computes in another type.
        offload_policy: `OffloadPolicy` or `CPUOffloadPolicy`.
        reshard_after_forward: free a block's gathered weights between forward and backward.

    Raises ConfigurationError if the weights are not there (on `meta`). Source: Zhao et al. 2023, PyTorch FSDP.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, OffloadPolicy, fully_shard
    from torch.distributed.tensor import DTensor

    missing = [name for name, p in model.named_parameters() if p.is_meta]
    if missing:
        raise ConfigurationError(f"Only a model with weights can be sharded; {missing[0]} is on the meta device.")
    if mesh is None:
        device = torch.accelerator.current_accelerator(check_available=True)
        mesh = init_device_mesh(device.type if device else "cpu", (dist.get_world_size(),))
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": mp_policy or MixedPrecisionPolicy(),
        "offload_policy": offload_policy or OffloadPolicy(),
    }
    upcast = options["mp_policy"].param_dtype is not None

    def shard(unit: "nn.Module", **further: Any) -> None:
        for tensor in [*unit.parameters(), *unit.buffers()]:
            if isinstance(tensor, DTensor):
                continue  # of a unit within
            value = tensor.detach().to(mesh.device_type).contiguous()
            value = value.float() if upcast and tensor.requires_grad else value
            dist.broadcast(value, src=0)
            tensor.data = value
        fully_shard(unit, **options, **further)

    for layer in list(layer_units(model)):
        shard(layer, reshard_after_forward=reshard_after_forward)
    shard(model)
    return model


def shard_for(accelerator: "Accelerator", model: "nn.Module") -> None:
    """Shard a model over the processes and with the policies of an accelerator under FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh

    plugin, meshes = accelerator.state.fsdp_plugin, accelerator.torch_device_mesh
    if meshes is None:
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    else:
        mesh = meshes[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    shard_model(
        model,
        mesh,
        mp_policy=plugin.mixed_precision_policy,
        offload_policy=plugin.cpu_offload,
        reshard_after_forward=plugin.reshard_after_forward,
    )


def tensor_parallel(model: Any, tp_size: int, fsdp_size: int = 1) -> Any:
    """Return the model split over `tp_size` processes in every matrix, and over `fsdp_size` groups of them by FSDP2.

    transformers' own plan for the architecture (Llama has one; GPT-2, BERT and T5 have none) splits a model where it is
    loaded, so this goes through a temporary folder that every process must see. Every process ends with the weights of
    the first; train the result with MuTrainer or `MuAdamW` as ever. `tp_size * fsdp_size` is the number of processes.

    Raises ConfigurationError if the architecture has no plan, or the sizes are not those of the launch.
    """
    import tempfile

    import torch.distributed as dist
    from accelerate.utils import broadcast_object_list
    from transformers.distributed import DistributedConfig

    plan = getattr(model.config, "base_model_tp_plan", None)
    if not plan:
        raise ConfigurationError(
            f"transformers has no tensor-parallel plan for {type(model).__name__}; use FSDP2, which needs none."
        )
    launched = launched_processes()
    if tp_size * fsdp_size != launched:
        raise ConfigurationError(
            f"tp_size={tp_size} times fsdp_size={fsdp_size} is not the number of processes, {launched}; launch "
            f"{tp_size * fsdp_size} (accelerate launch --config_file recipes/accelerate/fsdp2_tp.yaml)."
        )
    folder = [tempfile.mkdtemp(prefix="hf_muscaling-") if dist.get_rank() == 0 else None]
    broadcast_object_list(folder)
    try:
        if dist.get_rank() == 0:
            model.save_pretrained(folder[0])
        dist.barrier()
        layout = DistributedConfig(tp_size=tp_size, fsdp_size=fsdp_size)
        split = type(model).from_pretrained(folder[0], distributed_config=layout)
        dist.barrier()
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(folder[0], ignore_errors=True)
    return split
