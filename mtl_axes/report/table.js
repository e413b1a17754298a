/** All cells in one table that sorts by any of its columns. */
function columns() {
  const about = metric();
  const scale = about ? usualSpread(about) : NaN;
  const name = about?.name ?? "value";
  const effect = (row) => row.effect ?? {};
  const orDash = (value, text) => (Number.isFinite(value) ? text : "–");
  return [
    { key: "outer", head: "outer", value: (row) => row.cell[0], text: (row) => study.outer[row.cell[0]], words: true },
    { key: "inner", head: "inner", value: (row) => row.cell[1], text: (row) => study.inner[row.cell[1]], words: true },
    { key: "n", head: "n", value: (row) => row.n, text: (row) => String(row.n) },
    { key: "mean", head: `mean ${name}`, value: (row) => row.mean, text: (row) => (row.n + row.not_finite ? number(row.mean, scale) : "–") },
    { key: "sd", head: "sd", value: (row) => row.sd, text: (row) => orDash(row.sd, number(row.sd, scale)) },
    { key: "difference", head: "difference", value: (row) => effect(row).mean, text: (row) => orDash(effect(row).mean, number(effect(row).mean, scale, true)) },
    { key: "low", head: "95 % interval", value: (row) => effect(row).low, text: (row) => orDash(effect(row).low, interval(effect(row), scale)) },
    { key: "p", head: "p (Holm)", value: (row) => effect(row).p, text: (row) => probability(effect(row).p) },
    { key: "needed", head: "seeds needed", value: (row) => effect(row).seeds_needed, text: (row) => (effect(row).seeds_needed ?? "–").toLocaleString("en") },
    { key: "failed", head: "failed", value: (row) => row.failed, text: (row) => (row.failed ? `▲ ${row.failed}` : "0") },
  ];
}

function paintTable() {
  const about = metric();
  const rows = (about?.cells ?? []).map((row) => ({
    ...row,
    effect: ofCell(about.compare, row.cell)[0],
    failed: ofCell(study.failures, row.cell).length,
  }));
  const shown = columns();
  const by = shown.find((column) => column.key === chosen.sort.column);
  if (by) {
    const sign = chosen.sort.ascending ? 1 : -1;
    // Rows without a value come last in both orders.
    rows.sort((one, other) => {
      const [a, b] = [by.value(one), by.value(other)];
      if (!Number.isFinite(a) || !Number.isFinite(b)) return Number.isFinite(b) - Number.isFinite(a);
      return sign * (a - b);
    });
  }
  const order = chosen.sort.ascending ? "ascending" : "descending";
  const head = shown.map((column) => {
    const arrow = element("span", { class: "arrow", "aria-hidden": "true" }, column === by ? { ascending: "↑", descending: "↓" }[order] : "");
    const button = element("button", { type: "button", "data-column": column.key, click: () => sortBy(column.key) }, column.head, arrow);
    return element("th", { scope: "col", class: column.words ? "text" : "", "aria-sort": column === by ? order : null }, button);
  });
  const body = rows.map((row) => {
    const cells = shown.map((column) => {
      const tag = column.key === "outer" ? "th" : "td";
      return element(tag, { class: column.words ? "text" : "", scope: tag === "th" ? "row" : null }, column.text(row));
    });
    return element("tr", { class: same(row.cell, chosen.cell) ? "here" : "" }, cells);
  });
  byId("table-note").textContent = `Differences are a cell minus ${label(study.reference)}. “Seeds needed”: with so many, four studies in five detect an effect of this size.`;
  fill(byId("table"), table("numbers", head, body));
}

function sortBy(key) {
  const again = chosen.sort.column === key;
  chosen.sort = { column: key, ascending: again ? !chosen.sort.ascending : true };
  paintTable();
  byId("table").querySelector(`[data-column="${key}"]`).focus();
}
