// The histogram with the threshold as a line to drag, and the counts beside it.

const known = [...allScores, ...goodScores, run.threshold];
let low = known[0], high = known[0];
for (const value of known) { low = Math.min(low, value); high = Math.max(high, value); }
const step = high - low < 0.15 ? 0.01 : 0.05;
low = round(Math.floor((low - 1e-9) / step) * step, 4);
high = round(Math.ceil((high + 1e-9) / step) * step, 4);
if (high <= low) high = low + step;
if (run.can_be_set) [low, high] = [Math.max(0, low), Math.min(1, high)];
const bins = 60, edge = { left: 34, right: 14, top: 22, bottom: 30, height: 190 };
const histogram = Array.from({ length: bins }, () => ({ good: 0, unknown: 0, bad: 0 }));
for (const row of scored) {
  const bin = clamp(Math.floor((row.single - low) / (high - low) * bins), 0, bins - 1);
  histogram[bin][row.truth === null ? "unknown" : row.truth ? "bad" : "good"]++;
}
const highest = Math.max(1, ...histogram.map((bin) => bin.good + bin.unknown + bin.bad));
const scale = {
  width: 600,
  x: (value) => edge.left + (value - low) / (high - low) * (scale.width - edge.left - edge.right),
  value: (x) => low + (x - edge.left) / (scale.width - edge.left - edge.right) * (high - low),
};
let marks = null;

function drawHistogram() {
  const holder = $("histogram"), focused = document.activeElement && document.activeElement.id === "line";
  scale.width = Math.max(240, holder.clientWidth);
  const floor = edge.height - edge.bottom, tall = floor - edge.top;
  const svg = draw("svg", { viewBox: `0 0 ${scale.width} ${edge.height}`, preserveAspectRatio: "none", "aria-hidden": "false" });
  const pattern = draw("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    draw("rect", { width: 5, height: 5, class: "fill-bad" }), draw("rect", { width: 1.4, height: 5, fill: "var(--panel)" }));
  svg.append(draw("defs", {}, pattern));
  const beyond = draw("rect", { class: "beyond", y: edge.top, height: tall });
  svg.append(beyond);
  const bars = [];
  for (const [index, bin] of histogram.entries()) {
    let bottom = floor;
    const left = scale.x(low + index / bins * (high - low)), right = scale.x(low + (index + 1) / bins * (high - low));
    for (const kind of ["good", "unknown", "bad"]) {
      if (!bin[kind]) continue;
      const height = Math.max(2, bin[kind] / highest * tall);
      bottom -= height;
      const bar = draw("rect", { x: left + 0.5, width: Math.max(1, right - left - 1), y: bottom, height });
      if (kind === "bad") bar.setAttribute("fill", "url(#hatch)"); else bar.setAttribute("class", `fill-${kind}`);
      if (kind === "unknown") bars.push([bar, low + (index + 0.5) / bins * (high - low)]);
      svg.append(bar);
    }
  }
  svg.append(draw("line", { class: "axis", x1: edge.left, x2: scale.width - edge.right, y1: floor, y2: floor }));
  const wanted = Math.max(2, Math.floor(scale.width / 90));
  const gap = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 50, 100, 1000].find((one) => (high - low) / one <= wanted) || (high - low);
  for (let value = Math.ceil(low / gap - 1e-9) * gap; value <= high + 1e-9; value += gap) {
    const text = draw("text", { x: scale.x(value), y: edge.height - 6, "text-anchor": "middle" });
    text.textContent = trim(value);
    svg.append(text);
  }
  const count = draw("text", { x: edge.left - 6, y: edge.top + 10, "text-anchor": "end" });
  count.textContent = String(highest);
  svg.append(count);
  for (const value of goodScores) {
    svg.append(draw("line", { class: "rug", x1: scale.x(value), x2: scale.x(value), y1: floor + 2, y2: floor + 10 }));
  }
  const line = draw("g", { id: "line", role: "slider", tabindex: "0", "aria-label": "Threshold", "aria-valuemin": low, "aria-valuemax": high });
  line.append(draw("line", { class: "line", x1: 0, x2: 0, y1: edge.top - 4, y2: floor + 4 }));
  line.append(draw("circle", { class: "knob", cx: 0, cy: edge.top - 4, r: 8 }));
  const label = draw("text", { class: "value", y: edge.top - 8 });
  line.append(label);
  svg.append(line);
  holder.replaceChildren(svg);
  marks = { line, label, beyond, bars };
  moveLine();
  if (focused) line.focus();
}
function moveLine() {
  const { line, label, beyond, bars } = marks;
  const x = clamp(scale.x(state.threshold), edge.left, scale.width - edge.right);
  line.setAttribute("transform", `translate(${x} 0)`);
  const left = x > scale.width - 80;
  label.setAttribute("x", left ? -13 : 13);
  label.setAttribute("text-anchor", left ? "end" : "start");
  label.textContent = trim(state.threshold);
  line.setAttribute("aria-valuenow", state.threshold);
  line.setAttribute("aria-valuetext", `${trim(state.threshold)}: ${exceeding(allScores, state.threshold)} of ${scored.length} flagged`);
  beyond.setAttribute("x", x);
  beyond.setAttribute("width", scale.width - edge.right - x);
  if (!hasTruth) for (const [bar, middle] of bars) bar.setAttribute("class", middle > state.threshold ? "fill-bad" : "fill-good");
}
function drawLegend() {
  const entry = (kind, text) => make("span", {}, make("i", { class: kind }), text);
  const unlabelled = scored.length - labelled.length;
  $("legend").append(...[
    hasTruth ? entry("good", "good") : entry("good", "passes"),
    hasTruth ? entry("bad", "defect") : entry("flagged", "flagged"),
    hasTruth && unlabelled ? entry("unknown", "not labelled") : null,
    goodScores.length ? entry("rug", `${goodScores.length} good parts that the threshold was made from`) : null,
  ].filter(Boolean));
}

