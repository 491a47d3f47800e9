// Colours of the style sheet for what is drawn on canvases.

export function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const of = (name) => colour(`--${name}-${dark ? 'dark' : 'light'}`);
  return {
    paper: of('paper'),
    ink: of('ink'),
    fade: dark ? 0.34 : 0.42,
    routes: [0, 1, 2, 3].map((i) => of(`route${i}`)),
    sum: of('sum'),
    negative: of('negative'),
    lines: dark ? 'rgb(255 255 255 / 16%)' : 'rgb(0 0 0 / 13%)',
    hatching: dark ? 'rgb(255 255 255 / 9%)' : 'rgb(0 0 0 / 10%)',
  };
}
