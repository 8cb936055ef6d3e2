// A transport for the official AG-UI client: agents of an agentsrv server, over its WebSocket.
import { AbstractAgent, EventType } from "@ag-ui/client";
import { Observable } from "rxjs";

/** The connection was lost within a run. To go on, run again with the same `runId`. */
export class ConnectionLost extends Error {
  constructor({ code, reason }) {
    super(`the connection was lost: ${code} ${reason}`);
    this.name = "ConnectionLost";
  }
}

/** One task of the server is one run, or several where it asks something in between. */
export class WebSocketAgent extends AbstractAgent {
  /**
   * @param url where the server is, such as `ws://127.0.0.1:8765`
   * @param token an API key or a JSON Web Token, where the server asks for one
   * @param WebSocket another implementation, where there is none built in (before Node.js 22)
   */
  constructor({ url, token, WebSocket = globalThis.WebSocket, ...config }) {
    super(config);
    Object.assign(this, { url, token, WebSocket });
  }

  run(input) {
    return new Observable((subscriber) => {
      const protocols = this.token ? ["ag-ui", `bearer.${this.token}`] : ["ag-ui"];
      const socket = (this.socket = new this.WebSocket(this.url, protocols));
      socket.onopen = () => socket.send(JSON.stringify(input));
      socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        subscriber.next(event);
        if (event.type === EventType.RUN_FINISHED || event.type === EventType.RUN_ERROR) {
          subscriber.complete();
        }
      };
      socket.onerror = () => {}; // onclose follows, and says why
      socket.onclose = (closed) => subscriber.error(new ConnectionLost(closed));
      return () => socket.close(); // the task goes on: only abortRun ends it
    });
  }

  /** Cancel the task. The run goes on until the server has stopped it, and ends `cancelled`. */
  abortRun(reason) {
    this.socket?.send(JSON.stringify({ command: "cancel", reason }));
  }

  clone() {
    const { url, token, WebSocket } = this;
    return Object.assign(super.clone(), { url, token, WebSocket });
  }
}
