"""All that changes in a run, and its way to disk and back."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pixelwise.core.errors import RunError
from pixelwise.models import checkpoint
from pixelwise.training.step import Learner


@dataclass
class State:
    """What changes in a run besides tensors; it is saved with them."""

    step: int = 0
    epoch: int = 0  # epochs finished
    losses: dict[str, float] = field(default_factory=dict)  # sums of the loss's parts over the epoch under way
    loss_steps: int = 0
    seconds: float = 0.0  # wall clock of earlier sittings, whole command
    first_seconds: float | None = None  # of the first step: the schedule of a run with `minutes` starts there
    validation_seconds: float = 0.0
    best_epoch: int = 0
    best_value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def save_state(path: Path, learner: Learner, state: State) -> None:
    """Write all that a resume needs, as one file; every process takes part, the first one writes.

    Raises:
        OutputError: the file cannot be written.
    """
    fabric = learner.fabric
    generators = _generators(fabric)
    if fabric.global_rank == 0:
        tensors = {
            **checkpoint.flatten("network", learner.network.state_dict()),
            **checkpoint.flatten("average", learner.average.network.state_dict()),
            **checkpoint.flatten("optimizer", checkpoint.optimizer_tensors(learner.optimizer)),
            **checkpoint.flatten("random", generators),
        }
        metadata = {"state": asdict(state), "scaler": _scaler_state(fabric), "processes": fabric.world_size}
        checkpoint.save(path, tensors, metadata)
    fabric.barrier()


def restore_state(path: Path, learner: Learner) -> State:
    """Put a learner back to where `save_state` left it.

    Raises:
        RunError: the checkpoint cannot be used, or it is that of other processes or of an earlier pixelwise.
    """
    fabric = learner.fabric
    tensors, metadata = checkpoint.load(path)
    if metadata["processes"] != fabric.world_size:
        raise RunError(f"{path}: was written by {metadata['processes']} processes, not {fabric.world_size}.")
    try:
        state = State(**metadata["state"])
    except TypeError as error:
        raise RunError(
            f"{path}: was written by an earlier pixelwise, whose trainings cannot be resumed here; resume it with that "
            "one, or start a new run from its weights with --init."
        ) from error
    checkpoint.load_weights(learner.network, checkpoint.unflatten("network", tensors), path)
    checkpoint.load_weights(learner.average.network, checkpoint.unflatten("average", tensors), path)
    checkpoint.restore_optimizer(learner.optimizer, checkpoint.unflatten("optimizer", tensors))
    _restore_generators(fabric, tensors)
    if metadata["scaler"]:
        cast(Any, fabric.strategy.precision).scaler.load_state_dict(metadata["scaler"])
    return state


def _generators(fabric: Fabric) -> dict[str, Tensor]:
    """The states of torch's generators in every process; the samples' are functions of their numbers."""
    own = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(fabric.device)
    if fabric.world_size == 1:
        return {f"{name}/0": state for name, state in own.items()}
    gathered = {name: cast(Tensor, fabric.all_gather(state.to(fabric.device))) for name, state in own.items()}
    return {f"{name}/{rank}": row.cpu() for name, rows in gathered.items() for rank, row in enumerate(rows)}


def _restore_generators(fabric: Fabric, tensors: dict[str, Tensor]) -> None:
    rank = fabric.global_rank
    torch.set_rng_state(tensors[f"random/cpu/{rank}"])
    if f"random/cuda/{rank}" in tensors and fabric.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"random/cuda/{rank}"], fabric.device)


def _scaler_state(fabric: Fabric) -> dict[str, Any]:
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return dict(scaler.state_dict()) if scaler is not None else {}
