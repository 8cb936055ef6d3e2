// Run a task and watch it, from Node 22 or newer (20: node --experimental-websocket).
//
//     agentsrv serve --knowledge agentsrv/cli/demo/knowledge
//     node examples/javascript/run.mjs "How does async I/O affect throughput?"

import { stdin, stdout } from "node:process";
import { createInterface } from "node:readline/promises";

import { Client } from "../../agentsrv/console/client.js";

const [, , text = "How does async I/O affect throughput?", agent] = process.argv;
const client = new Client(process.env.AGENTSRV_URL ?? "ws://127.0.0.1:8765", {
  token: process.env.AGENTSRV_TOKEN,
  attempts: Number(process.env.AGENTSRV_ATTEMPTS ?? 5),
  onState: ({ name, reason }) => console.error(`(${name}${reason ? `: ${reason}` : ""})`),
});

/** @param {import("../../agentsrv/console/client.js").Event} event */
function onEvent({ seq, event_type, data }) {
  const { step_id = "" } = /** @type {{step_id?: string}} */ (data);
  console.error(`${String(seq).padStart(4)}  ${event_type} ${step_id}`);
}

/** @param {import("../../agentsrv/console/protocol.d.ts").InputRequired} question */
async function onInput({ prompt }) {
  const lines = createInterface({ input: stdin, output: stdout });
  const said = await lines.question(`${prompt} (JSON) `);
  lines.close();
  return JSON.parse(said);
}

try {
  const { final_output } = await client.run(text, { ...(agent && { agent }), onEvent, onInput });
  console.log(final_output);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
} finally {
  client.close();
}
