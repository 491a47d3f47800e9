// Drawing: a picture in grey, tokens coloured by weight, and where a route has come to.

const SIZE = 560; // of a canvas in pixels, about

/** Give a canvas whole pixels for every cell of a grid. */
export function fit(canvas, [height, width]) {
  canvas.width = width * Math.max(1, Math.round(SIZE / width));
  canvas.height = height * Math.max(1, Math.round(SIZE / height));
}

/** The largest magnitude of values. */
export function largestOf(values) {
  let largest = 0;
  for (const value of values) largest = Math.max(largest, Math.abs(value));
  return largest;
}

function rgb(colour) {
  const [, r, g, b] = /^#(..)(..)(..)$/.exec(colour).map((part) => parseInt(part, 16));
  return [r, g, b];
}

/** RGB bytes as a canvas of their size. */
export function toCanvas({ data, width, height }) {
  const canvas = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    image.data.set(data.subarray(3 * i, 3 * i + 3), 4 * i);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

/** How much colour a weight gets, from 0 to 1: its square root, or small weights would not be seen. */
export function strength(value, largest) {
  return largest > 0 ? Math.sqrt(Math.min(1, Math.abs(value) / largest)) : 0;
}

/** Fill a canvas with a picture, faded to grey so that colours stand out on it. */
export function backdrop(canvas, picture, theme) {
  const context = canvas.getContext('2d');
  context.save();
  context.globalAlpha = 1;
  context.fillStyle = theme.paper;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.filter = 'grayscale(1)';
  context.globalAlpha = theme.fade;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = 'high';
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.restore();
}

/**
 * Colour the cells of a grid over what is on a canvas.
 *
 * @param values Of the grid in image order.
 * @param colours For positive and for negative values, #rrggbb.
 */
export function cells(canvas, values, [height, width], largest, [positive, negative]) {
  const image = new ImageData(width, height);
  const [up, down] = [rgb(positive), rgb(negative)];
  for (let i = 0; i < values.length; i++) {
    image.data.set(values[i] < 0 ? down : up, 4 * i);
    image.data[4 * i + 3] = Math.round(255 * strength(values[i], largest));
  }
  const small = new OffscreenCanvas(width, height);
  small.getContext('2d').putImageData(image, 0, 0);
  const context = canvas.getContext('2d');
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/** Hatch the cells that a route has not visited. */
export function hatch(canvas, visited, [height, width], colour) {
  const context = canvas.getContext('2d');
  const [w, h] = [canvas.width / width, canvas.height / height];
  context.save();
  context.beginPath();
  for (let i = 0; i < visited.length; i++) {
    if (!visited[i]) context.rect((i % width) * w, Math.floor(i / width) * h, w, h);
  }
  context.clip();
  context.strokeStyle = colour;
  context.lineWidth = Math.max(1, canvas.width / 360);
  context.beginPath();
  const gap = canvas.width / 42;
  for (let x = -canvas.height; x < canvas.width; x += gap) {
    context.moveTo(x, canvas.height);
    context.lineTo(x + canvas.height, 0);
  }
  context.stroke();
  context.restore();
}

/** Outline one cell. */
export function outline(canvas, [row, column], [height, width], colour, halo) {
  const context = canvas.getContext('2d');
  const [w, h] = [canvas.width / width, canvas.height / height];
  for (const [style, thickness] of [[halo, canvas.width / 64], [colour, canvas.width / 128]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    context.strokeRect(column * w, row * h, w, h);
  }
}

/** The last tokens that a route has visited, as a line that ends in a point. */
export function trail(canvas, path, time, [height, width], colour, halo) {
  const context = canvas.getContext('2d');
  const place = (token) => [
    (((token % width) + 0.5) / width) * canvas.width,
    ((Math.floor(token / width) + 0.5) / height) * canvas.height,
  ];
  const near = (a, b) => Math.abs((a % width) - (b % width)) + Math.abs(Math.floor(a / width) - Math.floor(b / width)) === 1;
  const length = Math.max(width, height);
  context.save();
  context.lineCap = 'round';
  for (const [style, thickness] of [[halo, canvas.width / 60], [colour, canvas.width / 110]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    for (let t = Math.max(1, time - length); t <= time; t++) {
      if (!near(path[t - 1], path[t])) continue; // from the end of a line to the start of the next
      context.globalAlpha = 1 - (time - t) / length;
      context.beginPath();
      context.moveTo(...place(path[t - 1]));
      context.lineTo(...place(path[t]));
      context.stroke();
    }
  }
  context.globalAlpha = 1;
  context.fillStyle = colour;
  context.strokeStyle = halo;
  context.lineWidth = canvas.width / 160;
  context.beginPath();
  context.arc(...place(path[time]), Math.min(canvas.width / 40, canvas.width / width / 2.2), 0, 2 * Math.PI);
  context.fill();
  context.stroke();
  context.restore();
}

/** Lines between the tokens of a picture. */
export function grid(canvas, [height, width], colour) {
  const context = canvas.getContext('2d');
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  for (let i = 1; i < width; i++) {
    const x = Math.round((i * canvas.width) / width) + 0.5;
    context.moveTo(x, 0);
    context.lineTo(x, canvas.height);
  }
  for (let i = 1; i < height; i++) {
    const y = Math.round((i * canvas.height) / height) + 0.5;
    context.moveTo(0, y);
    context.lineTo(canvas.width, y);
  }
  context.stroke();
}
