// Curves and tables: numbers, good parts, this run.

function curve(title, xTitle, yTitle, path, point) {
  const side = 300, margin = 40, inner = side - 2 * margin + 20;
  const at = ([x, y]) => [margin + x * inner, margin - 20 + (1 - y) * inner];
  const svg = draw("svg", { viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": title });
  svg.append(draw("rect", { x: margin, y: margin - 20, width: inner, height: inner, fill: "none", stroke: "var(--line)" }));
  svg.append(draw("path", { class: "curve", d: path.map((one, index) => `${index ? "L" : "M"}${at(one).map((v) => v.toFixed(1)).join(" ")}`).join("") }));
  if (point) svg.append(draw("circle", { class: "point", cx: at(point)[0], cy: at(point)[1], r: 6 }));
  for (const [text, x, y, extra] of [[xTitle, margin + inner / 2, side - 6, {}], [yTitle, 12, margin - 20 + inner / 2, { transform: `rotate(-90 12 ${margin - 20 + inner / 2})` }],
    ["0", margin, side - 22, {}], ["1", margin + inner, side - 22, {}], ["1", margin - 10, margin - 14, {}]]) {
    const node = draw("text", { x, y, "text-anchor": "middle", ...extra });
    node.textContent = text;
    svg.append(node);
  }
  return make("figure", {}, svg, make("figcaption", { class: "quiet" }, title));
}
function folderLines() {
  const groups = new Map();
  for (const row of rows) {
    if (!groups.has(row.folder)) groups.set(row.folder, []);
    groups.get(row.folder).push(row);
  }
  return [...groups].sort((one, other) => order.compare(one[0], other[0])).map(([folder, members]) => {
    const judged = members.filter((row) => row.score !== null), truth = judged.filter((row) => row.truth !== null);
    const bad = truth.filter((row) => row.truth), fine = truth.filter((row) => !row.truth), flagged = judged.filter(isFlagged);
    const line = [folder || ".", String(members.length), String(flagged.length), percent(flagged.length, judged.length)];
    if (hasTruth) {
      line.push(bad.length ? `${bad.filter((row) => !isFlagged(row)).length} of ${bad.length}` : "–", fine.length ? `${fine.filter(isFlagged).length} of ${fine.length}` : "–");
    }
    return line;
  });
}
function drawNumbers() {
  const parts = [];
  if (Object.keys(run.metrics).length) {
    parts.push(make("h3", {}, "Metrics of this run, as in the log"), table(["metric", "value"], Object.entries(run.metrics).map(([name, value]) => [name, value.toFixed(4)]), [1]));
  }
  if (defects && clean) {
    const now = countsAt(state.threshold);
    const rates = [[0, 0], ...points.map((point) => [point.alarms / clean, point.hits / defects])];
    const precisions = [];
    for (const point of points) {
      const precision = point.hits / (point.hits + point.alarms), recall = point.hits / defects;
      precisions.push([precisions.length ? precisions[precisions.length - 1][0] : 0, precision], [recall, precision]);
    }
    parts.push(make("h3", {}, "Curves; the dot is the threshold above"), make("div", { class: "curves" },
      curve(`ROC, area ${short(areaUnderRoc())}`, "false alarms", "recall", rates, [now.alarms / clean, now.recall]),
      curve(`Precision and recall, average precision ${short(averagePrecision())}`, "recall", "precision", precisions, now.hits + now.alarms ? [now.recall, now.precision] : null)));
  } else {
    parts.push(make("p", { class: "quiet" }, hasTruth ? "Curves need both good pictures and defects, and there is only one kind." : "These pictures have no labels, so there is nothing to count misses and false alarms against."));
  }
  parts.push(make("h3", {}, `Folders, at the threshold ${trim(state.threshold)}`),
    table(["folder", "pictures", "flagged", "share", ...(hasTruth ? ["misses", "false alarms"] : [])], folderLines(), [1, 2, 3, 4, 5]));
  $("numbers").replaceChildren(...parts);
}
function drawGood() {
  if (!good) {
    $("good").replaceChildren(make("p", {}, "No good parts were at hand. With a folder of them (", make("code", {}, "--model.normal_dir path/to/good"),
      ") the threshold can be chosen by the share of good parts that may be flagged, and this table says what each choice leads to."));
    return;
  }
  const count = goodScores.length;
  const lines = good.choices.map((choice) => {
    const text = `--model.false_alarms ${trim(choice.false_alarms)}`;
    const use = make("button", { type: "button" }, "Use"), take = make("button", { type: "button" }, "Copy");
    use.addEventListener("click", () => setThreshold(choice.threshold));
    take.addEventListener("click", () => copy(text, take));
    return [percent(choice.false_alarms, 1), make("code", {}, text), trim(choice.threshold), `${choice.exceeding} of ${count}`,
      `${percent(choice.low, 1)} to ${percent(choice.high, 1)}`, String(exceeding(allScores, choice.threshold)), make("span", { class: "copy-row" }, use, take)];
  });
  $("good").replaceChildren(
    make("p", {}, `The threshold of ${count} good parts, each judged without knowing itself, for each share of them that you allow to be flagged; this run asked for ${percent(good.false_alarms, 1)}. `
      + "The interval (95 %) says what share of all good parts such a count fits: few parts give wide ones."),
    table(["allowed", "argument", "threshold", "good parts above", "interval", "pictures flagged", ""], lines, [0, 2, 3, 4, 5]));
}
function drawRun() {
  const broken = rows.filter((row) => row.error);
  const parts = [
    make("h3", {}, "What produced this page"),
    facts([["model", run.model], ...Object.entries(run.about), ["data", run.data], ["folder", run.root], ["date", run.date], ["decisions from", run.decisions]]),
    make("h3", {}, "Arguments"), facts(Object.entries(run.arguments).map(([name, value]) => [name, make("code", {}, value)])),
    make("h3", {}, "Versions"), facts(Object.entries(run.versions)),
  ];
  if (broken.length) {
    parts.push(make("h3", {}, `Files that could not be read: ${broken.length}`), table(["file", "error"], broken.slice(0, 1000).map((row) => [row.path, row.error])));
  }
  $("run").replaceChildren(...parts);
}
