# SPDX-License-Identifier: Apache-2.0
"""The page of a study: its numbers, sentences, drawings and notes."""

import itertools
import json
import math
import shlex
import shutil
import statistics

import numpy as np
import pytest

from elasticface_jax import report
from elasticface_jax.report import study_repeat, study_words, svg
from elasticface_jax.report.study_analysis import Analysis, Comparison

from . import study_folders, test_page
from .study_folders import NAMES, edit, fingerprint_of, value_of
from .test_page import Tree

MINUS = '\u2212'


def page_of(folder, out):
  report.write_study(report.read_study(folder), out)
  return Tree(out.read_text()).root


def rows_of(page, caption):
  """The rows of a table, its headings first."""
  (table,) = (t for t in page.all('table') if t.children[0].text == caption)
  return [[c.text for c in r.all('th', 'td')] for r in table.all('tr')]


@pytest.fixture(scope='module')
def page(study, tmp_path_factory):
  return page_of(study, tmp_path_factory.mktemp('page') / 'study.html')


@pytest.fixture
def copied(study, tmp_path):
  """A study that a test may change."""
  return shutil.copytree(study, tmp_path / 'losses')


def notes_of(folder):
  return [str(note) for note in report.read_study(folder).notes]


# A finished study.


def test_parts_are_in_order_and_the_page_is_sound(page):
  assert [h.text for h in page.all('h2')] == [
    'Study', 'faces', 'Training', 'Runs', 'Configs', 'How to repeat it',
  ]  # fmt: skip
  test_page.test_references_lead_to_one_place(page)
  test_page.test_page_loads_nothing_and_runs_nothing(page)
  test_page.test_tables_say_what_they_are(page)
  levels = [int(h.tag[1]) for h in page.all('h1', 'h2', 'h3', 'h4')]
  assert np.diff(levels).max() == 1


def test_study_says_what_is_compared(page):
  facts = {
    d.children[0].text: d.children[1].text
    for d in next(page.all('dl')).children
  }
  assert facts['configs'] == ', '.join(NAMES)
  assert facts['seeds'] == '0 to 4'
  assert facts['runs'] == '15 of 15 finished'
  assert facts['versions'] == 'jax 0.0, python 3'
  assert facts['shared by seed'].startswith(
    'runs of one seed share the initial backbone, the initial class centres, '
    'the order of images, the augmentation and the draws of margins; the '
    'configs differ in loss.'
  )
  rows = rows_of(page, 'Fields of the configs that differ')
  named = dict(zip(rows[0], rows[1], strict=True))
  assert (named['config'], named['loss.name']) == ('arcface', 'arcface')
  assert named['loss.margin_std'] == 'no such field'
  assert 'A note of the analysis.' in page.text
  assert not [p for p in page.all('p') if p.attributes.get('class') == 'note']


def test_table_of_configs_has_mean_deviation_and_interval(page):
  heading, *rows = rows_of(page, 'Configs, over seeds')
  assert heading[2:] == [
    'accuracy, % ± deviation over seeds [95 % interval]',
    'EER, % ± deviation over seeds [95 % interval]',
    'TAR at FAR 1e-2, % ± deviation over seeds [95 % interval]',
  ]
  for k, (name, row) in enumerate(zip(NAMES, rows, strict=True)):
    assert row[:2] == [name, '5']
    for metric, cell in zip(study_folders.METRICS, row[2:], strict=True):
      values = [100 * value_of(metric, k, seed) for seed in range(5)]
      mean, deviation = statistics.fmean(values), statistics.stdev(values)
      assert cell == (
        f'{mean:.2f} ± {deviation:.2f} [{mean - 2:.2f}, {mean + 2:.2f}]'
      )


