/** Plots of the whole study: differences with intervals, interaction, and two metrics at once. */
const families = [
  ["compare", "Cells", (about) => `minus ${label(study.reference)}`],
  ["outer", "Outer axis", () => `minus ${study.outer[study.reference[0]]}, averaged over inner shapes`],
  ["inner", "Inner axis", () => `minus ${study.inner[study.reference[1]]}, averaged over outer weightings`],
  ["interactions", "Interactions", () => "the additional effect of each pair"],
];

function buildFamilies() {
  const options = families.filter(([key]) => study.metrics.some((about) => about[key].length)).map(([key, text]) => [key, text]);
  const choose = (key) => {
    chosen.family = key;
    drawDifferences();
  };
  if (options.length > 1) fill(byId("families"), choice("family", "Compare", options, chosen.family, choose));
}

function drawDifferences() {
  const place = byId("differences");
  const about = metric();
  const effects = (about?.[chosen.family] ?? []).filter((effect) => effect.n && Number.isFinite(effect.mean));
  place.classList.toggle("tall", effects.length > 22);
  if (!effects.length) return noChart(place, "There is nothing to compare: one cell, or no seed with a value in both.");
  const scale = usualSpread(about);
  const kinds = ["significant", "not significant"];
  const name = (effect) => (effect.cell ? label(effect.cell) : effect.label);
  const rows = effects.map((effect) => ({
    label: name(effect),
    mean: effect.mean,
    low: effect.low,
    high: effect.high,
    kind: kinds[effect.clear ? 0 : 1],
    text: `${number(effect.mean, scale, true)}, ${interval(effect, scale)}`,
    p: probability(effect.p),
    seeds: effect.n,
  }));
  const points = effects.flatMap((effect) =>
    effect.differences.map(([seed, value]) => ({ label: name(effect), value, seed, text: number(value, scale, true) })),
  );
  const known = rows.filter((row) => Number.isFinite(row.low) && Number.isFinite(row.high));
  const narrow = place.clientWidth < 560;
  const split = narrow ? { labelExpr: "split(datum.label, ' × ')" } : {};
  const axis = { grid: false, domain: false, ticks: false, labelPadding: 12, labelLimit: narrow ? 120 : 260, ...split };
  const y = { field: "label", type: "nominal", sort: rows.map((row) => row.label), title: null, axis };
  const title = `difference in ${titled(about)}`;
  const inks = [colour("accent"), colour("muted")];
  const color = nominal("kind", kinds, inks);
  const what = families.find(([key]) => key === chosen.family)[2](about);
  return draw(place, `Paired differences in ${about.name}, ${what}: ${rows.map((row) => `${row.label} ${row.text}, ${row.kind}`).join("; ")}.`, {
    height: rows.length * (narrow ? 40 : 30),
    layer: [
      { data: { values: [{ at: 0 }] }, mark: { type: "rule", color: colour("ink"), aria: false }, encoding: { x: { datum: 0, type: "quantitative" } } },
      {
        data: { values: points },
        mark: { type: "tick", thickness: 1.5, height: 12, opacity: 0.55, color: colour("muted"), aria: false },
        encoding: {
          x: quantity("value", title, { scale: { zero: true, padding: 12 }, axis: { tickCount: 6 } }),
          y,
          tooltip: tips({ label: "", seed: "seed", text: "difference" }),
        },
      },
      {
        data: { values: known },
        mark: { type: "rule", strokeWidth: 2.5, aria: false },
        encoding: { x: { field: "low", type: "quantitative" }, x2: { field: "high" }, y, color },
      },
      {
        data: { values: rows },
        mark: { type: "point", size: 75, filled: true, opacity: 1, strokeWidth: 2.2 },
        encoding: {
          x: { field: "mean", type: "quantitative" },
          y,
          stroke: color,
          fill: nominal("kind", kinds, [inks[0], colour("page")]),
          tooltip: tips({ label: "", text: "difference", p: "p, corrected", seeds: "seeds" }),
        },
      },
    ].filter((layer) => layer.data.values.length),
  });
}

