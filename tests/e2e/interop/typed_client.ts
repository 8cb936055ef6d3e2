// A client whose types were generated of the published schema: it runs a task that asks.
import WebSocket from "ws";

import type { Create, Protocol, Respond } from "./protocol.js";

type FromServer = Extract<Protocol, { type: string }>;

const socket = new WebSocket(process.argv[2]!, ["agentsrv.v1"]);
const kinds: string[] = [];
const send = (command: Create | Respond) => socket.send(JSON.stringify(command));

function take(frame: FromServer): string | undefined {
  kinds.push(frame.type === "event" ? frame.event_type : frame.type);
  switch (frame.type) {
    case "hello":
      return void send({
        command: "create",
        task_description: "x",
        plan: { steps: [{ step_id: "one", agent: "asker" }] },
        execute: true,
      });
    case "error":
      throw new Error(`${frame.code}: ${frame.message}`);
    case "event":
      switch (frame.event_type) {
        case "input_required":
          return void send({ command: "respond", input_id: frame.data.input_id, value: true });
        case "task_completed":
          return frame.data.final_output;
      }
  }
  return undefined;
}

socket.on("message", (data) => {
  const output = take(JSON.parse(data.toString()) as FromServer);
  if (output !== undefined) {
    socket.close();
    console.log(JSON.stringify({ kinds, output }));
  }
});

// What the types refuse; where they do not, the compiler complains of the comment.
// @ts-expect-error there is no such field
export const wrongField: Create = { command: "create", task_description: "x", descripton: "y" };
// @ts-expect-error the description is missing
export const missingField: Create = { command: "create" };
// @ts-expect-error an answer is accepted or declined
export const wrongValue: Respond = { command: "respond", input_id: "x", action: "perhaps" };
