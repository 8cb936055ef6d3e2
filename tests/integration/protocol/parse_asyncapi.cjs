// Reads a document from stdin and prints what @asyncapi/parser, of the folder that is the first
// argument, has to say about it.
const { createRequire } = require("node:module");
const { readFileSync } = require("node:fs");

const { Parser } = createRequire(`${process.argv[2]}/`)("@asyncapi/parser");

new Parser().parse(readFileSync(0, "utf-8")).then(({ document, diagnostics }) => {
  const messages = document ? document.messages().all().map((message) => message.name()) : null;
  console.log(JSON.stringify({ messages, diagnostics }));
});
