// Head, tabs, light and dark; then everything begins.

function listenTabs() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const drawers = { numbers: drawNumbers, good: drawGood, run: drawRun, pictures: place };
  const choose = (tab) => {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      $(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    drawers[tab.getAttribute("aria-controls")]();
  };
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = tabs[(index + by + tabs.length) % tabs.length];
      next.focus();
      choose(next);
    });
  }
}
function listenTheme() {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  $("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
    root.dataset.theme = isDark ? "light" : "dark";
  });
}
function drawHead() {
  $("title").textContent = [run.model, run.data || run.root.split(/[\\/]/).pop()].filter(Boolean).join(" · ");
  $("subtitle").textContent = `${rows.length} picture${rows.length === 1 ? "" : "s"} · ${run.date}${run.decisions ? ` · decisions from ${run.decisions}` : ""}`;
  const notices = [];
  const broken = rows.filter((row) => row.error).length, lost = rows.length - scored.length - broken;
  if (!run.complete) notices.push(`The run was interrupted: this page shows the ${rows.length === 1 ? "one picture that was" : `${rows.length} pictures that were`} judged until then.`);
  if (broken) notices.push(`${broken} file${broken === 1 ? "" : "s"} could not be read; see the tab "This run".`);
  if (lost > 0) notices.push(`${lost} picture${lost === 1 ? " has" : "s have"} no score: the model gave no number.`);
  if (run.about.backbone === "builtin") notices.push("Made with the tiny built-in backbone, which stands in where no real CLIP is at hand.");
  $("notices").replaceChildren(...notices.map((text) => make("p", { class: "notice" }, text)));
}

drawHead();
drawLegend();
drawHistogram();
listen();
fillFilters();
listenTabs();
listenTheme();
listenLarge();
setThreshold(run.threshold);
filter();
let frame = 0;
const later = () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(place); };
addEventListener("scroll", later, { passive: true });
let wide = $("grid").clientWidth;
new ResizeObserver(() => {
  if ($("grid").clientWidth === wide) return;
  wide = $("grid").clientWidth;
  clear();
  later();
}).observe($("pictures"));
