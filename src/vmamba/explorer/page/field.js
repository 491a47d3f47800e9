// The effective receptive field.

import { backdrop, cells, fit, largestOf, outline } from './heatmap.js';
import { canvasOf } from './maps.js';
import { ask } from './models.js';
import { $, block, query, state } from './state.js';
import { theme } from './theme.js';
import { percent } from './words.js';

/** @param current Says if its token is still the chosen one. */
export async function showReceptiveField(current) {
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

export function drawReceptiveField() {
  if (!state.energy) return;
  const canvas = canvasOf('field');
  const size = [state.canvas.height, state.canvas.width];
  fit(canvas, size);
  backdrop(canvas, state.canvas, theme());
  cells(canvas, state.energy, size, largestOf(state.energy), [theme().sum, theme().negative]);
  outline(canvas, query(), block().grid, theme().ink, theme().paper);
}
