// A task's page: its plan, questions, output and history, as its log grows.

import { badge, between, button, confirm, h, labelled, perFrame, say, seconds, time, wording } from "./dom.js";
import { hasEnded, TaskState } from "./fold.js";
import { field } from "./form.js";
import { draw } from "./graph.js";
import { History } from "./history.js";
import { Markdown } from "./markdown.js";

const SILENT = new Set(["step_progress", "partial_output"]); // too many to be read to anybody

/** Fills `root` with the task's page and keeps it current; returns what ends that. */
export function showTask(root, client, task_id) {
  const state = new TaskState();
  const past = new History();
  const leaving = new AbortController();
  const title = h("h1", { tabindex: -1 }, "…");
  const facts = h("p.facts");
  const error = h("p.error", { role: "alert" });
  const trace = h("div", { hidden: true });
  const input = h("details.input", { hidden: true }, h("summary", "Input"));
  const actions = h("div.actions");
  const questions = h("div.questions");
  const graph = h("div.scroll.graph", { tabindex: 0, role: "group", "aria-label": "Plan" });
  const heading = h("h2");
  const back = button("Show the result", () => pick(picked));
  const about = h("p.soft");
  const output = h("div.output");
  const results = h("div");
  const history = h("ol.history");
  const plan = h("section", { hidden: true }, h("h2", "Plan"), graph);
  const written = h("section", { hidden: true }, h("div.bar", heading, back), about, output, results);
  root.replaceChildren(h("article", title, facts, actions, error, trace, questions, input, plan, written,
    h("section", h("h2", "History"), history)));

  // What may be done.

  const attempt = async (work) => {
    error.textContent = "";
    try {
      await work();
      return true;
    } catch (refusal) {
      error.textContent = wording(refusal);
      return false;
    }
  };
  const command = (name, fields) => attempt(() => client.command(name, { task_id, ...fields }));
  const offers = () => {
    const start = button("Start", () => command("execute", { subscribe: false }));
    const cancel = button("Cancel…", () =>
      ask("Cancel this task", "Reason", "Cancel the task", (reason) => command("cancel", { reason: reason || undefined })));
    const tell = button("Send a message…", () =>
      ask("Tell its agents", "Message", "Send", (text) => attempt(() => client.send(task_id, text))));
    const resume = button("Resume", () => attempt(async () => {
      const { user_input, params } = state;
      const fields = { task_description: user_input, params, resume_from: task_id, execute: true };
      location.hash = `#/task/${(await client.create(fields)).task_id}`;
    }));
    const again = h("a.quiet", { href: `#/new/${task_id}` }, "Run again…");
    const running = [cancel, tell];
    const fitting = { pending: [start, cancel], queued: [cancel], running, input_required: running, failed: [resume], cancelled: [resume] };
    return [...(fitting[state.status] ?? []), again];
  };

  // Whose text is shown: the step's that was picked, or the task's output.

  const streams = new Map();
  let picked = null;
  const shown = () => (picked ? [picked] : state.sinks);
  const pick = (step) => {
    picked = picked === step ? null : step;
    streams.clear();
    output.replaceChildren(...shown().map((one) => {
      const node = h("div");
      streams.set(one, new Markdown(node));
      streams.get(one).append(one.output);
      return node;
    }));
    render();
  };
  const cards = new Map(); // of open questions
  let isAnswering = false; // whether the last one was answered here, and no other has come yet
  let update; // of the graph
  const render = perFrame(() => {
    say(title, state.user_input || "…");
    const open = new Map(state.inputs.map((asked) => [asked.input_id, asked]));
    const asks = open.size ? `(${open.size}) ` : "";
    document.title = `${asks}${state.user_input.slice(0, 60)} · agentsrv`;
    if (state.created_at && input.hidden) {
      input.hidden = false;
      input.append(h("pre", { tabindex: 0 }, inputOf(state)));
    }
    if (facts.dataset.status !== state.status) {
      facts.dataset.status = state.status;
      facts.replaceChildren(badge(state.status), h("code", task_id), state.created_at ? time(state.created_at) : "", h("span"));
      actions.replaceChildren(...offers());
    }
    say(facts.lastChild, state.started_at ? seconds(between(state.started_at, state.ended_at)) : "");
    if (state.error_message) say(error, state.error_message);
    if (state.traceback.length && trace.hidden) {
      trace.hidden = false;
      trace.append(framesOf(state.traceback));
    }
    if (state.steps.size && !update) {
      update = draw(graph, state.steps, pick);
      plan.hidden = state.steps.size < 2;
      pick(null);
    }
    update?.(picked);
    let hadFocus = false;
    for (const [id, card] of cards) {
      if (open.has(id)) continue;
      hadFocus ||= card.contains(document.activeElement) || card.isSettled;
      card.remove();
      cards.delete(id);
    }
    for (const [id, asked] of open) {
      if (cards.has(id)) continue;
      cards.set(id, question(asked, client, attempt));
      questions.append(cards.get(id));
    }
    // After an answer the focus moves to the next question, also to one that comes a moment later.
    const next = questions.querySelector("input, select, textarea, button");
    if (hadFocus || (isAnswering && next && document.activeElement === title)) (next ?? title).focus();
    isAnswering = !next && (hadFocus || isAnswering);
    say(heading, picked?.step_id ?? "Output");
    back.hidden = !picked;
    const { error_message: trouble, status } = picked ?? {}; // a running step shows none of an earlier attempt
    const isShown = trouble !== state.error_message && !["running", "input_required"].includes(status);
    say(about, picked ? [picked.agent, picked.description, isShown && trouble].filter(Boolean).join("\n") : "");
    const isEmpty = hasEnded(state.status) && !picked && !shown().some(({ output, result }) => output || result != null);
    written.hidden = !state.steps.size || isEmpty;
    const key = shown().map((step) => `${step.step_id} ${step.status}`).join();
    if (results.dataset.key !== key) results.replaceChildren(...shown().flatMap(resultsOf));
    results.dataset.key = key;
    for (const entry of past.entries) {
      if (!entry.node) {
        entry.node = h("li", { class: entry.kind }, time(entry.at), h("span"));
        history.append(entry.node);
      }
      say(entry.node.lastChild, entry.text);
    }
  });

  // What happens, from the first event on; who listens is told what is new.

  let seq = Infinity;
  const take = (event) => {
    state.apply(event);
    past.add(event, state);
    const stream = streams.get(state.steps.get(event.data.step_id));
    if (event.event_type === "partial_output") stream?.append(event.data.output);
    else if (event.event_type === "step_retrying") stream?.reset();
    if (event.seq > seq && !SILENT.has(event.event_type)) {
      document.getElementById("live").textContent = past.entries.at(-1).text;
    }
    render();
  };
  const follow = async () => {
    try {
      ({ seq } = await client.command("status", { task_id }));
      await client.follow(task_id, take, { signal: leaving.signal });
    } catch (refusal) {
      if (leaving.signal.aborted) return;
      const words = refusal.code === "not_found" ? "No such task" : "This task cannot be shown";
      clearInterval(clock);
      root.replaceChildren(h("article", h("h1", { tabindex: -1 }, words), h("p.error", { role: "alert" }, wording(refusal))));
    }
  };
  follow();
  const clock = setInterval(() => hasEnded(state.status) || client.state.name !== "connected" || render(), 1000);
  return () => {
    clearInterval(clock);
    leaving.abort();
  };
}

