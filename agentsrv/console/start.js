// The form that starts a task, or one like an earlier one.

import { newKey } from "./client.js";
import { h, labelled, wording } from "./dom.js";
import { field, parse } from "./form.js";

const PLANNER = "";
const PLAN = "{}"; // no agent's name

/** Fills `root` with the form; `from` is the state of a task to run again. */
export async function showStart(root, client, from) {
  const description = h("textarea", {
    id: "description", rows: 4, required: true, maxlength: 32768, value: from?.user_input ?? "",
    placeholder: "What is to be done?",
    onkeydown: (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && form.requestSubmit(),
  });
  const who = h("select", { id: "agent" }, h("option", { value: PLANNER }, "The server’s planner"));
  const plan = h("textarea.code", { id: "plan", rows: 8, value: from?.steps.size ? planOf(from) : "" });
  const planBox = labelled("Plan, as JSON", plan);
  const paramsBox = h("div");
  const deadline = field({ type: "number", minimum: 0 }, "Seconds that it may take", { needed: false });
  const error = h("p.error", { role: "alert" });
  const submit = h("button.main", "Start");
  let agents = [];
  let params;
  const choose = () => {
    planBox.hidden = who.value !== PLAN;
    const agent = agents.find((one) => one.name === who.value);
    const schema = agent?.params ?? {};
    const needed = Boolean(agent);
    const hasFields = !agent || Object.keys(schema.properties ?? {}).length > 0;
    params = hasFields ? field(schema, "Parameters", { value: from?.params, needed }) : null;
    paramsBox.replaceChildren(h("p.soft", agent?.description ?? ""), params?.node ?? "");
  };
  let key;
  let sent;
  const start = async (event) => {
    event.preventDefault();
    error.textContent = "";
    try {
      const fields = { task_description: description.value, execute: true, deadline: deadline.read(), params: params?.read() ?? {} };
      if (who.value === PLAN) fields.plan = parse(plan.value, "The plan");
      else if (who.value) fields.agent = who.value;
      const text = JSON.stringify(fields);
      if (text !== sent) key = newKey(); // the same task sent again is started once
      sent = text;
      submit.disabled = true;
      submit.textContent = client.state.name === "connected" ? "Starting…" : "Starts with the connection…";
      const { task_id } = await client.create({ ...fields, idempotency_key: key });
      location.hash = `#/task/${task_id}`;
    } catch (refusal) {
      error.textContent = wording(refusal);
    } finally {
      submit.disabled = false;
      submit.textContent = "Start";
    }
  };
  const form = h("form.start", { onsubmit: start },
    h("h1", { tabindex: -1 }, from ? "Run again" : "New task"),
    labelled("Task", description), labelled("Done by", who), planBox, paramsBox, deadline.node,
    error, h("p", submit, h("span.soft", " or Ctrl+Enter")));
  root.replaceChildren(form);
  choose();
  who.addEventListener("change", choose);
  ({ agents } = await client.command("agents"));
  plan.value ||= example(agents);
  who.append(...agents.map(({ name }) => h("option", { value: name }, name)), h("option", { value: PLAN }, "A plan of my own"));
  if (from?.agent) who.value = from.agent;
  choose();
}

/** A plan that the server takes: a step of its first agent. */
const example = (agents) =>
  JSON.stringify({ steps: [{ step_id: "first", agent: agents[0]?.name ?? "", depends_on: [] }] }, null, 2);
const OF_A_STEP = ["step_id", "agent", "description", "depends_on", "input", "params", "max_retries", "timeout"];

/** The plan that a task had, as a client may send it. */
function planOf(state) {
  const known = (step) => Object.fromEntries(OF_A_STEP.map((name) => [name, step[name]]));
  return JSON.stringify({ steps: [...state.steps.values()].map(known) }, null, 2);
}
