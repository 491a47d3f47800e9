// The rows of the attention matrices: one map for every route, their sum, and the walk along the routes.

import { total } from './attention.js';
import { backdrop, cells, fit, grid, hatch, largestOf, outline, trail } from './heatmap.js';
import { $, block, chosenValues, query, state } from './state.js';
import { theme } from './theme.js';
import { describe, number, percent, ranking, ROUTES, where } from './words.js';

const WALK = 2600; // milliseconds
const calm = matchMedia('(prefers-reduced-motion: reduce)');

/** A map for every route of the model. */
export function showRoutes() {
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

export const canvasOf = (map) => $(`figure[data-map="${map}"] canvas`);

/** Values of a map that are shown now: of a route, or "sum". */
export function valuesOf(map) {
  const rows = state.rows[state.block];
  return map === 'sum' ? total(rows.map(chosenValues)) : chosenValues(rows[map]);
}

export function draw() {
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

const steps = ({ path }) => Math.round(state.time * (path.length - 1));

/** The strongest tokens as a table, and in words. */
export function showNumbers() {
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

export function walk() {
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

export function stop() {
  cancelAnimationFrame(frame);
  frame = 0;
  showPlay();
}

function showPlay() {
  const [icon, text] = frame ? ['■', 'Stop'] : ['▶', 'Walk the routes'];
  $('#play span').textContent = icon;
  $('#play').lastChild.textContent = ` ${text}`;
}

export function setTime(time) {
  state.time = time;
  $('#time').value = 1000 * time;
  draw();
}

/** Stop the walk, or start it. */
export function play() {
  if (frame) stop();
  else walk();
}
