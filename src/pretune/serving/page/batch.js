// A table or a list of texts in, the same with answers out.

import { ask, Refused } from "./api.js";
import { decode, parse, separatorOf, unparse } from "./csv.js";
import { box, field, h, number, say, t } from "./dom.js";
import { job } from "./job.js";
import { text } from "./texts.js";

const AT_ONCE = 32;  // rows of a request
const SHOWN = 50;
const TRIES = 5;  // where the server has no room just now
const SEPARATORS = { ",": ",", tab: "\t", line: null };

export function batchView(model) {
  let file = null, result = null;
  const pasted = box(6, { name: "rows", oninput: read });
  const picker = h("input", { type: "file", accept: ".csv,.tsv,.txt,text/*",
    onchange: () => picker.files.length && take(picker.files[0]) });
  const fileName = h("bdi"), remove = t("button", "batch remove",
    { type: "button", hidden: true, onclick: () => take(null) });
  const format = h("select", { onchange: read },
    ["auto", ...Object.keys(SEPARATORS)].map(name => t("option", `format ${name}`, { value: name })));
  const header = h("input", { type: "checkbox", onchange: () => choose(false) });
  const headerField = field("header", header, { class: "check" });
  const columns = h("div", { class: "grid" }), found = h("p", { class: "faint" });
  const doubt = h("p", { class: "faint", hidden: true });
  const progress = h("progress", { hidden: true }), output = h("section", { class: "output" });
  let rows = [], selects = [];

  async function take(chosen) {
    file = chosen && { name: chosen.name, text: decode(await chosen.arrayBuffer()) };
    fileName.textContent = file?.name ?? "";
    remove.hidden = !file;
    pasted.parentNode.hidden = Boolean(file);
    if (!file) picker.value = "";
    read();
  }

  /** Read the table anew, and guess how it is laid out. */
  function read() {
    const source = (file?.text ?? pasted.value).replace(/^\ufeff/, "");
    const separator = format.value === "auto"
      ? separatorOf(source, file?.name ?? "", model.inputs) : SEPARATORS[format.value];
    rows = separator === null
      ? source.split(/\r?\n|\r/).filter(line => line.trim()).map(line => [line])
      : parse(source, separator);
    header.checked = rows.length > 1 && model.inputs.every(name => rows[0].includes(name));
    headerField.hidden = separator === null;
    if (separator === null) header.checked = false;
    choose(true);
  }

  /** Offer the columns; which is which is guessed by their names, else by their order. */
  function choose() {
    const width = Math.max(0, ...rows.map(row => row.length));
    const names = Array.from({ length: width }, (_, i) => header.checked && rows[0][i]);
    selects = model.inputs.map((input, i) => {
      const select = h("select", {}, names.map((name, j) => name
        ? h("option", { value: j }, name)
        : t("option", "nameless", { value: j }, { number: j + 1 })));
      select.value = names.includes(input) ? names.indexOf(input) : Math.min(i, width - 1);
      return select;
    });
    columns.replaceChildren(...width > 1 ? selects.map((select, i) => {
      const node = field("column is", select);
      say(node.firstChild, "column is", { name: text(`column ${model.inputs[i]}`) ?? model.inputs[i] });
      return node;
    }) : []);
    const count = rows.length - (header.checked ? 1 : 0);
    say(found, count > 0 ? "rows" : "no rows", { count });
    // Which column is meant is a guess where none has the name that the model knows.
    const missing = model.inputs.filter(input => !rows[0]?.includes(input));
    doubt.hidden = width < 2 || !missing.length;
    say(doubt, "no column", { name: missing.join("”, “") });
  }

  const form = job("run", [
    t("p", "batch note"),
    field("batch texts", pasted),
    h("div", { class: "drop" }, field("batch file", picker, { class: "file" }),
      t("span", "batch drop", { class: "faint" }), fileName, remove),
    h("div", { class: "grid" }, field("format", format), headerField),
    columns, found, doubt,
  ], async (signal, status) => {
    const body = header.checked ? rows.slice(1) : rows;
    if (!body.length) return ["no rows"];
    const places = selects.map(select => Number(select.value));
    const inputs = body.map(row => Object.fromEntries(
      model.inputs.map((name, i) => [name, row[places[i]] ?? ""])));
    result = { head: header.checked ? rows[0] : null, body, answers: [] };
    progress.hidden = false;
    progress.max = inputs.length;
    try {
      while (result.answers.length < inputs.length) {
        const done = result.answers.length;
        progress.value = done;
        status("progress", { done, all: inputs.length });
        result.answers.push(...await answered(model, inputs.slice(done, done + AT_ONCE), signal));
      }
    } catch (error) {
      if (error.name !== "AbortError" || !result.answers.length) throw error;
    } finally {
      progress.hidden = true;
      if (result.answers.length) output.replaceChildren(...shown(model, result, file?.name));
    }
    const done = result.answers.length;
    const failed = result.answers.filter(answer => answer.error !== undefined).length;
    return done < inputs.length ? ["batch part", { done, all: inputs.length }]
      : ["batch done", { done, failed }];
  }, { after: [progress] });

  form.node.addEventListener("dragover", event => event.preventDefault());
  form.node.addEventListener("drop", event => {
    event.preventDefault();
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
  read();
  return h("div", {}, form.node, output);
}

/** Answer some rows. A row that cannot be answered costs the others nothing: it gets an error. */
async function answered(model, inputs, signal, tries = TRIES) {
  try {
    const { answers } = await ask("v1/predict", { model: model.name, inputs }, signal);
    return answers;
  } catch (error) {
    if (!(error instanceof Refused) || error.status < 400 || [401, 403, 404].includes(error.status))
      throw error;
    if ([429, 503].includes(error.status)) {
      if (!tries) throw error;
      await pause((error.wait ?? 1) * 1000, signal);
      return answered(model, inputs, signal, tries - 1);
    }
    if (inputs.length === 1) return [{ error: error.message }];
  }
  const half = Math.ceil(inputs.length / 2);
  return [...await answered(model, inputs.slice(0, half), signal),
    ...await answered(model, inputs.slice(half), signal)];
}

const pause = (milliseconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, milliseconds);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    reject(signal.reason);
  }, { once: true });
});

