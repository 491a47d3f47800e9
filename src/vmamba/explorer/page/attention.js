// Rows of a scan's attention matrix, as vmamba.analysis.attention defines them. For output token l of route k:
//
//     M[l, j] = Σ_n c[l, n] · exp(A[n] · Σ_{j < i ≤ l} Δ[i]) · Δ[j] · b[j, n]        (per channel)
//
// where j and the tokens i between are those that the route visits up to l. Operands come in image order:
// delta (H·W, K, D), b and c (H·W, K, N), A (K, D, N).

/** Image-order index of the token visited at each time. */
export function visits({ columns, backward }, height, width) {
  const order = new Int32Array(height * width);
  for (let time = 0; time < order.length; time++) {
    order[time] = columns ? (time % height) * width + Math.floor(time / height) : time;
  }
  return backward ? order.reverse() : order;
}

/** The tokens on a route from where its state was last zero up to the query, in order; [row, column] in image order. */
export function path(scan, [height, width], [row, column]) {
  if (scan.mirrored) {
    if (scan.columns) row = height - 1 - row;
    else column = width - 1 - column;
  }
  const order = visits(scan, height, width);
  const time = order.indexOf(row * width + column);
  const line = scan.per_line ? (scan.columns ? height : width) : order.length;
  return order.subarray(Math.floor(time / line) * line, time + 1);
}

/**
 * One row of one route, averaged over the channels.
 *
 * @returns {{path: Int32Array, signed: Float64Array, magnitude: Float64Array}} Both of H·W, zero off the path; the
 *   magnitudes are averaged as such and do not cancel.
 */
export function row(scan, operands, grid, query, route) {
  const tokens = path(scan, grid, query);
  const { delta, b, c, A, routes, channels, states } = operands;
  const signed = new Float64Array(grid[0] * grid[1]);
  const magnitude = new Float64Array(grid[0] * grid[1]);
  const last = tokens[tokens.length - 1] * routes + route; // the query, mirrored where the route is
  const travelled = new Float64Array(channels); // Σ Δ from the query back, the small sums of near tokens first
  for (let time = tokens.length - 1; time >= 0; time--) {
    const at = tokens[time] * routes + route;
    let sum = 0;
    let sizes = 0;
    for (let d = 0; d < channels; d++) {
      const step = delta[at * channels + d];
      let value = 0;
      for (let n = 0; n < states; n++) {
        const decay = Math.exp(A[(route * channels + d) * states + n] * travelled[d]);
        value += c[last * states + n] * decay * b[at * states + n];
      }
      value *= step;
      travelled[d] += step;
      sum += value;
      sizes += Math.abs(value);
    }
    signed[tokens[time]] = sum / channels;
    magnitude[tokens[time]] = sizes / channels;
  }
  return { path: tokens, signed, magnitude };
}

/** Rows of all routes of a block; see `row`. */
export function rows(block, operands, query) {
  return block.scans.map((scan, route) => row(scan, operands, block.grid, query, route));
}

/** Sum of arrays of one length. */
export function total(arrays) {
  const result = new Float64Array(arrays[0].length);
  for (const array of arrays) for (let i = 0; i < result.length; i++) result[i] += array[i];
  return result;
}

/** The token of a grid that lies at these fractions of height and width. */
export function tokenAt([y, x], [height, width]) {
  return [Math.min(Math.floor(y * height), height - 1), Math.min(Math.floor(x * width), width - 1)];
}
