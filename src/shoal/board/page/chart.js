// One chart: its picture, what is under the pointer in words, and how to look closer, by mouse, finger or keys.

import { element, setText } from "./dom.js";
import { drawAxes, drawLine, drawPointer, drawSelection, MARGIN } from "./draw.js";
import { figure, onAxis } from "./format.js";
import { linesOf, valueRange } from "./lines.js";
import { Scale } from "./scale.js";
import { change, view } from "./view.js";

const MOST_TOLD = 12;
const AXIS_NAMES = { step: "step", tokens: "tokens", seconds: "time" };

export class Chart {
  constructor(plot) {
    this.plot = plot;
    this.log = false;
    this.lines = [];
    this.selecting = null;
    this.visible = false;
    this.canvas = element("canvas", { tabIndex: 0, role: "img" });
    this.over = element("canvas", { className: "over" });
    this.readout = element("div", { className: "readout", hidden: true });
    this.spoken = element("p", { className: "spoken", role: "status" });
    this.logButton = element("button", {
      type: "button", textContent: "log", "aria-pressed": "false", title: "logarithmic values (l)", onclick: () => this.toggleLog(),
    });
    this.wideButton = element("button", {
      type: "button", textContent: "⤢", "aria-label": `${plot.title}: larger`, "aria-pressed": "false", onclick: () => this.toggleWide(),
    });
    this.kinds = element("ul", { className: "kinds" });
    this.figure = element("figure", { className: "chart" },
      element("figcaption", {}, element("h3", { textContent: plot.title }), this.kinds, this.logButton, this.wideButton),
      element("div", { className: "stage" }, this.canvas, this.over, this.readout), this.spoken);
    this.listen();
    new IntersectionObserver(([seen]) => {
      this.visible = seen.isIntersecting;
      if (this.visible) change({ pointer: view.pointer });
    }, { rootMargin: "200px" }).observe(this.figure);
  }

  // whether there is something to be drawn
  show(runs) {
    this.lines = linesOf(this.plot, runs, view);
    const some = this.lines.some(({ mean }) => mean.some((value) => value !== null && value !== 0));
    this.figure.hidden = !some;
    if (some) this.showKinds();
    return some;
  }

  showKinds() {
    const kinds = new Map(this.lines.filter(({ name }) => name).map((line) => [line.name, line]));
    const mark = [...kinds.values()].map(({ name, own, color }) => (own ? name + color : name)).join("\n");
    if (mark === this.kindsMark) return;
    this.kindsMark = mark;
    this.kinds.replaceChildren(...(kinds.size > 1 ? [...kinds.values()].map(kindOf) : []));
  }

  // the lines only where something about them has changed: the pointer moves far more often
  draw(ink) {
    const size = { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
    if (this.figure.hidden || !this.visible || !size.width || !view.whole) return;
    const ratio = window.devicePixelRatio || 1;
    const lines = this.lines.map(({ mark, color }) => mark + color);
    const mark = JSON.stringify([size, ratio, ink, view.range ?? view.whole, view.axis, view.emphasis, this.log, lines]);
    if (mark !== this.drawn) {
      this.drawn = mark;
      this.drawLines(penOf(this.canvas, size, ratio), size, ink);
      this.canvas.setAttribute("aria-label", this.describe());
    }
    if (!view.pointer && this.bare) return;
    this.bare = !view.pointer;
    const pen = penOf(this.over, size, ratio);
    const found = view.pointer ? drawPointer(pen, size, this.lines, this.xs, this.ys, view.pointer.x, ink) : [];
    if (this.selecting) drawSelection(pen, size, this.selecting, ink);
    this.tell(found, size);
  }

  drawLines(pen, size, ink) {
    const across = apart(view.range ?? view.whole);
    const values = valueRange(this.lines, across, this.plot.from_zero, this.log) ?? (this.log ? [0.1, 1] : [0, 1]);
    this.xs = new Scale(...across, MARGIN.left, size.width - MARGIN.right);
    this.ys = new Scale(...values, size.height - MARGIN.bottom, MARGIN.top, this.log);
    drawAxes(pen, size, this.xs, this.ys, view.axis, ink);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left - 3, MARGIN.top - 4, size.width - MARGIN.left - MARGIN.right + 6, size.height - MARGIN.top - MARGIN.bottom + 6);
    pen.clip();
    for (const line of this.lines) drawLine(pen, line, this.xs, this.ys, view.emphasis !== null && view.emphasis !== line.id);
    pen.restore();
  }

  describe() {
    const runs = new Set(this.lines.map(({ run }) => run));
    const keys = "Arrow keys read values, plus and minus look closer, zero shows all, l is logarithmic.";
    return `${this.plot.title}, ${runs.size} run${runs.size === 1 ? "" : "s"}. ${keys}`;
  }

