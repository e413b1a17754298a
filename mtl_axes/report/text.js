"use strict";

// The content of the report, and what the reader has chosen. Cells are [index of outer, index of inner].
const study = JSON.parse(document.getElementById("data").textContent);
const chosen = {
  metric: 0,
  cell: study.reference,
  sameOuter: false,
  sameInner: false,
  family: "compare",
  series: "weight",
  pareto: [0, Math.min(1, study.metrics.length - 1)],
  sort: { column: "", ascending: true },
};

const byId = (id) => document.getElementById(id);
const same = (one, other) => one[0] === other[0] && one[1] === other[1];
const metric = () => study.metrics[chosen.metric];
const label = (cell) => `${study.outer[cell[0]]} × ${study.inner[cell[1]]}`;
const ofCell = (rows, cell) => rows.filter((row) => row.cell && same(row.cell, cell));
const cellOf = (about, cell) => (about ? ofCell(about.cells, cell)[0] : undefined);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const finite = (values) => values.filter((value) => Number.isFinite(value));

/** An element with attributes, listeners (functions) and children; texts are never parsed as HTML. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

const muted = (text) => element("p", { class: "muted" }, text);
const part = (title, ...children) => element("div", { class: "part" }, element("h3", {}, title), ...children);

/** A table of rows; heads are texts, or elements of their own. */
function table(name, heads, rows) {
  const head = element("tr", {}, heads.map((head) => (head.nodeType ? head : element("th", { scope: "col" }, head))));
  return element("table", { class: name }, element("thead", {}, head), element("tbody", {}, rows));
}

function fill(place, ...children) {
  place.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** A number with as many digits as show two digits of the scale, mostly a standard deviation. */
function number(value, scale, sign = false) {
  if (!Number.isFinite(value)) return "not finite";
  const size = Number.isFinite(scale) && scale > 0 ? scale : Math.abs(value) / 100;
  const digits = size > 0 ? 1 - Math.floor(Math.log10(size)) : 0;
  const plain = digits <= 6 && Math.abs(value) < 1e7;
  const text = plain ? value.toFixed(Math.max(digits, 0)) : value.toPrecision(3);
  return (sign && value > 0 ? "+" : "") + text.replace("-", "−");
}

/** The median standard deviation between seeds for a metric; without any, a tenth of the range of its means. */
function usualSpread(about) {
  const spreads = finite(about.cells.map((cell) => cell.sd)).filter((sd) => sd > 0).sort((a, b) => a - b);
  if (spreads.length) return spreads[Math.floor(spreads.length / 2)];
  const means = finite(about.cells.map((cell) => cell.mean));
  return means.length > 1 ? (Math.max(...means) - Math.min(...means)) / 10 : NaN;
}

function interval(effect, scale) {
  if (!Number.isFinite(effect.low) || !Number.isFinite(effect.high)) return "no interval";
  return `${number(effect.low, scale, true)} to ${number(effect.high, scale, true)}`;
}

function probability(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 0.001 ? "< 0.001" : value.toFixed(3);
}

/** The name of a metric as the title of an axis. Vega-Lite writes it into expressions: no newline, no backslash. */
function titled(about) {
  return `${about.name.replace(/\s+/g, " ").replaceAll("\\", "∖")} (${better(about)})`;
}

function better(about) {
  return { min: "lower is better", max: "higher is better" }[about.direction] ?? "no direction given";
}

/** Radio buttons that look like a row of buttons; a list if there are many. */
function choice(name, title, options, current, onChange) {
  if (options.length > 6) return picker(name, title, options, current, onChange);
  const button = ([value, text, aside]) =>
    element(
      "label",
      {},
      element("input", { type: "radio", name, value, checked: String(value) === String(current), change: () => onChange(value) }),
      text,
      aside ? element("span", { class: "better" }, aside) : null,
    );
  return element("fieldset", { class: "switch" }, element("legend", {}, title), options.map(button));
}

function picker(name, title, options, current, onChange) {
  const entries = options.map(([value, text]) => element("option", { value, selected: String(value) === String(current) }, text));
  return element("label", { class: "picker" }, title, element("select", { name, change: (event) => onChange(event.target.value) }, entries));
}