function drawInteraction() {
  const about = metric();
  const place = byId("interaction");
  const cells = (about?.cells ?? []).filter((cell) => Number.isFinite(cell.mean));
  if (study.outer.length < 2 || study.inner.length < 2 || !cells.length) {
    return noChart(place, "An interaction needs two levels on both axes.");
  }
  const scale = usualSpread(about);
  const rows = cells.map(({ cell, mean, sd }) => ({
    outer: study.outer[cell[0]],
    inner: study.inner[cell[1]],
    mean,
    text: number(mean, scale) + (Number.isFinite(sd) ? ` ± ${number(sd, scale)}` : ""),
  }));
  const x = { field: "inner", type: "nominal", sort: study.inner, title: "inner shape", axis: { labelAngle: study.inner.length > 4 ? -35 : 0, labelLimit: 110, labelOverlap: false }, scale: { padding: 0.5 } };
  const y = quantity("mean", `mean ${titled(about)}`, { scale: { zero: false } });
  const tooltip = tips({ outer: "outer", inner: "inner", text: "mean" });
  return draw(place, `Mean ${about.name} over inner shapes, one line for each outer weighting.`, {
    height: 280,
    data: { values: rows },
    encoding: { x, y, tooltip, ...channels("outer", study.outer, true) },
    layer: [{ mark: { type: "line", strokeWidth: 1.8, aria: false } }, { mark: { type: "point", filled: true, size: 75, opacity: 1 } }],
  });
}

function buildPareto() {
  if (study.metrics.length < 2) return;
  const options = study.metrics.map((about, index) => [index, about.name]);
  const axis = (place, title) =>
    picker(title, title, options, chosen.pareto[place], (index) => {
      chosen.pareto[place] = Number(index);
      drawPareto();
    });
  fill(byId("pareto-choice"), element("div", { class: "pickers" }, axis(0, "across"), axis(1, "upwards")));
}

function drawPareto() {
  const [first, second] = chosen.pareto;
  const [across, up] = [study.metrics[first], study.metrics[second]];
  const place = byId("pareto");
  fill(byId("front"));
  if (study.metrics.length < 2) return noChart(place, "The study has one metric.");
  const front = first === second ? undefined : study.fronts[[Math.min(first, second), Math.max(first, second)].join(",")];
  const rows = across.cells
    .map(({ cell, mean }) => ({ cell, mean, other: cellOf(up, cell)?.mean }))
    .filter((row) => Number.isFinite(row.mean) && Number.isFinite(row.other))
    .map(({ cell, mean, other }) => ({
      label: label(cell),
      across: mean,
      up: other,
      kind: front?.some((other) => same(other, cell)) ? "front" : same(cell, chosen.cell) ? "chosen" : "other",
      name: same(cell, chosen.cell) ? label(cell) : "",
      text: `${number(mean, usualSpread(across))}, ${number(other, usualSpread(up))}`,
    }));
  if (!rows.length) return noChart(place, "No cell has a finite mean in both.");
  const scale = { zero: false, padding: 16 };
  const [x, y] = [quantity("across", titled(across), { scale }), quantity("up", titled(up), { scale })];
  const onFront = rows.filter((row) => row.kind === "front");
  const ends = rows.map((row) => row.across);
  const leftHalf = (rows.find((row) => row.name)?.across ?? 0) < (Math.min(...ends) + Math.max(...ends)) / 2;
  fill(
    byId("front"),
    front
      ? `Not dominated in the means: ${onFront.map((row) => row.label).join(", ") || "none"}.`
      : first === second
        ? "Choose two metrics."
        : "A front needs a direction for both metrics.",
  );
  return draw(place, `Mean ${up.name} against mean ${across.name}, one point for each cell.`, {
    height: 280,
    layer: [
      {
        data: { values: onFront },
        mark: { type: "line", strokeWidth: 1.2, strokeDash: [4, 3], color: colour("accent"), aria: false },
        encoding: { x, y, order: { field: "across", type: "quantitative" } },
      },
      {
        data: { values: rows },
        mark: { type: "point", size: 80, opacity: 1, strokeWidth: 2 },
        encoding: {
          x,
          y,
          stroke: { condition: { test: "datum.kind === 'front'", value: colour("accent") }, value: colour("muted") },
          fill: { condition: { test: "datum.kind === 'front'", value: colour("accent") }, value: colour("page") },
          tooltip: tips({ label: "", text: "means" }),
        },
      },
      {
        data: { values: rows.filter((row) => row.name) },
        mark: { type: "text", dy: -13, align: leftHalf ? "left" : "right", fontSize: 12, color: colour("ink"), aria: false },
        encoding: { x, y, text: { field: "name", type: "nominal" } },
      },
    ].filter((layer) => layer.data.values.length), // Vega warns about an empty line, which has no extent
  });
}
