// The page: what is chosen, what is asked of the worker, and where it is shown.

import { tokenAt, total } from './attention.js';
import { backdrop, cells, grid, hatch, outline, toCanvas, trail } from './heatmap.js';
import { decode, square } from './preprocess.js';

const $ = (selector) => document.querySelector(selector);
const ROUTES = {
  rows: ['→', 'Rows'],
  columns: ['↓', 'Columns'],
  'rows backward': ['←', 'Rows back'],
  'columns backward': ['↑', 'Columns back'],
};
const WALK = 2600; // milliseconds
const SIZE = 560; // of a canvas in pixels, about
const calm = matchMedia('(prefers-reduced-motion: reduce)');

const state = {
  models: [],
  model: null,
  picture: null, // RGB bytes, as the model sees it
  canvas: null, // the same to draw with
  at: [0.5, 0.5], // the token, as fractions of height and width: it stays in its place from block to block
  block: 0,
  rows: [], // of every block
  energy: null, // of the receptive field
  time: 1, // of the walk, from 0 to 1
  signed: false,
};

// ---- the worker

const worker = new Worker('worker.js', { type: 'module' });
const waiting = new Map();
worker.addEventListener('message', ({ data: { id, error, ...answer } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(answer);
});
worker.addEventListener('error', (event) => fail(event.message || 'the worker could not be started'));

function ask(task, request = {}) {
  const id = crypto.randomUUID?.() ?? String(Math.random());
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, task, ...request });
  });
}

function fail(message) {
  const alert = $('#alert');
  alert.textContent = message;
  alert.hidden = !message;
}

let running = 0;
/** Run a step of the page, and show why it failed if it does. */
async function attempt(step) {
  running += 1;
  document.body.setAttribute('aria-busy', 'true');
  try {
    await step();
  } catch (error) {
    fail(error.message);
  } finally {
    running -= 1;
    document.body.setAttribute('aria-busy', String(running > 0));
  }
}

// ---- what was chosen

const block = () => state.model.blocks[state.block];
const query = (of = block()) => tokenAt(state.at, of.grid);

async function chooseModel(model) {
  fail('');
  state.model = model;
  state.rows = [];
  state.block = 0;
  showBlocks();
  showThumbnails();
  await ask('load', { model });
  if (model.images.length) await chooseImage(model.images[0].file);
  else if (state.source) await choosePicture(state.source);
  else fail('Drop a picture, or choose one: this model comes without.');
}

async function chooseImage(file) {
  for (const button of document.querySelectorAll('#thumbnails button')) {
    button.setAttribute('aria-pressed', String(button.dataset.file === file));
  }
  await choosePicture(await (await fetch(file)).blob());
}

async function choosePicture(blob) {
  fail('');
  let decoded;
  try {
    decoded = await decode(blob);
  } catch {
    throw new Error('This file is no picture that your browser can read.');
  }
  state.source = blob;
  state.picture = square(decoded, state.model.preprocessing);
  state.canvas = toCanvas(state.picture);
  showClasses(await ask('classify', { picture: state.picture }));
  await chooseToken(state.at);
}

let latest = 0;
async function chooseToken(at) {
  state.at = at;
  const mine = ++latest;
  const current = () => mine === latest;
  drawPicture();
  showPosition();
  state.energy = null;
  const { rows } = await ask('rows', { block: block().name, query: query() });
  if (!current()) return;
  state.rows[state.block] = rows;
  walk();
  showNumbers();
  await showReceptiveField(current);
  for (const [i, other] of state.model.blocks.entries()) {
    if (!current()) return;
    if (i !== state.block) state.rows[i] = (await ask('rows', { block: other.name, query: query(other) })).rows;
    if (current()) drawBlock(i);
  }
}

