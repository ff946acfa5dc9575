// The page: asks what is new, and shows it.

import { Chart } from "./chart.js";
import { Colors, inks } from "./colors.js";
import { showDetails } from "./details.js";
import { element, setText } from "./dom.js";
import { extent } from "./lines.js";
import { plotsOf } from "./plots.js";
import { Store } from "./store.js";
import { Table } from "./table.js";
import { change, onChange, view } from "./view.js";

const SECONDS_BETWEEN = 2;
const AT_FIRST = 4;
const FACTS_STAY = 10;
const MOST_CHOSEN = 50;

const byId = (id) => document.getElementById(id);
const store = new Store();
const colors = new Colors();
const charts = new Map();
const facts = new Map();
let plots = null;
let byHand = false;
let tooMany = false;
let dirty = false;

const table = new Table(byId("runs"), (id, chosen) => {
  choose(chosen ? [...store.chosen.keys(), id] : [...store.chosen.keys()].filter((other) => other !== id));
});

function choose(ids) {
  byHand = true;
  take(ids);
  remember();
  showAll();
  wake();
}

function take(ids) {
  tooMany = ids.length > MOST_CHOSEN;
  ids = ids.slice(-MOST_CHOSEN);
  store.choose(ids);
  colors.choose(ids);
}

// until somebody chooses: what runs now, and else what ran last
function chooseAtFirst() {
  const ordered = [...store.runs].sort((one, other) => (other.when ?? 0) - (one.when ?? 0));
  const running = ordered.filter(({ state }) => state === "running" || state === "starting");
  take((running.length ? running : ordered).slice(0, AT_FIRST).map(({ id }) => id));
}

function shownRuns() {
  const now = colors.now();
  return store.runs.filter(({ id }) => store.chosen.has(id)).map((run) => ({ ...run, color: now.get(run.id), data: store.chosen.get(run.id) }));
}

function showAll() {
  table.show(store.runs, colors.now());
  showLegend();
  showCharts();
  showNotices();
}

function showNotices() {
  const told = [...(store.told ?? [])];
  if (tooMany) told.push(`At most ${MOST_CHOSEN} runs are shown together; these are the last ones chosen.`);
  if (!store.runs.length) told.push("There are no runs yet. They appear here when one begins.");
  for (const run of store.runs) {
    for (const fault of run.faults) told.push(`${run.name}: ${fault}`);
    if (run.broken_lines) told.push(`${run.name}: ${run.broken_lines.toLocaleString("en-US")} line${run.broken_lines === 1 ? "" : "s"} of its metrics could not be read`);
  }
  const list = byId("notices");
  if (list.dataset.mark === told.join("\n")) return;
  list.dataset.mark = told.join("\n");
  list.replaceChildren(...told.map((text) => element("li", { textContent: text })));
}

function showLegend() {
  const runs = shownRuns();
  const mark = JSON.stringify(runs.map(({ id, name, color }) => [id, name, color, view.hidden.has(id)]));
  const list = byId("legend");
  if (list.dataset.mark === mark) return;
  list.dataset.mark = mark;
  const focused = [...list.children].findIndex((item) => item.contains(document.activeElement));
  list.replaceChildren(...runs.map((run) => element("li", {}, legendButton(run))));
  list.children[focused]?.firstChild.focus();
}

function legendButton({ id, name, color }) {
  const swatch = element("i", { className: "swatch" });
  swatch.style.background = color;
  const button = element("button", { type: "button", "aria-pressed": String(!view.hidden.has(id)) }, swatch, name);
  button.addEventListener("click", () => {
    if (!view.hidden.delete(id)) view.hidden.add(id);
    change({});
  });
  for (const [event, emphasis] of [["pointerenter", id], ["focus", id], ["pointerleave", null], ["blur", null]]) {
    button.addEventListener(event, () => change({ emphasis }));
  }
  return button;
}

function showCharts() {
  if (!plots) return;
  const place = byId("charts");
  const runs = shownRuns();
  const wanted = plotsOf(plots, store.chosen);
  const mark = JSON.stringify(wanted);
  if (place.dataset.mark !== mark) {
    place.dataset.mark = mark;
    const made = wanted.map((plot) => {
      const chart = charts.get(plot.title) ?? new Chart(plot);
      chart.plot = plot;
      charts.set(plot.title, chart);
      return chart.figure;
    });
    place.replaceChildren(...made);
    for (const title of charts.keys()) if (wanted.every((plot) => plot.title !== title)) charts.delete(title);
  }
  for (const plot of wanted) charts.get(plot.title).show(runs);
  // all charts are over the same part, so that the pointer stands at the same place in each
  view.whole = extent([...charts.values()].flatMap(({ lines }) => lines));
  byId("zoom-out").hidden = view.range === null;
  draw();
}

