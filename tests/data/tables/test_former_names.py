"""Names of modules that pages told users before the modules moved."""

import data.known_sets
import data.labels
from data.tables import known_sets, labels


def test_names_that_pages_told_users_are_those_of_the_modules() -> None:
    for former, module in ((data.known_sets, known_sets), (data.labels, labels)):
        for name in former.__all__:
            assert getattr(former, name) is getattr(module, name), name
    assert {'ages', 'images_below', 'join', 'listed', 'open_table', 'sexes', 'views'} == {
        *data.known_sets.__all__
    }
    assert {'LABELS', 'POSITIVE', 'register_policy'} == {*data.labels.__all__}
