// Numbers and places in words.

/** Arrow and name of a route. */
export const ROUTES = {
  rows: ['→', 'Rows'],
  columns: ['↓', 'Columns'],
  'rows backward': ['←', 'Rows back'],
  'columns backward': ['↑', 'Columns back'],
};

export function percent(fraction) {
  return `${(100 * fraction).toFixed(fraction < 0.0995 ? 1 : 0)} %`;
}

const superscript = (digits) => [...digits].map((digit) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[digit]).join('');

/** Three digits; small ones with a power of ten. */
export function number(value) {
  if (!value || Math.abs(value) >= 1e-3) return value.toPrecision(3);
  return value.toExponential(2).replace('e-', ' · 10⁻').replace(/\d+$/, superscript);
}

export const where = (token, width) => `row ${Math.floor(token / width) + 1}, column ${(token % width) + 1}`;

/** Tokens by magnitude, the strongest first. */
export function ranking(values) {
  return [...values.keys()].filter((i) => values[i]).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
}

/** The strongest tokens of a map. */
export function describe(values, [, width]) {
  const best = ranking(values).slice(0, 3);
  return `strongest ${best.map((token) => `${where(token, width)} (${number(values[token])})`).join('; ')}`;
}