  // what is under the pointer, beside it; and by keys, aloud
  tell(found, size) {
    const mine = view.pointer?.chart === this && found.length > 0 && !this.selecting;
    this.readout.hidden = !mine;
    if (!mine) {
      setText(this.spoken, "");
      return;
    }
    const rows = found.slice(0, MOST_TOLD).map(({ line, value, low, high, text }) => {
      const apart = low !== undefined && low !== null && high > low && line.smooth === line.mean;
      const told = apart ? `${text}  (${figure(low, 3)} – ${figure(high, 3)})` : text;
      const swatch = element("i", { className: line.dots ? "swatch round" : "swatch" });
      swatch.style.background = line.color;
      return element("div", {}, swatch, element("b", { textContent: told }), ` ${line.run}${line.name ? ` · ${line.name}` : ""}`);
    });
    const at = `${AXIS_NAMES[view.axis]} ${onAxis(view.axis, found[0].x)}`;
    this.readout.replaceChildren(element("div", { className: "at", textContent: at }), ...rows);
    if (found.length > MOST_TOLD) this.readout.append(element("div", { textContent: `and ${found.length - MOST_TOLD} more` }));
    const place = this.xs.at(view.pointer.x);
    const left = place > size.width / 2;
    this.readout.style.left = left ? "" : `${place + 12}px`;
    this.readout.style.right = left ? `${size.width - place + 12}px` : "";
    const words = found.slice(0, MOST_TOLD).map(({ line, text }) => `${line.run} ${line.name} ${text}`);
    setText(this.spoken, view.pointer.byKeys ? `${at}: ${words.join("; ")}` : "");
  }

  toggleLog() {
    this.log = !this.log;
    this.logButton.setAttribute("aria-pressed", String(this.log));
    change({});
  }

  toggleWide() {
    const wide = this.figure.classList.toggle("wide");
    this.wideButton.setAttribute("aria-pressed", String(wide));
    change({});
  }

  listen() {
    const { canvas } = this;
    const within = (place) => Math.max(MARGIN.left, Math.min(canvas.clientWidth - MARGIN.right, place));
    canvas.addEventListener("pointermove", (event) => {
      if (!this.xs) return;
      const place = within(event.offsetX);
      if (this.selecting) this.selecting[1] = place;
      change({ pointer: { x: this.xs.value(place), chart: this } });
    });
    canvas.addEventListener("pointerleave", () => {
      if (!this.selecting && !view.pointer?.byKeys) change({ pointer: null });
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.xs) return;
      canvas.setPointerCapture(event.pointerId);
      this.selecting = [within(event.offsetX), within(event.offsetX)];
    });
    canvas.addEventListener("pointerup", () => {
      const selected = this.selecting;
      this.selecting = null;
      if (selected && Math.abs(selected[1] - selected[0]) > 6) {
        const ends = selected.map((place) => this.xs.value(place)).sort((one, other) => one - other);
        change({ range: ends });
      } else {
        change({});
      }
    });
    canvas.addEventListener("pointercancel", () => {
      this.selecting = null;
      change({ pointer: null });
    });
    canvas.addEventListener("dblclick", () => change({ range: null }));
    canvas.addEventListener("blur", () => {
      if (view.pointer?.byKeys) change({ pointer: null });
    });
    canvas.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    if (!this.xs || event.ctrlKey || event.metaKey || event.altKey) return;
    const [from, to] = this.xs.ends;
    const x = view.pointer?.x ?? (from + to) / 2;
    const actions = {
      ArrowLeft: () => this.walk(x, event.shiftKey ? -10 : -1),
      ArrowRight: () => this.walk(x, event.shiftKey ? 10 : 1),
      Home: () => this.point(from),
      End: () => this.point(to),
      "+": () => change({ range: [x - (x - from) / 2, x + (to - x) / 2] }),
      "=": () => actions["+"](),
      "-": () => this.widen(x, from, to),
      0: () => change({ range: null }),
      Escape: () => change({ range: null, pointer: null }),
      l: () => this.toggleLog(),
    };
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }

  // to the next point of the line that has most
  walk(x, places) {
    const line = this.lines.reduce((one, other) => (other.x.length > one.x.length ? other : one));
    const [from, to] = this.xs.ends;
    const inside = line.x.filter((value) => value >= from && value <= to);
    const least = Math.max(1, Math.round(inside.length / 200));
    const now = inside.findIndex((value) => value >= x);
    const next = (now < 0 ? inside.length - 1 : now) + places * least;
    this.point(inside[Math.max(0, Math.min(inside.length - 1, next))] ?? x);
  }

  point(x) {
    change({ pointer: { x, chart: this, byKeys: true } });
  }

  widen(x, from, to) {
    const { whole } = view;
    const range = [Math.max(whole[0], x - (x - from) * 2), Math.min(whole[1], x + (to - x) * 2)];
    change({ range: range[0] <= whole[0] && range[1] >= whole[1] ? null : range });
  }
}

function penOf(canvas, size, ratio) {
  const [width, height] = [Math.round(size.width * ratio), Math.round(size.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, size.width, size.height);
  return pen;
}

function apart([from, to]) {
  return from === to ? [from - 0.5, to + 0.5] : [from, to];
}

function kindOf(line) {
  const sample = element("i", { className: line.dots ? "kind dots" : `kind dash${line.dash.length ? line.dash[0] : 0}` });
  if (line.own) sample.style.color = line.color;
  return element("li", {}, sample, line.name);
}