@pytest.mark.parametrize(
  ('metric', 'caption'),
  [('accuracy', 'accuracy'), ('eer', 'EER'), ('tar@1e-2', 'TAR at FAR 1e-2')],
)
def test_table_of_comparisons_has_all_pairs(page, metric, caption):
  heading, *rows = rows_of(page, f'Comparisons in {caption}')
  assert heading[2:5] == [
    'difference, points [95 % interval]', 'p',
    'p after correction for 3 comparisons, by Holm’s rule',
  ]  # fmt: skip
  pairs = itertools.combinations(range(3), 2)
  expected = [('0.0010', '0.0030'), ('0.030', '0.090'), ('0.19', '0.57')]
  for (first, second), row, p in zip(pairs, rows, expected, strict=True):
    mean = 100 * statistics.fmean(
      value_of(metric, second, s) - value_of(metric, first, s) for s in range(5)
    )
    low, high = (
      f'{x:.2f}'.replace('-', MINUS) for x in (mean - 0.6, mean + 0.7)
    )
    assert row == [
      f'{NAMES[second]} {MINUS} {NAMES[first]}',
      '5',
      f'{mean:+.2f} [{low}, {high}]'.replace('-', MINUS),
      *p,
      '0.84',
      '1.05',
    ]


def comparison(**words):
  """A comparison of a and b, and the analysis it is from."""
  numbers = {
    'difference': 0.0042, 'by_seed': {}, 'interval': (-0.003, 0.011),
    'p': 0.19, 'p_adjusted': 1.0, 'detectable': 0.016,
    'detectable_adjusted': 0.02, 'others': {},
  }  # fmt: skip
  found = Comparison('arcface', 'elastic_arc', **{**numbers, **words})
  return study_words.comparison(
    found, Analysis([], [], 0.05, 0.95, 0.8, 6, '', [], {})
  )


def test_sentences_never_claim_more_than_their_numbers():
  whole = (
    f'elastic_arc is 0.42 points above arcface [{MINUS}0.30, 1.10], p 0.19, '
    'after correction for 6 comparisons 1.0: the study does not tell them '
    'apart; it could have seen 1.60 points, or 2.00 after the correction.'
  )
  assert comparison() == whole
  below = comparison(difference=-0.0042)
  assert below.startswith('elastic_arc is 0.42 points below arcface [')
  apart = comparison(p=0.001, p_adjusted=0.006)
  assert apart.endswith(
    'p 0.0010, after correction for 6 comparisons 0.0060: the study tells '
    'them apart at level 0.05 on these pairs, and not surely on others.'
  )
  sure = comparison(p=0.001, p_adjusted=0.006, interval=(0.001, 0.008))
  assert sure.endswith('apart at level 0.05, on new pairs too.')
  few = comparison(others={'p_smallest': 0.125})
  assert few.endswith('apart; with so few seeds no p is below 0.12.')
  early = comparison(interval=(-0.008, -0.001))
  assert 'the interval excludes 0, but the study does not tell' in early
  corrected = comparison(p=0.03, p_adjusted=0.18)
  assert 'the study does not tell them apart after the correction;' in corrected
  untested = comparison(p=None, p_adjusted=None)
  assert untested.endswith(': there is no test of it, so it tells nothing.')
  unknown = comparison(difference=None)
  assert unknown.endswith('cannot be compared: not measurable.')
  equal = comparison(difference=0.0, interval=None, detectable=None)
  assert 'elastic_arc and arcface are 0.00 points apart, p 0.19' in equal
  assert equal.endswith('apart; nothing says what it could have seen.')
  for text in (whole, few, below, corrected, untested, unknown, equal):
    assert 'no difference' not in text and 'equal' not in text


def test_page_has_a_sentence_for_each_comparison(page):
  part = next(s for s in page.all('section') if s.attributes['id'] == 'set-0')
  sentences = [
    li.text
    for li in part.all('li')
    if 'the study' in li.text and 'grey' not in li.text
  ]
  assert len(sentences) == 9  # Three pairs by three rates.
  assert 'the study tells them apart at level 0.05 on' in sentences[0]
  assert 'apart after the correction; it could' in sentences[1]
  assert 'does not tell them apart; it could have seen 0.84' in sentences[2]
  assert 'no difference' not in page.text


