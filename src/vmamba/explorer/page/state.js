// What is chosen and what is known of it, for every part of the page.

import { tokenAt } from './attention.js';

export const $ = (selector) => document.querySelector(selector);

export const state = {
  models: [],
  model: null,
  source: null, // the file of the picture
  picture: null, // RGB bytes, as the model sees it
  canvas: null, // the same to draw with
  at: [0.5, 0.5], // the token, as fractions of height and width: it stays in its place from block to block
  block: 0,
  rows: [], // of every block
  energy: null, // of the receptive field
  time: 1, // of the walk, from 0 to 1
  signed: false,
};

/** The block that is shown. */
export const block = () => state.model.blocks[state.block];

/** Row and column of the token in the grid of a block. */
export const query = (of = block()) => tokenAt(state.at, of.grid);

/** What is shown of a row of attention. */
export const chosenValues = ({ signed, magnitude }) => (state.signed ? signed : magnitude);