// ---- the picture and its classes

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const of = (name) => colour(`--${name}-${dark ? 'dark' : 'light'}`);
  return {
    paper: of('paper'),
    ink: of('ink'),
    fade: dark ? 0.34 : 0.42,
    routes: [0, 1, 2, 3].map((i) => of(`route${i}`)),
    sum: of('sum'),
    negative: of('negative'),
    lines: dark ? 'rgb(255 255 255 / 16%)' : 'rgb(0 0 0 / 13%)',
    hatching: dark ? 'rgb(255 255 255 / 9%)' : 'rgb(0 0 0 / 10%)',
  };
}

function fit(canvas, [height, width]) {
  canvas.width = width * Math.max(1, Math.round(SIZE / width));
  canvas.height = height * Math.max(1, Math.round(SIZE / height));
}

function drawPicture() {
  const canvas = $('#picture');
  fit(canvas, block().grid);
  const context = canvas.getContext('2d');
  context.imageSmoothingEnabled = state.canvas.width > 128;
  context.drawImage(state.canvas, 0, 0, canvas.width, canvas.height);
  grid(canvas, block().grid, 'rgb(128 128 128 / 28%)');
  outline(canvas, query(), block().grid, theme().sum, theme().paper);
}

function showPosition() {
  const [row, column] = query();
  const [height, width] = block().grid;
  Object.assign($('#row'), { max: height, value: row + 1 });
  Object.assign($('#column'), { max: width, value: column + 1 });
}

function showClasses({ logits, milliseconds }) {
  const largest = Math.max(...logits);
  const weights = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = weights.reduce((a, b) => a + b, 0);
  const best = weights
    .map((weight, i) => ({ name: state.model.class_names[i], probability: weight / sum }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, 5);
  $('#classes').replaceChildren(
    ...best.map(({ name, probability }) => {
      const item = document.createElement('li');
      item.dataset.probability = probability;
      const bar = document.createElement('span');
      bar.className = 'bar';
      bar.style.width = `${100 * probability}%`;
      const label = document.createElement('span');
      label.className = 'name';
      label.textContent = name;
      const number = document.createElement('span');
      number.className = 'number';
      number.textContent = percent(probability);
      item.append(bar, label, number);
      return item;
    }),
  );
  const { image_size: size } = state.model.preprocessing;
  $('#timing').textContent = `${state.model.note} ${size} × ${size} pixels, ${Math.round(milliseconds)} ms on this device.`.trim();
}

function percent(fraction) {
  return `${(100 * fraction).toFixed(fraction < 0.0995 ? 1 : 0)} %`;
}

function showThumbnails() {
  $('#thumbnails').replaceChildren(
    ...state.model.images.map(({ file, title }) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.dataset.file = file;
      button.setAttribute('aria-pressed', 'false');
      const image = document.createElement('img');
      Object.assign(image, { src: file, alt: title, loading: 'lazy', width: 64, height: 64 });
      button.append(image);
      button.addEventListener('click', () => attempt(() => chooseImage(file)));
      return button;
    }),
  );
}

// ---- blocks

function showBlocks() {
  const legend = $('#blocks legend');
  const choices = state.model.blocks.map(({ name, grid: [height, width] }, i) => {
    const [, stage, index] = /(\d+)\D+(\d+)$/.exec(name) ?? [, 0, i];
    const label = document.createElement('label');
    const radio = document.createElement('input');
    Object.assign(radio, { type: 'radio', name: 'block', value: i, checked: i === state.block, className: 'visually-hidden' });
    radio.addEventListener('change', () => {
      state.block = i;
      attempt(() => chooseToken(state.at));
    });
    const canvas = document.createElement('canvas');
    canvas.setAttribute('aria-hidden', 'true');
    const text = document.createElement('span');
    text.textContent = `${Number(stage) + 1}.${Number(index) + 1}`;
    const size = document.createElement('small');
    size.textContent = `${height} × ${width}`;
    label.append(radio, canvas, text, size);
    label.title = `Stage ${Number(stage) + 1}, block ${Number(index) + 1}`;
    return label;
  });
  $('#blocks').replaceChildren(legend, ...choices);

  $('#routes').replaceChildren(
    ...state.model.blocks[0].scans.map(({ name }, i) => {
      const figure = document.createElement('figure');
      figure.className = `map route route${i}`;
      figure.dataset.map = i;
      const canvas = document.createElement('canvas');
      canvas.setAttribute('role', 'img');
      const caption = document.createElement('figcaption');
      const arrow = document.createElement('span');
      arrow.className = 'arrow';
      arrow.setAttribute('aria-hidden', 'true');
      const title = document.createElement('b');
      [arrow.textContent, title.textContent] = ROUTES[name];
      const value = document.createElement('output');
      value.className = 'value';
      caption.append(arrow, title, ' ', value);
      figure.append(canvas, caption);
      return figure;
    }),
  );
}

