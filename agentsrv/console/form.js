// Forms from JSON Schemas: a field for each value that has a shape, JSON for the others.

import { h, labelled } from "./dom.js";

let fields = 0;

/**
 * A field for a value of `schema`: its `node`, and `read()`, which returns the value, `undefined`
 * where nothing was entered, and throws where that is none.
 */
export function field(schema, label, { value = schema.default, needed = true, root = schema } = {}) {
  const found = resolve(schema, root);
  const id = `field-${++fields}`;
  const name = needed ? label : [label, h("span.soft", " optional")];
  const made = (control, read) => ({ node: labelled(name, control, schema.description ?? found.description), read });
  const given = value ?? "";
  const options = found.enum ?? (found.type === "boolean" ? [true, false] : null);
  if (options) {
    const words = { true: "Yes", false: "No" };
    const chosen = options.indexOf(value);
    const select = h("select", { id, required: needed },
      (chosen < 0 || !needed) && h("option", { value: "" }, needed ? "Choose…" : "–"),
      options.map((one, at) => h("option", { value: at, selected: at === chosen }, words[one] ?? String(one))));
    return made(select, () => (select.value === "" ? undefined : options[select.value]));
  }
  if (found.properties) {
    const inner = Object.entries(found.properties).map(([key, one]) => {
      const how = { value: value?.[key] ?? one.default, needed: found.required?.includes(key) ?? false, root };
      return [key, field(one, one.title ?? key, how)];
    });
    const node = h("fieldset", h("legend", label), inner.map(([, one]) => one.node));
    const read = () => inner.map(([key, one]) => [key, one.read()]).filter(([, one]) => one !== undefined);
    return { node, read: () => Object.fromEntries(read()) };
  }
  if (found.type === "number" || found.type === "integer") {
    const { minimum: min, maximum: max, type } = found;
    const step = type === "integer" ? 1 : "any";
    const input = h("input", { id, type: "number", step, min, max, value: given, required: needed });
    return made(input, () => (input.value === "" ? undefined : input.valueAsNumber));
  }
  if (found.type === "string") {
    const { minLength: minlength, maxLength: maxlength } = found;
    const area = h("textarea", { id, rows: 2, minlength, maxlength, value: given, required: needed && minlength > 0 });
    return made(area, () => (area.value === "" && !needed ? undefined : area.value));
  }
  const json = given === "" ? "" : JSON.stringify(given);
  const area = h("textarea.code", { id, rows: 2, placeholder: "JSON", value: json, required: needed });
  return made(area, () => (area.value.trim() ? parse(area.value, label) : undefined));
}

/** JSON that somebody has typed. */
export function parse(text, label) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${label}: ${error.message}`);
  }
}

/** A schema without its references, and without the `null` of what may be left out. */
function resolve(schema, root) {
  const ref = schema.$ref?.match(/^#\/\$defs\/([^/]+)$/)?.[1];
  if (ref) return resolve(root.$defs?.[ref] ?? {}, {});
  const choices = schema.anyOf?.filter((one) => one.type !== "null");
  return choices?.length === 1 ? resolve(choices[0], root) : schema;
}
