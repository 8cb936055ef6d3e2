// A plan as a graph: a column for each layer, buttons for the steps, curves for what they wait for.

import { badge, between, h, say, seconds } from "./dom.js";

const WIDTH = 190; // px of a step, as the style sheet has it
const HEIGHT = 64;
const GAP_X = 44;
const GAP_Y = 14;
const SVG = "http://www.w3.org/2000/svg";

/**
 * Where steps and edges go: columns of rows, each step behind all that it depends on. An edge over
 * several columns has a row of its own in those between, so that it runs behind no step.
 */
export function layout(steps) {
  const columns = [];
  const column = (step) =>
    (step.column ??= 1 + Math.max(-1, ...step.depends_on.map((name) => column(steps.get(name)))));
  const put = (at, key) => (columns[at] ??= []).push(key);
  for (const step of steps.values()) put(column(step), step.step_id);
  for (const step of steps.values()) {
    for (const name of step.depends_on) {
      for (let at = steps.get(name).column + 1; at < step.column; at++) put(at, `${name} ${step.step_id}`);
    }
  }
  return columns;
}

/** Draws `steps`; `pick(step)` is called with the one that is clicked. Returns what updates it. */
export function draw(root, steps, pick) {
  const columns = layout(steps);
  const high = (rows) => rows * (HEIGHT + GAP_Y) - GAP_Y;
  const width = columns.length * (WIDTH + GAP_X) - GAP_X;
  const height = high(Math.max(...columns.map((rows) => rows.length)));
  const corner = (at, key) => {
    const row = columns[at].indexOf(key);
    return [at * (WIDTH + GAP_X), (height - high(columns[at].length)) / 2 + row * (HEIGHT + GAP_Y)];
  };
  const svg = document.createElementNS(SVG, "svg");
  const connect = (from, to) => {
    const path = document.createElementNS(SVG, "path");
    let [x, y] = corner(from.column, from.step_id);
    let d = `M${(x += WIDTH)} ${(y += HEIGHT / 2)}`;
    for (let at = from.column + 1; at <= to.column; at++) {
      const isStep = at === to.column;
      const [x2, top] = corner(at, isStep ? to.step_id : `${from.step_id} ${to.step_id}`);
      const y2 = top + HEIGHT / 2;
      d += `C${x + GAP_X / 2} ${y} ${x2 - GAP_X / 2} ${y2} ${x2} ${y2}${isStep ? "" : `h${WIDTH}`}`;
      [x, y] = [x2 + WIDTH, y2];
    }
    path.setAttribute("d", d);
    svg.append(path);
  };
  const nodes = [...steps.values()].map((step) => {
    for (const name of step.depends_on) connect(steps.get(name), step);
    const node = h("button.step", { type: "button", title: step.description, onclick: () => pick(step) },
      h("strong", step.step_id), h("span.soft"), h("span.state", h("span"), h("span")));
    const [left, top] = corner(step.column, step.step_id);
    Object.assign(node.style, { left: `${left}px`, top: `${top}px` });
    return [step, node];
  });
  // One stop for Tab; arrows go from step to step.
  nodes.forEach(([, node], at) => {
    node.tabIndex = at ? -1 : 0;
    node.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = nodes[at + by]?.[1];
      if (!next) return;
      event.preventDefault();
      for (const [, one] of nodes) one.tabIndex = one === next ? 0 : -1;
      next.focus();
    });
  });
  svg.setAttribute("aria-hidden", true);
  const plane = h("div.plane", svg, nodes.map(([, node]) => node));
  for (const box of [plane, svg]) Object.assign(box.style, { width: `${width}px`, height: `${height}px` });
  root.replaceChildren(plane);
  return (picked) => {
    for (const [step, node] of nodes) {
      const [, agent, { children: [state, facts] }] = node.children;
      if (node.dataset.status !== step.status) state.replaceWith(badge(step.status));
      node.dataset.status = step.status;
      node.setAttribute("aria-pressed", step === picked);
      say(agent, step.attempt > 1 ? `${step.agent} · try ${step.attempt}` : step.agent);
      say(facts, told(step));
    }
  };
}

/** How far a step is, and how long it has taken. */
function told({ started_at, ended_at, duration, progress }) {
  if (!started_at) return "";
  const share = !ended_at && progress?.total ? `${progress.done}/${progress.total}` : "";
  return [share, seconds(duration ?? between(started_at, ended_at))].filter(Boolean).join(" · ");
}
