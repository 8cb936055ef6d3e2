// Runs tasks of the server at the URL that is the first argument with the official AG-UI client,
// and prints what it made of them. Its pipeline verifies the order of events: a violation is an
// error of the run.
import { EventType } from "@ag-ui/client";
import WebSocket from "ws";

import { ConnectionLost, WebSocketAgent } from "./websocket-agent.mjs";

const [url, token] = process.argv.slice(2);
const complaints = [];
console.warn = console.error = (...words) => complaints.push(words.join(" "));

/** An agent with a task to do, and the report of what happens to it. */
function begin(text) {
  const agent = new WebSocketAgent({ url, token, WebSocket, initialState: { mine: 1 } });
  agent.addMessage({ id: "u1", role: "user", content: text });
  const report = { types: [], customs: [], runs: [], failures: [] };
  agent.subscribe({
    onEvent: ({ event }) => {
      report.types.push(event.type);
      if (event.type === EventType.CUSTOM) report.customs.push(event.name);
    },
    onRunFailed: ({ error }) => {
      report.failures.push(error.name);
      return { stopPropagation: error instanceof ConnectionLost };
    },
  });
  return { agent, report };
}

const told = ({ agent, report }) => ({
  ...report,
  messages: agent.messages,
  state: agent.state,
  interrupts: agent.pendingInterrupts,
});

const by = (fields) => ({ forwardedProps: { agentsrv: fields } });

async function run({ agent, report }, parameters, subscriber) {
  report.runs.push(await agent.runAgent(parameters, subscriber));
}

const scenarios = {
  async task() {
    const one = begin("Hello. ");
    await run(one, by({ agent: "echo", params: { times: 2 } }));
    return told(one);
  },
  async retry() {
    const one = begin("x");
    await run(one, by({ agent: "moody" }));
    return told(one);
  },
  async parallel() {
    const one = begin("x");
    const steps = ["a", "b", "c"].map((step_id) => ({ step_id, agent: "talker" }));
    await run(one, by({ plan: { steps } }));
    return told(one);
  },
  async question() {
    const one = begin("x");
    await run(one, by({ agent: "asker" }));
    const asked = one.agent.pendingInterrupts;
    await run(one, {
      resume: asked.map(({ id }) => ({ interruptId: id, status: "resolved", payload: true })),
    });
    return { asked, ...told(one) };
  },
  async cancel() {
    const one = begin("x");
    await run(one, by({ agent: "waiter" }), {
      onTextMessageContentEvent: () => one.agent.abortRun("too slow"),
    });
    return told(one);
  },
  async failure() {
    const one = begin("x");
    await run(one, by({ agent: "broken" }));
    return told(one);
  },
  async lost() {
    const one = begin("x");
    const parameters = { runId: "r1", ...by({ agent: "talker" }) };
    await run(one, parameters, {
      onTextMessageContentEvent: () => one.agent.socket.terminate(),
    });
    const before = one.agent.messages.length;
    await run(one, parameters);
    return { before, ...told(one) };
  },
};

const results = {};
for (const [name, scenario] of Object.entries(scenarios)) results[name] = await scenario();
console.log(JSON.stringify({ ...results, complaints }));