function drawBlock(i) {
  const canvas = document.querySelectorAll('#blocks canvas')[i];
  canvas.width = canvas.height = 96;
  const { grid: size } = state.model.blocks[i];
  const values = total(state.rows[i].map(chosenValues));
  backdrop(canvas, state.canvas, theme());
  cells(canvas, values, size, largestOf(values), [theme().sum, theme().negative]);
  outline(canvas, query(state.model.blocks[i]), size, theme().ink, theme().paper);
}

// ---- rows

const chosenValues = ({ signed, magnitude }) => (state.signed ? signed : magnitude);

function largestOf(values) {
  let largest = 0;
  for (const value of values) largest = Math.max(largest, Math.abs(value));
  return largest;
}

const figures = () => [...document.querySelectorAll('#rows figure')];
const canvasOf = (map) => $(`figure[data-map="${map}"] canvas`);

/** Values of a map that are shown now: of a route, or "sum". */
function valuesOf(map) {
  const rows = state.rows[state.block];
  return map === 'sum' ? total(rows.map(chosenValues)) : chosenValues(rows[map]);
}

function draw() {
  const rows = state.rows[state.block];
  if (!rows || !state.canvas) return;
  const { grid: size, scans } = block();
  const colours = theme();
  const largest = Math.max(...rows.map((row) => largestOf(chosenValues(row))));
  const weights = rows.map(({ magnitude }) => magnitude.reduce((a, b) => a + b, 0));
  const all = weights.reduce((a, b) => a + b, 0);
  const moving = state.time < 1;
  const shown = rows.map((row) => {
    const values = chosenValues(row);
    if (!moving) return values;
    const sofar = new Float64Array(values.length);
    for (const token of row.path.subarray(0, steps(row) + 1)) sofar[token] = values[token];
    return sofar;
  });
  rows.forEach((row, i) => {
    const canvas = canvasOf(i);
    fit(canvas, size);
    backdrop(canvas, state.canvas, colours);
    const visited = new Uint8Array(size[0] * size[1]);
    for (const token of row.path) visited[token] = 1;
    hatch(canvas, visited, size, colours.hatching);
    cells(canvas, shown[i], size, largest, [colours.routes[i % 4], colours.negative]);
    grid(canvas, size, colours.lines);
    if (moving) trail(canvas, row.path, steps(row), size, colours.routes[i % 4], colours.paper);
    outline(canvas, query(), size, colours.ink, colours.paper);
    canvas.setAttribute('aria-label', `${ROUTES[scans[i].name][1]}: ${describe(chosenValues(row), size)}`);
    $(`figure[data-map="${i}"] .value`).textContent = percent(all ? weights[i] / all : 0);
  });
  const canvas = canvasOf('sum');
  const sum = total(rows.map(chosenValues));
  fit(canvas, size);
  backdrop(canvas, state.canvas, colours);
  cells(canvas, total(shown), size, largestOf(sum), [colours.sum, colours.negative]);
  grid(canvas, size, colours.lines);
  if (moving) rows.forEach((row, i) => trail(canvas, row.path, steps(row), size, colours.routes[i % 4], colours.paper));
  outline(canvas, query(), size, colours.ink, colours.paper);
  canvas.setAttribute('aria-label', `Sum of the routes: ${describe(sum, size)}`);
  $('figure[data-map="sum"] .value').textContent = '';
  $('#scale-text').textContent =
    `Full colour is ${number(largest)} for a route and ${number(largestOf(sum))} for the sum; colour grows with the square root` +
    `${state.signed ? ', grey is negative' : ' of the magnitude'}. A per cent is a route's part of all magnitudes.`;
}