let waiting = 0;
function setThreshold(value, from) {
  if (!Number.isFinite(value)) return;
  state.threshold = run.can_be_set ? clamp(value, 0, 1) : value;
  if (from !== "field") $("threshold").value = trim(state.threshold);
  moveLine();
  showCounts();
  recolour();
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if ($("f-decision").value !== "all" || ["misses", "alarms"].includes($("f-truth").value) || $("f-sort").value === "doubt") filter();
    if (!$("numbers").hidden) drawNumbers();
    if (!$("good").hidden) drawGood();
  }, from === "drag" ? 60 : 0);
}
function showCounts() {
  const now = countsAt(state.threshold);
  const tile = (id, name, value, note) => make("div", {}, make("dt", {}, name), make("dd", { id }, value), note ? make("small", {}, note) : null);
  const tiles = [tile("c-flagged", "Flagged", String(now.flagged), `of ${scored.length}, ${percent(now.flagged, scored.length)}`)];
  if (hasTruth) {
    tiles.push(
      tile("c-misses", "Misses", String(now.misses), `of ${defects} defects, ${percent(now.misses, defects)}`),
      tile("c-alarms", "False alarms", String(now.alarms), `of ${clean} good, ${percent(now.alarms, clean)}`),
      tile("c-precision", "Precision", short(now.precision)), tile("c-recall", "Recall", short(now.recall)), tile("c-f1", "F1", short(now.f1)),
    );
  } else {
    tiles.push(tile("c-passed", "Passes", String(scored.length - now.flagged), percent(scored.length - now.flagged, scored.length)));
  }
  $("counts").replaceChildren(...tiles);
  $("command").textContent = `--model.threshold ${trim(state.threshold)}`;
  if (good) {
    const above = exceeding(goodScores, state.threshold), [from, to] = good.intervals[above];
    $("expected").textContent = `Of ${goodScores.length} good parts at hand ${above} would be flagged: expect ${percent(above, goodScores.length)} false alarms (95 % interval ${percent(from, 1)} to ${percent(to, 1)}).`;
  }
}

function listen() {
  const holder = $("histogram");
  const drag = (event) => setThreshold(round(clamp(scale.value(event.clientX - holder.getBoundingClientRect().left), low, high), 3), "drag");
  holder.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    event.preventDefault();
    holder.setPointerCapture(event.pointerId);
    marks.line.focus({ focusVisible: false, preventScroll: true });
    drag(event);
  });
  holder.addEventListener("pointermove", (event) => { if (holder.hasPointerCapture(event.pointerId)) drag(event); });
  holder.addEventListener("keydown", (event) => {
    const by = event.shiftKey ? 0.001 : 0.01;
    const value = {
      ArrowRight: state.threshold + by, ArrowUp: state.threshold + by, ArrowLeft: state.threshold - by, ArrowDown: state.threshold - by,
      PageUp: state.threshold + 0.05, PageDown: state.threshold - 0.05, Home: low, End: high,
    }[event.key];
    if (value === undefined) return;
    event.preventDefault();
    setThreshold(round(value, 4), "key");
  });
  $("threshold").addEventListener("input", () => { if ($("threshold").value !== "") setThreshold(Number($("threshold").value), "field"); });
  $("threshold").addEventListener("change", () => { if ($("threshold").value !== "") $("threshold").value = trim(state.threshold); });
  $("reset").addEventListener("click", () => setThreshold(run.threshold));
  $("best").addEventListener("click", () => setThreshold(bestThreshold()));
  $("best").hidden = !(defects && clean);
  $("command").parentElement.hidden = !run.can_be_set;
  $("copy").addEventListener("click", () => copy($("command").textContent, $("copy")));
  $("copy-list").addEventListener("click", () => copy(state.shown.map((row) => row.path).join("\n"), $("copy-list")));
  new ResizeObserver(() => { if (Math.abs(holder.clientWidth - scale.width) > 1) drawHistogram(); }).observe(holder);
}
