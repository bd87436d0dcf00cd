"""What TensorBoard shows of a run folder."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of its scalars, in the order of the files."""
    found = {}
    for board in _boards(run):
        for tag in board.Tags()['scalars']:
            assert tag not in found, 'a curve is in one folder'
            found[tag] = [(event.step, event.value) for event in board.Scalars(tag)]
    return found


def image_steps(run: Path) -> dict[str, list[int]]:
    """Tag -> steps of its images."""
    return {
        tag: [event.step for event in board.Images(tag)]
        for board in _boards(run)
        for tag in board.Tags()['images']
    }


def _boards(run: Path) -> list[EventAccumulator]:
    folders = sorted({file.parent for file in (run / 'tensorboard').rglob('*tfevents*')})
    everything = {'scalars': 0, 'images': 0}
    return [EventAccumulator(str(folder), everything).Reload() for folder in folders]