const number = (value) => (value && Math.abs(value) < 1e-3 ? value.toExponential(2).replace('e-', ' · 10⁻').replace(/\d+$/, superscript) : value.toPrecision(3));
const superscript = (digits) => [...digits].map((digit) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[digit]).join('');
const steps = ({ path }) => Math.round(state.time * (path.length - 1));
const where = (token, width) => `row ${Math.floor(token / width) + 1}, column ${(token % width) + 1}`;

/** Tokens by magnitude, the strongest first. */
function ranking(values) {
  return [...values.keys()].filter((i) => values[i]).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
}

function describe(values, [, width]) {
  const best = ranking(values).slice(0, 3);
  return `strongest ${best.map((token) => `${where(token, width)} (${number(values[token])})`).join('; ')}`;
}

function showNumbers() {
  const rows = state.rows[state.block];
  const { grid: size, scans } = block();
  const sum = total(rows.map(chosenValues));
  const cell = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const line = (tag, texts) => {
    const tr = document.createElement('tr');
    tr.append(...texts.map((text) => cell(tag, text)));
    return tr;
  };
  $('#numbers thead').replaceChildren(line('th', ['Token', ...scans.map(({ name }) => ROUTES[name].join(' ')), 'Sum']));
  $('#numbers tbody').replaceChildren(
    ...ranking(sum)
      .slice(0, 10)
      .map((token) => line('td', [where(token, size[1]), ...rows.map((r) => number(chosenValues(r)[token])), number(sum[token])])),
  );
  const [row, column] = query();
  $('#status').textContent = `Token in row ${row + 1}, column ${column + 1} of ${size.join(' by ')}: ${describe(sum, size)}`;
}

let frame = 0; // of the walk, 0 while nothing moves

function walk() {
  stop();
  if (calm.matches) return setTime(1);
  const start = performance.now();
  const next = (now) => {
    const time = Math.max(0, now - start) / WALK;
    frame = time < 1 ? requestAnimationFrame(next) : 0;
    if (!frame) showPlay();
    setTime(Math.min(1, time));
  };
  frame = requestAnimationFrame(next);
  showPlay();
  setTime(0);
}

function stop() {
  cancelAnimationFrame(frame);
  frame = 0;
  showPlay();
}

function showPlay() {
  const [icon, text] = frame ? ['■', 'Stop'] : ['▶', 'Walk the routes'];
  $('#play span').textContent = icon;
  $('#play').lastChild.textContent = ` ${text}`;
}

function setTime(time) {
  state.time = time;
  $('#time').value = 1000 * time;
  draw();
}

// ---- the receptive field

async function showReceptiveField(current) {
  const text = $('#field-text');
  const canvas = canvasOf('field');
  if (!state.model.gradient) {
    $('#field').hidden = true;
    return;
  }
  $('#field').hidden = false;
  text.textContent = 'Computing the gradient …';
  const { energy } = await ask('receptiveField', { block: block().name, query: query() });
  if (!current()) return;
  state.energy = energy;
  drawReceptiveField();
  const sorted = Float64Array.from(energy).sort().reverse();
  const half = sorted.reduce((a, b) => a + b, 0) / 2;
  let held = 0;
  let pixels = 0;
  while (held < half) held += sorted[pixels++];
  text.textContent = `Half of it lies in ${percent(pixels / energy.length)} of the pixels.`;
  canvas.setAttribute('aria-label', `Effective receptive field. ${text.textContent}`);
}

function drawReceptiveField() {
  if (!state.energy) return;
  const canvas = canvasOf('field');
  const size = [state.canvas.height, state.canvas.width];
  fit(canvas, size);
  backdrop(canvas, state.canvas, theme());
  cells(canvas, state.energy, size, largestOf(state.energy), [theme().sum, theme().negative]);
  outline(canvas, query(), block().grid, theme().ink, theme().paper);
}

