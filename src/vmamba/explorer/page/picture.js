// The picture, the bundled ones, and its classes.

import { fit, grid, outline } from './heatmap.js';
import { $, block, query, state } from './state.js';
import { theme } from './theme.js';
import { percent } from './words.js';

const INVITATIONS = {
  loading: ['Loading the model …', ''],
  failed: ['The model could not be loaded', ''],
  invited: ['Choose a picture', 'or drop or paste one: it stays in your browser'],
};

/** Ask for a picture in its place while there is none. @param what Of INVITATIONS, or nothing. */
export function showInvitation(what) {
  const awaited = what && !state.canvas;
  document.body.classList.toggle('empty', Boolean(awaited));
  $('#invitation').hidden = !awaited;
  if (awaited) [$('#invitation b').textContent, $('#invitation span').textContent] = INVITATIONS[what];
}

export function drawPicture() {
  const canvas = $('#picture');
  fit(canvas, block().grid);
  const context = canvas.getContext('2d');
  context.imageSmoothingEnabled = state.canvas.width > 128;
  context.drawImage(state.canvas, 0, 0, canvas.width, canvas.height);
  grid(canvas, block().grid, 'rgb(128 128 128 / 28%)');
  outline(canvas, query(), block().grid, theme().sum, theme().paper);
}

/** Row and column of the token in their fields. */
export function showPosition() {
  const [row, column] = query();
  const [height, width] = block().grid;
  Object.assign($('#row'), { max: height, value: row + 1 });
  Object.assign($('#column'), { max: width, value: column + 1 });
}

/** The five most probable classes. */
export function showClasses({ logits, milliseconds }) {
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

/** @param choose Called with the file of the one that is clicked. */
export function showThumbnails(choose) {
  $('#thumbnails').replaceChildren(
    ...state.model.images.map(({ file, title }) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.dataset.file = file;
      button.setAttribute('aria-pressed', 'false');
      const image = document.createElement('img');
      Object.assign(image, { src: file, alt: title, loading: 'lazy', width: 64, height: 64 });
      button.append(image);
      button.addEventListener('click', () => choose(file));
      return button;
    }),
  );
}
