// The page: which model the server has, the view that suits it, colours and settings.

import { ask } from "./api.js";
import { startChat } from "./chat.js";
import { copyText } from "./elements.js";
import { LABEL_VIEWS } from "./labels.js";
import { settingsIn } from "./settings.js";

const KINDS = {
  chat: "chat model", completion: "base model", classify: "classifier", tag: "entity tagger", embeddings: "embeddings",
};
const wide = matchMedia("(min-width: 64rem)");
const by = (id) => document.getElementById(id);

by("theme").addEventListener("click", () => paint(isDark() ? "light" : "dark"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tellTheme);
document.addEventListener("click", ({ target }) => {
  // the copy buttons of code, wherever it stands
  if (target.matches(".code .copy")) copyText(target.closest(".code").querySelector("code").textContent, target);
});
tellTheme();
start();

async function start() {
  let model;
  try {
    [model] = (await ask("v1/models")).data;
  } catch (error) {
    return fail(error.message);
  }
  describe(model);
  const main = by("main");
  if (model.kind in LABEL_VIEWS) return LABEL_VIEWS[model.kind](main, model);
  const settings = settingsIn(by("options-form"), model.kind === "chat", model.max_tokens);
  const chat = startChat(main, model, settings);
  by("new").hidden = by("options-button").hidden = false;
  by("new").addEventListener("click", () => chat.clear());
  by("options-button").addEventListener("click", () => showOptions(by("options").hidden));
  by("options-close").addEventListener("click", () => showOptions(false));
  by("options").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    showOptions(false);
  });
  if (wide.matches && localStorage.getItem("shoal.options") === "open") showOptions(true, false);
  return chat;
}

function describe(model) {
  const facts = [KINDS[model.kind] ?? model.kind];
  if (model.context) facts.push(`reads ${model.context.toLocaleString("en")} tokens`);
  const name = document.createElement("b");
  name.textContent = model.id;
  const rest = document.createElement("span");
  rest.textContent = facts.join(", ");
  by("model").append(name, rest);
  document.title = `${model.id} · Shoal`;
}

function fail(message) {
  const problem = by("problem");
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = "Try again";
  again.addEventListener("click", () => location.reload());
  problem.replaceChildren(message, again);
  problem.hidden = false;
}

function showOptions(open, focus = true) {
  by("options").hidden = !open;
  by("options-button").ariaExpanded = String(open);
  localStorage.setItem("shoal.options", open ? "open" : "closed");
  if (focus) (open ? by("options-form").elements[0] : by("options-button")).focus();
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function paint(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("shoal.theme", theme);
  tellTheme();
}

function tellTheme() {
  by("theme").ariaPressed = String(isDark());
}