function draw() {
  if (dirty || !plots) return;
  dirty = true;
  requestAnimationFrame(() => {
    dirty = false;
    const ink = inks();
    for (const chart of charts.values()) chart.draw(ink);
  });
}

async function describeChosen() {
  await Promise.all(shownRuns().map(async ({ id, state, when }) => {
    const known = facts.get(id);
    const mark = `${state} ${when}`;
    if (known && (known.mark === mark || performance.now() - known.at < FACTS_STAY * 1000)) return;
    const answer = await fetch(`/api/run?${new URLSearchParams({ run: id })}`);
    if (answer.ok) facts.set(id, { mark, at: performance.now(), told: await answer.json() });
  }));
  const described = shownRuns().filter(({ id }) => facts.has(id)).map(({ id, name, color, state, why }) => ({ id, name, color, state, why, facts: facts.get(id).told }));
  const place = byId("details");
  const mark = JSON.stringify(described);
  if (place.dataset.mark === mark) return;
  place.dataset.mark = mark;
  showDetails(place, described);
}

// what is looked at, in the address: it can be kept and shared
function remember() {
  const parts = new URLSearchParams();
  if (byHand) parts.set("runs", [...store.chosen.keys()].join(" "));
  if (view.axis !== "step") parts.set("over", view.axis);
  if (byId("smoothing").value !== byId("smoothing").defaultValue) parts.set("smooth", byId("smoothing").value);
  history.replaceState(null, "", `#${parts}`);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  if (parts.has("runs")) {
    byHand = true;
    take(parts.get("runs").split(" ").filter(Boolean));
  }
  if (["tokens", "seconds"].includes(parts.get("over"))) view.axis = byId("axis").value = parts.get("over");
  if (parts.has("smooth")) byId("smoothing").value = Number(parts.get("smooth")) || 0;
  smooth();
}

function smooth() {
  const value = Number(byId("smoothing").value);
  // even steps of the slider are even steps of how many records count
  const records = value ? 10 ** (value / 25) : 0;
  view.smoothing = records ? records / (1 + records) : 0;
  setText(byId("smoothing-told"), records ? `${Math.round(records + 1)} steps` : "off");
}

let wake = () => {};
function pause(seconds) {
  return new Promise((resolve) => {
    wake = resolve;
    setTimeout(resolve, seconds * 1000);
  });
}

async function live() {
  const status = byId("status");
  for (let failures = 0; ; ) {
    try {
      plots ??= await (await fetch("/api/plots")).json();
      const reading = await store.ask();
      if (!byHand) {
        const before = store.chosen.size;
        chooseAtFirst();
        if (!before && store.chosen.size) await store.ask();
      }
      showAll();
      await describeChosen();
      await store.lookClosely(view.axis, view.range);
      showCharts();
      failures = 0;
      const running = store.runs.filter(({ state }) => state === "running").length;
      status.className = "live";
      setText(status, reading ? "reading …" : `live · ${running} of ${store.runs.length} running`);
      await pause(reading ? 0.05 : SECONDS_BETWEEN);
    } catch (error) {
      failures += 1;
      status.className = "lost";
      setText(status, "no answer; is the board still running?");
      console.warn(error);
      await pause(Math.min(10, SECONDS_BETWEEN * failures));
    }
    while (document.hidden) await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

onChange((parts) => {
  const names = Object.keys(parts);
  if (names.length && names.every((name) => name === "pointer" || name === "emphasis")) {
    draw();
    return;
  }
  showLegend();
  showCharts();
  if ("range" in parts) {
    store.lookClosely(view.axis, view.range).then(showCharts).catch(console.warn);
  }
});

byId("axis").addEventListener("change", (event) => {
  change({ axis: event.target.value, range: null, pointer: null });
  remember();
});
byId("smoothing").addEventListener("input", () => {
  smooth();
  change({});
  remember();
});
byId("zoom-out").addEventListener("click", () => change({ range: null }));
byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
  showAll();
  describeChosen();
});
byId("filter").addEventListener("input", (event) => {
  table.filter = event.target.value.toLowerCase();
  table.show(store.runs, colors.now());
});
byId("choose-running").addEventListener("click", () => choose(store.runs.filter(({ state }) => state === "running").map(({ id }) => id)));
byId("choose-none").addEventListener("click", () => choose([]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showAll);
new ResizeObserver(draw).observe(byId("charts"));

recall();
live();
