// The pictures as rows, and what a threshold makes of them: counts, curves, the best threshold.

for (const [index, row] of rows.entries()) {
  const slash = row.path.lastIndexOf("/");
  row.index = index;
  row.name = row.path.slice(slash + 1) || `picture ${index + 1}`;
  row.folder = slash < 0 ? "" : row.path.slice(0, slash);
  row.word = row.words.split(", ")[0].replace(/ \([\d.]+\)$/, "");
  row.single = row.score === null ? null : Math.fround(row.score);
  row.text = `${row.path}\n${row.words}\n${row.error}`.toLowerCase();
}
const scored = rows.filter((row) => row.score !== null);
const labelled = scored.filter((row) => row.truth !== null);
const hasTruth = labelled.length > 0;
const rising = (list) => Float32Array.from(list, (row) => row.single).sort();
const allScores = rising(scored);
const defectScores = rising(labelled.filter((row) => row.truth));
const cleanScores = rising(labelled.filter((row) => !row.truth));
const goodScores = good ? Float32Array.from(good.scores).sort() : new Float32Array();
const order = new Intl.Collator(undefined, { numeric: true });

/** How many of rising values exceed a threshold: as the model decides, in single precision. */
function exceeding(values, threshold) {
  const line = Math.fround(threshold);
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] > line) high = middle; else low = middle + 1;
  }
  return values.length - low;
}
const isFlagged = (row) => row.single !== null && row.single > Math.fround(state.threshold);

const state = { threshold: run.threshold, shown: [], open: -1 };

function countsAt(threshold) {
  const hits = exceeding(defectScores, threshold), alarms = exceeding(cleanScores, threshold);
  const misses = defectScores.length - hits;
  return {
    flagged: exceeding(allScores, threshold), hits, alarms, misses,
    precision: hits + alarms ? hits / (hits + alarms) : 0,
    recall: defectScores.length ? hits / defectScores.length : 0,
    f1: hits ? 2 * hits / (2 * hits + alarms + misses) : 0,
  };
}

/** Points of the curves, from the highest threshold down: ties make one point. */
function curvePoints() {
  const sorted = [...labelled].sort((one, other) => other.single - one.single);
  const points = [];
  let hits = 0, alarms = 0;
  for (let index = 0; index < sorted.length; index++) {
    if (sorted[index].truth) hits++; else alarms++;
    if (index + 1 === sorted.length || sorted[index + 1].single !== sorted[index].single) {
      points.push({ hits, alarms, score: sorted[index].single, below: index + 1 < sorted.length ? sorted[index + 1].single : null });
    }
  }
  return points;
}
const points = hasTruth ? curvePoints() : [];
const defects = defectScores.length, clean = cleanScores.length;
function areaUnderRoc(list = points, positives = defects, negatives = clean) {
  if (!positives || !negatives) return null;
  let area = 0, x = 0, y = 0;
  for (const point of list) {
    area += (point.alarms - x) * (point.hits + y) / 2;
    [x, y] = [point.alarms, point.hits];
  }
  return area / positives / negatives;
}
function averagePrecision() {
  if (!defects) return null;
  let sum = 0, before = 0;
  for (const { hits, alarms } of points) {
    sum += (hits - before) * hits / (hits + alarms);
    before = hits;
  }
  return sum / defects;
}
/** The shortest decimal number that flags ``above`` and does not flag ``below``. */
function between(below, above) {
  for (let digits = 2; digits < 9; digits++) {
    const value = round((below + above) / 2, digits);
    if (Math.fround(value) >= below && Math.fround(value) < above) return value;
  }
  return below;
}
function bestThreshold() {
  let best = null, value = -1;
  for (const point of points) {
    const f1 = 2 * point.hits / (point.hits + point.alarms + defects);
    if (f1 > value) [best, value] = [point, f1];
  }
  return best ? between(best.below === null ? Math.min(best.score - 0.01, 0) : best.below, best.score) : run.threshold;
}
