// Problems of the page's layout, in words; an empty list if there are none.
const problems = [];
const say = (what, node) => problems.push(
  `${what}: <${node.tagName} class="${node.getAttribute('class') || ''}"> ` +
  (node.textContent || '').trim().slice(0, 60));
const seen = node => node.getClientRects().length > 0;
// What a screen reader alone reads, and what appears on focus.
const hidden = node => node.closest('.skip') ||
  getComputedStyle(node.closest('thead') || node).clipPath !== 'none';
const all = [...document.body.querySelectorAll('*')].filter(
  node => seen(node) && !hidden(node));
const boxes = all.filter(node => !node.closest('svg') || node.tagName === 'svg');
const own = node => [...node.childNodes].some(
  child => child.nodeType === 3 && child.data.trim());

if (document.documentElement.scrollWidth > innerWidth)
  problems.push(`the page is ${document.documentElement.scrollWidth} px wide`);
for (const node of boxes) {
  const box = node.getBoundingClientRect();
  if (box.left < -0.5 || box.right > innerWidth + 0.5) say('outside', node);
  if (node.clientWidth && node.scrollWidth > node.clientWidth + 1)
    say('cut off', node);
}

// Texts of a drawing: inside of it, apart from each other, large enough.
const meet = (a, b) => a.left < b.right - 0.5 && b.left < a.right - 0.5 &&
  a.top < b.bottom - 0.5 && b.top < a.bottom - 0.5;
for (const svg of document.querySelectorAll('svg[role=img]')) {
  const frame = svg.getBoundingClientRect();
  const scale = frame.width / svg.viewBox.baseVal.width;
  const texts = [...svg.querySelectorAll('text')].filter(
    text => text.textContent.trim());
  if (texts.length < 4) say('too few texts', svg);
  const rects = texts.map(text => text.getBoundingClientRect());
  texts.forEach((text, i) => {
    const box = rects[i];
    if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
        box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      say('text outside of its drawing', text);
    const size = parseFloat(getComputedStyle(text).fontSize) * scale;
    if (size < 11) say(`${size.toFixed(1)} px`, text);
    for (let j = 0; j < i; j++)
      if (meet(box, rects[j])) say(`over ${texts[j].textContent}`, text);
  });
}

// Boxes side by side, and lines of text, lie apart.
for (const node of boxes) {
  const inner = [...node.children].filter(
    child => seen(child) && !hidden(child) &&
      !['thead', 'tbody', 'line', 'g'].includes(child.localName) &&
      getComputedStyle(child).display !== 'inline');
  const rects = inner.map(child => child.getBoundingClientRect());
  if (node.localName !== 'svg')
    inner.forEach((child, i) => {
      for (let j = 0; j < i; j++)
        if (meet(rects[i], rects[j])) say('over its neighbour', child);
    });
}

// Contrast of texts 4.5 to 1, of lines 3 to 1.
const parse = colour => (colour.match(/[\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(x => x / 255).map(
  x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4
).reduce((sum, x, k) => sum + x * [0.2126, 0.7152, 0.0722][k], 0);
const behind = node => {
  for (let one = node; one; one = one.parentElement) {
    const colour = parse(getComputedStyle(one).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const contrast = (a, b) => {
  const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
for (const node of all) {
  const style = getComputedStyle(node);
  if (own(node) && node.localName !== 'title' && node.localName !== 'desc') {
    const colour = parse(node.closest('svg') ? style.fill : style.color);
    const found = contrast(colour, behind(node));
    if (found < 4.5) say(`contrast ${found.toFixed(2)}`, node);
    if (!node.closest('svg') && parseFloat(style.fontSize) < 11)
      say(style.fontSize, node);
  }
  if (node.localName === 'line') {
    const found = contrast(parse(style.stroke), behind(node));
    if (found < 3) say(`contrast ${found.toFixed(2)}`, node.closest('li'));
  }
}
return problems;
