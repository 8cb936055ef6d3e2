// Runs tasks over a connection that is cut again and again, and prints what was seen of each.

import { Client } from "../../../agentsrv/console/client.js";

const [, , url, tasks, pieces] = process.argv;
let connections = 0;
const client = new Client(url, {
  onState: ({ name }) => (connections += name === "connected" ? 1 : 0),
});

async function watch(number) {
  const seen = [];
  const params = { pieces: Number(pieces), pause: 0.001 };
  const late = [];
  const { task_id } = await client.run(`task ${number}`, {
    agent: "writer", params, onEvent: ({ seq }) => seen.push(seq),
  });
  for await (const { seq } of client.events(task_id, { after: 3 })) late.push(seq);
  const { seq } = await client.command("status", { task_id });
  return { task_id, seen, late, seq };
}

const told = await Promise.all(Array.from({ length: Number(tasks) }, (_, number) => watch(number)));
const { total } = await client.command("list");
client.close();
console.log(JSON.stringify({ told, total, connections }));
