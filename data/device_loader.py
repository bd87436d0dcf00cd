"""Batches where the model runs: copied while it works on the one before, and finished there."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data import Loaders


class DeviceLoader:
    """A loader's batches on a device, each as `finish` leaves it.

    On a GPU one batch is always under way on a stream of its own, so that the copy does not wait
    for the model, nor the model for the copy.  `finish` runs in the model's stream.  On the CPU
    batches are finished and nothing else.

    Args:
        loader: gives batches: tensors, or tuples, lists and dicts of these.
        device: where the model runs.
        finish: batch on the device -> batch as the model's stage wants it; None: as it is.
    """

    def __init__(
        self,
        loader: DataLoader,
        device: torch.device,
        finish: Callable[[Any], Any] | None = None,
    ) -> None:
        self.loader = loader
        self.device = device
        self.finish = finish or (lambda batch: batch)

    @property
    def dataset(self) -> Dataset:
        return self.loader.dataset

    @property
    def batch_sampler(self) -> Any:
        return self.loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if self.device.type != 'cuda':
            return map(self.finish, self.loader)
        stream = torch.cuda.Stream(self.device)
        copies = _one_ahead(self._copy(batch, stream) for batch in self.loader)
        return (self.finish(_hand_over(*copy)) for copy in copies)

    def _copy(self, batch: Any, stream: torch.cuda.Stream) -> tuple[Any, torch.cuda.Event]:
        """A batch on the GPU, and when it is there."""
        with torch.cuda.stream(stream):
            copy = _each(lambda item: item.to(self.device, non_blocking=item.is_pinned()), batch)
            return copy, stream.record_event()


def on_device(loaders: Loaders, device: torch.device) -> Loaders:
    """All loaders of a stage, with batches that their data sets' `finish` has finished."""
    return Loaders(
        *(
            None
            if loader is None
            else DeviceLoader(loader, device, getattr(loader.dataset, 'finish', None))
            for loader in loaders
        )
    )


def _one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Each item, but only once the one after it has been made."""
    items = iter(items)
    for waiting in items:
        for item in items:
            yield waiting
            waiting = item
        yield waiting


def _hand_over(batch: Any, copied: torch.cuda.Event) -> Any:
    """To the current stream: it waits for the copy, and the memory is free once it is done."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    return _each(lambda item: item.record_stream(stream) or item, batch)


def _each(function: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    """The batch with the function of each of its tensors in place of it."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: _each(function, item) for key, item in batch.items()}
    return type(batch)(_each(function, item) for item in batch)
