/** Plots by Vega-Lite. The page's policy forbids code from texts, so that Vega's expressions are interpreted. */
const palettes = {
  // Okabe and Ito's colours, which also colour-blind readers tell apart, as dark or as light as the page needs.
  light: ["#0b5fa5", "#c25400", "#007a5a", "#a24a86", "#8a6d00", "#2f8fc4", "#5b5b5b", "#7b3f00"],
  dark: ["#79b8f3", "#f09a4d", "#3fc79b", "#e0a0c8", "#e3c64f", "#b3dcf7", "#b9c2cb", "#c99a6b"],
};
const dashes = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [10, 3], [1, 3], [6, 2, 1, 2]];
const shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"];
const turns = new Map();
const drawn = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const palette = () => palettes[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];

function chartConfig() {
  const text = { labelColor: colour("muted"), titleColor: colour("muted"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400 };
  return {
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    axis: { ...text, domainColor: colour("line"), tickColor: colour("line"), gridColor: colour("line"), gridOpacity: 0.7, labelLimit: 160, titlePadding: 10 },
    legend: { ...text, orient: "top", title: null, labelLimit: 200, symbolStrokeWidth: 2, columnPadding: 16 },
    range: { category: palette() },
    aria: true,
  };
}

/** Draw a specification into a place, as wide as the place is; an older drawing that comes late is dropped. */
async function draw(place, description, specification) {
  const turn = (turns.get(place.id) ?? 0) + 1;
  turns.set(place.id, turn);
  const target = element("div");
  const width = Math.max(200, Math.floor(place.clientWidth));
  const result = await vegaEmbed(
    target,
    { width, autosize: { type: "fit-x", contains: "padding" }, description, config: chartConfig(), ...specification },
    { mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, tooltip: showTooltip },
  );
  if (turns.get(place.id) !== turn) return result.finalize();
  drawn.get(place.id)?.finalize();
  drawn.set(place.id, result);
  fill(place, target);
}

function noChart(place, text) {
  turns.set(place.id, (turns.get(place.id) ?? 0) + 1);
  fill(place, element("p", { class: "muted" }, text));
}

function showTooltip(_handler, event, _item, value) {
  const tip = byId("tooltip");
  tip.hidden = value === null || value === undefined || value === "";
  if (tip.hidden) return;
  const lines = typeof value === "object" ? Object.entries(value).map(([name, text]) => (name === "" ? text : `${name}: ${text}`)) : [value];
  fill(tip, lines.map((line) => element("div", {}, String(line))));
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, window.innerWidth - box.width - 8))}px`;
  tip.style.top = `${Math.max(8, event.clientY - box.height - 12)}px`;
}

/** Lines of a line's name: colour, dash and, for points, shape say the same. */
function channels(field, names, withShapes) {
  const colours = names.map((_, index) => palette()[index % palette().length]);
  const legend = names.length > 1 ? { columns: 3 } : null;
  return {
    color: { field, type: "nominal", scale: { domain: names, range: colours }, legend },
    ...(withShapes
      ? { shape: { field, type: "nominal", scale: { domain: names, range: names.map((_, index) => shapes[index % shapes.length]) }, legend } }
      : { strokeDash: { field, type: "nominal", scale: { domain: names, range: names.map((_, index) => dashes[index % dashes.length]) }, legend } }),
  };
}

function drawSeries(place, runs, family, title) {
  const rows = [];
  for (const run of runs) {
    for (const [task, values] of Object.entries(run.history[family] ?? {})) {
      values.forEach((value, index) => {
        if (value !== null) rows.push({ step: run.history.step[index], value, task, seed: run.seed });
      });
    }
  }
  if (!rows.length) return noChart(place, "No finite value was recorded.");
  const values = rows.map((row) => row.value);
  const logarithmic = family !== "weight" && Math.min(...values) > 0 && Math.max(...values) > 30 * Math.min(...values);
  const tasks = [...new Set(rows.map((row) => row.task))];
  const seeds = plural(runs.length, "seed");
  return draw(place, `${title} over steps, by task, one line for each of ${seeds}.`, {
    height: 230,
    data: { values: rows },
    mark: { type: "line", strokeWidth: 1.6, opacity: runs.length > 1 ? 0.65 : 1, aria: false },
    encoding: {
      x: { field: "step", type: "quantitative", title: "step", axis: { grid: false, tickCount: 5 }, scale: { nice: false } },
      y: {
        field: "value",
        type: "quantitative",
        title: title.toLowerCase() + (logarithmic ? " (log scale)" : ""),
        scale: logarithmic ? { type: "log" } : { zero: family === "weight" },
        axis: { tickCount: 5 },
      },
      detail: { field: "seed", type: "nominal" },
      ...channels("task", tasks, false),
      tooltip: [
        { field: "task", title: "task" },
        { field: "seed", title: "seed" },
      ],
    },
  });
}

function drawScatter(place, task, runs) {
  const rows = [];
  for (const run of runs) {
    const [predicted, truth] = run.predictions[task] ?? [[], []];
    predicted.forEach((value, index) => rows.push({ predicted: value, true: truth[index], seed: run.seed }));
  }
  if (!rows.length) return noChart(place, "No finite prediction was kept.");
  const ends = rows.flatMap((row) => [row.predicted, row.true]);
  const line = [Math.min(...ends), Math.max(...ends)].map((value) => ({ at: value }));
  const axis = { tickCount: 5 };
  return draw(place, `Predicted against true values of ${task}, ${rows.length} samples of ${plural(runs.length, "seed")}; on the line they are equal.`, {
    height: 250,
    layer: [
      {
        data: { values: rows },
        mark: { type: "circle", size: 22, opacity: 0.35, color: colour("accent"), aria: false },
        encoding: {
          x: { field: "true", type: "quantitative", title: "true", scale: { zero: false }, axis },
          y: { field: "predicted", type: "quantitative", title: "predicted", scale: { zero: false }, axis },
          tooltip: ["true", "predicted", "seed"].map((field) => ({ field, title: field, type: "nominal" })),
        },
      },
      {
        data: { values: line },
        mark: { type: "line", color: colour("ink"), strokeWidth: 1, aria: false },
        encoding: { x: { field: "at", type: "quantitative" }, y: { field: "at", type: "quantitative" } },
      },
    ],
  });
}
