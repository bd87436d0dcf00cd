"""Merged options against those recorded from SimMIM: its nine YAMLs, and BASE, --opts, flags."""

import argparse
from functools import reduce
from pathlib import Path

import pytest
import yaml
from golden_cases import case_config, case_id, cases, recorded

import config as config_module

ROOT = Path(__file__).parents[2]
NINE = [case for case in cases('configs') if case['inputs']['mode'] == 'defaults']
MERGED = [case for case in cases('configs') if case['inputs']['mode'] == 'get_config']


def assert_as_recorded(config, case: dict) -> None:
    values, _ = recorded(case)
    assert len(values) > 60
    rtol = case['tolerance']['rtol']
    for key, want in values.items():
        got = reduce(getattr, config_module.LEGACY_KEYS.get(key, key).split('.'), config)
        got = list(got) if isinstance(got, tuple) else got
        assert isinstance(got, bool) == isinstance(want, bool), key
        assert got == (pytest.approx(want, rel=rtol, abs=0) if type(want) is float else want), key


def test_the_index_holds_both_modes() -> None:
    assert (len(NINE), len(MERGED)) == (9, 1)


@pytest.mark.parametrize('case', NINE, ids=case_id)
def test_defaults_and_the_recorded_keys_give_simmims_config(case) -> None:
    assert_as_recorded(case_config(case), case)


@pytest.mark.parametrize('case', NINE, ids=case_id)
def test_our_yaml_gives_simmims_config(case) -> None:
    config = config_module.get_config(argparse.Namespace(cfg=str(ROOT / case['inputs']['yaml'])))
    assert_as_recorded(config, case)


@pytest.mark.parametrize('case', MERGED, ids=case_id)
def test_base_file_opts_and_flags_merge_in_simmims_order(case, tmp_path, monkeypatch) -> None:
    inputs = case['inputs']
    for name, values in inputs['files'].items():
        (tmp_path / name).write_text(yaml.safe_dump(values))
    flags = dict.fromkeys(config_module.FLAG_KEYS) | inputs['flags']
    monkeypatch.chdir(tmp_path)
    config = config_module.get_config(
        argparse.Namespace(cfg=inputs['cfg'], opts=inputs['opts'], **flags)
    )
    assert_as_recorded(config, case)
