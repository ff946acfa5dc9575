// Markdown to DOM nodes. Whatever a model writes is only ever the text of a node: no HTML is parsed, so none can run.
//
// Pictures become links, as nothing is fetched from elsewhere; links go to http, https and mailto alone. What is still being
// written shows as what it will be: a fence that has no end yet is code.

const DEEPEST = 8; // of quotes, lists and marks within each other; what is deeper is plain text
const FARTHEST = 5000; // characters that are emphasised at once, so that no text takes long
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

/** Show a text in `parent`; of what it shows already only the blocks that differ are made anew. */
export function show(parent, text) {
  const blocks = split(text);
  const before = parent.shown ?? [];
  let same = 0;
  while (same < blocks.length && same < before.length && alike(blocks[same], before[same])) same += 1;
  while (parent.childNodes.length > same) parent.lastChild.remove();
  parent.append(...blocks.slice(same).map((block) => nodeOf(block, 0)));
  parent.shown = blocks;
}

function alike(one, other) {
  return one.kind === other.kind && one.lines.length === other.lines.length
    && one.lines.every((line, place) => line === other.lines[place]);
}

/** The blocks of a text: {kind, lines}. */
function split(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  let place = 0;
  const take = (kind, goesOn) => {
    const start = place;
    do place += 1; while (place < lines.length && goesOn(lines[place], place));
    blocks.push({ kind, lines: lines.slice(start, place) });
  };
  while (place < lines.length) {
    const line = lines[place];
    const fence = FENCE.exec(line);
    if (!line.trim()) place += 1;
    else if (fence) {
      const end = new RegExp(`^ {0,3}\\${fence[1][0]}{${fence[1].length},}\\s*$`);
      const start = place;
      take("code", (_, at) => at === start + 1 || !end.test(lines[at - 1]));
    } else if (HEADING.test(line)) take("heading", () => false);
    else if (RULE.test(line)) take("rule", () => false);
    else if (QUOTE.test(line)) take("quote", (next) => QUOTE.test(next));
    else if (ITEM.test(line)) take("list", (next, at) => staysInList(lines, at, line));
    else if (line.includes("|") && TABLE.test(lines[place + 1] ?? "") && (lines[place + 1] ?? "").includes("|")) {
      take("table", (next) => next.includes("|"));
    } else take("paragraph", (next, at) => next.trim() && !begins(lines, at));
  }
  return blocks;
}

function begins(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  const listed = item && line.length > item[0].length && (!/\d/.test(item[2]) || /^1[.)]/.test(item[2]));
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || listed;
}

function staysInList(lines, at, first) {
  const line = lines[at];
  const indent = ITEM.exec(first)[1].length;
  const item = ITEM.exec(line);
  if (item && !RULE.test(line)) return item[1].length > indent || ordered(item) === ordered(ITEM.exec(first));
  if (!line.trim()) {
    const next = lines[at + 1] ?? "";
    return ITEM.test(next) || /^ {2,}\S/.test(next);
  }
  return /^ {2,}/.test(line) || (lines[at - 1].trim() !== "" && !begins(lines, at));
}

function ordered(item) {
  return /\d/.test(item[2]);
}

function nodeOf({ kind, lines }, depth) {
  if (kind === "code") return codeOf(lines);
  if (kind === "rule") return element("hr");
  if (kind === "heading") {
    const [, marks, title] = HEADING.exec(lines[0]);
    return element(`h${Math.min(6, marks.length + 2)}`, ...inline(title)); // the page has two levels of its own
  }
  if (depth < DEEPEST && kind === "quote") {
    return element("blockquote", ...children(lines.map((line) => line.replace(QUOTE, "")), depth));
  }
  if (depth < DEEPEST && kind === "list") return listOf(lines, depth);
  if (kind === "table") return tableOf(lines);
  return element("p", ...inline(lines.map((line) => line.trim()).join("\n")));
}

function children(lines, depth) {
  return split(lines.join("\n")).map((block) => nodeOf(block, depth + 1));
}

function listOf(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const list = element(ordered(first) ? "ol" : "ul");
  const start = parseInt(first[2], 10);
  if (start > 1) list.start = start;
  const items = [];
  let width = 0;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= first[1].length) {
      width = item[1].length + item[2].length + 1;
      items.push([line.slice(item[0].length)]);
    } else {
      const indent = line.length - line.trimStart().length;
      items.at(-1).push(line.slice(Math.min(indent, width)));
    }
  }
  for (const item of items) {
    const nodes = children(item, depth);
    // an item of one paragraph, or one before a list, stands close to the next
    if (nodes[0]?.tagName === "P" && !item.some((line) => !line.trim())) nodes.splice(0, 1, ...nodes[0].childNodes);
    list.append(element("li", ...nodes));
  }
  return list;
}

function tableOf(lines) {
  const rows = lines.map((line) => cells(line));
  const sides = rows[1].map((cell) => (/^:.*:$/.test(cell) ? "center" : cell.endsWith(":") ? "right" : ""));
  const row = (texts, name) => element("tr", ...rows[0].map((_, place) => {
    const cell = element(name, ...inline(texts[place] ?? ""));
    if (sides[place]) cell.className = sides[place];
    return cell;
  }));
  const table = element("table", element("thead", row(rows[0], "th")));
  table.append(element("tbody", ...rows.slice(2).map((texts) => row(texts, "td"))));
  const scroll = element("div", table); // a wide one is moved by itself, also by the keyboard
  scroll.className = "table";
  scroll.tabIndex = 0;
  return scroll;
}

