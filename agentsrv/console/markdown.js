// Markdown as it streams in: elements and text nodes only, a block at a time, some milliseconds a frame.

import { h, perFrame } from "./dom.js";

const LIMIT = 8192; // characters of a block; a longer one is cut
const BUDGET = 8; // ms of work in a frame
const CHUNK = 32; // blocks that are laid out, or not, together
const DEPTH = 4; // of quotes and emphasis within one another

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const DASHES = /^[\s|:-]+$/;
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
// Each repetition ends at its own delimiter, so that no text takes longer than its length.
const INLINE = new RegExp(
  [
    "\\\\([!-/:-@[-`{-~])", // 1: an escaped character
    "(`{1,2})([^`]{1,2000})\\2", // 3: code
    "\\*\\*([^*]{1,2000})\\*\\*", // 4: strong
    "\\*([^\\s*][^*]{0,2000})\\*", // 5: emphasis
    "(?<!\\w)_([^\\s_][^_]{0,2000})_(?!\\w)", // 6: emphasis
    "!?\\[([^\\[\\]]{0,1000})\\]\\(([^()\\s]{1,2000})\\)", // 7, 8: a link, or an image's
    "(https?://[^\\s<>()\\[\\]`*]{1,2000})", // 9: an address
  ].join("|"),
  "g",
);

/** Renders text that grows into an element. */
export class Markdown {
  #root;
  #chunk;
  #open = []; // the nodes of the block that may still grow
  #tail = "";
  #fence = null; // of a code block that was cut
  #render = perFrame(() => this.#work());

  constructor(root) {
    this.#root = root;
    root.classList.add("markdown");
  }

  /** Drops what there is: a failed attempt's text. */
  reset() {
    this.#root.replaceChildren();
    this.#chunk = undefined;
    this.#open = [];
    this.#tail = "";
    this.#fence = null;
  }

  append(piece) {
    this.#tail += piece;
    this.#render();
  }

  #work() {
    const end = performance.now() + BUDGET;
    for (const node of this.#open) node.remove();
    this.#open = [];
    while (this.#tail) {
      const [lines, rest, isWhole] = cut(this.#tail, this.#fence);
      if (!isWhole) {
        this.#open = this.#put(block(lines, this.#fence));
        return;
      }
      this.#put(block(lines, this.#fence));
      this.#fence = openFence(lines, this.#fence);
      this.#tail = rest;
      if (performance.now() > end) return this.#render();
    }
  }

  #put(nodes) {
    if (!this.#chunk || this.#chunk.childElementCount >= CHUNK) {
      this.#root.append((this.#chunk = h("div.chunk")));
    }
    this.#chunk.append(...nodes);
    return nodes;
  }
}

/** The lines of the first block, what follows it, and whether that block is at its end. */
function cut(text, fence) {
  const lines = [];
  let at = 0;
  while (at < text.length) {
    const newline = text.indexOf("\n", at);
    const end = newline < 0 ? text.length : newline;
    if (end > LIMIT) {
      return at ? [lines, text.slice(at), true] : [[text.slice(0, LIMIT)], text.slice(LIMIT), true];
    }
    const line = text.slice(at, end);
    const next = newline < 0 ? end : newline + 1;
    const mark = line.match(FENCE)?.[1];
    if (fence) {
      lines.push(line);
      if (newline >= 0 && closes(mark, fence)) return [lines, text.slice(next), true];
    } else if (mark && newline >= 0) {
      if (lines.length) return [lines, text.slice(at), true];
      fence = mark;
      lines.push(line);
    } else if (newline >= 0 && !line.trim()) {
      return [lines, text.slice(next), true];
    } else if (newline >= 0 && HEADING.test(line)) {
      return lines.length ? [lines, text.slice(at), true] : [[line], text.slice(next), true];
    } else {
      lines.push(line);
    }
    at = next;
  }
  return [lines, "", false];
}

const closes = (mark, fence) => mark && mark[0] === fence[0] && mark.length >= fence.length;

