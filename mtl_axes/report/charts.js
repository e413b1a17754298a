/** Plots by Vega-Lite. The page's policy forbids code made from texts, so Vega's expressions are interpreted. */
const palettes = {
  // Okabe and Ito's colours, which colour-blind readers can distinguish, as dark or as light as the page needs.
  light: ["#0b5fa5", "#c25400", "#007a5a", "#a24a86", "#8a6d00", "#2f8fc4", "#5b5b5b", "#7b3f00"],
  dark: ["#79b8f3", "#f09a4d", "#3fc79b", "#e0a0c8", "#e3c64f", "#b3dcf7", "#b9c2cb", "#c99a6b"],
};
const dashes = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [10, 3], [1, 3], [6, 2, 1, 2]];
const shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"];
const turns = new Map();
const drawn = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const palette = () => palettes[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];

const quantity = (field, title, more = {}) => ({ field, type: "quantitative", title, axis: { tickCount: 5 }, ...more });
const nominal = (field, domain, range, legend = null) => ({ field, type: "nominal", scale: { domain, range }, legend });
const tips = (titles) => Object.entries(titles).map(([field, title]) => ({ field, title }));

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

/** Draw a specification as wide as its place; an older drawing that arrives late is dropped. */
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
  fill(place, muted(text));
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

/** Channels that name a line: colour, and a dash or, for points, a shape. */
function channels(field, names, withShapes) {
  const legend = names.length > 1 ? { columns: 3 } : null;
  const by = (marks) => nominal(field, names, names.map((_, index) => marks[index % marks.length]), legend);
  return { color: by(palette()), ...(withShapes ? { shape: by(shapes) } : { strokeDash: by(dashes) }) };
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
  const scale = logarithmic ? { type: "log" } : { zero: family === "weight" };
  const tasks = [...new Set(rows.map((row) => row.task))];
  const seeds = plural(runs.length, "seed");
  return draw(place, `${title} over steps, by task, one line for each of ${seeds}.`, {
    height: 230,
    data: { values: rows },
    mark: { type: "line", strokeWidth: 1.6, opacity: runs.length > 1 ? 0.65 : 1, aria: false },
    encoding: {
      x: quantity("step", "step", { axis: { grid: false, tickCount: 5 }, scale: { nice: false } }),
      y: quantity("value", title.toLowerCase() + (logarithmic ? " (log scale)" : ""), { scale }),
      detail: { field: "seed", type: "nominal" },
      ...channels("task", tasks, false),
      tooltip: tips({ task: "task", seed: "seed" }),
    },
  });
}

function drawScatter(place, task, runs) {
  const rows = [];
  for (const run of runs) {
    const [predicted, truth] = run.predictions[task] ?? [[], []];
    predicted.forEach((value, index) => rows.push({ predicted: value, true: truth[index], seed: run.seed }));
  }
  if (!rows.length) return noChart(place, "No prediction is finite.");
  const ends = rows.flatMap((row) => [row.predicted, row.true]);
  const line = [Math.min(...ends), Math.max(...ends)].map((value) => ({ at: value }));
  const scale = { zero: false };
  return draw(place, `Predicted against true values of ${task}, ${rows.length} samples of ${plural(runs.length, "seed")}; on the line they are equal.`, {
    height: 250,
    layer: [
      {
        data: { values: rows },
        mark: { type: "circle", size: 22, opacity: 0.35, color: colour("accent"), aria: false },
        encoding: {
          x: quantity("true", "true", { scale }),
          y: quantity("predicted", "predicted", { scale }),
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