function redraw() {
  if (!state.canvas) return;
  drawPicture();
  draw();
  state.rows.forEach((_, i) => drawBlock(i));
  drawReceptiveField();
}

// ---- what people do

function move(rows, columns) {
  const { grid: [height, width] } = block();
  const [row, column] = query();
  const inside = (value, size) => Math.min(size - 1, Math.max(0, value));
  choose(inside(row + rows, height), inside(column + columns, width));
}

function choose(row, column) {
  const { grid: [height, width] } = block();
  attempt(() => chooseToken([(row + 0.5) / height, (column + 0.5) / width]));
}

const KEYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e6], End: [0, 1e6], PageUp: [-1e6, 0], PageDown: [1e6, 0] };
$('#picture').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' || event.key === ' ') walk();
  else if (KEYS[event.key]) move(...KEYS[event.key]);
  else return;
  event.preventDefault();
});

function tokenUnder(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const inside = (value) => Math.min(1 - 1e-9, Math.max(0, value));
  return tokenAt([inside((event.clientY - box.top) / box.height), inside((event.clientX - box.left) / box.width)], block().grid);
}

for (const canvas of [$('#picture'), canvasOf('field')]) canvas.addEventListener('click', (event) => state.canvas && choose(...tokenUnder(event, canvas)));

$('#rows').addEventListener('click', (event) => {
  const canvas = event.target.closest('figure canvas');
  if (canvas && state.canvas) choose(...tokenUnder(event, canvas));
});
$('#rows').addEventListener('pointermove', (event) => {
  const canvas = event.target.closest?.('figure canvas');
  if (!canvas || !state.rows[state.block]) return;
  const [row, column] = tokenUnder(event, canvas);
  const value = valuesOf(canvas.closest('figure').dataset.map)[row * block().grid[1] + column];
  canvas.title = `row ${row + 1}, column ${column + 1}: ${number(value)}`;
});

for (const input of [$('#row'), $('#column')]) {
  input.addEventListener('change', () => choose(...[$('#row'), $('#column')].map((i) => Math.min(i.max, Math.max(1, i.valueAsNumber || 1)) - 1)));
}
$('#model').addEventListener('change', (event) => attempt(() => chooseModel(state.models[event.target.value])));
$('#file').addEventListener('change', (event) => event.target.files[0] && attempt(() => choosePicture(event.target.files[0])));
$('#play').addEventListener('click', () => (frame ? stop() : walk()));
$('#time').addEventListener('input', (event) => {
  stop();
  setTime(event.target.value / 1000);
});
$('#signed').addEventListener('change', (event) => {
  state.signed = event.target.checked;
  showNumbers();
  redraw();
});
$('#save').addEventListener('click', () => {
  const { name, grid: size, scans } = block();
  const rows = state.rows[state.block];
  const content = {
    model: state.model.title,
    block: name,
    grid: size,
    token: query(),
    routes: rows.map(({ signed, magnitude }, i) => ({ name: scans[i].name, row: [...signed], magnitudes: [...magnitude] })),
    receptive_field: state.energy && [...state.energy],
  };
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content)], { type: 'application/json' }));
  link.download = `${name}-${query().join('-')}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

for (const kind of ['dragover', 'drop', 'dragleave']) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $('#drop').hidden = kind !== 'dragover';
    const file = kind === 'drop' && event.dataTransfer.files[0];
    if (file) attempt(() => choosePicture(file));
  });
}
addEventListener('paste', (event) => {
  const file = event.clipboardData?.files[0];
  if (file) attempt(() => choosePicture(file));
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);

await attempt(async () => {
  state.models = (await (await fetch('site.json')).json()).models;
  $('#model').replaceChildren(...state.models.map(({ title }, i) => new Option(title, i)));
  $('#model').closest('label').hidden = state.models.length < 2;
  await chooseModel(state.models[0]);
});
