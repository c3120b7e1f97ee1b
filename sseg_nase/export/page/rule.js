// The few-shot rule: a class is the mean of its photos' features, the nearest one is the answer.

const UNKNOWN = "unknown";
const SMALLEST = 1e-12; // a length below it is taken as this
const CLASSES_SCHEMA = 1;

const dot = (a, b) => a.reduce((all, one, n) => all + one * b[n], 0);
const minus = (a, b) => a.map((one, n) => one - b[n]);
const plus = (a, b) => a.map((one, n) => one + b[n]);

function unit(row) {
  const length = Math.max(Math.sqrt(dot(row, row)), SMALLEST);
  return row.map((one) => one / length);
}

/** Features as the rule takes them: Float64Array. */
function normalized(features, { normalize, base_mean: centre }) {
  const row = Float64Array.from(features);
  if (!row.every(Number.isFinite)) throw new Error("the network gives no finite features for it");
  if (normalize === "none") return row;
  return unit(normalize === "cl2n" ? minus(row, centre) : row);
}

const SCORES = {
  cosine: (prototype, query) => dot(unit(prototype), unit(query)),
  euclidean: (prototype, query) => {
    const apart = minus(prototype, query);
    return -dot(apart, apart);
  },
};

/** Probabilities of the classes with these `prototypes`, in their order. */
function probabilities(prototypes, query, { metric, temperature }) {
  const scores = prototypes.map((prototype) => SCORES[metric](prototype, query));
  const largest = Math.max(...scores);
  const raised = scores.map((score) => Math.exp((score - largest) / temperature));
  const total = raised.reduce((all, one) => all + one, 0);
  return raised.map((one) => one / total);
}

/** Classes [[name, {sum, count}]] as the JSON that FewShotClassifier.save writes. */
function classesText(classes, { weights, normalize }) {
  // Written by hand: an object would put names that are numbers first.
  const parts = classes.map(([name, { sum, count }]) =>
    `${JSON.stringify(name)}: ${JSON.stringify({ sum: Array.from(sum), count })}`);
  const head = `"schema": ${CLASSES_SCHEMA}, "weights": ${JSON.stringify(weights)}, ` +
    `"normalize": ${JSON.stringify(normalize)}`;
  return `{${head}, "classes": {${parts.join(", ")}}}\n`;
}

/** Classes from that JSON; throws where it is none, or of another network. */
function classesFrom(text, { weights, normalize, features }) {
  let found;
  try {
    found = JSON.parse(text);
    if (found.schema !== CLASSES_SCHEMA) throw new Error();
    found.classes = Object.entries(found.classes);
  } catch {
    throw new Error("no classes can be read from it; open a file that was saved here");
  }
  if (found.weights !== weights || found.normalize !== normalize) {
    throw new Error("these classes are of another network; learn them again with this one");
  }
  for (const [, one] of found.classes) {
    const whole = Number.isInteger(one?.count) && one.count > 0 && Array.isArray(one.sum);
    if (!whole || one.sum.length !== features || !one.sum.every(Number.isFinite)) {
      throw new Error("it is damaged; learn the classes again");
    }
  }
  return found.classes.map(([name, { sum, count }]) => {
    return [name, { sum: Float64Array.from(sum), count }];
  });
}
