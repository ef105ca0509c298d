"""What can be learnt: one file a task, all of them behind the protocol in `pixelwise.task`."""

from pathlib import Path

from pixelwise.core.config import Config, read_config
from pixelwise.core.errors import RunError, SettingError, near
from pixelwise.core.run_folder import RunFolder
from pixelwise.task import Task
from pixelwise.tasks.pretrain import PRETRAININGS
from pixelwise.tasks.segment import Segmentation

__all__ = ["PRETRAININGS", "TASKS", "choose_pretraining", "choose_task", "task_of"]

TASKS: dict[str, Task] = {"segment": Segmentation()}
"""What `train` learns, by name."""


def choose_task(name: str | None, resumed: Path | None = None) -> Task:
    """The task of a training: the named one, or that of the run that is resumed, or what the labels say.

    Masks, the only labels so far, say segmentation.

    Raises:
        SettingError: the task is unknown. RunError: the run trains an encoder alone, or cannot be read.
    """
    if name is not None and name not in TASKS:
        raise SettingError(f"--task {name}: unknown task; {near(name, TASKS)}")
    task = _task_in(resumed)
    if task is not None and task.name in PRETRAININGS:
        raise RunError(f"{resumed}: trains an encoder alone ({task.name}). Resume it with `pixelwise pretrain`.")
    return task if task is not None and name is None else TASKS[name or "segment"]


def choose_pretraining(kind: str | None, resumed: Path | None = None) -> Task:
    """The named way to train an encoder alone, or that of the run that is resumed, or by patches.

    Raises:
        SettingError: the kind is unknown. RunError: the run trains a whole network or is of another kind, or cannot be
            read.
    """
    if kind is not None and kind not in PRETRAININGS:
        raise SettingError(f"--kind {kind}: unknown way to train an encoder; {near(kind, PRETRAININGS)}")
    task = _task_in(resumed)
    if task is None:
        return PRETRAININGS[kind or "patches"]
    if task.name not in PRETRAININGS:
        raise RunError(f"{resumed}: trains a whole network ({task.name}). Resume it with `pixelwise train`.")
    if kind not in (None, task.name):
        raise RunError(f"{resumed}: was started with --kind {task.name}. Leave --kind out to resume it.")
    return task


def _task_in(folder: Path | None) -> Task | None:
    """The task of the run in a folder, if there is one."""
    if folder is None or not RunFolder(folder).config.is_file():
        return None
    return task_of(read_config(RunFolder(folder).config))


def task_of(config: Config) -> Task:
    """The task that a run was trained for.

    Raises:
        SettingError: this pixelwise has no such task.
    """
    known = {**TASKS, **PRETRAININGS}
    if config.task not in known:
        raise SettingError(
            f"task = {config.task!r}: this version of pixelwise does not know that task; {near(config.task, known)}"
        )
    return known[config.task]
