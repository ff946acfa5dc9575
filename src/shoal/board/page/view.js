// How all charts look at their runs: over what, which part, how smooth, and where the pointer is.

export const view = {
  axis: "step",
  range: null,
  whole: null,
  smoothing: 0,
  pointer: null,
  emphasis: null,
  hidden: new Set(),
};

const listeners = [];

export function onChange(listener) {
  listeners.push(listener);
}

export function change(parts) {
  Object.assign(view, parts);
  for (const listener of listeners) listener(parts);
}
