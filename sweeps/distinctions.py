"""What distinguishes the rows of a sweep, as columns of its tables."""

from config import NO_ENCODER, encoder_name
from sweeps.files import Row, Sweep, expected_config

TRAINED_WEIGHTS = {'full': 'all', 'last_layer': 'last layer'}  # FINETUNE.MODE -> cell


def distinctions(sweep: Sweep) -> dict[str, dict[str, str]]:
    """Return the cells of each row by the title of their column, if they differ between rows."""
    facts = {row.name: _facts(row) for row in sweep.rows if row.configs}
    titles = dict.fromkeys(title for cells in facts.values() for title in cells)
    differing = [
        title
        for title in titles
        if len({cells[title] for cells in facts.values() if title in cells}) > 1
    ]
    return {
        row.name: {title: facts.get(row.name, {}).get(title, '') for title in differing}
        for row in sweep.rows
    }


def _facts(row: Row) -> dict[str, str]:
    config = expected_config(row, 'finetune')
    mode, facts = config.FINETUNE.MODE, {}
    facts['encoder'] = '' if mode in NO_ENCODER else encoder_name(config)
    facts['trained weights'] = TRAINED_WEIGHTS.get(mode, mode.replace('_', ' '))
    if row.pretraining == 'simmim':
        data = expected_config(row, 'simmim').DATA
        facts['masks'] = f'{data.MASK_TYPE}, {data.MASK_PATCH_SIZE} px'
        facts['hidden in pre-training'] = f'{100 * data.MASK_RATIO:g} %'
    hidden = {'fine-tuning': config.FINETUNE.MASK_RATIO, 'scoring': config.EVAL.MASK_RATIO}
    return facts | {f'hidden in {name}': f'{100 * share:g} %' for name, share in hidden.items()}
