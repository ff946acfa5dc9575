// A conversation: messages are sent, answers stream in, and any message can be changed, to go on from there.
//
// A chat model is sent the turns; a base model, which only continues text, all of it as one text.

import { stream } from "./api.js";
import { show } from "./markdown.js";
import { announce, copyText, growing, sendsOnEnter } from "./elements.js";

const STORED = "shoal.conversation";
const STOPPED = "stopped";
const TOO_LONG = "context_length_exceeded"; // the server's word for a prompt that the model can't read whole
const READ = 0.75; // how much of the context a prompt takes up at most, so that an answer has room
const KEPT = 0.75; // how much of that is kept where it is more: so the next prompts begin alike, and are known to the server

/** Start the conversation's view in `main`. `settings` says how answers are drawn. Returns {clear()}. */
export function startChat(main, model, settings) {
  main.append(document.getElementById("chat-view").content.cloneNode(true));
  return new Chat(main.querySelector(".talk"), model, settings);
}

class Chat {
  constructor(view, model, settings) {
    this.model = model;
    this.settings = settings;
    this.continues = model.kind === "completion";
    this.turns = read(model.id); // {role, content}, of answers also {note, finish, problem}
    this.running = null; // the AbortController of the answer that is being written
    this.budget = Infinity; // characters that are sent at most, so that the model can read them
    this.begin = 0; // the turn, or a base model's character, before which nothing is sent
    this.view = view;
    this.list = view.querySelector(".turns");
    this.scroll = view.querySelector(".scroll");
    this.input = view.querySelector("#input");
    this.form = view.querySelector("form");
    this.sendButton = view.querySelector(".send");
    this.stopButton = view.querySelector(".stop");
    view.classList.toggle("continues", this.continues);
    this.#introduce();
    this.#listen();
    this.turns.forEach((turn) => this.list.append(this.#item(turn)));
    this.#settle();
    this.input.focus();
  }

  /** Forget the conversation. */
  clear() {
    this.#cutTo(0);
    this.input.focus();
    announce("A new conversation.");
  }

  #introduce() {
    const [title, text] = this.view.querySelectorAll(".welcome > *");
    title.textContent = this.continues ? "Begin a text" : "Say something";
    text.textContent = this.continues
      ? "This is a base model: it does not answer, it continues a text in the manner of what it has read."
      : "Answers are written by the model on the server that shows this page. Nothing goes anywhere else.";
    this.input.placeholder = "Write a message…";
    this.view.querySelector("label[for=input]").textContent = this.continues ? "Text to continue" : "Message";
    this.sendButton.ariaLabel = this.continues ? "Continue" : "Send";
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    sendsOnEnter(this.input, this.form);
    this.fit = growing(this.input);
    this.stopButton.addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running && !document.querySelector("dialog[open]")) {
        event.preventDefault();
        this.stop();
      }
    });
    const latest = this.view.querySelector(".latest");
    latest.addEventListener("click", () => this.#toEnd());
    this.scroll.addEventListener("scroll", () => (latest.hidden = this.#atEnd()));
  }

  stop() {
    this.running?.abort();
    this.input.focus();
  }

  #send() {
    if (this.running) return;
    const content = this.input.value.toWellFormed();
    // an empty text lets a base model go on with what there is
    if (!content.trim() && !(this.continues && this.turns.length)) return;
    if (content) this.#add({ role: "user", content: this.#joined(content) });
    this.input.value = "";
    this.fit();
    this.#answer();
  }

  /** What is added to a text begins on a line of its own. */
  #joined(content) {
    const before = this.turns.at(-1)?.content ?? "";
    return this.continues && before && !/\n$/.test(before) && !content.startsWith("\n") ? `\n${content}` : content;
  }

  async #answer() {
    const turn = { role: "assistant", content: "" };
    const item = this.#add(turn);
    const text = item.querySelector(".text");
    this.running = new AbortController();
    item.classList.add("writing");
    this.#settle();
    announce("The model is writing.");
    const watch = new Watch();
    try {
      for await (const told of this.#events(this.turns.slice(0, -1), watch)) {
        turn.content += this.continues ? told.choices[0]?.text ?? "" : told.choices[0]?.delta?.content ?? "";
        this.#drawSoon(text, turn);
      }
    } catch (error) {
      if (error.name === "AbortError") watch.finish = STOPPED;
      else turn.problem = error.message;
    }
    this.running = null;
    Object.assign(turn, { note: watch.note(), finish: watch.finish });
    item.replaceWith(this.#item(turn));
    this.#settle();
    announce(turn.problem ? `Error: ${turn.problem}` : turn.content || "The answer is empty.");
    write(this.model.id, this.turns);
  }

  /** What the server tells; where it finds the prompt too long, the beginning is left out, and it is asked again. */
  async *#events(turns, watch) {
    const signal = this.running.signal;
    for (;;) {
      const { path, body, sent, all, least } = this.#request(turns);
      Object.assign(watch, { cut: sent < all, most: body.max_tokens });
      try {
        for await (const told of stream(path, body, signal)) {
          watch.see(told);
          const read = told.usage?.prompt_tokens;
          if (read && this.model.context) this.budget = Math.floor((READ * this.model.context * sent) / read);
          yield told;
        }
        return;
      } catch (error) {
        if (error.code !== TOO_LONG || sent <= least) throw error;
        this.budget = Math.floor((sent * 2) / 3);
      }
    }
  }

  /** {path, body, sent, all, least}: of `all` characters `sent` are sent; where these are `least`, it can't be fewer. */
  #request(turns) {
    const streamed = { stream: true, stream_options: { include_usage: true } };
    const common = { model: this.model.id, ...this.settings.fields(), ...streamed };
    if (this.continues) {
      const text = turns.map(({ content }) => content).join("");
      if (this.begin > text.length) this.begin = 0;
      if (text.length - this.begin > this.budget) this.begin = text.length - Math.max(1, Math.floor(KEPT * this.budget));
      const prompt = text.slice(this.begin).replace(/^[\udc00-\udfff]/, ""); // no half of a character
      return { path: "v1/completions", body: { ...common, prompt }, sent: prompt.length, all: text.length, least: 1 };
    }
    const system = this.settings.system() ? [{ role: "system", content: this.settings.system() }] : [];
    const size = (said) => [...system, ...said].reduce((sum, { content }) => sum + content.length, 0);
    if (this.begin >= turns.length) this.begin = 0;
    const last = turns.length - 1; // a user's
    if (size(turns.slice(this.begin)) > this.budget) {
      while (this.begin < last && size(turns.slice(this.begin)) > KEPT * this.budget) {
        do this.begin += 1; while (turns[this.begin].role !== "user");
      }
    }
    const failed = ({ role, content }) => role === "assistant" && !content;
    const kept = turns.slice(this.begin).filter((turn) => !failed(turn));
    const messages = [...system, ...kept.map(({ role, content }) => ({ role, content }))];
    const least = this.begin < last ? 0 : Infinity;
    return { path: "v1/chat/completions", body: { ...common, messages }, sent: size(kept), all: size(turns), least };
  }

  /** Draw at most once a frame, and stay at the end where the reader is. */
  #drawSoon(text, turn) {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (!text.isConnected) return;
      const follow = this.#atEnd();
      this.#draw(text, turn);
      if (follow) this.#toEnd();
    });
  }

  #draw(text, turn) {
    if (turn.role === "assistant" && !this.continues) show(text, turn.content);
    else text.textContent = turn.content;
  }

  #add(turn) {
    this.turns.push(turn);
    const item = this.#item(turn);
    this.list.append(item);
    this.#toEnd();
    return item;
  }

  #item(turn) {
    const item = document.createElement("li");
    item.className = `turn ${turn.role}`;
    const who = made("h2", "unseen", turn.role === "user" ? "You" : "Model");
    const text = made("div", "text");
    text.dir = "auto";
    this.#draw(text, turn);
    item.append(who, text);
    if (turn.problem) item.append(made("p", "problem", turn.problem));
    else if (turn.finish === "stop" && !turn.content) item.append(made("p", "hint", "The model had nothing to say."));
    item.append(this.#foot(turn, item));
    return item;
  }

  #foot(turn, item) {
    const foot = made("div", "foot");
    const button = (title, label, act) => {
      const one = made("button", "quiet", title);
      one.type = "button";
      one.ariaLabel = label;
      one.addEventListener("click", () => act(one));
      foot.append(one);
    };
    const whose = turn.role === "user" ? "your message" : "the answer";
    if (turn.content) button("Copy", `Copy ${whose}`, (one) => copyText(turn.content, one));
    if (turn.role === "user") button("Edit", "Edit your message and go on from there", () => this.#edit(turn, item));
    else button("Retry", "Write this answer anew", () => this.#retry(turn));
    if (turn.note) foot.append(made("span", "note", turn.note));
    return foot;
  }

  #retry(turn) {
    if (this.running) return;
    this.#cutTo(this.turns.indexOf(turn));
    this.#answer();
    this.input.focus();
  }

  #edit(turn, item) {
    if (this.running) return;
    const form = made("form", "editor");
    const input = document.createElement("textarea");
    input.value = turn.content.replace(/^\n/, "");
    input.ariaLabel = "Your message";
    input.dir = "auto";
    const row = made("div", "row end");
    const leave = made("button", "quiet", "Cancel");
    leave.type = "button";
    const send = made("button", "main", this.continues ? "Continue" : "Send");
    row.append(leave, send);
    form.append(input, row);
    const before = [...item.childNodes];
    const close = () => {
      item.replaceChildren(...before);
      item.querySelector(".foot button:last-of-type").focus();
    };
    leave.addEventListener("click", close);
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      close();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!input.value.trim() || this.running) return;
      this.#cutTo(this.turns.indexOf(turn));
      this.#add({ role: "user", content: this.#joined(input.value) });
      this.#answer();
      this.input.focus();
    });
    item.replaceChildren(form);
    sendsOnEnter(input, form);
    growing(input)();
    input.focus();
  }

  /** Keep so many turns. */
  #cutTo(count) {
    if (this.running) this.running.abort();
    this.turns.length = count;
    while (this.list.children.length > count) this.list.lastChild.remove();
    this.#settle();
    write(this.model.id, this.turns);
  }

  #settle() {
    const writing = this.running !== null;
    this.view.querySelector(".welcome").hidden = this.turns.length > 0;
    if (this.continues) {
      this.input.placeholder = this.turns.length ? "Write on, or send nothing to let it go on…" : "Begin a text…";
    }
    this.list.hidden = this.turns.length === 0;
    this.list.classList.toggle("busy", writing);
    this.list.ariaBusy = String(writing);
    this.sendButton.hidden = writing;
    this.stopButton.hidden = !writing;
    if (!writing && this.#atEnd(160)) this.#toEnd();
  }

  #atEnd(slack = 48) {
    const { scrollTop, scrollHeight, clientHeight } = this.scroll;
    return scrollHeight - scrollTop - clientHeight < slack;
  }

  #toEnd() {
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }
}