def test_figures_say_what_they_show(page):
  drawn = [f for f in page.all('figure') if list(f.all('desc'))]
  titles = [next(f.all('strong')).text for f in drawn]
  assert titles == [
    'Accuracy of each run on faces', 'Differences in accuracy on faces',
    'Differences in EER on faces', 'Differences in TAR at FAR 1e-2 on faces',
    'Loss over training', 'Accuracy on faces over training',
  ]  # fmt: skip
  for figure, title in zip(drawn, titles, strict=True):
    (image,) = (s for s in figure.all('svg') if 'role' in s.attributes)
    (name,), (description,) = image.all('title'), image.all('desc')
    assert name.text == title
    (findings,) = figure.all('p')
    assert findings.text == description.text and len(findings.text) > 40
    (details,) = figure.all('details')
    assert len(list(details.all('tr'))) > 3
  assert 'The study tells 1 of them from zero' in drawn[1].text
  assert 'It could have seen 0.84 points' in drawn[1].text
  assert 'values of their losses are not comparable' in drawn[4].text


# Drawings.


@pytest.fixture
def drawings(study, tmp_path, monkeypatch):
  """Axes of all figures by the name of the figure."""
  drawn = {}
  convert = svg.convert

  def collect(figure, name, **words):
    drawn[name] = figure.axes[0]
    return convert(figure, name, **words)

  monkeypatch.setattr(svg, 'convert', collect)
  page_of(study, tmp_path / 'page.html')
  return drawn


def test_runs_of_one_seed_are_joined(drawings):
  axes = drawings['runs-faces']
  seeds, rest = axes.lines[:5], axes.lines[5:]
  for seed, line in enumerate(seeds):
    expected = [100 * value_of('accuracy', k, seed) for k in range(3)]
    np.testing.assert_allclose(line.get_xdata(), expected)
  places = seeds[0].get_ydata()
  # Points, interval and mean of each config.
  assert len(rest) == 9
  for k in range(3):
    points, interval, mean = rest[3 * k : 3 * k + 3]
    values = [100 * value_of('accuracy', k, seed) for seed in range(5)]
    np.testing.assert_allclose(points.get_xdata(), values)
    assert set(points.get_ydata()) == {places[k]}
    middle = statistics.fmean(values)
    np.testing.assert_allclose(interval.get_xdata(), [middle - 2, middle + 2])
    np.testing.assert_allclose(mean.get_xdata(), middle)
  assert len({line.get_marker() for line in rest[::3]}) == 3
  texts = [t.get_text().replace('\n', '') for t in axes.get_yticklabels()]
  assert texts == [*NAMES]


def test_differences_have_zero_intervals_and_seeds(drawings):
  axes = drawings['differences-faces-accuracy']
  zero, *rest = axes.lines
  assert set(zero.get_xdata()) == {0}
  boxes = [p for p in axes.patches if p.get_width() > 1]
  assert [(p.get_x(), p.get_width()) for p in boxes] == [
    pytest.approx((-0.84, 1.68))
  ] * 3
  pairs = itertools.combinations(range(3), 2)
  for j, (first, second) in enumerate(pairs):
    left, right, interval, mean, seeds = rest[5 * j : 5 * j + 5]
    values = [
      100 * (value_of('accuracy', second, s) - value_of('accuracy', first, s))
      for s in range(5)
    ]
    middle = statistics.fmean(values)
    assert left.get_xdata()[0] == pytest.approx(-0.84)
    assert right.get_xdata()[0] == pytest.approx(0.84)
    np.testing.assert_allclose(
      interval.get_xdata(), [middle - 0.6, middle + 0.7]
    )
    np.testing.assert_allclose(mean.get_xdata(), middle)
    np.testing.assert_allclose(seeds.get_xdata(), values)
    # Downwards: the label's line, the grey box, the marks, the next label.
    baseline, box = axes.texts[j].get_position()[1], boxes[j]
    assert baseline + 4 < box.get_y() < mean.get_ydata()[0]
    marks = seeds.get_ydata()[0]
    assert box.get_y() + box.get_height() < marks
    if j < 2:
      assert marks + 14 < axes.texts[j + 1].get_position()[1]
  labels = [t.get_text() for t in axes.texts]
  assert labels[0] == f'elastic_arc {MINUS} arcface'


