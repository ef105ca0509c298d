"""A network measured on the val split while it trains."""

from typing import Any, cast

import torch
from torch import Tensor

from pixelwise.core.config import Config
from pixelwise.data.sets.folder import DataSet
from pixelwise.engines import EngineChoice
from pixelwise.task import Task
from pixelwise.training.step import Learner


class Validation:
    """The averaged weights on the val split, which the processes share out among them."""

    def __init__(self, task: Task, config: Config, learner: Learner, dataset: DataSet) -> None:
        self.task, self.config, self.learner = task, config, learner
        self.samples, self.axes = dataset.split("val"), dataset.description.axes

    def figures(self) -> dict[str, float | None]:
        """Pooled figures, the task's own among them (None where nothing counts), the same in all processes."""
        fabric, average, own = self.learner.fabric, self.learner.average.network, self.task.figure.name
        self._agree_on_buffers()
        engine = EngineChoice("torch", str(fabric.device))
        predictor = self.task.predictor(average, self.config, engine)
        tally = self.task.tally(self.config, full=False)
        for sample in self.samples[fabric.global_rank :: fabric.world_size]:
            for record in self.task.records(sample, self.config, self.axes):
                tally.add(record, self.task.predict(predictor, record.image, record.facts))
        for other in self._others(tally):
            tally.merge(other)
        figures = tally.figures()
        return {name: figures[name] for name in figures if isinstance(figures[name], float) or name == own}

    def _others(self, tally: Any) -> list[Any]:
        """What the other processes counted, in the order that all of them keep."""
        fabric = self.learner.fabric
        if fabric.world_size == 1:
            return []
        gathered: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(gathered, tally)
        return gathered[: fabric.global_rank] + gathered[fabric.global_rank + 1 :]

    def _agree_on_buffers(self) -> None:
        """Batch-norm figures differ between processes, which saw other samples: take their mean."""
        fabric = self.learner.fabric
        if fabric.world_size > 1:
            for buffer in self.learner.average.network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(cast(Tensor, fabric.all_reduce(buffer, reduce_op="mean")))
