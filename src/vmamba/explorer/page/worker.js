// The models, beside the page so that it never waits for them. Every request is {id, task, …}, every answer {id, …}.

import * as ort from './onnxruntime/ort.wasm.min.mjs';
import { rows } from './attention.js';
import { normalise } from './preprocess.js';

ort.env.wasm.numThreads = 1; // more need headers that a simple server does not send
ort.env.wasm.wasmPaths = new URL('./onnxruntime/', import.meta.url).href;
ort.env.logLevel = 'error';

let model; // of site.json
let session;
let gradient; // a promise of a session, made when it is first asked for
let images;
let blocks; // operands by the block's name

async function open(file) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file} is missing (${response.status})`);
  return ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()));
}

const TASKS = {
  async load(request) {
    await session?.release();
    (await gradient)?.release();
    ({ model } = request);
    gradient = undefined;
    session = await open(model.file);
    return {};
  },

  async classify({ picture }) {
    const size = model.preprocessing.image_size;
    images = new ort.Tensor('float32', normalise(picture, model.preprocessing), [1, 3, size, size]);
    const start = performance.now();
    const results = await session.run({ images });
    const milliseconds = performance.now() - start;
    blocks = Object.fromEntries(
      model.blocks.map(({ name }) => {
        const [delta, b, c, A] = ['delta', 'b', 'c', 'A'].map((operand) => results[`${name}.${operand}`]);
        const [routes, channels, states] = A.dims;
        return [name, { delta: delta.data, b: b.data, c: c.data, A: A.data, routes, channels, states }];
      }),
    );
    return { logits: results.logits.data, milliseconds };
  },

  async rows({ block, query }) {
    const chosen = model.blocks.find(({ name }) => name === block);
    return { rows: rows(chosen, blocks[block], query) };
  },

  async receptiveField({ block, query }) {
    gradient ??= open(model.gradient);
    const feeds = { images };
    model.blocks.forEach(({ name, grid }, i) => {
      const weights = new Float32Array(grid[0] * grid[1]);
      if (name === block) weights[query[0] * grid[1] + query[1]] = 1;
      feeds[`token${i}`] = new ort.Tensor('float32', weights, [1, ...grid, 1]);
    });
    const { data } = (await (await gradient).run(feeds)).gradient;
    const energy = new Float64Array(data.length / 3); // magnitudes summed over the colours
    for (let i = 0; i < data.length; i++) energy[i % energy.length] += Math.abs(data[i]);
    return { energy };
  },
};

// One at a time: a session runs one request, and a later one may need what an earlier one leaves.
let queue = Promise.resolve();
addEventListener('message', ({ data: { id, task, ...request } }) => {
  queue = queue.then(async () => {
    try {
      postMessage({ id, ...(await TASKS[task](request)) });
    } catch (error) {
      postMessage({ id, error: error.message ?? String(error) });
    }
  });
});