function cells(line) {
  const trimmed = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return trimmed.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function codeOf(lines) {
  const [, marks, language] = FENCE.exec(lines[0]);
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(marks) && !lines.at(-1).trim().replaceAll(marks[0], "");
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const name = element("span", document.createTextNode(language || "code"));
  const copy = element("button", document.createTextNode("Copy"));
  copy.type = "button";
  copy.className = "quiet copy";
  copy.ariaLabel = "Copy the code";
  const head = element("div", name, copy);
  head.className = "code-head";
  const code = element("pre", element("code", document.createTextNode(text)));
  code.tabIndex = 0;
  const figure = element("div", head, code);
  figure.className = "code";
  return figure;
}

const INLINE = /\\[!-/:-@[-`{-~]|`+|\*\*|__|~~|[*_]|!?\[|<(?=https?:\/\/|mailto:)|https?:\/\/|\n/;
const LINK_END = /\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/y;
const TAGS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };

/** Nodes of a line of text. Every mark is looked for once, and what has no end is text. */
function inline(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // marks that don't come again
  let told = 0;
  const tell = (end, node, next) => {
    if (end > told) nodes.push(document.createTextNode(text.slice(told, end)));
    nodes.push(node);
    told = next;
  };
  const closing = (mark, from) => {
    if (missing.has(mark)) return -1;
    const place = text.indexOf(mark, from);
    if (place < 0) missing.add(mark);
    return place;
  };
  const scan = new RegExp(INLINE, "g"); // of its own: what is emphasised is scanned while this is under way
  for (let found; (found = scan.exec(text)); ) {
    const [mark] = found;
    const at = found.index;
    const after = at + mark.length;
    let next = 0; // where to go on, if the mark means something
    if (mark === "\n") tell(at, element("br"), (next = after));
    else if (mark[0] === "\\") tell(at, document.createTextNode(mark[1]), (next = after));
    else if (mark[0] === "`") {
      const end = closing(mark, after);
      const exact = end >= 0 && text[end + mark.length] !== "`";
      if (exact) {
        next = end + mark.length;
        tell(at, element("code", document.createTextNode(bare(text.slice(after, end)))), next);
      }
    } else if (mark in TAGS) {
      const end = emphasised(text, mark, at, after, closing);
      if (end >= 0 && depth < DEEPEST) {
        tell(at, element(TAGS[mark], ...inline(text.slice(after, end), depth + 1)), (next = end + mark.length));
      }
    } else if (mark.endsWith("[")) {
      const end = closing("](", after);
      LINK_END.lastIndex = end;
      const target = end >= 0 && depth < DEEPEST && LINK_END.exec(text);
      if (target) {
        next = LINK_END.lastIndex;
        tell(at, linkTo(target[1], text.slice(after, end) || target[1], depth), next);
      }
    } else {
      const begin = mark === "<" ? after : at;
      const [address] = /^[^\s<>"`]*/.exec(text.slice(begin));
      const trimmed = mark === "<" ? address : withoutEnd(address);
      const close = mark === "<" && text[begin + trimmed.length] === ">" ? 1 : 0;
      if (trimmed.length > mark.length) tell(at, anchor(trimmed, trimmed), (next = begin + trimmed.length + close));
    }
    if (next) scan.lastIndex = next;
  }
  if (told < text.length) nodes.push(document.createTextNode(text.slice(told)));
  return nodes;
}

/** Where what is emphasised ends; -1: the mark is text, as in 2 * 3 * 4 and in snake_case_names. */
function emphasised(text, mark, at, after, closing) {
  if (/\s/.test(text[after] ?? " ")) return -1;
  const word = mark[0] === "_";
  if (word && /\w/.test(text[at - 1] ?? " ")) return -1;
  for (let end = closing(mark, after + 1); end >= 0 && end < at + FARTHEST; end = closing(mark, end + 1)) {
    const double = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
    if (!double && !/\s/.test(text[end - 1]) && !(word && /\w/.test(text[end + mark.length] ?? " "))) return end;
  }
  return -1;
}

function bare(code) {
  return /^ .*\S.* $/.test(code) ? code.slice(1, -1) : code;
}

/** An address in a sentence, without what ends the sentence. */
function withoutEnd(address) {
  let trimmed = address.replace(/[.,;:!?'"*_~]+$/, "");
  if (trimmed.endsWith(")") && !trimmed.includes("(")) trimmed = trimmed.slice(0, -1);
  return trimmed;
}

function linkTo(target, label, depth) {
  const link = anchor(target, "");
  const inner = inline(label, depth + 1);
  link.append(...inner.flatMap((node) => (node.nodeName === "A" ? [...node.childNodes] : [node])));
  return link;
}

/** A link, or, where it goes elsewhere than links may, plain text. */
function anchor(target, label) {
  const safe = safeAddress(target);
  const link = element(safe ? "a" : "span", document.createTextNode(label));
  if (safe) {
    link.href = safe;
    link.rel = "noopener noreferrer";
    link.target = "_blank";
  }
  return link;
}

function safeAddress(target) {
  try {
    const address = new URL(target);
    return ["http:", "https:", "mailto:"].includes(address.protocol) ? address.href : "";
  } catch {
    return "";
  }
}

function element(name, ...nodes) {
  const made = document.createElement(name);
  made.append(...nodes);
  return made;
}
