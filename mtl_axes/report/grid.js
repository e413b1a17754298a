/** The grid of both axes: one tab stop; arrow keys move, Enter or Space chooses. */
let focused = chosen.cell;

function buildGrid() {
  const corner = element("td", { role: "presentation", class: "corner", "aria-hidden": "true" }, "outer ↓ inner →");
  const head = element("tr", {}, corner, study.inner.map((name) => element("th", { scope: "col" }, name)));
  const rows = study.outer.map((name, outer) => {
    const aside = study.baselines.includes(outer) ? element("span", { class: "aside" }, "baseline") : null;
    const places = study.inner.map((_, inner) => element("td", { role: "gridcell", "data-outer": outer, "data-inner": inner }));
    return element("tr", {}, element("th", { scope: "row" }, name, aside), places);
  });
  const table = element(
    "table",
    { role: "grid", class: "grid", "aria-label": "Outer weightings by inner shapes", "aria-describedby": "axes-help" },
    element("thead", {}, head),
    element("tbody", {}, rows),
  );
  table.style.setProperty("--columns", study.inner.length);
  table.addEventListener("click", (event) => {
    const place = event.target.closest("[role=gridcell]");
    if (place) choose(positionOf(place));
  });
  table.addEventListener("keydown", moveInGrid);
  byId("axes").classList.toggle("wide", study.inner.length > 5);
  fill(byId("grid"), table);
}

const positionOf = (place) => [Number(place.dataset.outer), Number(place.dataset.inner)];
const placeOf = (cell) => byId("grid").querySelector(`[data-outer="${cell[0]}"][data-inner="${cell[1]}"]`);

function moveInGrid(event) {
  const place = event.target.closest("[role=gridcell]");
  if (!place || event.altKey || event.metaKey) return;
  const [outer, inner] = positionOf(place);
  const last = [study.outer.length - 1, study.inner.length - 1];
  const moves = {
    ArrowUp: [outer - 1, inner],
    ArrowDown: [outer + 1, inner],
    ArrowLeft: [outer, inner - 1],
    ArrowRight: [outer, inner + 1],
    Home: [event.ctrlKey ? 0 : outer, 0],
    End: [event.ctrlKey ? last[0] : outer, last[1]],
  };
  if (event.key === "Enter" || event.key === " ") choose([outer, inner]);
  else if (moves[event.key]) {
    focused = moves[event.key].map((index, axis) => Math.min(Math.max(index, 0), last[axis]));
    for (const cell of byId("grid").querySelectorAll("[role=gridcell]")) cell.tabIndex = -1;
    placeOf(focused).tabIndex = 0;
    placeOf(focused).focus();
  } else return;
  event.preventDefault();
}

function paintGrid() {
  const about = metric();
  const means = finite((about?.cells ?? []).map((cell) => cell.mean));
  const [low, high] = [Math.min(...means), Math.max(...means)];
  const scale = about ? usualSpread(about) : NaN;
  focused = chosen.cell;
  for (const place of byId("grid").querySelectorAll("[role=gridcell]")) {
    const cell = positionOf(place);
    const summary = cellOf(about, cell);
    const failed = ofCell(study.failures, cell).length;
    const isReference = same(cell, study.reference);
    const outside = (chosen.sameOuter || chosen.sameInner) && !held(cell);
    place.className = outside ? "outside" : "";
    place.setAttribute("aria-selected", String(same(cell, chosen.cell)));
    place.tabIndex = same(cell, focused) ? 0 : -1;
    if (summary && Number.isFinite(summary.mean) && high > low && !outside) {
      const share = (summary.mean - low) / (high - low);
      place.style.setProperty("--share", `${Math.round(100 * (about.direction === "min" ? 1 - share : share))}%`);
    } else place.style.removeProperty("--share");
    const spread = summary && Number.isFinite(summary.sd) ? `± ${number(summary.sd, scale)}` : null;
    const marks = [
      isReference ? "reference" : null,
      failed ? `▲ ${failed} failed` : null,
      summary?.not_finite ? `▲ ${summary.not_finite} not finite` : null,
    ].filter(Boolean);
    const value = !summary ? "not run" : summary.n + summary.not_finite ? number(summary.mean, scale) : "no value";
    fill(
      place,
      element("span", { class: "mean" }, value),
      spread ? element("span", { class: "spread" }, spread) : null,
      summary ? element("span", { class: "count" }, `n = ${summary.n}`) : null,
      marks.map((mark) => element("span", { class: "count mark" }, mark)),
    );
    const words = [
      label(cell),
      about ? `${about.name} ${value} ${spread ? spread.replace("±", "plus or minus") : ""}`.trim() : null,
      summary ? plural(summary.n, "seed") : null,
      ...marks.map((mark) => mark.replace("▲ ", "")),
    ];
    place.setAttribute("aria-label", words.filter(Boolean).join(", "));
  }
  for (const [axis, selector] of [[0, "tbody th"], [1, "thead th"]]) {
    byId("grid").querySelectorAll(selector).forEach((head, index) => head.classList.toggle("here", index === chosen.cell[axis]));
  }
  paintLegend(about, low, high, scale);
}