def test_curves_are_means_with_the_range_of_the_seeds(drawings):
  axes = drawings['study-loss']
  offsets = [0.1 * math.sin(seed) for seed in range(5)]
  for k, line in enumerate(axes.lines):
    steps = np.arange(10, 61, 10)
    np.testing.assert_array_equal(line.get_xdata(), steps)
    expected = 15 - steps / 10 + k + statistics.fmean(offsets)
    np.testing.assert_allclose(line.get_ydata(), expected)
    band = axes.collections[k].get_paths()[0].vertices
    last = sorted({*band[band[:, 0] == 60][:, 1]})
    np.testing.assert_allclose(
      [last[0], last[-1]], [9 + k + min(offsets), 9 + k + max(offsets)]
    )
  accuracy = drawings['study-accuracy_2dfaces']
  means = [line.get_ydata()[-1] for line in accuracy.lines]
  for k, mean in enumerate(means):
    values = [100 * value_of('accuracy', k, seed) for seed in range(5)]
    assert mean == pytest.approx(statistics.fmean(values))


def test_every_axis_has_a_unit(drawings):
  for axes in drawings.values():
    labels = [axes.get_xlabel(), axes.get_ylabel()]
    for label in filter(None, labels):
      assert label.endswith((', %', ', nats', 'percentage points', '(no unit)'))


# Runs and commands.


def test_all_runs_are_in_one_table(page):
  heading, *rows = rows_of(page, 'Runs of the study')
  assert heading == [
    'config', 'seed', 'step', 'fingerprint, first 16 digits',
    'accuracy on faces, %',
  ]  # fmt: skip
  expected = [
    [
      name,
      str(seed),
      '60',
      fingerprint_of(k, seed)[:16],
      f'{100 * value_of("accuracy", k, seed):.2f}',
    ]
    for k, name in enumerate(NAMES)
    for seed in range(5)
  ]
  assert rows == expected


def commands_of(page):
  part = next(s for s in page.all('section') if s.attributes['id'] == 'repeat')
  return [shlex.split(pre.text.replace('\\\n', ' ')) for pre in part.all('pre')]


def made_by(words):
  """The recipe and changes of each config that a command makes."""
  specs, varied, common = [], [], []
  for flag, value in itertools.pairwise(words):
    if flag == '--config':
      specs.append(value)
    if flag == '--vary':
      field, _, values = value.partition('=')
      varied.append([f'--config.{field}={v}' for v in values.split(',')])
  common = [word for word in words if word.startswith('--config.')]
  return [
    (spec, {*common, *choice})
    for spec in specs
    for choice in itertools.product(*varied)
  ]


def test_commands_make_the_study_again(page, study):
  saved = json.loads((study / 'study.json').read_text())
  whole, one, fingerprint, prints, again = commands_of(page)
  asked = [(c['spec'], {*c['changes']}) for c in saved['configs'].values()]
  assert made_by(whole) == asked
  assert whole[-4:] == ['--seeds', '5', '--out', 'NEW_losses']
  assert one == [*whole, '--only', 'arcface:0']
  assert fingerprint == [
    'elasticface', 'fingerprint', 'NEW_losses/arcface/seed_0',
  ]  # fmt: skip
  expected = [
    word
    for k, name in enumerate(NAMES)
    for seed in range(5)
    for word in (f'{name}:{seed}', fingerprint_of(k, seed))
  ]
  assert prints == expected
  assert again[:3] == ['elasticface', 'report', str(study)]
  (single,) = (
    shlex.split(pre.text)
    for s in page.all('section')
    if s.attributes['id'] == 'runs'
    for pre in s.all('pre')
  )
  assert single[2:5] == [str(study / name / 'seed_0') for name in NAMES]
  for name in ('analysis.json', 'comparisons.csv', 'runs.csv'):
    assert name in page.text


