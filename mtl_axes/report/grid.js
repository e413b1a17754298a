/** The grid of both axes: one tab stop, arrow keys move, Enter or Space chooses. */
let focused = chosen.cell;

function buildGrid() {
  const head = element(
    "tr",
    {},
    element("td", { role: "presentation", class: "corner", "aria-hidden": "true" }, "outer ↓ inner →"),
    study.inner.map((name) => element("th", { scope: "col" }, name)),
  );
  const rows = study.outer.map((name, outer) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name, study.baselines.includes(outer) ? element("span", { class: "aside" }, "baseline") : null),
      study.inner.map((_, inner) => element("td", { role: "gridcell", "data-outer": outer, "data-inner": inner })),
    ),
  );
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
    const found = cellOf(about, cell);
    const failed = ofCell(study.failures, cell).length;
    const isReference = same(cell, study.reference);
    const outside = (chosen.sameOuter || chosen.sameInner) && !held(cell);
    place.className = outside ? "outside" : "";
    place.setAttribute("aria-selected", String(same(cell, chosen.cell)));
    place.tabIndex = same(cell, focused) ? 0 : -1;
    if (found && Number.isFinite(found.mean) && high > low && !outside) {
      const share = (found.mean - low) / (high - low);
      place.style.setProperty("--share", `${Math.round(100 * (about.direction === "min" ? 1 - share : share))}%`);
    } else place.style.removeProperty("--share");
    const spread = found && Number.isFinite(found.sd) ? `± ${number(found.sd, scale)}` : null;
    const marks = [
      isReference ? "reference" : null,
      failed ? `▲ ${failed} failed` : null,
      found?.not_finite ? `▲ ${found.not_finite} not finite` : null,
    ].filter(Boolean);
    const value = !found ? "not run" : found.n + found.not_finite ? number(found.mean, scale) : "no value";
    fill(
      place,
      element("span", { class: "mean" }, value),
      spread ? element("span", { class: "spread" }, spread) : null,
      found ? element("span", { class: "count" }, `n = ${found.n}`) : null,
      marks.map((mark) => element("span", { class: "count mark" }, mark)),
    );
    place.setAttribute(
      "aria-label",
      [
        label(cell),
        about ? `${about.name} ${value} ${spread ? spread.replace("±", "plus or minus") : ""}`.trim() : null,
        found ? plural(found.n, "seed") : null,
        ...marks.map((mark) => mark.replace("▲ ", "")),
      ]
        .filter(Boolean)
        .join(", "),
    );
  }
  for (const [axis, selector] of [[0, "tbody th"], [1, "thead th"]]) {
    byId("grid").querySelectorAll(selector).forEach((head, index) => {
      head.classList.toggle("here", index === chosen.cell[axis]);
    });
  }
  paintLegend(about, low, high, scale);
}

/** Whether a cell is in the row or the column that is held. */
function held(cell) {
  return (chosen.sameOuter && cell[0] === chosen.cell[0]) || (chosen.sameInner && cell[1] === chosen.cell[1]);
}

function paintLegend(about, low, high, scale) {
  if (!about || !(high > low)) return fill(byId("legend"));
  const ends = about.direction === "min" ? [high, low] : [low, high];
  const spread = finite(about.cells.map((cell) => cell.sd)).length ? number(scale, scale) : null;
  fill(
    byId("legend"),
    element("span", {}, `${about.name}: ${number(ends[0], scale)}`),
    element("span", { class: "ramp", "aria-hidden": "true" }),
    element("span", {}, `${number(ends[1], scale)}${about.direction ? " (better)" : ""}`),
    spread
      ? element("p", {}, `The means span ${number(high - low, scale)}. The usual standard deviation between seeds is ${spread}.`)
      : null,
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

/** What the chosen cell is against the reference, and what one axis does while the other is held. */
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
      element("p", { class: "muted" }, "“Same outer” holds the weighting of this cell and reads off what the inner shape does; “Same inner” the other way round."),
    );
  }
  fill(byId("reading"), parts);
}

/** The effect of an axis (0 outer, 1 inner) in the row or column of the chosen cell, and over all of them. */
function axisReading(about, axis) {
  const [name, other] = axis === 1 ? ["inner", "outer"] : ["outer", "inner"];
  const kept = study[other][chosen.cell[1 - axis]];
  const along = (axis === 1 ? about.rows : about.columns)[chosen.cell[1 - axis]];
  const base = study[name][study.reference[axis]];
  const scale = usualSpread(about);
  const main = about[name].find((effect) => effect.label === study[name][chosen.cell[axis]]);
  const rows = study[name]
    .map((level, index) => {
      const cell = axis === 1 ? [chosen.cell[0], index] : [index, chosen.cell[1]];
      const here = ofCell(along, cell)[0];
      const overall = about[name].find((effect) => effect.label === level);
      if (index === study.reference[axis]) return null;
      return element(
        "tr",
        { class: index === chosen.cell[axis] ? "here" : "" },
        element("th", { scope: "row" }, level),
        [here, overall].map((effect) => element("td", {}, effect ? difference(effect, scale) : "–")),
      );
    })
    .filter(Boolean);
  // No inner shape is averaged over the constants that the study added to compare with.
  const rest = axis === 1 && study.baselines.length ? " but baselines" : "";
  const what = axis === 1 ? "only the inner shape changes" : "only the outer weighting changes";
  const where = axis === 1 ? "row" : "column";
  return [
    element("h3", {}, `Same ${other}: ${kept}`),
    element("p", {}, `In this ${where} ${what}. `, main ? `Over all ${where}s${rest}, ${main.words}` : `${base} is what the others are compared with.`),
    rows.length
      ? element(
          "table",
          { class: "effects" },
          element(
            "thead",
            {},
            element("tr", {}, [`minus ${base}`, `this ${where}`, `all ${where}s${rest}`].map((text) => element("th", { scope: "col" }, text))),
          ),
          element("tbody", {}, rows),
        )
      : element("p", { class: "muted" }, `The ${name} axis has one level: there is nothing to compare.`),
  ];
}

function difference(effect, scale) {
  return [
    element("span", {}, effect.n ? number(effect.mean, scale, true) : "no pair of runs"),
    effect.n ? element("span", { class: "interval" }, interval(effect, scale)) : null,
    effect.clear ? element("span", { class: "interval" }, `p ${effect.p < 0.001 ? "" : "= "}${probability(effect.p)}`) : null,
  ].filter(Boolean);
}
