/** The page: what is redrawn when the reader chooses something, the theme, and copying. */
function choose(cell) {
  chosen.cell = cell;
  paintGrid();
  placeOf(cell).focus({ preventScroll: true });
  paintReading();
  paintCell();
  paintTable();
  drawPareto();
}

function chooseMetric(index) {
  chosen.metric = Number(index);
  for (const verdict of document.querySelectorAll(".verdict")) verdict.hidden = verdict.dataset.metric !== String(chosen.metric);
  paintGrid();
  paintReading();
  paintTable();
  drawDifferences();
  drawInteraction();
}

function drawAll() {
  drawCell();
  drawDifferences();
  drawInteraction();
  drawPareto();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
}

function buildTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  setTheme(system.matches ? "dark" : "light");
  system.addEventListener("change", () => {
    setTheme(system.matches ? "dark" : "light");
    drawAll();
  });
  byId("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    drawAll();
  });
}

/** Copy a text, or select it if the browser does not allow copying. */
async function copy(id) {
  const source = byId(id);
  try {
    await navigator.clipboard.writeText(source.textContent);
    byId("copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(source);
    byId("copied").textContent = "Selected: copy it with the keyboard.";
  }
}

function start() {
  buildTheme();
  if (study.metrics.length) {
    const options = study.metrics.map((about, index) => [index, about.name, { min: "↓ lower is better", max: "↑ higher is better" }[about.direction]]);
    fill(byId("metrics"), choice("metric", "Metric", options, 0, chooseMetric));
  }
  buildGrid();
  buildToggles();
  buildFamilies();
  buildPareto();
  paintGrid();
  paintReading();
  paintCell();
  paintTable();
  drawDifferences();
  drawInteraction();
  drawPareto();
  for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button.dataset.copies));
  document.addEventListener("scroll", () => (byId("tooltip").hidden = true), { passive: true });
  let width = window.innerWidth;
  let later = 0;
  window.addEventListener("resize", () => {
    clearTimeout(later);
    later = setTimeout(() => {
      if (window.innerWidth !== width) drawAll();
      width = window.innerWidth;
    }, 150);
  });
}

start();
