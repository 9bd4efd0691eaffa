// How an answer of each kind is shown. What it holds tells the kind, so that tasks of plug-ins whose
// answers look alike are shown as well.

import { bars, h, number, percent, t } from "./dom.js";
import { text } from "./texts.js";

/** The elements that show an answer of `/v1/predict` to an input. */
export function shown(model, given, answer) {
  if (answer.entities) return entities(model, given, answer);
  if (answer.gaps) return gaps(given, answer);
  if ("answer" in answer) return passage(given, answer);
  for (const key of ["translation", "summary"]) if (key in answer) return written(key, answer);
  if ("choice" in answer) return choice(given, answer);
  if (answer.scores && !Array.isArray(answer.scores)) return classes(answer);
  return values(given, answer);
}

const heading = (key, values) => t("h3", key, {}, values);

function classes(answer) {
  const labels = answer.labels ?? [answer.label];
  const rows = Object.entries(answer.scores).sort((a, b) => b[1] - a[1]);
  return [
    answer.labels && heading("labels"),
    h("p", { class: "verdict" }, labels.length
      ? labels.map(label => h("bdi", { class: "chip" }, label)) : t("span", "no label")),
    heading("scores"),
    bars(rows.map(([label, score]) => [label, score, percent(score), labels.includes(label)])),
  ];
}

function choice(given, answer) {
  const names = Array.isArray(given.choices) ? given.choices
    : answer.choices ?? Object.values(given).slice(-answer.scores.length);
  const rows = answer.scores.map((score, i) => [names[i], score, percent(score), i === answer.choice]);
  return [heading("scores"), bars(rows, 100)];
}

/** The parts of a text before, between and in spans that do not overlap. */
function* cut(text, spans) {
  // The server counts characters, and JavaScript halves of some.
  const characters = Array.from(text);
  let at = 0;
  for (const span of spans) {
    if (span.start < at) continue;
    yield [characters.slice(at, span.start).join(""), null];
    yield [characters.slice(span.start, span.end).join(""), span];
    at = span.end;
  }
  yield [characters.slice(at).join(""), null];
}

const HUES = [262, 28, 150, 330, 95, 210, 55, 300, 180, 10];

function entities(model, given, answer) {
  const known = (model.labels ?? []).map(label => label.replace(/^[BIESLU]-/, ""));
  const all = answer.entities, types = new Set([...known, ...all.map(entity => entity.type)]);
  const hue = type => ({ hue: HUES[[...types].indexOf(type) % HUES.length] });
  if (!all.length) return [t("p", "no entities"), h("p", { class: "prose", dir: "auto" }, given.tokens)];
  const mark = (part, entity) =>
    h("mark", { class: "entity", vars: hue(entity.type), title: percent(entity.score) },
      part, h("span", { class: "type" }, entity.type));
  const sorted = [...all].sort((a, b) => a.start - b.start);
  const counts = [...types].map(type => [type, all.filter(entity => entity.type === type).length]);
  return [
    h("p", { class: "prose", dir: "auto" },
      [...cut(given.tokens, sorted)].map(([part, entity]) => entity ? mark(part, entity) : part)),
    heading("legend"),
    h("ul", { class: "legend" }, counts.filter(([, count]) => count).map(([type, count]) =>
      h("li", {}, h("mark", { class: "entity", vars: hue(type) }, h("bdi", {}, type)), ` × ${count}`))),
    heading("scores"),
    bars(sorted.map(entity => [`${entity.text} · ${entity.type}`, entity.score, percent(entity.score)])),
  ];
}

function passage(given, answer) {
  const none = answer.start === null;
  const rest = (answer.candidates ?? []).filter(span => span.start !== answer.start || none);
  const span = { start: answer.start, end: answer.end };
  return [
    none ? t("p", "no answer", { class: "verdict" })
      : h("p", { class: "verdict" }, h("bdi", { class: "chip" }, answer.answer), ` ${percent(answer.score)}`),
    !none && heading("passage"),
    h("p", { class: "prose", dir: "auto" }, none ? given.context : [...cut(given.context, [span])].map(
      ([part, own]) => own ? h("mark", { class: "answer" }, part) : part)),
    "no_answer" in answer && t("p", "no answer share", { class: "faint" },
      { share: percent(answer.no_answer) }),
    rest.length > 0 && [heading("others"),
      bars(rest.map(own => [own.answer, own.score, percent(own.score)]))],
  ];
}

function gaps(given, answer) {
  const pieces = given.text.split(/(\[MASK\]|<mask>)/);
  const plain = token => token.replace(/^##|^[Ġ▁]/, "");
  const chosen = answer.gaps.map(gap => gap[0]);
  const filled = h("p", { class: "prose", dir: "auto", "aria-live": "polite" });
  const fill = () => filled.replaceChildren(...pieces.map((piece, i) => i % 2 && chosen[(i - 1) / 2]
    ? h("mark", { class: "answer" }, plain(chosen[(i - 1) / 2].token)) : piece));
  const pick = (gap, i) => {
    const list = h("ul", { class: "bars pick" }, gap.map(candidate => h("li", {},
      h("button", { type: "button", class: "name", "aria-pressed": String(candidate === gap[0]),
        onclick(event) {
          chosen[i] = candidate;
          for (const own of list.querySelectorAll("button"))
            own.setAttribute("aria-pressed", String(own === event.currentTarget));
          fill();
        } }, h("bdi", {}, candidate.token)),
      h("span", { class: "track", "aria-hidden": "true" },
        h("span", { class: "fill", vars: { share: candidate.score } })),
      h("span", { class: "score" }, percent(candidate.score)))));
    return [heading("gap number", { number: i + 1 }), list];
  };
  fill();
  return [heading("filled"), filled, answer.gaps.map(pick)];
}

/** A text that a search wrote, and the others that it found. */
function written(key, answer) {
  const rest = answer.candidates.filter(([text]) => text !== answer[key]);
  return [
    heading(key),
    h("p", { class: "prose", dir: "auto" }, answer[key]),
    rest.length > 0 && [heading(key === "translation" ? "alternatives" : "others"), h("ol", { class: "alternatives" },
      rest.map(([text, score]) => h("li", {}, h("bdi", {}, text),
        h("span", { class: "faint" }, ` ${number(score, 2)}`))))],
  ];
}

/** Whatever else an answer holds: each value with its name. */
function values(given, answer) {
  const rows = Object.entries(answer).filter(([name]) => !(name in given));
  if (rows.length === 1 && typeof rows[0][1] === "number")
    return [heading("score"), h("p", { class: "figure" }, number(rows[0][1]))];
  return h("dl", { class: "facts" }, rows.map(([name, value]) => [
    text(`name ${name}`) ? t("dt", `name ${name}`) : h("dt", {}, name),
    h("dd", { dir: "auto" }, typeof value === "number" ? number(value)
      : typeof value === "string" ? value : JSON.stringify(value)),
  ]));
}
