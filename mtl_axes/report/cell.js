/** The chosen cell: its strategies, seeds, series and predictions. */
const seriesNames = { weight: "Weights", loss: "Losses", norm: "Gradient norms" };

function paintCell() {
  const cell = chosen.cell;
  const about = ofCell(study.cells, cell)[0];
  const runs = ofCell(study.runs, cell);
  const failures = ofCell(study.failures, cell);
  byId("cell-title").textContent = label(cell);
  byId("config-of").textContent = label(cell);
  byId("cell-config").textContent = about && Object.keys(about.config).length ? JSON.stringify(about.config, null, 2) : "No run of this cell has a configuration.";
  const series = Object.keys(seriesNames).filter((family) => runs.some((run) => run.history[family]));
  const tasks = [...new Set(runs.flatMap((run) => Object.keys(run.predictions)))];
  if (!series.includes(chosen.series)) chosen.series = series[0] ?? "weight";
  const families = series.map((family) => [family, seriesNames[family]]);
  const switcher = choice("series", "Show", families, chosen.series, (family) => {
    chosen.series = family;
    drawCell();
  });
  const scatter = (task, index) => element("div", {}, element("p", { class: "kind" }, task), element("div", { class: "chart", id: `scatter-${index}` }));
  const chart = element("div", { class: "chart", id: "series" }, series.length ? "" : muted("No history was recorded."));
  fill(
    byId("cell"),
    strategies(about),
    element(
      "div",
      { class: "parts" },
      part("Seeds", seedTable(runs, failures)),
      part("Over the steps", series.length > 1 ? switcher : null, chart, floorNote(runs)),
    ),
    part("Predicted against true", tasks.length ? element("div", { class: "scatters" }, tasks.map(scatter)) : muted("No predictions were returned.")),
  );
  drawCell();
}

function drawCell() {
  const runs = ofCell(study.runs, chosen.cell);
  const recorded = runs.filter((run) => run.history[chosen.series]);
  if (recorded.length) drawSeries(byId("series"), recorded, chosen.series, seriesNames[chosen.series]);
  [...new Set(runs.flatMap((run) => Object.keys(run.predictions)))].forEach((task, index) => {
    drawScatter(byId(`scatter-${index}`), task, runs.filter((run) => run.predictions[task]));
  });
}

function strategies(about) {
  if (!about?.strategies.length) return muted("No run of this cell has the configuration of its criterion.");
  const of = (axis) => about.strategies.filter((strategy) => strategy.axis === axis).map(card);
  return element("div", { class: "strategies" }, element("div", {}, of("outer")), element("div", {}, of("inner")));
}

function card(strategy) {
  const options = Object.entries(strategy.options);
  return element(
    "div",
    { class: "strategy" },
    element("p", { class: "kind" }, strategy.title + (strategy.tasks.length ? ` of ${strategy.tasks.join(", ")}` : "")),
    element("h3", {}, strategy.name || "without a name"),
    element("p", {}, strategy.summary),
    strategy.formula ? element("pre", { tabindex: 0, role: "region", "aria-label": `Formula of ${strategy.name}` }, strategy.formula) : null,
    element("p", { class: "options" }, options.length ? options.flatMap(([name, value]) => [element("code", {}, `${name}=${value}`), " "]) : "No options."),
  );
}

function seedTable(runs, failures) {
  const names = study.metrics.map((about) => about.name);
  const scales = study.metrics.map(usualSpread);
  const rows = [...runs, ...failures].sort((one, other) => study.seeds.indexOf(one.seed) - study.seeds.indexOf(other.seed));
  if (!rows.length) return muted("This cell has not been run.");
  const values = (run) =>
    run.error !== undefined
      ? [element("td", { colspan: names.length + 1, class: "text alarm" }, `▲ failed: ${run.error.split("\n")[0].slice(0, 60)}`)]
      : [
          ...names.map((name, index) => element("td", {}, name in run.metrics ? number(run.metrics[name], scales[index]) : "–")),
          element("td", {}, Number.isFinite(run.seconds) ? `${number(run.seconds, 10)} s` : "–"),
        ];
  const cells = rows.map((run) => element("tr", {}, element("th", { scope: "row" }, String(run.seed)), values(run)));
  const frame = { class: "scroll", tabindex: 0, role: "region", "aria-label": "Metrics by seed" };
  return element("div", frame, table("numbers", ["seed", ...names, "time"], cells));
}

/** The share of recorded steps in which a floor held a weight: if it always does, the weights are constants. */
function floorNote(runs) {
  const shares = {};
  for (const run of runs) {
    for (const [task, share] of Object.entries(run.history.floor ?? {})) (shares[task] ??= []).push(share);
  }
  const tasks = Object.entries(shares).map(([task, all]) => `${task} in ${Math.round((100 * all.reduce((a, b) => a + b, 0)) / runs.length)} %`);
  return tasks.length ? element("p", { class: "muted small" }, `Held by the floor of the weighting: ${tasks.join(", ")} of the recorded steps.`) : null;
}
