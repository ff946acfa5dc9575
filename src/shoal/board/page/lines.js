// A plot's lines from the rows of the chosen runs: scaled, smoothed, and within what range they lie.

import { palette } from "./colors.js";

const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];

// [{id, name, color, dash, dots, x, mean, low, high, smooth}], of a plot over the runs that are shown
export function linesOf(plot, runs, view) {
  // where one run has many lines, they have colors of their own
  const own = plot.colored && runs.length === 1 ? palette() : null;
  const lines = [];
  for (const run of runs) {
    plot.lines.forEach((line, place) => {
      const evaluated = line.key.startsWith("eval_");
      const rows = evaluated ? run.data.evaluations : (run.data.close?.rows ?? run.data.training);
      const columns = rows.keys.get(line.key);
      const x = rows.keys.get(view.axis)?.mean;
      if (!columns || !x || view.hidden.has(run.id)) return;
      lines.push({
        mark: `${run.id} ${line.key} ${rows.version} ${evaluated || !plot.noisy ? 0 : view.smoothing}`,
        id: run.id, own: own !== null, run: run.name, color: own ? own[place % own.length] : run.color, name: line.name, dots: evaluated, x,
        dash: evaluated || own ? [] : DASHES[place % DASHES.length],
        ...scaled(rows, columns, line, evaluated || !plot.noisy ? 0 : view.smoothing),
      });
    });
  }
  return lines;
}

const kept = new WeakMap();

function scaled(rows, columns, line, smoothing) {
  const mark = `${rows.version} ${line.scale} ${smoothing}`;
  const before = kept.get(columns);
  if (before?.mark === mark) return before.made;
  const times = (values) => values.map((value) => (value === null ? null : value * line.scale));
  const made = { mean: times(columns.mean), low: times(columns.low), high: times(columns.high) };
  made.smooth = smoothing ? smoothed(made.mean, smoothing ** rows.perRow) : made.mean;
  kept.set(columns, { mark, made });
  return made;
}

// a moving average that begins unbiased; `weight`: of all rows before, in each row's
function smoothed(values, weight) {
  let [sum, mass] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

export function extent(lines) {
  let [from, to] = [Infinity, -Infinity];
  for (const { x } of lines) {
    if (!x.length) continue;
    from = Math.min(from, x[0] ?? Infinity);
    to = Math.max(to, x[x.length - 1] ?? -Infinity);
  }
  return from <= to ? [from, to] : null;
}

// the first place from which on x is no less
export function placeOf(x, value) {
  let [low, high] = [0, x.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function nearest(x, value) {
  const place = placeOf(x, value);
  if (place === 0) return x.length ? 0 : -1;
  if (place === x.length) return x.length - 1;
  return value - x[place - 1] < x[place] - value ? place - 1 : place;
}

// the range of values within [from, to] that the chart shows: all of the lines, and nearly all that they are means of
export function valueRange(lines, [from, to], fromZero, log) {
  const [told, single] = [[], []];
  const keep = (list, value) => value !== null && value !== undefined && (!log || value > 0) && list.push(value);
  for (const line of lines) {
    const end = Math.min(line.x.length, placeOf(line.x, to) + 1);
    for (let place = Math.max(0, placeOf(line.x, from) - 1); place < end; place += 1) {
      keep(told, line.smooth[place]);
      keep(single, line.low[place] ?? line.mean[place]);
      keep(single, line.high[place] ?? line.mean[place]);
    }
  }
  if (!told.length) return null;
  const [means, all] = [Float64Array.from(told).sort(), Float64Array.from(single).sort()];
  const [least, most] = [Math.min(means[0], share(all, 0.01)), Math.max(means[means.length - 1], share(all, 0.99))];
  if (log) return least === most ? [least / 2, most * 2] : [least * 0.95, most * 1.05];
  if (!fromZero) {
    const room = (most - least) * 0.04 || Math.abs(most) * 0.1 || 1;
    return [least - room, most + room];
  }
  // the first step compiles; it would flatten all the others
  const high = Math.min(most * 1.05, 1.3 * share(means, 0.98));
  return [Math.min(0, least), high > 0 ? high : 1];
}

function share(sorted, part) {
  return sorted[Math.floor(part * (sorted.length - 1))];
}