/** The values of an answer by the names of their columns: `scores.good` for one in `scores`. */
const flattened = (answer, inputs) => Object.fromEntries(Object.entries(answer)
  .filter(([name]) => !inputs.includes(name))
  .flatMap(([name, value]) => value && typeof value === "object" && !Array.isArray(value)
    ? Object.entries(value).map(([own, inner]) => [`${name}.${own}`, inner]) : [[name, value]]));

/** The table with its answers, heading first. */
function table(model, { head, body, answers }) {
  const width = Math.max(...body.map(row => row.length), head?.length ?? 0);
  const names = Array.from({ length: width }, (_, i) => head ? head[i] ?? "" :
    width === 1 && model.inputs.length === 1 ? model.inputs[0] : text("nameless", { number: i + 1 }));
  const flat = answers.map(answer => flattened(answer, model.inputs));
  const added = [...new Set(flat.flatMap(Object.keys))].sort((a, b) => (a === "error") - (b === "error"));
  const cell = value => value === undefined || value === null ? ""
    : typeof value === "object" ? JSON.stringify(value) : value;
  return [
    [...names, ...added.map(name => names.includes(name) ? `predicted_${name}` : name)],
    ...body.map((row, i) => [...Array.from({ length: width }, (_, j) => row[j] ?? ""),
      ...added.map(name => cell(flat[i]?.[name]))]),
  ];
}

function shown(model, result, name) {
  const all = table(model, result), some = all.slice(1, 1 + SHOWN);
  const row = (values, tag) => h("tr", {}, values.map(value =>
    h(tag, { class: typeof value === "number" ? "number" : null }, h("bdi", {}, typeof value === "number" ? number(value, 4) : String(value)))));
  const save = t("button", "download", { type: "button", onclick() {
    const url = URL.createObjectURL(new Blob([unparse(all)], { type: "text/csv" }));
    h("a", { href: url, download: `${(name ?? model.name).replace(/\.\w+$|[^\w.\- ]/g, "")}-answers.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  } });
  return [
    h("div", { class: "row" }, save),
    h("div", { class: "wide" }, h("table", { class: "rows" },
      t("caption", "first rows", {}, { count: some.length }),
      h("thead", {}, row(all[0], "th")), h("tbody", {}, some.map(own => row(own, "td"))))),
  ];
}
