"""What a pre-training took: images and seconds of its epochs, and the machines that it ran on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from provenance import read_record


def epoch_seconds(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of training of each epoch, without evaluation, from the lines of metrics.jsonl.

    An epoch that a stop cut in two is logged from where it went on; at its own rate it counts as a
    whole one.
    """
    images = _epoch_images(records)
    return [images / record['images_per_second'] for record in _trained(records)]


def training_cost(records: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """`epochs`, `images` seen and `seconds` (epochs x the median one); None where none is timed.

    An epoch that a stop cut off at its last step is logged without a batch: it counts, untimed.
    """
    measured = epoch_seconds(records)
    if not measured:
        return None
    epochs = sum(record['epoch'] >= 0 for record in records)
    images = epochs * _epoch_images(records)
    return {'epochs': epochs, 'images': images, 'seconds': epochs * median(measured)}


def machines(folder: Path) -> list[tuple[str, ...]]:
    """What a run's seconds go by, each once: processes and their GPUs, or CPU and threads.

    By run.json: what the run began on, then what each start that trained was on. Starts that older
    versions wrote down do not say it.
    """
    record = read_record(folder) or {}
    begin = (record.get('environment') or {}) | {'processes': record.get('processes', 1)}
    starts = [start for start in record.get('starts', []) if 'processes' in start]
    return list(dict.fromkeys(map(_machine, [begin, *starts])))


def _machine(facts: Mapping[str, Any]) -> tuple[str, ...]:
    devices = facts.get('gpus') or [str(facts.get('cpu')), f'{facts.get("threads")} threads each']
    return (f'{facts["processes"]} process(es)', *devices)


def _trained(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [r for r in records if r['epoch'] >= 0 and r.get('seconds') and r['images_per_second']]


def _epoch_images(records: Sequence[Mapping[str, Any]]) -> int:
    """Of a whole epoch, on all processes."""
    found = (round(r['images_per_second'] * r['seconds']) for r in _trained(records))
    return max(found, default=0)