/** The structured result of a step, and the sources that it names. */
function resultsOf({ step_id, result, output }) {
  if (result === null || result === undefined) return [];
  const found = result.sources ?? result.passages;
  const row = ({ title, source, url, line }) => h("li", [title, source ?? url, line && `line ${line}`].filter(Boolean).join(", "));
  const all = h("details", h("summary", `Result of ${step_id} as JSON`));
  const json = () => JSON.stringify(result, null, 2).slice(0, 100_000);
  all.addEventListener("toggle", () => all.append(h("pre", { tabindex: 0 }, json())), { once: true });
  all.open = !output;
  const sources = Array.isArray(found) && found.length > 0 &&
    h("details", h("summary", `Sources (${found.length})`), h("ol", found.map((one) => row(Object(one)))));
  return sources ? [sources, all] : [all];
}

/** What the task was given, for people to read and to copy. */
function inputOf({ user_input, agent, params, metadata }) {
  const given = { params, metadata };
  const values = Object.entries(given).filter(([, one]) => Object.keys(one ?? {}).length);
  const parts = values.map(([name, one]) => `${name}: ${JSON.stringify(one, null, 2)}`);
  return [user_input, agent && `agent: ${agent}`, ...parts].filter(Boolean).join("\n\n").slice(0, 100_000);
}

