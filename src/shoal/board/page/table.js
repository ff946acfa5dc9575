// The list of runs: what each is doing, and which are chosen.

import { element, setText } from "./dom.js";
import { age, duration, figure, short } from "./format.js";

const COLUMNS = [
  { key: "name", title: "run", first: 1, value: (run) => run.name },
  { key: "state", title: "state", first: 1, value: (run) => ["running", "starting", "stopped", "failed", "finished"].indexOf(run.state) },
  { key: "step", title: "step", first: -1, value: (run) => run.step },
  { key: "loss", title: "loss", first: 1, value: (run) => run.loss },
  { key: "best", title: "best held out", first: 1, value: (run) => run.best?.value },
  { key: "speed", title: "tokens/s", first: -1, value: (run) => run.tokens_per_second },
  { key: "left", title: "time left", first: 1, value: (run) => run.seconds_left },
  { key: "when", title: "last line", first: -1, value: (run) => run.when },
];

export class Table {
  constructor(table, onChoose) {
    this.table = table;
    this.onChoose = onChoose;
    this.rows = new Map();
    this.order = { key: "when", way: -1 };
    this.filter = "";
    this.body = element("tbody");
    this.heads = COLUMNS.map((column) => element("th", { scope: "col", className: column.key },
      element("button", { type: "button", textContent: column.title, onclick: () => this.sortBy(column) })));
    table.append(element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    this.showOrder();
  }

  show(runs, colors) {
    this.runs = runs;
    this.colors = colors;
    for (const [id, row] of this.rows) {
      if (runs.every((run) => run.id !== id)) {
        row.line.remove();
        this.rows.delete(id);
      }
    }
    const column = COLUMNS.find(({ key }) => key === this.order.key);
    const ordered = [...runs].sort((one, other) => compare(column.value(one), column.value(other), this.order.way));
    ordered.forEach((run, place) => {
      const row = this.rows.get(run.id) ?? this.add(run.id);
      fill(row, run, colors.get(run.id));
      row.line.hidden = !run.name.toLowerCase().includes(this.filter);
      if (this.body.children[place] !== row.line) this.body.insertBefore(row.line, this.body.children[place] ?? null);
    });
  }

  add(id) {
    const box = element("input", { type: "checkbox", onchange: () => this.onChoose(id, box.checked) });
    const name = element("span", { className: "run-name" });
    const cells = Object.fromEntries(COLUMNS.slice(1).map(({ key }) => [key, element("td", { className: key })]));
    const badge = element("span", { className: "badge" });
    const bar = element("i", { className: "done" });
    const step = element("span");
    cells.state.append(badge);
    cells.step.append(step, element("span", { className: "progress" }, bar));
    const line = element("tr", {}, element("th", { scope: "row", className: "name" }, element("label", {}, box, name)), ...Object.values(cells));
    const row = { line, box, name, cells, badge, bar, step };
    this.rows.set(id, row);
    return row;
  }

  sortBy(column) {
    const again = this.order.key === column.key;
    this.order = { key: column.key, way: again ? -this.order.way : column.first };
    this.showOrder();
    this.show(this.runs, this.colors);
  }

  showOrder() {
    COLUMNS.forEach(({ key }, place) => {
      this.heads[place].setAttribute("aria-sort", key !== this.order.key ? "none" : this.order.way > 0 ? "ascending" : "descending");
    });
  }
}

// what is not known comes last, either way
function compare(one, other, way) {
  const [lacks, lacked] = [one === null || one === undefined, other === null || other === undefined];
  if (lacks || lacked) return lacks - lacked;
  return way * (typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other);
}

function fill(row, run, color) {
  const { cells } = row;
  row.box.checked = color !== undefined;
  row.box.style.accentColor = color ?? "";
  row.line.classList.toggle("chosen", color !== undefined);
  row.line.style.setProperty("--run", color ?? "transparent");
  setText(row.name, run.name);
  row.name.title = run.faults.join("\n");
  setText(row.badge, run.read < 1 ? `reading ${Math.floor(run.read * 100)} %` : run.state);
  row.badge.className = `badge ${run.state}`;
  row.badge.title = run.why;
  setText(row.step, run.step.toLocaleString("en-US"));
  const share = run.state === "finished" ? 1 : Math.min(1, run.done);
  row.bar.style.width = `${share * 100}%`;
  row.bar.parentElement.title = `${Math.floor(share * 100)} % done`;
  setText(cells.loss, figure(run.loss));
  setText(cells.best, run.best ? bestText(run.best) : "–");
  cells.best.title = run.best ? `${run.best.figure}, step ${run.best.step.toLocaleString("en-US")}` : "";
  setText(cells.speed, run.tokens_per_second === null ? "–" : short(run.tokens_per_second, 3));
  setText(cells.left, run.state === "running" ? duration(run.seconds_left) : "–");
  setText(cells.when, run.when === null ? "–" : age(run.when));
  cells.when.title = run.when === null ? "" : new Date(run.when * 1000).toString();
}

function bestText({ figure: name, value }) {
  const short = name.replace(/^eval_/, "");
  return short === "loss" ? figure(value) : `${figure(value)} ${short}`;
}
