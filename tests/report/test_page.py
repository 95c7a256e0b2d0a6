# SPDX-License-Identifier: Apache-2.0
"""Structure, words and bytes of the page, without a browser."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from elasticface_jax import cli, recipes, report, runtime
from elasticface_jax.report import figures, repeat, svg, words

VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}


class Node:
  """An element of a page."""

  def __init__(self, tag, attributes):
    self.tag, self.attributes = tag, dict(attributes)
    self.children = []

  def all(self, *tags):
    """Elements below with one of some tags, in order; all without any."""
    for child in self.children:
      if isinstance(child, Node):
        if not tags or child.tag in tags:
          yield child
        yield from child.all(*tags)

  @property
  def text(self):
    return ''.join(c.text if isinstance(c, Node) else c for c in self.children)


class Tree(HTMLParser):
  """Elements of a page, which must be nested and closed."""

  def __init__(self, text):
    super().__init__()
    self.root = Node('root', {})
    self.open = [self.root]
    self.feed(text)
    self.close()
    assert self.open == [self.root]

  def handle_starttag(self, tag, attributes):
    node = Node(tag, attributes)
    assert len(node.attributes) == len(attributes), (tag, attributes)
    self.open[-1].children.append(node)
    if tag not in VOID:
      self.open.append(node)

  def handle_endtag(self, tag):
    assert self.open.pop().tag == tag

  def handle_data(self, data):
    self.open[-1].children.append(data)


def page_of(folders, out):
  report.write(report.read_runs(folders), out)
  return Tree(out.read_text()).root


@pytest.fixture(scope='module')
def page(two_runs, tmp_path_factory):
  return page_of(two_runs, tmp_path_factory.mktemp('page') / 'report.html')


def edit(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_parts_and_headings_are_in_order(page):
  assert [h.text for h in page.all('h2')] == [
    'Results', 'Runs', 'Training', 'faces', 'Config and manifest',
    'How to repeat it',
  ]  # fmt: skip
  levels = [int(h.tag[1]) for h in page.all('h1', 'h2', 'h3', 'h4')]
  assert levels[0] == 1 and levels.count(1) == 1
  steps = np.diff(levels)
  assert steps.max() == 1


def test_references_lead_to_one_place(page):
  ids = [n.attributes['id'] for n in page.all() if 'id' in n.attributes]
  assert len(ids) == len({*ids})
  for node in page.all():
    for name in ('aria-labelledby', 'aria-describedby'):
      for target in node.attributes.get(name, '').split():
        assert target in ids
    if 'href' in node.attributes:
      assert node.attributes['href'][0] == '#'
      assert node.attributes['href'][1:] in ids
    for value in node.attributes.values():
      for target in re.findall(r'url\(#([^)]+)\)', value or ''):
        assert target in ids


def test_page_loads_nothing_and_runs_nothing(page):
  tags = {node.tag for node in page.all()}
  assert not tags & {'script', 'link', 'iframe', 'object', 'embed', 'image'}
  for node in page.all():
    assert not any(name.startswith('on') for name in node.attributes)
    if 'src' in node.attributes:
      assert node.attributes['src'].startswith('data:image/jpeg;base64,')
    for name, value in node.attributes.items():
      assert '://' not in (value or ''), (node.tag, name, value)
  (style,) = page.all('style')
  assert 'url(' not in style.text and '@import' not in style.text
  (policy,) = (
    meta.attributes['content']
    for meta in page.all('meta')
    if meta.attributes.get('http-equiv') == 'Content-Security-Policy'
  )
  assert policy.startswith("default-src 'none'")


def test_tables_say_what_they_are(page):
  found = list(page.all('table'))
  assert len(found) > 10
  for table in found:
    (caption,) = table.all('caption')
    assert caption.text
    (head,) = table.all('thead')
    columns = [cell.attributes['scope'] for cell in head.all('th')]
    assert set(columns) == {'col'}
    (body,) = table.all('tbody')
    for row in body.all('tr'):
      cells = list(row.all('th', 'td'))
      assert len(cells) == len(columns)
      assert cells[0].attributes['scope'] == 'row'
      for cell in cells:
        assert cell.text


def test_figures_say_what_they_show(page):
  drawn = [f for f in page.all('figure') if list(f.all('desc'))]
  titles = [next(f.all('strong')).text for f in drawn]
  assert titles == [
    'Angle to the own class, and the margins drawn', 'Loss over training',
    'Learning rate over training', 'Accuracy in training',
    'Norm of embeddings over training',
    'Backbone: norm of gradients over training',
    'Head: norm of gradients over training', 'Accuracy on faces over training',
    'ROC of faces', 'DET of faces', 'Scores of faces, arc',
    'Scores of faces, cos',
  ]  # fmt: skip
  for figure, title in zip(drawn, titles, strict=True):
    (image,) = (s for s in figure.all('svg') if 'role' in s.attributes)
    assert image.attributes['role'] == 'img'
    (name,), (description,) = image.all('title'), image.all('desc')
    assert name.text == title
    assert len(description.text) > 40 and re.search(r'\d', description.text)
    (findings,) = figure.all('p')
    assert findings.text == description.text
    (details,) = figure.all('details')
    assert len(list(details.all('tr'))) > 2
    assert list(details.all('summary'))[0].text == 'Numbers of this figure'


def test_every_axis_has_a_unit(two_runs, monkeypatch):
  drawn = []
  convert = svg.convert

  def collect(figure, *args, **words):
    drawn.append(figure)
    return convert(figure, *args, **words)

  monkeypatch.setattr(svg, 'convert', collect)
  runs = report.read_runs(two_runs)
  figures.training(runs, ['faces'])
  figures.roc('faces', runs)
  figures.scores('faces', runs)
  labels = [
    label.replace('\n', ' ')
    for figure in drawn
    for axes in figure.axes
    for label in (axes.get_xlabel(), axes.get_ylabel())
  ]
  # Of the two axes that share that of the axes below.
  assert labels.count('') == 2
  for label in filter(None, labels):
    assert re.search(r', (nats|%|°)$|[ (,]no unit\)$', label), label


def test_numbers_are_those_of_the_results(page, two_runs):
  (table,) = (
    t
    for t in page.all('table')
    if t.children[0].text == 'Verification of pairs'
  )
  rows = [[c.text for c in r.all('th', 'td')] for r in table.all('tr')]
  assert rows[0][:5] == [
    'set', 'run', 'step', 'pairs',
    'accuracy, % ± deviation of folds [95 % interval]',
  ]  # fmt: skip
  for row, run in zip(rows[1:], two_runs, strict=True):
    result = json.loads((run / 'results.json').read_text())['faces']
    assert row[:4] == ['faces', run.name, '60', '400']
    accuracy = f'{100 * result["accuracy"]:.2f}'
    low, high = (f'{100 * limit:.2f}' for limit in result['accuracy_interval'])
    deviation = f'{100 * result["accuracy_std"]:.2f}'
    assert row[4] == f'{accuracy} ± {deviation} [{low}, {high}]'
    point = result['tar_at_far']['0.01']
    low, high = (f'{100 * limit:.2f}' for limit in point['tar_interval'])
    assert row[6] == f'{100 * point["tar"]:.2f} [{low}, {high}]'
    assert row[7] == 'not measurable'  # With 200 impostors.
    assert row[8].startswith(f'{100 * result["eer"]:.2f}')


def test_scores_mark_only_what_can_be_measured(page):
  figure = next(f for f in page.all('figure') if 'Scores of faces' in f.text)
  entries = {e.text: list(e.all('line')) for e in figure.all('li')}
  lacking = 'FAR 1e-3 cannot be measured with 200 impostors'
  (marked,) = (text for text in entries if '(FAR 1e-2)' in text)
  assert marked.startswith('2 of 200 impostors at cosine ')
  assert entries[marked] and not entries[lacking]


def test_rates_are_written_in_one_way(page):
  assert not re.search(r'F[AM]R 0\.0', page.text)
  for table in page.all('table'):
    head, *rows = [[c.text for c in r.all('th', 'td')] for r in table.all('tr')]
    caption = table.children[0].text
    for name in (
      'FAR at most',
      'FMR at most',
      'far_target',
      'far',
      'FAR found',
    ):
      if name in head:
        cells = {row[head.index(name)] for row in rows}
        assert not any(cell.startswith('0.0') for cell in cells), cells
        assert '1e-2' in cells
    if caption == 'tar_at_far of faces':
      assert {row[0] for row in rows} == {'1e-2', '1e-3'}
  text = 'FAR and TAR of the ROC are FMR and 1 - FNMR of the DET.'
  assert page.text.count(text) == 1


@pytest.mark.parametrize(
  ('totals', 'shape'),
  [((60,), 'bars'), ((80,), 'bands'), ((60, 80), 'bands and bars')],
)
def test_legend_says_how_a_spread_is_drawn(make_run, tmp_path, totals, shape):
  folders = [make_run(tmp_path / str(n), total=n) for n in totals]
  made = figures.training(report.read_runs(folders), ['faces'])
  assert made[0].legend[-1].label == f'{shape}: ± deviation over samples'
  assert made[-1].legend[-1].label == 'bars: ± deviation of folds'


def test_rounding_errors_of_a_margin_do_not_fill_its_panel(
  make_run, tmp_path, monkeypatch
):
  run = make_run(tmp_path / 'run', loss='cosface', total=8)
  rows = [
    json.loads(row) for row in (run / 'metrics.jsonl').read_text().splitlines()
  ]
  for row in rows:
    if 'loss' in row:
      row |= {'margin_mean': 0.35 + 1e-8 * row['step'], 'margin_std': 6e-8}
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (run / 'metrics.jsonl').write_text(text)
  drawn = []
  convert = svg.convert
  monkeypatch.setattr(
    svg,
    'convert',
    lambda figure, *a, **k: drawn.append(figure) or convert(figure, *a, **k),
  )
  figures.training(report.read_runs([run]), [])
  low, high = drawn[0].axes[1].get_ylim()
  assert high - low == pytest.approx(0.05)
  assert drawn[0].axes[1].yaxis.get_offset_text().get_text() == ''


def test_findings_tell_runs_apart_or_not(page):
  (roc,) = (f for f in page.all('figure') if 'ROC of' in f.text)
  assert 'The interval of cos lies above all others' in roc.text
  assert '200 impostor pairs measure no FAR below 5e-3.' in roc.text


def test_margin_and_angle_are_together(page):
  figure = next(page.all('figure'))
  spread = r'arc: margin 1\d\.\d\d ± 2\.86° over the samples of step 60'
  assert re.search(spread, figure.text)
  assert re.search(r'cos: margin 0\.\d{4} ± 0\.0500 of the cosine', figure.text)
  assert (
    'angle to the own class goes from 88.4° at step 2 to 77.3° at step 60'
    in figure.text
  )


def test_hardest_pairs_are_those_pictures(page, two_runs):
  (run, _) = report.read_runs(two_runs)
  images = list(page.all('img'))
  # 6 genuine and 6 impostor pairs of two pictures, of each of two runs.
  assert len(images) == 48
  k, score = run.results['faces'].lowest[0]
  assert images[0].attributes['alt'] == f'First image of genuine pair {k}'
  assert f'cosine {score:.3f}, pair {k}' in page.text
  impostor = run.results['faces'].highest[0][0]
  place = images[12].attributes['alt']
  assert place == f'First image of impostor pair {impostor}'


def test_hardest_pictures_are_of_the_right_rows(two_runs):
  import base64
  import io

  from PIL import Image

  from elasticface_jax.report import pictures

  (run, _) = report.read_runs(two_runs)
  images, problem = pictures.of_hardest(run, run.results['faces'])
  assert not problem
  for k, uris in images.items():
    for row, uri in zip((2 * k, 2 * k + 1), uris, strict=True):
      data = base64.b64decode(uri.removeprefix('data:image/jpeg;base64,'))
      pixel = Image.open(io.BytesIO(data)).convert('L').getpixel((50, 50))
      assert abs(pixel - 37 * row % 256) <= 2


def test_equal_folders_make_equal_bytes(two_runs, tmp_path):
  out = tmp_path / 'a.html'
  written = []
  for _ in range(2):
    page_of(two_runs, out)
    written.append(out.read_bytes())
  assert written[0] == written[1]
  assert len(written[0]) < 2e6


def test_ids_do_not_depend_on_the_last_bits_of_a_layout():
  # Matplotlib's solver places axes anew each time, with other roundings.
  def drawn(shift):
    with svg.new() as figure:
      figure.set_layout_engine('none')
      axes = figure.add_axes((0.1 + shift, 0.1, 0.8, 0.8))
      axes.plot([0, 1], [0, 2], marker='o')
      axes.fill_between([0, 1], [0, 1], [1, 2])
      return svg.convert(figure, 'x', title='t', description='d')

  texts = {ElementTree.tostring(drawn(shift)) for shift in (0, 1e-16, 1e-14)}
  assert len(texts) == 1
  assert b'url(#x-' in texts.pop()


HOSTILE = '"><img src=x onerror=alert(1)><b>&amp;\'$x$'


def test_no_text_becomes_an_element(make_run, pair_file, tmp_path):
  hostile = tmp_path / f'{HOSTILE}.npz'
  shutil.copy(pair_file, hostile)
  run = make_run(tmp_path / 'a<b>&', sets={HOSTILE: str(hostile)})

  def spoil(config):
    config['data']['source'] = f'</script></style>{HOSTILE}\x07\ud800'

  edit(run / 'config.json', spoil)
  edit(run / 'manifest.json', lambda m: m['starts'][0].update(time=HOSTILE))
  edit(
    run / 'results.json',
    lambda r: r[HOSTILE].update({HOSTILE: HOSTILE, 'remarks': [HOSTILE]}),
  )
  page = page_of([run], tmp_path / 'page.html')
  assert not list(page.all('b', 'script'))
  for image in page.all('img'):
    assert image.attributes['src'].startswith('data:')
    assert 'onerror' not in image.attributes
  assert [h.text for h in page.all('h2')][3] == HOSTILE
  assert next(page.all('h3')).text == 'a<b>&'
  assert f'</script></style>{HOSTILE}\ufffd\ufffd' in page.text
  assert len(list(page.all('img'))) == 24


@pytest.mark.parametrize(
  ('where', 'words'),
  [
    ('gone', 'the pair set is not at '),
    ('other', 'has other pairs now than were evaluated'),
    ('damaged', 'There are no pictures: '),
  ],
)  # fmt: skip
def test_pictures_that_are_not_there_are_said(
  make_run, pair_file, tmp_path, where, words
):
  path = tmp_path / 'faces.npz'
  shutil.copy(pair_file, path)
  run = make_run(tmp_path / 'run', sets={'faces': str(path)})
  if where == 'gone':
    path.unlink()
  elif where == 'damaged':
    path.write_bytes(path.read_bytes()[:1000])
  else:
    with np.load(path) as saved:
      arrays = {**saved}
    np.savez(path, **arrays | {'same': ~arrays['same']})
  page = page_of([run], tmp_path / 'page.html')
  assert words in page.text and not list(page.all('img'))
  assert 'cosine' in page.text


def test_any_results_have_tables(make_run, tmp_path):
  run = make_run(tmp_path / 'run')
  point = {
    'far_target': 1e-4, 'far': 1e-4, 'tar': 0.9, 'threshold': 0.3,
    'tar_interval': [0.8, 0.95], 'num_impostors': 10**6,
  }  # fmt: skip
  edit(
    run / 'results.json',
    lambda r: r.update(
      ijbc={
        'protocol': 'templates', 'num_templates': 3,
        'tar_at_far': {'0.0001': point}, 'flip': True, 'remarks': ['a remark'],
      },
      search={
        'protocol': 'identification', 'rank_rates': {'1': 0.5, '5': 0.75},
        'galleries': [{'gallery': 'g1', 'cmc': [0.5, 0.6]}], 'deep': {'a': {}},
        'tpir_at_fpir': {'0.01': {'tpir': 0.25, 'fpir': 0.01}},
      },
    ),
  )  # fmt: skip
  page = page_of([run], tmp_path / 'page.html')
  assert [h.text for h in page.all('h2')][3:6] == ['faces', 'ijbc', 'search']
  assert 'Other protocols, each in its own part: ijbc, search.' in page.text
  captions = [caption.text for caption in page.all('caption')]
  assert {'tar_at_far of ijbc', 'tpir_at_fpir of search'} <= {*captions}
  assert 'a remark' in page.text and '0.8, 0.95' in page.text
  for name in ('galleries.0.cmc', 'rank_rates.5'):
    assert name in page.text


@pytest.mark.parametrize('what', ['nothing', 'margins', 'rows', 'config'])
def test_less_than_a_run_makes_a_page(make_run, tmp_path, what):
  run = make_run(tmp_path / 'run', margins=() if what == 'margins' else ('m2',))
  if what == 'rows':
    rows = (run / 'metrics.jsonl').read_text().splitlines()
    kept = [row for row in rows if 'pairs' in row]
    (run / 'metrics.jsonl').write_text('\n'.join(kept) + '\n')
  if what == 'config':
    (run / 'config.json').write_text('{"model": 3}')
    (run / 'manifest.json').write_text('{"starts": [{"versions": 3}]}')
  if what == 'nothing':
    edit(run / 'results.json', lambda r: r.update(faces={'accuracy': 0.5}))
    (run / 'metrics.jsonl').unlink()
  page = page_of([run], tmp_path / 'page.html')
  text = page.text
  assert ('Angle to the own class over training' in text) == (what == 'margins')
  if what == 'nothing':
    assert '50.00 ± not recorded' in text


def test_evaluations_beside_runs(two_runs, tmp_path):
  out = tmp_path / 'out'
  out.mkdir()
  for name in ('results.json', 'scores_faces.npz'):
    shutil.copy(two_runs[0] / name, out)
  page = page_of([*two_runs, out], tmp_path / 'page.html')
  assert 'an evaluation' in page.text and 'arc, step 60' in page.text
  (roc,) = (f for f in page.all('figure') if 'ROC of' in f.text)
  (findings,) = roc.all('p')
  assert findings.text.count('accepts') == 3
  same = 'arc and out are one network: their fingerprints are equal.'
  assert same in findings.text
  assert 'The interval of cos lies above all others' in findings.text
  one = page_of([two_runs[0], out], tmp_path / 'one.html')
  assert same in one.text and 'Intervals overlap' not in one.text


def test_a_run_without_pair_sets_is_not_in_their_table(two_runs, tmp_path):
  out = tmp_path / 'ijb'
  out.mkdir()
  text = '{"ijbc": {"protocol": "templates", "num_templates": 3}}'
  (out / 'results.json').write_text(text)
  page = page_of([*two_runs, out], tmp_path / 'page.html')
  table = next(
    t for t in page.all('table') if 'Verification of pairs' in t.text
  )
  assert len(list(table.all('tr'))) == 3
  assert 'ijb' not in table.text and 'not evaluated' not in page.text


def test_losses_that_differ_are_not_compared(page, two_runs):
  figure = next(f for f in page.all('figure') if 'Loss over' in f.text)
  assert re.search(r'The runs differ in [^:]*loss\.name', figure.text)
  assert 'values of their losses are not comparable.' in figure.text
  (run, _) = report.read_runs(two_runs)
  assert words.other_losses([run, run]) == ''
  facts = next(d for d in page.all('dl')).text
  assert 'elastic_arcface(' in facts
  assert '=[]' not in facts and '="' not in facts and '=null' not in facts


def test_close_numbers_have_more_digits():
  found = words.metric({'a': [(1, 11.2021), (60, 11.1534)]}, ' nats')
  assert found == (
    'a: 11.202 nats at step 1, 11.153 nats at step 60; between 11.153 nats and '
    '11.202 nats.'
  )
  assert '15 at step 1, 3.12 at' in words.metric(
    {'a': [(1, 15), (2, 3.12)]}, ''
  )
  assert '0.35 at step 1' in words.metric({'a': [(1, 0.35), (2, 0.35)]}, '')


def test_histograms_of_a_set_have_bins_of_one_width(make_run, tmp_path):
  folders = [make_run(tmp_path / f'{k}', separation=k) for k in (0.1, 8.0)]
  alone = [report.read_runs([f])[0].results['faces'] for f in folders]
  together = [r.results['faces'] for r in report.read_runs(folders)]
  first, second = (result.histogram.width for result in alone)
  assert first != second
  for before, result in zip(alone, together, strict=True):
    found = result.histogram
    assert found.width == pytest.approx(max(first, second))
    assert found.genuine.sum() == before.histogram.genuine.sum() == 200


def parsed(text):
  """Parses a printed command as the command line does."""
  parts = shlex.split(text.replace('\\\n', ' '))
  return cli._parser().parse_known_args(parts[1:])


def test_commands_make_the_run_again(two_runs):
  for run in report.read_runs(two_runs):
    recipe = repeat.nearest_recipe(run.config)
    text = repeat.training(run, recipe, 'NEW it')
    # The command line sets the usual number of threads itself.
    assert runtime.CPU_THREADS == repeat._THREADS
    assert text.startswith('elasticface train --config ')
    args, rest = parsed(text)
    made = recipes.load(args.config, rest)
    saved = json.loads((run.folder / 'config.json').read_text())
    assert json.loads(json.dumps(made.to_dict())) == saved
    assert str(args.workdir) == 'NEW it'
    args, _ = parsed(repeat.evaluation(run, 'out', 'NEW it'))
    assert args.pairs == [run.results['faces'].summary['path']]
    assert (args.step, args.folds) == (60, 10)
    assert (str(args.checkpoint), str(args.out)) == ('NEW it', 'out')
    args, _ = parsed(repeat.evaluation(run, 'out'))
    assert args.checkpoint == run.folder


def test_another_number_of_threads_is_part_of_the_command(two_runs):
  (run, _) = report.read_runs(two_runs)
  run.manifest['starts'][0]['cpu_threads'] = '4'
  text = repeat.training(run, repeat.nearest_recipe(run.config), 'NEW')
  assert text.startswith('PJRT_NPROC=4 elasticface train --config ')


def test_commands_can_be_pasted_in_order(make_run, tmp_path):
  # Names that would give one folder to two commands.
  names = ['a/b_c', 'a_b/c', 'a_b/c_results', 'my runs/c']
  folders = [make_run(tmp_path / name) for name in names]
  page = page_of(folders, tmp_path / 'page.html')
  (part,) = (s for s in page.all('section') if s.attributes['id'] == 'repeat')
  made, trained = set(), []
  for text in [code.text for code in part.all('code')][:-1]:
    words = shlex.split(text.replace('\\\n', ' '))
    if words[1] == 'train':
      trained.append(words[words.index('--workdir') + 1])
      made.add(trained[-1])
    elif words[1] == 'fingerprint':
      assert words[2] == trained[-1]
    elif words[1] == 'repeat':  # Into a folder of its own.
      assert words[2] == str(folders[len(trained) - 1])
    else:
      assert words[words.index('--checkpoint') + 1] == trained[-1]
      made.add(words[words.index('--out') + 1])
  assert len(made) == 2 * len(names)
  assert {'NEW_my runs_c', 'NEW_my runs_c_results'} < made


def test_other_networks_are_evaluated_as_they_were(
  two_runs, make_run, tmp_path
):
  run = make_run(tmp_path / 'run')
  results = json.loads((run / 'results.json').read_text())
  other = results['faces'] | {'checkpoint': 'n.onnx', 'step': None}
  moved = results['faces'] | {'checkpoint': str(tmp_path / 'before')}
  third = results['faces'] | {'checkpoint': str(two_runs[0])}
  edit(run / 'results.json', lambda r: r.update(a=other, faces=moved, b=third))
  (read,) = report.read_runs([run])
  commands = repeat.evaluation(read, 'out', 'NEW').replace('\\\n', ' ')
  found = [parsed(text)[0] for text in commands.splitlines()]
  assert [(str(a.checkpoint), a.step, str(a.out)) for a in found] == [
    ('NEW', 60, 'out'),
    ('n.onnx', None, 'out_2'),
    (str(two_runs[0]), 60, 'out_3'),
  ]


def test_config_of_another_version_has_no_command(two_runs):
  (run, _) = report.read_runs(two_runs)
  assert repeat.nearest_recipe(run.config | {'data.new': 3}) is None
  less = {k: v for k, v in run.config.items() if k != 'data.window'}
  assert repeat.nearest_recipe(less) is None
  # A field that moves no bit and is newer than the run is no other version.
  less = {k: v for k, v in run.config.items() if k != 'fingerprint_every'}
  recipe = repeat.nearest_recipe(less)
  assert '--config.fingerprint_every=0' in recipe.changes


@pytest.mark.parametrize('loss', recipes._base().LOSSES)
def test_every_margin_has_a_unit(loss):
  from elasticface_jax.training.loss import by_name

  names = by_name(recipes.loss(loss)).margin_names
  units = [words.margin_unit(loss, name) for name in names]
  assert set(units) <= {'angle', 'cosine', 'factor', ''}
  if loss != 'x2_softmax':
    assert '' not in units
  expected = {'cosface': ['cosine'], 'magface': ['angle'],
              'combined_margin': ['factor', 'angle', 'cosine'],
              'adaface': ['angle', 'cosine']}  # fmt: skip
  assert units == expected.get(loss, units)