/** Whether a cell is in the fixed row or column. */
function held(cell) {
  return (chosen.sameOuter && cell[0] === chosen.cell[0]) || (chosen.sameInner && cell[1] === chosen.cell[1]);
}

function paintLegend(about, low, high, scale) {
  if (!about || !(high > low)) return fill(byId("legend"));
  const ends = about.direction === "min" ? [high, low] : [low, high];
  const spread = finite(about.cells.map((cell) => cell.sd)).length ? number(scale, scale) : null;
  const note = `The means span ${number(high - low, scale)}. The usual standard deviation between seeds is ${spread}.`;
  fill(
    byId("legend"),
    element("span", {}, `${about.name}: ${number(ends[0], scale)}`),
    element("span", { class: "ramp", "aria-hidden": "true" }),
    element("span", {}, `${number(ends[1], scale)}${about.direction ? " (better)" : ""}`),
    spread ? element("p", {}, note) : null,
  );
}

function buildToggles() {
  for (const [id, key] of [["same-outer", "sameOuter"], ["same-inner", "sameInner"]]) {
    byId(id).addEventListener("click", () => {
      chosen[key] = !chosen[key];
      byId(id).setAttribute("aria-pressed", String(chosen[key]));
      paintGrid();
      paintReading();
    });
  }
}

/** The chosen cell against the reference, and the effect of one axis with the other fixed. */
function paintReading() {
  const about = metric();
  if (!about) return fill(byId("reading"));
  const effect = ofCell(about.compare, chosen.cell)[0];
  const parts = [
    element("h3", {}, label(chosen.cell)),
    element("p", {}, effect ? effect.words : "This is the reference: every difference is a cell minus this one."),
  ];
  if (chosen.sameOuter) parts.push(...axisReading(about, 1));
  if (chosen.sameInner) parts.push(...axisReading(about, 0));
  if (!chosen.sameOuter && !chosen.sameInner) {
    parts.push(
      muted("“Same outer” fixes the weighting of this cell and shows what the inner shape does; “Same inner” fixes the shape and shows what the weighting does."),
    );
  }
  fill(byId("reading"), parts);
}

/** The effect of an axis (0 outer, 1 inner) in the row or column of the chosen cell, and over all of them. */
function axisReading(about, axis) {
  const [name, other] = axis === 1 ? ["inner", "outer"] : ["outer", "inner"];
  const level = study[other][chosen.cell[1 - axis]];
  const along = (axis === 1 ? about.rows : about.columns)[chosen.cell[1 - axis]];
  const base = study[name][study.reference[axis]];
  const scale = usualSpread(about);
  const main = about[name].find((effect) => effect.label === study[name][chosen.cell[axis]]);
  const row = (level, index) => {
    const cell = axis === 1 ? [chosen.cell[0], index] : [index, chosen.cell[1]];
    const overall = about[name].find((effect) => effect.label === level);
    const texts = [ofCell(along, cell)[0], overall].map((effect) => element("td", {}, effect ? difference(effect, scale) : "–"));
    const current = { class: index === chosen.cell[axis] ? "here" : "" };
    return index === study.reference[axis] ? null : element("tr", current, element("th", { scope: "row" }, level), texts);
  };
  const rows = study[name].map(row).filter(Boolean);
  // Inner shapes are not averaged over the constants that the study added for comparison.
  const rest = axis === 1 && study.baselines.length ? " except baselines" : "";
  const what = axis === 1 ? "only the inner shape changes" : "only the outer weighting changes";
  const where = axis === 1 ? "row" : "column";
  return [
    element("h3", {}, `Same ${other}: ${level}`),
    element("p", {}, `In this ${where} ${what}. `, main ? `Over all ${where}s${rest}, ${main.words}` : `The others are compared with ${base}.`),
    rows.length
      ? table("effects", [`minus ${base}`, `this ${where}`, `all ${where}s${rest}`], rows)
      : muted(`The ${name} axis has one level: there is nothing to compare.`),
  ];
}

function difference(effect, scale) {
  return [
    element("span", {}, effect.n ? number(effect.mean, scale, true) : "no pair of runs"),
    effect.n ? element("span", { class: "interval" }, interval(effect, scale)) : null,
    effect.clear ? element("span", { class: "interval" }, `p ${effect.p < 0.001 ? "" : "= "}${probability(effect.p)}`) : null,
  ].filter(Boolean);
}
