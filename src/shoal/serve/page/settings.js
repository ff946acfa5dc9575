// How answers are drawn, and what the model is told first: the form at the side, kept in this browser.

const STORED = "shoal.settings";

/** name: [label, hint, default, least, most, step]; `most` of null: a number is typed, else it is a slider. */
const NUMBERS = {
  temperature: ["Temperature", "0: always the likeliest token", 0.8, 0, 2, 0.05],
  top_p: ["Top-p", "draw from the likeliest tokens that add up to this", 1, 0.01, 1, 0.01],
  top_k: ["Top-k", "draw from so many of the likeliest; 0: all", 0, 0, null, 1],
  min_p: ["Min-p", "leave out what is below this share of the likeliest", 0, 0, 1, 0.01],
  repetition_penalty: ["Repetition penalty", "above 1: avoid what was said already", 1, 1, 2, 0.05],
  max_tokens: ["Longest answer", "in tokens; the context may end it before", 512, 1, null, 1],
  seed: ["Seed", "the same seed gives the same answer; empty: any", "", 0, null, 1],
};
const NEUTRAL = { top_k: 0, min_p: 0, repetition_penalty: 1, seed: "" };

/** Build the form; `system`: whether the model takes a system prompt; `most`: tokens that may be asked for. Returns {fields(), system()}. */
export function settingsIn(form, system, most) {
  const stored = read();
  const inputs = {};
  if (system) form.append(systemField(inputs, stored));
  for (const [name, what] of Object.entries(NUMBERS)) form.append(numberField(name, what, inputs, stored));
  const defaults = made("button", { type: "button", className: "quiet", textContent: "Defaults" });
  form.append(defaults);

  const keep = () => {
    const values = Object.entries(inputs).map(([name, input]) => [name, input.value]);
    localStorage.setItem(STORED, JSON.stringify(Object.fromEntries(values)));
  };
  form.addEventListener("input", keep);
  form.addEventListener("submit", (event) => event.preventDefault());
  defaults.addEventListener("click", () => {
    for (const [name, [, , standard]] of Object.entries(NUMBERS)) {
      inputs[name].value = standard;
      inputs[name].dispatchEvent(new Event("input", { bubbles: true }));
    }
  });

  return {
    system: () => inputs.system?.value.trim() ?? "",
    fields: () => {
      const fields = {};
      for (const [name, [, , standard]] of Object.entries(NUMBERS)) {
        const input = inputs[name];
        const value = input.value === "" ? "" : Number(input.value);
        const valid = input.checkValidity() && (value !== "" || standard === "");
        const wanted = valid ? value : standard;
        if (wanted !== NEUTRAL[name]) fields[name] = wanted;
      }
      if (most) fields.max_tokens = Math.min(fields.max_tokens, most);
      return fields;
    },
  };
}

function systemField(inputs, stored) {
  const label = made("label", { htmlFor: "option-system", textContent: "System prompt" });
  const input = made("textarea", { id: "option-system", rows: 4, dir: "auto", value: stored.system ?? "" });
  input.placeholder = "What the model is told before all else";
  inputs.system = input;
  const field = made("div", { className: "field" });
  field.append(label, input);
  return field;
}

function numberField(name, [title, meaning, standard, least, most, step], inputs, stored) {
  const id = `option-${name}`;
  const slides = most !== null;
  const input = made("input", { id, type: slides ? "range" : "number", min: least, step });
  if (slides) input.max = most;
  input.value = stored[name] ?? standard;
  input.setAttribute("aria-describedby", `${id}-hint`);
  inputs[name] = input;
  const label = made("label", { htmlFor: id, textContent: title });
  const hint = made("p", { id: `${id}-hint`, className: "hint", textContent: meaning });
  const head = made("div", { className: "field-head" });
  const field = made("div", { className: slides ? "field slides" : "field" });
  head.append(label);
  field.append(head);
  if (slides) {
    const value = made("output", { htmlFor: id });
    const tell = () => (value.textContent = String(Number(input.value)));
    input.addEventListener("input", tell);
    tell();
    head.append(value);
    field.append(input, hint);
  } else {
    input.inputMode = "numeric";
    if (standard === "") input.placeholder = "any";
    head.append(input);
    field.append(hint);
  }
  return field;
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

function made(name, properties) {
  return Object.assign(document.createElement(name), properties);
}