def test_commands_of_recipes_and_of_studies_that_grew(tmp_path):
  def made(*configs):
    variants = [
      study_repeat.Variant(spec, spec, tuple(changes), {})
      for spec, changes in configs
    ]
    text = study_repeat.study_command(tmp_path, variants, [0, 1, 2])
    return [
      shlex.split(line) for line in text.replace('\\\n', ' ').splitlines()
    ]

  a, b = '--config.loss.margin=0.4', '--config.loss.margin=0.5'
  common = '--config.data.source=/my faces'
  (one,) = made(('r:x', [common]), ('r:y', [common]))
  assert made_by(one) == [('r:x', {common}), ('r:y', {common})]
  (grid,) = made(('r', [a]), ('r', [b]), ('s', [a]), ('s', [b]))
  assert made_by(grid) == [('r', {a}), ('r', {b}), ('s', {a}), ('s', {b})]
  grown = made(('r', []), ('s', [a]))
  assert [made_by(words) for words in grown] == [[('r', set())], [('s', {a})]]


def test_equal_folders_make_equal_bytes(study, tmp_path):
  out = tmp_path / 'page.html'
  written = []
  for _ in range(2):
    page_of(study, out)
    written.append(out.read_bytes())
  assert written[0] == written[1]


# Studies that are not whole.


def test_runs_that_are_missing_or_under_way_are_said(copied, tmp_path):
  shutil.rmtree(copied / 'arcface' / 'seed_3')
  shutil.rmtree(copied / 'arcface' / 'seed_4')
  place = copied / 'elastic_arc' / 'seed_1'
  shutil.rmtree(place)
  study_folders.make_run(place, 1, 1, last=30)
  (copied / 'elastic_cos' / 'seed_0' / 'metrics.jsonl').write_text(
    '{\n{"a": 1}\n'
  )
  (copied / 'analysis.json').unlink()
  damaged, missing, under_way, analysis = notes_of(copied)
  assert damaged.startswith('elastic_cos:0 is not shown: ')
  assert 'line 1 is no record' in damaged
  assert missing == '2 of 15 runs have not begun: arcface, seed 3, 4.'
  assert under_way.startswith(
    '1 of 15 runs is not finished: elastic_arc:1 (step 30 of 60). This '
    'command goes on with them: elasticface study --config quickstart '
  )
  assert under_way.endswith(f' --seeds 5 --out {copied}')
  assert analysis.startswith(
    'There is no analysis.json: differences are not compared. This command '
    'writes it: elasticface study --config quickstart'
  )
  page = page_of(copied, tmp_path / 'page.html')
  rows = {tuple(row[:2]): row for row in rows_of(page, 'Runs of the study')}
  assert rows['arcface', '3'][2:] == ['not begun', 'not known', 'not evaluated']
  assert rows['elastic_arc', '1'][2] == '30 of 60'
  assert rows['elastic_cos', '0'][2] == 'damaged'
  # Means of the runs alone, without intervals.
  heading, first, *_ = rows_of(page, 'Configs, over seeds')
  values = [100 * value_of('accuracy', 0, seed) for seed in range(3)]
  assert heading[2] == 'accuracy, % ± deviation over seeds'
  assert first[1:3] == [
    '3', f'{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}',
  ]  # fmt: skip
  curves = next(f for f in page.all('figure') if 'Loss over' in f.text)
  assert '1 run has not come as far and not in the mean.' in curves.text
  assert 'Comparisons in' not in page.text


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'analysis.json is damaged'),
    (b'\xff\xfe{', 'analysis.json is damaged'),
    (b'[' * 100000, 'analysis.json is damaged'),
    (b'[]', 'analysis.json is damaged'),
    (b'{}', 'analysis.json is not what a study wrote'),
    (b'{"configs": 3, "seeds": [], "sets": {}}', 'is not what a study wrote'),
    (
      b'{"configs": [], "seeds": [], "sets": {"faces": {"metrics": '
      b'{"eer": {"configs": [], "comparisons": [3]}}}}}',
      'is not what a study wrote',
    ),
  ],
)
def test_a_damaged_analysis_is_said(copied, content, message):
  (copied / 'analysis.json').write_bytes(content)
  read = report.read_study(copied)
  (note,) = read.notes
  assert message in note.text and 'differences are not compared' in note.text
  assert note.command.startswith('elasticface study --config quickstart')
  assert not read.is_analysed and read.analysis.sets['faces'].metrics