/** The fence that is still open behind a block. */
function openFence(lines, fence) {
  const mark = lines.at(-1)?.match(FENCE)?.[1];
  const first = fence ?? lines[0]?.match(FENCE)?.[1];
  const isClosed = closes(mark, first ?? " ") && (fence || lines.length > 1);
  return first && !isClosed ? first : null;
}

/** The elements of one block. */
function block(lines, fence = null, depth = 0) {
  if (!lines.some((line) => line.trim())) return [];
  if (fence || FENCE.test(lines[0])) {
    const first = fence ?? lines[0].match(FENCE)[1];
    const inner = fence ? lines : lines.slice(1);
    const isClosed = inner.length && closes(inner.at(-1).match(FENCE)?.[1], first);
    const code = (isClosed ? inner.slice(0, -1) : inner).join("\n");
    return [h("pre", { tabindex: 0 }, h("code", code))];
  }
  const heading = lines[0].match(HEADING);
  if (heading && lines.length === 1) {
    return [h(`h${Math.min(6, heading[1].length + 2)}`, inline(heading[2]))];
  }
  if (RULE.test(lines[0]) && lines.length === 1) return [h("hr")];
  if (/^ {0,3}>/.test(lines[0]) && depth < DEPTH) {
    const quoted = lines.map((line) => line.replace(/^ {0,3}> ?/, ""));
    return [h("blockquote", block(quoted, null, depth + 1))];
  }
  if (lines.length > 1 && lines[0].includes("|") && lines[1].includes("-") && DASHES.test(lines[1])) return [table(lines)];
  const first = lines.findIndex((line) => ITEM.test(line));
  if (first === 0) return [list(lines)];
  // A paragraph, and perhaps a list right below it.
  if (first > 0 && /^\s*([-*+]|1[.)])\s/.test(lines[first])) {
    return [h("p", inline(lines.slice(0, first).join("\n"))), list(lines.slice(first))];
  }
  return [h("p", inline(lines.join("\n")))];
}

function list(lines) {
  const stack = []; // lists that are open, by their indentation
  let item;
  let words = [];
  const fill = () => {
    item?.prepend(...inline(words.join("\n")));
    words = [];
  };
  for (const line of lines) {
    const found = line.match(ITEM);
    if (!found) {
      words.push(line.trim());
      continue;
    }
    fill();
    const [, { length: indent }, mark, text] = found;
    while (stack.length > 1 && indent < stack.at(-1).indent) stack.pop();
    if (!stack.length || (indent > stack.at(-1).indent + 1 && stack.length < DEPTH)) {
      const number = parseInt(mark, 10);
      const node = Number.isNaN(number) ? h("ul") : h("ol", { start: number });
      item?.append(node);
      stack.push({ indent, node });
    }
    item = h("li");
    stack.at(-1).node.append(item);
    words.push(text);
  }
  fill();
  return stack[0].node;
}

function table([head, , ...rows]) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|");
  const row = (line, tag) => h("tr", cells(line).map((cell) => h(tag, inline(cell.trim()))));
  const body = h("tbody", rows.map((line) => row(line, "td")));
  const inner = h("table", h("thead", row(head, "th")), body);
  return h("div.scroll", { tabindex: 0 }, inner);
}

/** Text with emphasis, code and links, as nodes. */
function inline(text, depth = 0) {
  if (depth > DEPTH) return [text];
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > at) nodes.push(text.slice(at, found.index));
    at = found.index + found[0].length;
    const [all, escaped, , code, strong, star, dash, label, target, address] = found;
    if (escaped) nodes.push(escaped);
    else if (code) nodes.push(h("code", code));
    else if (strong) nodes.push(h("strong", inline(strong, depth + 1)));
    else if (star || dash) nodes.push(h("em", inline(star ?? dash, depth + 1)));
    else if (target) nodes.push(link(target, inline(label || target, DEPTH), all));
    else nodes.push(link(address, [address], all));
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

/** A link to elsewhere; what leads to no page or mailbox stays text. */
function link(target, label, all) {
  const url = URL.canParse(target) ? new URL(target) : null;
  if (!url || !SCHEMES.has(url.protocol)) return all;
  const rel = "noopener noreferrer nofollow";
  return h("a", { href: url.href, rel, target: "_blank" }, label);
}
