// What stands beside the charts: how the chosen runs differ, what they wrote, and how to go on with them.

import { element } from "./dom.js";
import { figure } from "./format.js";

const FIRST_RESULTS = [
  "task", "parameters", "parameters_trained", "world_size", "threads", "steps", "tokens", "epochs", "seconds", "loss",
  "tokens_per_second_median", "mfu_median", "data_share_median", "sync_share_median", "wire_bytes", "bits_per_parameter",
  "peak_memory_bytes", "matrix_peak_flops", "machine.cpu", "machine.cores", "machine.device", "finished", "shoal",
];

// `described`: [{id, name, color, state, why, facts}]
export function showDetails(place, described) {
  const open = new Set([...place.querySelectorAll("details[open]")].map((one) => one.dataset.name));
  place.replaceChildren(...(described.length ? [goOn(described), differences(described), results(described), texts(described), slow(described)] : []).filter(Boolean));
  for (const one of place.querySelectorAll("details")) if (open.has(one.dataset.name)) one.open = true;
}

function section(title, ...children) {
  return element("section", {}, element("h2", { textContent: title }), ...children.filter(Boolean));
}

function nameOf({ name, color }) {
  const swatch = element("i", { className: "swatch" });
  swatch.style.background = color;
  return element("span", { className: "of-run" }, swatch, name);
}

function goOn(described) {
  const cards = described.map((run) => {
    const { resume, report, folder, told } = run.facts;
    const card = element("article", { className: "card" }, element("h3", {}, nameOf(run)), element("p", { className: "why", textContent: `${run.state}: ${run.why}` }), element("p", { className: "folder", textContent: folder }));
    for (const text of told) card.append(element("p", { className: "told", textContent: text }));
    if (resume && run.state !== "finished" && run.state !== "running") card.append(element("p", { className: "label", textContent: "Go on with" }), command(resume));
    if (report) card.append(element("a", { href: `/report/${run.id}`, target: "_blank", rel: "noopener", textContent: "its report" }));
    return card;
  });
  return section("Chosen runs", element("div", { className: "cards" }, ...cards));
}

function command(text) {
  const button = element("button", { type: "button", textContent: "copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  return element("div", { className: "command" }, element("code", { textContent: text }), button);
}

function differences(described) {
  const read = described.filter(({ facts }) => Object.keys(facts.recipe).length);
  if (!read.length) return null;
  const keys = keysOf(read, "recipe");
  const whole = fold("all keys", comparison(read, keys, "recipe"), "recipes");
  if (read.length < 2) return section("Recipe", whole);
  const common = keys.filter((key) => read.every(({ facts }) => key in facts.recipe));
  const differing = common.filter((key) => key !== "name" && new Set(read.map(({ facts }) => JSON.stringify(facts.recipe[key]))).size > 1);
  const title = differing.length ? `Recipes differ in ${counted(differing.length, "key")}` : "Recipes do not differ, but for names";
  const some = keys.filter((key) => !common.includes(key));
  return section(title, differing.length ? comparison(read, differing, "recipe") : null,
    some.length ? fold(`${counted(some.length, "key")} that only some have`, comparison(read, some, "recipe"), "some") : null, whole);
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function results(described) {
  const finished = described.filter(({ facts }) => Object.keys(facts.result).length);
  if (!finished.length) return null;
  const keys = keysOf(finished, "result");
  const evaluated = keys.filter((key) => /^(eval|test)_[^.]*$/.test(key));
  const first = [...evaluated, ...FIRST_RESULTS.filter((key) => keys.includes(key))];
  return section("Results", comparison(finished, first, "result"), fold("all numbers", comparison(finished, keys, "result"), "results"));
}

function keysOf(described, what) {
  return [...new Set(described.flatMap(({ facts }) => Object.keys(facts[what])))];
}

function fold(title, inside, name) {
  const folded = element("details", {}, element("summary", {}, ...[title].flat()), inside);
  folded.dataset.name = name;
  return folded;
}

function comparison(described, keys, what) {
  const head = element("tr", {}, element("th", { scope: "col", textContent: "" }), ...described.map((run) => element("th", { scope: "col" }, nameOf(run))));
  const lines = keys.map((key) => element("tr", {}, element("th", { scope: "row", textContent: key }), ...described.map(({ facts }) => {
    const value = facts[what][key];
    return element("td", { className: typeof value === "number" ? "number" : "", textContent: valueText(value) });
  })));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "comparison" }, element("table", { className: "comparison" }, element("thead", {}, head), element("tbody", {}, ...lines)));
}

function valueText(value) {
  if (value === undefined) return "not there";
  if (value === null) return "null";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en-US") : figure(value, 5);
  return value === "" ? "empty" : String(value);
}

function texts(described) {
  const told = described.filter(({ facts }) => facts.samples.length || facts.predictions.length);
  if (!told.length) return null;
  const blocks = told.flatMap((run) => {
    const { samples, predictions } = run.facts;
    return [
      ...(samples.length ? [element("h3", {}, nameOf(run), " writes"), ...samples.map(sample)] : []),
      ...(predictions.length ? [fold([nameOf(run), " on held-out examples"], predicted(predictions), `predictions ${run.id}`)] : []),
    ];
  });
  return section("Texts", ...blocks);
}

function sample({ prompt, text, after }) {
  return element("pre", { className: "sample" }, element("b", { textContent: prompt ?? "" }), text ?? "", element("b", { textContent: after ?? "" }));
}

const HEADS = { "prediction.label": "told", "prediction.labels": "told", "prediction.true": "true" };

// an example's own columns, then what was told of it; a label that is not the true one is marked
function predicted(predictions) {
  const keys = [...new Set(predictions.flatMap(Object.keys))].filter((key) => key !== "where");
  const lines = predictions.map((one) => {
    const [told, truth] = [one["prediction.label"] ?? one["prediction.labels"], one["prediction.true"]];
    const wrong = told !== undefined && truth !== undefined && told !== truth;
    return element("tr", { className: wrong ? "wrong" : "", title: wrong ? "told wrongly" : "" }, ...keys.map((key) => element("td", { className: typeof one[key] === "number" ? "number" : "text", textContent: one[key] === undefined ? "" : typeof one[key] === "number" ? figure(one[key], 3) : String(one[key]) })));
  });
  const head = element("tr", {}, ...keys.map((key) => element("th", { scope: "col", textContent: HEADS[key] ?? key.replace(/^prediction\.(probabilities\.)?/, (_, sure) => (sure ? "P " : "")) })));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "predictions" }, element("table", { className: "comparison" }, element("thead", {}, head), element("tbody", {}, ...lines)));
}

function slow(described) {
  const told = described.filter(({ facts }) => facts.slow.length);
  if (!told.length) return null;
  return section("Slow ranks", ...told.map((run) => element("div", {}, element("h3", {}, nameOf(run)), element("ul", {}, ...run.facts.slow.map((text) => element("li", { textContent: text }))))));
}
