// What people do on the page, and what follows from it.

import { tokenAt } from './attention.js';
import { drawBlock, showBlocks } from './blocks.js';
import { drawReceptiveField, showReceptiveField } from './field.js';
import { toCanvas } from './heatmap.js';
import { canvasOf, draw, play, setTime, showNumbers, showRoutes, stop, valuesOf, walk } from './maps.js';
import { ask } from './models.js';
import { drawPicture, showClasses, showInvitation, showPosition, showThumbnails } from './picture.js';
import { decode, square } from './preprocess.js';
import { $, block, query, state } from './state.js';
import { number } from './words.js';

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

let loaded; // a promise of the model

async function chooseModel(model) {
  fail('');
  state.model = model;
  state.rows = [];
  state.block = 0;
  showBlocks(chooseBlock);
  showRoutes();
  showThumbnails((file) => attempt(() => chooseImage(file)));
  showInvitation('loading');
  loaded = ask('load', { model });
  loaded.catch(() => showInvitation('failed'));
  await loaded;
  if (model.images.length) await chooseImage(model.images[0].file);
  else if (state.source) await choosePicture(state.source);
  else showInvitation('invited');
}

function chooseBlock(i) {
  state.block = i;
  if (state.canvas) attempt(() => chooseToken(state.at));
}

async function chooseImage(file) {
  await choosePicture(await (await fetch(file)).blob(), file);
}

/** @param file Of a bundled picture. */
async function choosePicture(blob, file) {
  fail('');
  let decoded;
  try {
    decoded = await decode(blob);
  } catch {
    throw new Error('This file is no picture that your browser can read.');
  }
  for (const button of document.querySelectorAll('#thumbnails button')) {
    button.setAttribute('aria-pressed', String(button.dataset.file === file));
  }
  state.source = blob;
  await loaded;
  state.picture = square(decoded, state.model.preprocessing);
  state.canvas = toCanvas(state.picture);
  showInvitation('');
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
$('#play').addEventListener('click', play);
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
