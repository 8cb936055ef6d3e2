// node run.mjs ws://127.0.0.1:8765 "How does async I/O affect throughput?" [AGENT]
// Shows a task as a chat, asks what it asks, and comes back when the connection is lost.
// Ctrl-C cancels it.
import { randomUUID } from "@ag-ui/client";
import { stdin, stdout } from "node:process";
import { createInterface } from "node:readline/promises";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";

import { ConnectionLost, WebSocketAgent } from "./websocket-agent.mjs";

const [url, text, name] = process.argv.slice(2);
const agent = new WebSocketAgent({ url, WebSocket, token: process.env.AGENTSRV_TOKEN });
const terminal = createInterface({ input: stdin, output: stdout });
terminal.on("SIGINT", () => agent.abortRun("Ctrl-C"));

const shown = {
  onStepStartedEvent: ({ event }) => console.log(`\n[${event.stepName}]`),
  onTextMessageContentEvent: ({ event }) => void stdout.write(event.delta),
  onRunFinishedEvent: ({ event }) => console.log(`\n[${event.outcome.type}]`),
  onRunErrorEvent: ({ event }) => console.log(`\n[${event.code}: ${event.message}]`),
};

/** Run, and run the same again for as long as the connection is lost in between. */
async function runThrough(parameters) {
  const again = { runId: randomUUID(), ...parameters };
  for (;;) {
    let lost = false;
    const onRunFailed = ({ error }) => {
      lost = error instanceof ConnectionLost;
      return { stopPropagation: lost };
    };
    await agent.runAgent(again, { ...shown, onRunFailed });
    if (!lost) return;
    await sleep(1000);
  }
}

async function answered({ id, message, responseSchema }) {
  const answer = await terminal.question(`${message} ${JSON.stringify(responseSchema)} `);
  if (answer === "") return { interruptId: id, status: "cancelled" };
  return { interruptId: id, status: "resolved", payload: JSON.parse(answer) };
}

agent.addMessage({ id: randomUUID(), role: "user", content: text });
await runThrough({ forwardedProps: { agentsrv: name ? { agent: name } : {} } });
while (agent.pendingInterrupts.length > 0) {
  const resume = [];
  for (const interrupt of agent.pendingInterrupts) resume.push(await answered(interrupt));
  await runThrough({ resume });
}
terminal.close();
