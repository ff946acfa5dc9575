// Encoders: a text's labels with their probabilities, the entities marked in it, or how alike two texts are.

import { ask } from "./api.js";
import { announce, percent, sendsOnEnter } from "./elements.js";

const COLOURS = 8; // of kinds of entities, in style.css

/** Which view shows a model of this kind. */
export const LABEL_VIEWS = { classify: startClassify, tag: startTag, embeddings: startSimilarity };

function startClassify(main, model) {
  const labels = model.labels?.length ? `One of: ${listed(model.labels)}.` : "";
  const view = open(main, "labels-view", "What kind of text is it?", labels, "Classify");
  answers(view, async (text) => {
    const { data } = await ask("v1/classify", { model: model.id, input: text });
    const scores = Object.entries(data[0].scores).sort(([, one], [, other]) => other - one);
    const { labels: had } = data[0]; // a text may have several, or none
    announce(had.map((label) => `${label}, ${percent(data[0].scores[label])}`).join("; ") || "No label.");
    const list = made("ol", "bars");
    list.append(...scores.map(([label, share]) => bar(label, share, percent(share), had.includes(label))));
    return [list];
  });
}

function startTag(main, model) {
  const kinds = model.labels?.length ? `It looks for: ${listed(model.labels)}.` : "";
  const view = open(main, "labels-view", "What is named in it?", kinds, "Mark");
  answers(view, async (text) => {
    const { data } = await ask("v1/tag", { model: model.id, input: text });
    const { entities } = data[0];
    announce(entities.length ? entities.map(({ type, text: what }) => `${what}: ${type}`).join("; ") : "Nothing found.");
    return [marked(text, entities), entities.length ? entityTable(entities) : made("p", "hint", "Nothing found.")];
  });
}

function startSimilarity(main, model) {
  main.append(document.getElementById("similarity-view").content.cloneNode(true));
  const view = main.querySelector(".bench");
  const other = view.querySelector("#other");
  sendsOnEnter(other, view.querySelector("form"));
  answers(view, async (text) => {
    const { data, usage } = await ask("v1/embeddings", { model: model.id, input: [text, other.value] });
    const [one, two] = data.map(({ embedding }) => embedding);
    const cosine = product(one, two) / Math.sqrt(product(one, one) * product(two, two));
    const told = cosine.toFixed(3).replace("-", "−");
    announce(`Cosine ${told}`);
    const list = made("ol", "bars");
    list.append(bar("cosine", Math.max(0, cosine), told, true));
    const size = `${one.length.toLocaleString("en")} numbers a text, of ${usage.prompt_tokens.toLocaleString("en")} tokens`;
    return [list, made("p", "hint", size)];
  });
}

function product(one, other) {
  return one.reduce((sum, value, place) => sum + value * other[place], 0);
}

function open(main, template, title, hint, action) {
  main.append(document.getElementById(template).content.cloneNode(true));
  const view = main.querySelector(".bench");
  view.querySelector("h2").textContent = title;
  view.querySelector(".hint").textContent = hint;
  view.querySelector("button").textContent = action;
  return view;
}

/** Show what `find` makes of the text, whenever the form is sent; the last one asked for counts. */
function answers(view, find) {
  const form = view.querySelector("form");
  const input = view.querySelector("#input");
  const result = view.querySelector(".result");
  let asked = 0;
  sendsOnEnter(input, form);
  input.focus();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const number = (asked += 1);
    result.ariaBusy = "true";
    let nodes;
    try {
      nodes = await find(input.value);
    } catch (error) {
      nodes = [made("p", "problem", error.message)];
      announce(`Error: ${error.message}`);
    }
    if (number !== asked) return;
    result.ariaBusy = "false";
    result.hidden = false;
    result.replaceChildren(...nodes);
  });
}

function bar(label, share, told, first) {
  const item = made("li", first ? "first" : "");
  const track = made("span", "track");
  const fill = made("span", "fill");
  fill.style.width = `${100 * share}%`;
  track.append(fill);
  item.append(made("span", "label", label), track, made("span", "share", told));
  return item;
}

/** The text with its entities marked. Places count characters, where JavaScript counts UTF-16 units. */
function marked(text, entities) {
  const characters = Array.from(text);
  const colours = colourOf(entities);
  const shown = made("p", "marked");
  shown.dir = "auto";
  let told = 0;
  for (const { type, start, end } of [...entities].sort((one, other) => one.start - other.start)) {
    if (start < told) continue; // within one that is marked already
    shown.append(characters.slice(told, start).join(""));
    const mark = made("mark", `kind-${colours.get(type)}`, characters.slice(start, end).join(""));
    mark.append(made("span", "type", type));
    shown.append(mark);
    told = end;
  }
  shown.append(characters.slice(told).join(""));
  return shown;
}

function entityTable(entities) {
  const colours = colourOf(entities);
  const table = made("table", "entities");
  const head = table.createTHead().insertRow();
  for (const title of ["Text", "Type", "Probability"]) head.append(made("th", "", title));
  const body = table.createTBody();
  for (const { type, text, score } of entities) {
    const row = body.insertRow();
    row.insertCell().textContent = text;
    row.insertCell().append(made("span", `kind kind-${colours.get(type)}`, type));
    row.insertCell().textContent = percent(score);
  }
  return table;
}

/** A colour for each type, in the order of their names. */
function colourOf(entities) {
  const types = [...new Set(entities.map(({ type }) => type))].sort();
  return new Map(types.map((type, number) => [type, number % COLOURS]));
}

function listed(names) {
  const most = 12;
  const more = names.length > most ? ` and ${names.length - most} more` : "";
  return names.slice(0, most).join(", ") + more;
}

function made(name, style, text = "") {
  const element = document.createElement(name);
  if (style) element.className = style;
  element.textContent = text;
  return element;
}
