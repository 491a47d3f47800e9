// The blocks to choose from, each with its sum of the routes.

import { total } from './attention.js';
import { backdrop, cells, largestOf, outline } from './heatmap.js';
import { $, chosenValues, query, state } from './state.js';
import { theme } from './theme.js';

/** @param choose Called with the index of the one that is chosen. */
export function showBlocks(choose) {
  const legend = $('#blocks legend');
  const choices = state.model.blocks.map(({ name, grid: [height, width] }, i) => {
    const [, stage, index] = /(\d+)\D+(\d+)$/.exec(name) ?? [, 0, i];
    const label = document.createElement('label');
    const radio = document.createElement('input');
    Object.assign(radio, { type: 'radio', name: 'block', value: i, checked: i === state.block, className: 'visually-hidden' });
    radio.addEventListener('change', () => choose(i));
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
}

export function drawBlock(i) {
  const canvas = document.querySelectorAll('#blocks canvas')[i];
  canvas.width = canvas.height = 96;
  const { grid: size } = state.model.blocks[i];
  const values = total(state.rows[i].map(chosenValues));
  backdrop(canvas, state.canvas, theme());
  cells(canvas, values, size, largestOf(values), [theme().sum, theme().negative]);
  outline(canvas, query(state.model.blocks[i]), size, theme().ink, theme().paper);
}
