// Reads one log a line, as JSON, and writes what the console's fold makes of it, one line each.
//
// A line has `events`, the `fields` of a task and of a step that are wanted, and a `snapshot` that a
// list would continue from, with the `later` life-cycle events.

import { createInterface } from "node:readline";
import { TaskState } from "../../../agentsrv/console/fold.js";

const pick = (from, names) => Object.fromEntries(names.map((name) => [name, from[name] ?? null]));
const brief = (state) => [
  state.status,
  [...state.steps.values()].map(({ status }) => status),
  state.inputs.map(({ input_id }) => input_id).sort(),
];

for await (const line of createInterface({ input: process.stdin })) {
  const { events, fields, snapshot, later } = JSON.parse(line);
  const state = new TaskState();
  const trail = events.map((event) => {
    state.apply(event);
    return brief(state);
  });
  const listed = TaskState.of(snapshot);
  for (const event of later) listed.apply(event);
  const steps = [...state.steps.values()].map((step) => pick(step, fields.step));
  const found = { trail, ...pick(state, fields.task), steps, inputs: state.inputs, listed: listed.status };
  process.stdout.write(`${JSON.stringify(found)}\n`);
}