def test_an_analysis_that_is_older_than_the_runs_is_said(copied):
  path = copied / 'arcface' / 'seed_2' / 'results.json'
  edit(path, lambda r: r['faces'].update(accuracy=0.9))
  metrics = path.with_name('metrics.jsonl')
  text = metrics.read_text().replace('"pairs"', '"other"')
  metrics.write_text(text)
  (note,) = notes_of(copied)
  assert note.startswith(
    'analysis.json is older than these runs: a run has other results now: '
    'arcface:2. This command writes it: elasticface study'
  )
  # A run that has been finished since.
  edit(
    copied / 'analysis.json',
    lambda a: a['sets']['faces']['metrics']['accuracy']['configs'][
      'elastic_arc'
    ]['by_seed'].pop('4'),
  )
  _, left_out = notes_of(copied)
  assert left_out.startswith(
    'analysis.json leaves finished runs out: elastic_arc:4. Its notes say why, '
    'or it is older than they are. This command writes it: elasticface study'
  )
  edit(copied / 'study.json', lambda s: s['seeds'].append(5))
  for k, name in enumerate(NAMES):
    study_folders.make_run(copied / name / 'seed_5', k, 5)
  other, *_ = notes_of(copied)
  assert other.startswith(
    'analysis.json is of other seeds than the study: 5. This command writes'
  )
  edit(copied / 'study.json', lambda s: s['configs'].pop('elastic_cos'))
  assert notes_of(copied)[0].startswith(
    'analysis.json is of other configs than the study: elastic_cos.'
  )


@pytest.mark.parametrize('source', ['data/faces', 'synthetic'])
def test_other_data_are_said_unless_they_are_drawn(copied, source):
  def draw(study):
    for config in study['configs'].values():
      config['config']['data.source'] = source

  edit(copied / 'study.json', draw)
  for place in copied.glob('*/seed_1'):
    edit(
      place / 'manifest.json',
      lambda m: m['starts'][0].update(data_fingerprint='other'),
    )
  found = [n for n in notes_of(copied) if 'differ in data fingerprint' in n]
  assert len(found) == (source != 'synthetic')


def test_runs_of_another_kind_are_said(copied):
  place = copied / 'arcface' / 'seed_1'
  edit(place / 'config.json', lambda c: c['loss'].update(margin=0.7))
  edit(place / 'config.json', lambda c: c.update(seed=3, log_every=7))
  edit(place / 'manifest.json', lambda m: m['starts'][0]['versions'].pop('jax'))
  wrong, versions = notes_of(copied)
  assert wrong == (
    f'{place} is another run than study.json says: loss.margin, seed differ.'
  )
  assert versions == (
    'The runs differ in versions: jax 0.0, python 3 (runs: 14, such as '
    'arcface:0); python 3 (runs: 1, such as arcface:1).'
  )


