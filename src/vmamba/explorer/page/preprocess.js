// A picture as the model was trained to see it: the same numbers as vmamba.tasks.classification.prediction.eval_transform.
// Resizing repeats Pillow's arithmetic, whose 8-bit results differ from what a canvas would draw.

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x, a = -0.5) => {
      x = Math.abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
};
const BITS = 22; // of Pillow's fixed-point weights
const MAX_ASPECT = 16;

/** For every output position the first input position and the fixed-point weights from there on. */
function weights(from, to, { support, weight }) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  return Array.from({ length: to }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const values = Array.from({ length: end - first }, (_, i) => weight((i + first - centre + 0.5) / stretch));
    const sum = values.reduce((a, b) => a + b, 0);
    const fixed = values.map((v) => Math.trunc((v / sum) * 2 ** BITS + (v < 0 ? -0.5 : 0.5)));
    return { first, fixed };
  });
}

function clip(sum) {
  return Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));
}

/** Pillow's `Image.resize` of RGB bytes, rows after columns; {data, width, height}. */
export function resize({ data, width, height }, toWidth, toHeight, interpolation) {
  const filter = FILTERS[interpolation];
  if (toWidth !== width) {
    const across = weights(width, toWidth, filter);
    const narrow = new Uint8Array(toWidth * height * 3);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < toWidth; x++) {
        const { first, fixed } = across[x];
        for (let channel = 0; channel < 3; channel++) {
          let sum = 2 ** (BITS - 1);
          for (let i = 0; i < fixed.length; i++) sum += data[(y * width + first + i) * 3 + channel] * fixed[i];
          narrow[(y * toWidth + x) * 3 + channel] = clip(sum);
        }
      }
    }
    data = narrow;
  }
  if (toHeight !== height) {
    const down = weights(height, toHeight, filter);
    const line = toWidth * 3;
    const short = new Uint8Array(line * toHeight);
    for (let y = 0; y < toHeight; y++) {
      const { first, fixed } = down[y];
      for (let x = 0; x < line; x++) {
        let sum = 2 ** (BITS - 1);
        for (let i = 0; i < fixed.length; i++) sum += data[(first + i) * line + x] * fixed[i];
        short[y * line + x] = clip(sum);
      }
    }
    data = short;
  }
  return { data, width: toWidth, height: toHeight };
}

/** Python's `round`: halves go to the even number. */
function round(x) {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor % 2) : Math.round(x);
}

function crop({ data, width }, left, top, toWidth, toHeight) {
  const part = new Uint8Array(toWidth * toHeight * 3);
  for (let y = 0; y < toHeight; y++) {
    const start = ((top + y) * width + left) * 3;
    part.set(data.subarray(start, start + toWidth * 3), y * toWidth * 3);
  }
  return { data: part, width: toWidth, height: toHeight };
}

/** Short edge resized, centre cropped: RGB bytes of S × S pixels. */
export function square(picture, { image_size: size, resize: short, interpolation }) {
  const shortest = Math.min(picture.width, picture.height);
  const width = Math.min(picture.width, MAX_ASPECT * shortest);
  const height = Math.min(picture.height, MAX_ASPECT * shortest);
  if (width !== picture.width || height !== picture.height) {
    picture = crop(picture, Math.floor((picture.width - width) / 2), Math.floor((picture.height - height) / 2), width, height);
  }
  const long = Math.floor((short * Math.max(width, height)) / shortest);
  picture = width <= height ? resize(picture, short, long, interpolation) : resize(picture, long, short, interpolation);
  return crop(picture, round((picture.width - size) / 2), round((picture.height - size) / 2), size, size);
}

/** RGB bytes (S, S, 3) → float32 (3, S, S), normalised. */
export function normalise({ data }, { mean, std }) {
  const pixels = data.length / 3;
  const values = new Float32Array(data.length);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < pixels; i++) {
      values[channel * pixels + i] = (Math.fround(data[i * 3 + channel] / 255) - mean[channel]) / std[channel];
    }
  }
  return values;
}

/** The pixels of an image file, on white where it is transparent. */
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: 'none' });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext('2d');
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const data = new Uint8Array((rgba.length / 4) * 3);
  for (let i = 0; i < rgba.length / 4; i++) data.set(rgba.subarray(4 * i, 4 * i + 3), 3 * i);
  return { data, width: canvas.width, height: canvas.height };
}
