"""Image files in, masks out: many small ones in batches, or one of any size by tiles, in bounded memory.

Reading, network and writing go on at the same time: while the engine works on a batch of windows, one thread reads
and normalises the next, and another writes the classes of the one before. Each waits when it is a batch ahead, so that
the memory only ever holds a few windows.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np

from pixelwise.core.errors import RunError
from pixelwise.models.checkpoint import fingerprint
from pixelwise.prediction.canvas import Blank, Canvas, open_canvas
from pixelwise.prediction.inputs import find_inputs, name_inputs
from pixelwise.prediction.items import Batch, Failure, Item, Listener, Outcome, Part, Step, Writer
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.reading import Reader
from pixelwise.prediction.requests import OutputOptions, Request, identity

__all__ = ["Listener", "Outcome", "predict_files"]

Made = TypeVar("Made")


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str],
    options: OutputOptions,
    axes: str | None = None,
    listener: Listener | None = None,
    open_canvas: Callable[[Blank], Canvas] = open_canvas,
) -> Outcome:
    """Predict files and write their masks; if one fails, the others go on.

    Args:
        predictor: the network and its preprocessing.
        inputs: files, folders, glob patterns.
        options: where to, and what.
        axes: of TIFF and Zarr files whose metadata do not tell.
        listener: hears how it goes.
        open_canvas: makes the place where an image's outputs go.

    Raises:
        DataError: there is nothing to predict. OutputError: the folder cannot be written, or is that of the images.
        RunError: `options.resume`, and nothing was begun, or something else. SettingError: the settings or the memory
            do not suit the network.
    """
    options.clean.require_classes(len(predictor.classes))
    begin, engine, listener = time.perf_counter(), predictor.runner.engine, listener or Listener()
    if engine.note:
        listener.note(engine.note)
    outcome = Outcome(engine=engine.name)
    settings = _settings(predictor, options)
    found = find_inputs(inputs, options.folder)
    outcome.failed += [{"input": text, "message": message} for text, message in found.failed.items()]
    requests = [Request(image, settings) for image in name_inputs(found.images)]
    reader = Reader(predictor, options, axes, listener, open_canvas)
    writer = Writer(len(requests), outcome, listener, options.folder, lambda done, total: reader.stop.check())
    _run(reader, _unfinished(requests, options, outcome), writer)
    listener.show(1.0, outcome.pixels)
    places = {str(request.input.source): place for place, request in enumerate(requests)}
    outcome.outputs.sort(key=lambda entry: places[entry["input"]])
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _settings(predictor: Predictor, options: OutputOptions) -> dict[str, Any]:
    """All that the outputs depend on besides the image, as in `Request`."""
    return {
        "network": fingerprint(predictor.network, predictor.config),
        "views": predictor.views,
        "half_precision": predictor.engine.amp,
        "probabilities": options.probability_type if options.probabilities else None,
        "threshold": options.clean.threshold,
        "fill_holes": options.clean.fill_holes,
        "smallest_object": options.clean.smallest_object,
        "inside": identity(options.inside) if options.inside else None,
        "skip_background": options.skip_background,
        "format": options.format,
        "overlay": options.overlay,
        **({"label_values": True} if options.label_values else {}),  # so that older predictions can be resumed
        "series": options.series,
        "nodata_label": options.nodata_label,
    }


def _unfinished(requests: Sequence[Request], options: OutputOptions, outcome: Outcome) -> list[Request]:
    """What an earlier process left to do; what it did goes into the outcome.

    Raises:
        RunError: there is nothing to resume.
    """
    if not options.resume:
        return list(requests)
    outcome.outputs = [entry for request in requests if (entry := request.finished(options))]
    if not outcome.outputs and not any(request.is_begun(options) for request in requests):
        raise RunError(f"{options.folder}: contains no prediction to resume. Start without --resume.")
    done = {entry["input"] for entry in outcome.outputs}
    unfinished = [request for request in requests if str(request.input.source) not in done]
    outcome.finished_before = not unfinished
    return unfinished


def _run(reader: Reader, requests: Sequence[Request], writer: Writer) -> None:
    """The three parts at once: reading in a thread of its own, the engine in this one, writing in another."""
    with (
        ahead(_batches(reader.items(requests))) as batches,
        ThreadPoolExecutor(1, thread_name_prefix="writing") as writing,
    ):
        waiting: list[Future[None]] = []
        try:
            for batch in batches:
                items = [*_predicted(reader, batch.parts), *batch.others]
                while len(waiting) > 1:
                    waiting.pop(0).result()
                waiting.append(writing.submit(writer.write, items))
            for written in waiting:
                written.result()
        except BaseException:
            reader.stop.set()  # so that the other threads end what takes long
            raise


def _batches(steps: Iterable[Step]) -> Iterator[Batch]:
    batch = Batch()
    for step in steps:
        if not step.fits(batch):
            yield batch
            batch = Batch()
        step.enter(batch)
    if batch.parts or batch.others:
        yield batch


def _predicted(reader: Reader, parts: Sequence[Part]) -> list[Item]:
    """The windows of a batch with their outputs."""
    if all(part.image.is_failed for part in parts):
        return []
    windows = parts[0].window[None] if len(parts) == 1 else np.stack([part.window for part in parts])
    try:
        with reader.engine_lock:
            outputs = reader.predictor.runner(windows)
    except Exception as error:  # which concerns these images; the others may fit
        return [Failure(part.image.input, part.image, error) for part in parts]
    return [
        part.predicted({name: values[index] for name, values in outputs.items()}) for index, part in enumerate(parts)
    ]


@contextmanager
def ahead(made: Iterator[Made]) -> Iterator[Iterator[Made]]:
    """Let a thread make things one or two ahead of the one that takes them, which also gets the thread's errors.

    >>> with ahead(iter([1, 2, 3])) as numbers:
    ...     list(numbers)
    [1, 2, 3]
    """
    queue: Queue[tuple[Made | None, BaseException | None]] = Queue(1)
    stop = Event()

    def make() -> None:
        error: BaseException | None = None
        try:
            for one in made:
                queue.put((one, None))
                if stop.is_set():
                    return
        except BaseException as raised:
            error = raised
        queue.put((None, error))

    def take() -> Iterator[Made]:
        while True:
            one, error = queue.get()
            if error is not None:
                raise error
            if one is None:
                return
            yield one

    thread = Thread(target=make, name="reading", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        while thread.is_alive():  # it may be waiting for a place
            with suppress(Empty):
                queue.get(timeout=0.05)
        thread.join()