/** The frames of a traceback, the innermost last; only the author's own are open. */
function framesOf(frames) {
  const line = ({ file, line, function: name, code, own }) =>
    h("li", { class: own ? "own" : "soft" }, h("code", `${file}:${line} ${name}`), code && h("pre", code));
  const own = frames.filter((frame) => frame.own).at(-1);
  return h("section.trace", own && h("ol", line(own)),
    h("details", h("summary", `Traceback (${frames.length} frames)`), h("ol", frames.map(line))));
}

const MOST_BUTTONS = 4; // options that are buttons; more are a list to choose from

/** A question as a form: buttons where there is little to choose from, else fields. */
function question(asked, client, attempt) {
  const { input_id, step_id, prompt, schema, options, expires_at, default: value } = asked;
  const prose = h("div");
  new Markdown(prose).append(prompt);
  const state = h("span.soft", { role: "status" });
  const settle = async (work, word) => {
    for (const one of form.querySelectorAll("button")) one.disabled = true;
    state.textContent = client.state.name === "connected" ? "" : `${word}: will be sent when the connection is back`;
    form.isSettled = true;
    const isTaken = await attempt(work);
    form.isSettled = isTaken;
    state.textContent = "";
    for (const one of form.querySelectorAll("button")) one.disabled = false;
    if (!isTaken) form.querySelector("input, select, textarea, button")?.focus();
  };
  const choices = options ?? (schema.type === "boolean" ? [true, false] : null);
  const words = { true: "Yes", false: "No" };
  const decline = button("Decline…", () => confirm("Decline to answer",
    h("p", DECLINED[asked.on_decline] ?? DECLINED.fails), DECLINE[asked.on_decline] ?? DECLINE.fails,
    () => settle(() => client.decline(input_id), "Decline")));
  const about = h("p.soft", `${step_id} asks`, expires_at && [", until ", time(expires_at)]);
  const label = { "aria-label": `Question of ${step_id}` };
  let form;
  if (choices && choices.length <= MOST_BUTTONS) {
    const choose = (one) => h("button.main", {
      type: "button", onclick: () => settle(() => client.respond(input_id, one), "Answer"),
    }, `${words[one] ?? one}`, one === value && " (default)");
    form = h("form.question", label, about, prose, h("p.actions", choices.map(choose), decline), state);
  } else {
    const answer = field(options ? { enum: options } : schema, "Answer", { value: value ?? undefined });
    const onsubmit = (event) => {
      event.preventDefault();
      settle(() => client.respond(input_id, answer.read() ?? null), "Answer");
    };
    const onkeydown = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && form.requestSubmit();
    form = h("form.question", { onsubmit, onkeydown, ...label }, about, prose, answer.node,
      h("p.actions", h("button.main", "Answer"), h("span.soft", "or Ctrl+Enter"), decline), state);
  }
  return form;
}

const DECLINED = {
  fails: "The step that asks fails, and with it the task: steps that run are cancelled.",
  continues: "The step continues without an answer.",
};
const DECLINE = { fails: "Decline: this step fails", continues: "Decline" };

/** Asks for a line of text in a dialog. */
function ask(title, label, word, done) {
  const input = h("input", { id: "asked", maxlength: 1024 });
  confirm(title, labelled(label, input), word, () => done(input.value));
}
