// A chart's picture: axes, bands from lowest to highest, lines, and the pointer.

import { figure, onAxis, short } from "./format.js";
import { nearest, placeOf } from "./lines.js";
import { timeTicks } from "./scale.js";

export const MARGIN = { left: 52, right: 10, top: 8, bottom: 24 };

export function drawAxes(pen, size, xs, ys, axis, colors) {
  pen.font = "11px system-ui, sans-serif";
  pen.lineWidth = 1;
  pen.fillStyle = colors.faint;
  pen.strokeStyle = colors.grid;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const tick of ys.ticks(5)) {
    const y = Math.round(ys.at(tick)) + 0.5;
    stroke(pen, MARGIN.left, y, size.width - MARGIN.right, y);
    pen.fillText(tickText(tick), MARGIN.left - 6, y);
  }
  pen.textAlign = "center";
  pen.textBaseline = "top";
  const most = Math.max(2, Math.floor(size.width / 65));
  const ticks = axis === "seconds" ? timeTicks(xs.from, xs.to, most) : xs.ticks(most);
  for (const tick of ticks) {
    if (axis === "step" && !Number.isInteger(tick)) continue;
    const x = Math.round(xs.at(tick)) + 0.5;
    stroke(pen, x, MARGIN.top, x, size.height - MARGIN.bottom);
    const text = onAxis(axis, tick);
    if (x + pen.measureText(text).width / 2 <= size.width) pen.fillText(text, x, size.height - MARGIN.bottom + 6);
  }
}

function tickText(value) {
  const size = Math.abs(value);
  return size !== 0 && size < 1e-3 ? Number(value.toPrecision(3)).toExponential() : short(value, 4, 1e3);
}

function stroke(pen, x, y, toX, toY) {
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(toX, toY);
  pen.stroke();
}

export function drawLine(pen, line, xs, ys, muted) {
  const first = Math.max(0, placeOf(line.x, xs.value(xs.start)) - 1);
  const end = Math.min(line.x.length, placeOf(line.x, xs.value(xs.end)) + 2);
  pen.strokeStyle = pen.fillStyle = line.color;
  if (line.low.length) {
    pen.globalAlpha = muted ? 0.04 : 0.16;
    fillBand(pen, line, xs, ys, first, end);
  }
  if (line.smooth !== line.mean) {
    pen.globalAlpha = muted ? 0.06 : 0.22;
    pen.lineWidth = 1;
    strokeValues(pen, line.x, line.mean, xs, ys, first, end);
  }
  pen.globalAlpha = muted ? 0.2 : 1;
  pen.lineWidth = 1.6;
  pen.setLineDash(line.dash);
  strokeValues(pen, line.x, line.smooth, xs, ys, first, end);
  pen.setLineDash([]);
  if (line.dots || end - first < 3) dotValues(pen, line, xs, ys, first, end);
  pen.globalAlpha = 1;
}

function isDrawn(value, ys) {
  return value !== null && value !== undefined && (!ys.log || value > 0);
}

function strokeValues(pen, x, values, xs, ys, first, end) {
  let down = false;
  pen.beginPath();
  for (let place = first; place < end; place += 1) {
    if (!isDrawn(values[place], ys)) {
      down = false;
    } else if (down) {
      pen.lineTo(xs.at(x[place]), ys.at(values[place]));
    } else {
      pen.moveTo(xs.at(x[place]), ys.at(values[place]));
      down = true;
    }
  }
  pen.stroke();
}

function fillBand(pen, line, xs, ys, first, end) {
  const least = ys.log ? ys.ends[0] : -Infinity;
  const places = [];
  for (let place = first; place < end; place += 1) if (isDrawn(line.high[place], ys)) places.push(place);
  pen.beginPath();
  for (const place of places) pen.lineTo(xs.at(line.x[place]), ys.at(line.high[place]));
  for (const place of places.reverse()) pen.lineTo(xs.at(line.x[place]), ys.at(Math.max(least, line.low[place])));
  pen.fill();
}

function dotValues(pen, line, xs, ys, first, end) {
  const radius = end - first > 100 ? 1.5 : 2.6;
  for (let place = first; place < end; place += 1) {
    if (!isDrawn(line.smooth[place], ys)) continue;
    pen.beginPath();
    pen.arc(xs.at(line.x[place]), ys.at(line.smooth[place]), radius, 0, 2 * Math.PI);
    pen.fill();
  }
}

export function drawSelection(pen, size, [from, to], colors) {
  pen.fillStyle = colors.selection;
  pen.fillRect(Math.min(from, to), MARGIN.top, Math.abs(to - from), size.height - MARGIN.top - MARGIN.bottom);
}

// the pointer's line and each line's point nearest to it; returns what stands there, highest first
export function drawPointer(pen, size, lines, xs, ys, x, colors) {
  const place = xs.at(x);
  if (place < MARGIN.left || place > size.width - MARGIN.right) return [];
  pen.strokeStyle = colors.pointer;
  pen.lineWidth = 1;
  stroke(pen, Math.round(place) + 0.5, MARGIN.top, Math.round(place) + 0.5, size.height - MARGIN.bottom);
  const found = [];
  for (const line of lines) {
    const point = nearest(line.x, x);
    const value = line.smooth[point];
    if (point < 0 || !isDrawn(value, ys) || Math.abs(xs.at(line.x[point]) - place) > (line.dots ? 12 : 40)) continue;
    pen.fillStyle = line.color;
    pen.beginPath();
    pen.arc(xs.at(line.x[point]), ys.at(value), 3.5, 0, 2 * Math.PI);
    pen.fill();
    found.push({ line, value, x: line.x[point], low: line.low[point], high: line.high[point], text: figure(value) });
  }
  return found.sort((one, other) => other.value - one.value);
}