/** How long an answer takes, and why it ends. */
class Watch {
  constructor() {
    this.start = performance.now();
    this.first = this.last = 0;
    this.usage = this.finish = null;
    this.most = 0; // tokens that were asked for
    this.cut = false; // whether the model was not given all
  }

  see(told) {
    const [choice] = told.choices;
    this.last = performance.now();
    if (choice?.text || choice?.delta?.content) this.first ||= this.last; // who speaks is told before
    this.usage = told.usage ?? this.usage;
    this.finish = choice?.finish_reason ?? this.finish;
  }

  note() {
    const parts = [];
    if (this.usage) {
      const { prompt_tokens: read, completion_tokens: written } = this.usage;
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      const seconds = (this.last - this.first) / 1000;
      parts.push(`${written.toLocaleString("en")} token${written === 1 ? "" : "s"}`);
      if (this.first && written > 1 && seconds > 0) parts.push(`${rate((written - 1) / seconds)} tokens/s`);
      parts.push(`${read.toLocaleString("en")} read${cached ? `, ${cached.toLocaleString("en")} of them cached` : ""}`);
    }
    if (this.first) parts.push(`first after ${((this.first - this.start) / 1000).toFixed(2)} s`);
    const full = this.usage?.completion_tokens < this.most;
    if (this.finish === "length") parts.push(full ? "the context is full" : "as long as it may be");
    if (this.finish === STOPPED) parts.push("stopped");
    if (this.cut) parts.push("what came first was left out");
    return parts.join(" · ");
  }
}

function rate(value) {
  return value >= 10 ? Math.round(value).toLocaleString("en") : value.toPrecision(2);
}

function made(name, style, text = "") {
  const element = document.createElement(name);
  element.className = style;
  element.textContent = text;
  return element;
}

function read(model) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(STORED));
    return kept?.model === model ? kept.turns : [];
  } catch {
    return [];
  }
}

/** Keep the conversation for this tab, so that a reload does not lose it; one too long for that is only not kept. */
function write(model, turns) {
  try {
    sessionStorage.setItem(STORED, JSON.stringify({ model, turns }));
  } catch {
    sessionStorage.removeItem(STORED);
  }
}
