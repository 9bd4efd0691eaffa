// The frame: which model, which view, which language, which colours; and the key.

import { ask, key } from "./api.js";
import { askView } from "./ask.js";
import { batchView } from "./batch.js";
import { cardView } from "./card.js";
import { field, h, quote, retell, say, t } from "./dom.js";
import { nearestView } from "./nearest.js";
import { choose, language, LANGUAGES, text } from "./texts.js";
import { chatView, completeView } from "./write.js";

/** The views, each with what a model has to be for it. */
const VIEWS = {
  chat: [chatView, can => can.has("chat")],
  // What writes is asked to write: its own answers are how probable a text is.
  complete: [completeView, can => can.has("generate")],
  ask: [askView, (can, model) => can.has("predict") && !can.has("chat") && model.inputs.length > 0],
  nearest: [nearestView, can => can.has("embed")],
  batch: [batchView, can => can.has("predict")],
  card: [cardView, () => true],
};

const main = h("main", { id: "main", tabindex: "-1" });
const title = h("h1"), facts = h("p", { class: "faint" }), tabs = h("div", { role: "tablist" });
const panel = h("div", { role: "tabpanel", id: "panel", tabindex: "-1" });
const picker = h("select", { onchange: () => go(picker.value, "") });
const pickerField = field("model", picker, { class: "model", hidden: true });
const made = new Map();  // views that were opened, by model and name: they keep what is in them
let models = [], current = null;

// Places: `#model/view`.

const go = (model, view) => { location.hash = `${encodeURIComponent(model)}/${view}`; };

function open() {
  const [name, wanted] = location.hash.slice(1).split("/").map(part => decode(part));
  const model = models.find(own => own.name === name) ?? models[0], can = new Set(model.abilities);
  const names = Object.keys(VIEWS).filter(own => VIEWS[own][1](can, model));
  const view = names.includes(wanted) ? wanted : names[0];
  if (model !== current) show(model, names);
  current = model;
  for (const tab of tabs.children) {
    const here = tab.dataset.view === view;
    tab.setAttribute("aria-selected", String(here));
    tab.tabIndex = here ? 0 : -1;
    if (here) panel.setAttribute("aria-labelledby", tab.id);
  }
  const place = `${model.name}/${view}`;
  if (!made.has(place)) made.set(place, VIEWS[view][0](model));
  // Others are hidden, not dropped: what they write goes on.
  if (!panel.contains(made.get(place))) panel.append(made.get(place));
  for (const child of panel.children) child.hidden = child !== made.get(place);
  retell();
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;  // somebody wrote it by hand
  }
}

/** Show what a model is, and its views. */
function show(model, names) {
  title.textContent = picker.value = model.name;
  document.title = `${model.name} · pretune`;
  const known = text(`task ${model.task ?? "none"}`);
  const task = known ? t("span", `task ${model.task ?? "none"}`) : h("span", {}, model.task);
  const size = say(h("span"), "facts", { parameters: short(model.parameters) });
  facts.replaceChildren(task, size);
  tabs.replaceChildren(...names.map(name => t("button", `tab ${name}`, {
    type: "button", role: "tab", id: `tab-${name}`, "data-view": name, "aria-controls": "panel",
    onclick: () => go(model.name, name),
  })));
}

const short = count => new Intl.NumberFormat("en", { notation: "compact",
  maximumSignificantDigits: 3 }).format(count);

tabs.addEventListener("keydown", event => {
  const all = [...tabs.children], at = all.indexOf(document.activeElement);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const tab = all[(next + all.length) % all.length];
  tab.focus();
  tab.click();
});

// Language and colours.

function languageSwitch() {
  const select = h("select", { onchange() {
    choose(select.value);
    retell();
  } }, Object.entries(LANGUAGES).map(([name, own]) => h("option", { value: name, lang: name }, own)));
  select.value = language();
  return field("language", select, { class: "quiet" });
}

function themeSwitch() {
  const place = "pretune-theme";
  let chosen = "auto";
  try {
    chosen = localStorage.getItem(place) ?? chosen;
  } catch { /* the browser keeps nothing */ }
  const select = h("select", { onchange() {
    document.documentElement.dataset.theme = select.value;
    try {
      localStorage.setItem(place, select.value);
    } catch { /* then it is chosen for this time */ }
  } }, ["auto", "light", "dark"].map(name => t("option", `theme ${name}`, { value: name })));
  select.value = document.documentElement.dataset.theme = chosen;
  return field("theme", select, { class: "quiet" });
}

// The key.

const forget = t("button", "key forget", { type: "button", class: "quiet", onclick() {
  key.set("");
  location.reload();
} });
const keyInput = h("input", { type: "password", autocomplete: "off", required: true });
const keyForm = h("form", { class: "key", hidden: true, onsubmit(event) {
  event.preventDefault();
  key.set(keyInput.value.trim());
  keyInput.value = "";
  keyForm.hidden = true;
  if (!models.length) start();
} }, t("h2", "key title"), field("key", keyInput), t("p", "key note", { class: "faint" }),
h("div", { class: "row" }, t("button", "key use", { class: "primary" })));

document.addEventListener("key-needed", () => {
  keyForm.hidden = false;
  keyInput.focus();
});

// The start.

const note = h("p", { class: "status", role: "status" });

async function start() {
  say(note, "loading");
  note.classList.remove("error");
  try {
    const { data } = await ask("v1/models");
    models = data.map(({ id, created, pretune }) => ({ name: id, created, ...pretune }));
    forget.hidden = !key.get();
    if (!models.length) return say(note, "no models");
    quote(note, "");
    picker.replaceChildren(...models.map(model => h("option", { value: model.name }, model.name)));
    pickerField.hidden = models.length < 2;
    main.append(title, facts, tabs, panel);
    addEventListener("hashchange", open);
    open();
  } catch (error) {
    quote(note, error.message);
    note.classList.add("error");
    const again = t("button", "again", { type: "button", onclick: start });
    if (error.status !== 401) note.append(" ", again);
  }
}

say(tabs, "views", {}, "aria-label");
main.append(keyForm, note);
document.body.append(
  t("a", "skip", { class: "skip", href: "#main", onclick(event) {
    event.preventDefault();
    main.focus();
  } }),
  h("header", {}, h("a", { class: "brand", href: "./" }, h("img", { src: "page/icon.svg", alt: "" }), "pretune"),
    pickerField, h("div", { class: "row" }, forget, t("a", "api", { href: "docs" }),
      languageSwitch(), themeSwitch())),
  main);
forget.hidden = !key.get();
retell();
start();
