# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/ijb_size.py` writes, reads and evaluates a small IJB-C."""

from pathlib import Path

SCRIPTS = Path(__file__).parents[3] / 'benchmarks'


def test_ijb_size(load_script, capsys):
  script = load_script(SCRIPTS / 'ijb_size.py')
  assert script.main(['--share=0.01', '--size=8']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].split() == ['phase', 'seconds', 'CPU', 's', 'GiB']
  assert lines[3].startswith('read ') and lines[5].startswith('in all')
  assert any('156,584 pairs, 195 genuine' in line for line in lines)