def test_numbers_that_are_not_finite_are_gaps(copied, tmp_path):
  path = copied / 'arcface' / 'seed_0' / 'metrics.jsonl'
  path.write_text(
    path.read_text().replace('"loss": 14', '"loss": NaN, "x": 14')
  )

  def spoil(analysis):
    accuracy = analysis['sets']['faces']['metrics']['accuracy']
    accuracy['configs']['arcface'].update(
      mean=math.nan, std=None, interval=[math.nan, 1.0]
    )
    accuracy['comparisons'][0].update(
      difference=math.nan, interval=None, detectable=math.inf
    )
    accuracy['comparisons'][1].update(p=math.nan, p_adjusted=None)
    accuracy['comparisons'][2]['by_seed']['0'] = math.nan
    del analysis['sets']['faces']['metrics']['eer']['configs']['arcface']

  edit(copied / 'analysis.json', spoil)
  (note,) = notes_of(copied)
  assert note == (
    'Values of metrics.jsonl are not finite, and curves have gaps there: '
    'arcface, seed 0.'
  )
  page = page_of(copied, tmp_path / 'page.html')
  first = rows_of(page, 'Configs, over seeds')[1]
  assert first[2:4] == ['not measurable', 'not measurable']
  _, one, two, three = rows_of(page, 'Comparisons in accuracy')
  assert one[2] == 'not measurable' and two[3:5] == ['none', 'none']
  assert three[1] == '4'
  assert 'cannot be compared: not measurable.' in page.text
  assert 'there is no test of it' in page.text
  assert 'nan' not in page.text.lower().replace('finance', '')


@pytest.mark.parametrize(
  ('names', 'seeds', 'sets'),
  [
    (('arcface',), [0], ('faces',)),
    (('arcface',), range(3), ('faces',)),
    (('arcface', 'elastic_arc'), [7], ('faces', 'others')),
    (('arcface', 'elastic_arc'), [0, 1], ()),
  ],
)
def test_small_studies_have_pages(tmp_path, names, seeds, sets):
  folder = study_folders.make_study(
    tmp_path / 'study', names=names, seeds=seeds, sets=sets
  )
  page = page_of(folder, tmp_path / 'page.html')
  headings = [h.text for h in page.all('h2')]
  assert headings[1:-4] == [*sets]
  text = page.text
  assert not report.read_study(folder).notes
  assert ('one config' in text) == (len(names) == 1)
  has_no_test = len(names) > 1 and len(seeds) == 1
  assert ('there is no test of it, so it tells nothing.' in text) == has_no_test
  assert ('No set of pairs has been evaluated yet.' in text) == (not sets)
  if len(names) == 1 and sets:
    assert 'There are no two configs to compare.' in text
  assert f'--seeds {max(seeds) + 1} ' in text


def test_nothing_but_study_json_makes_a_page(copied, tmp_path):
  for name in (*NAMES,):
    shutil.rmtree(copied / name)
  (copied / 'analysis.json').unlink()
  page = page_of(copied, tmp_path / 'page.html')
  assert [h.text for h in page.all('h2')] == [
    'Study', 'Runs', 'Configs', 'How to repeat it',
  ]  # fmt: skip
  assert '15 of 15 runs have not begun.' in page.text


def test_no_text_becomes_an_element(tmp_path):
  hostile = '"><img src=x onerror=alert(1)><b>&amp;$x$\x07'
  name = hostile.replace('/', '')
  folder = study_folders.make_study(
    tmp_path / 'a<b>', names=(name.replace('\x07', ''), 'b'), sets=(hostile,)
  )
  edit(folder / 'analysis.json', lambda a: a['notes'].append(hostile))
  page = page_of(folder, tmp_path / 'page.html')
  assert not list(page.all('b', 'img', 'script'))
  assert next(page.all('h1')).text == 'Study: a<b>'
  assert [h.text for h in page.all('h2')][1] == hostile.replace(
    '\x07', '\ufffd'
  )
