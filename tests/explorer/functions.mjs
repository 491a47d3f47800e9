// Functions of the page, for tests: stdin is [name, …arguments], stdout the result, both as JSON.

import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const PAGE = new URL('../../src/vmamba/explorer/page/', import.meta.url);
const page = (name) => import(new URL(name, PAGE));

const FUNCTIONS = {
  async rows(block, operands, query) {
    const { rows } = await page('attention.js');
    return rows(block, operands, query).map(({ signed, magnitude }) => [[...signed], [...magnitude]]);
  },

  /** The crop that the model sees as bytes (S, S, 3), and its normalised values (3, S, S). */
  async preprocess(picture, preprocessing) {
    const { square, normalise } = await page('preprocess.js');
    const cropped = square({ ...picture, data: Uint8Array.from(picture.data) }, preprocessing);
    return [[...cropped.data], [...normalise(cropped, preprocessing)]];
  },

  /** The first result of an exported model. */
  async run(runtime, file, images, shape) {
    const ort = await import(pathToFileURL(`${runtime}/ort.wasm.min.mjs`));
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = `${pathToFileURL(runtime)}/`;
    ort.env.wasm.wasmBinary = readFileSync(`${runtime}/ort-wasm-simd-threaded.wasm`);
    const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(file)));
    const results = await session.run({ images: new ort.Tensor('float32', Float32Array.from(images), shape) });
    return [...results[session.outputNames[0]].data];
  },
};

const [name, ...given] = JSON.parse(readFileSync(0));
process.stdout.write(JSON.stringify(await FUNCTIONS[name](...given)));
