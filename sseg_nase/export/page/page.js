// The page: classes and their photos, questions and their answers.

const SHOWN = 5; // classes beside an answer, the likeliest ones
const THUMBNAIL = 144; // pixels
const TOLERANCE = 1e-3; // of the largest feature, of what the exporting program computed
const SAID_FOR = 8000; // milliseconds
const LIVE_EVERY = 200; // milliseconds between two looks through the camera

const $ = (id) => document.getElementById(id);
const model = JSON.parse($("model").textContent);
model.weights = unpacked(model, $("weights").textContent);
const { metadata } = model;

const classes = []; // {name, known: {sum, count} or null, photos: [{label, features}], element}
const questions = []; // {label, features, element}
let stream = null; // of the camera
let silence = 0; // the timer that ends what is said

const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const photosOf = (count) => (count === 1 ? "1 photo" : `${count} photos`);

/** An element with properties, and with what is in it. */
function made(tag, properties = {}, ...inside) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...inside);
  return element;
}

function button(text, label, act, className = "") {
  const element = made("button", { type: "button", className, onclick: act }, text);
  if (label) element.setAttribute("aria-label", label);
  return element;
}

/** Say shortly what has happened; it goes by itself. */
function say(text) {
  $("status").textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { $("status").textContent = ""; }, SAID_FOR);
}

function complain(messages) {
  for (const text of messages) {
    const line = made("p", { className: "alert" }, text);
    line.append(button("×", "Close this message", () => line.remove(), "small"));
    $("alerts").append(line);
  }
}

// Photos.

/** What is kept of a picture: its features and a small view. */
function examined(source, width, height, label) {
  const pixels = pixelsOf(source, width, height, metadata);
  const canvas = made("canvas", { width: THUMBNAIL, height: THUMBNAIL });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  const side = Math.min(width, height);
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  canvas.getContext("2d").drawImage(source, left, top, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
  return { label, canvas, features: normalized(embedded(model, pixels), metadata) };
}

/** Examine files one after the other; what cannot be read is said, and the others are taken. */
async function examine(files, take) {
  const failed = [];
  let taken = 0;
  for (const [n, file] of [...files].entries()) {
    if (files.length > 1) say(`Photo ${n + 1} of ${files.length}`);
    try {
      const picture = await pictureOf(file);
      take(examined(picture, picture.width, picture.height, file.name));
      picture.close();
      taken++;
    } catch (error) {
      failed.push(`${file.name}: ${error.message}.`);
    }
    await pause(0); // the page stays usable
  }
  complain(failed);
  return taken;
}

// Classes.

const known = () => classes.filter(({ known, photos }) => known || photos.length);

/** All that a class was learnt from: the sum of the features, and of how many. */
function learnt({ known, photos }) {
  const start = known ?? { sum: new Float64Array(metadata.features), count: 0 };
  const sum = photos.reduce((all, photo) => plus(all, photo.features), start.sum);
  return { sum, count: start.count + photos.length };
}

function freeName() {
  for (let n = classes.length + 1; ; n++) {
    if (!classes.some(({ name }) => name === `class ${n}`)) return `class ${n}`;
  }
}

function addClass(name, before = null) {
  const one = { name, known: before, photos: [] };
  const input = made("input", { value: name, autocomplete: "off", spellcheck: false });
  const files = made("input", { type: "file", accept: "image/*", multiple: true, hidden: true });
  one.count = made("p", { className: "count" });
  one.list = made("ul", { className: "photos" });
  one.adding = button("Add photos", "", () => files.click());
  one.removing = button("Remove", "", () => removeClass(one));
  one.input = input;
  one.files = files;
  input.onchange = () => rename(one, input.value.trim());
  files.onchange = async () => {
    await teach(one, files.files);
    files.value = "";
  };
  one.element = made("li", { className: "card class" },
    made("div", { className: "class-head" }, input, one.removing), one.count, one.list,
    made("div", { className: "tools" }, one.adding, files));
  dropping(one.element, (dropped) => teach(one, dropped));
  classes.push(one);
  $("classes").append(one.element);
  showClass(one);
  refresh();
  return one;
}

function showClass(one) {
  one.input.setAttribute("aria-label", `Name of the class ${one.name}`);
  one.adding.setAttribute("aria-label", `Add photos to ${one.name}`);
  one.removing.setAttribute("aria-label", `Remove the class ${one.name}`);
  const before = one.known ? `${photosOf(one.known.count)} of before` : "";
  const now = one.photos.length || !before ? photosOf(one.photos.length) : "";
  one.count.textContent = [before, now].filter(Boolean).join(", and ") +
    (learnt(one).count ? "" : ": add some, or drop them here");
}

async function teach(one, files) {
  const taken = await examine(files, (photo) => addPhoto(one, photo));
  if (taken) say(`${one.name}: ${photosOf(taken)} added, ${learnt(one).count} in all`);
}

function addPhoto(one, photo) {
  const item = made("li", { className: "photo" }, photo.canvas);
  item.append(button("×", `Remove ${photo.label} from ${one.name}`, () => {
    one.photos.splice(one.photos.indexOf(photo), 1);
    item.remove();
    showClass(one);
    refresh();
    one.adding.focus();
  }));
  one.photos.push(photo);
  one.list.append(item);
  showClass(one);
  refresh();
}

function rename(one, name) {
  const taken = classes.some((other) => other !== one && other.name === name);
  if (!name || name === UNKNOWN || taken) {
    one.input.value = one.name;
    const why = taken ? "another class is called so" : `it cannot be empty or “${UNKNOWN}”`;
    complain([`A class needs a name of its own: ${why}. It stays ${one.name}.`]);
    return;
  }
  one.name = one.input.value = name;
  showClass(one);
  refresh();
}

function removeClass(one) {
  const at = classes.indexOf(one);
  classes.splice(at, 1);
  one.element.remove();
  say(`${one.name} is removed`);
  refresh();
  (classes[Math.min(at, classes.length - 1)]?.input ?? $("add-class")).focus();
}

function removeEmptyClasses() {
  for (const one of classes.filter((each) => !learnt(each).count)) {
    classes.splice(classes.indexOf(one), 1);
    one.element.remove();
  }
}

/** A folder with a folder of photos per class. */
async function openFolder(files) {
  const folders = new Map();
  for (const file of files) {
    const parts = file.webkitRelativePath.split("/");
    const name = parts[parts.length - 2];
    if (file.type.startsWith("image/") && parts.length > 2 && name !== UNKNOWN) {
      folders.set(name, [...(folders.get(name) ?? []), file]);
    }
  }
  if (!folders.size) {
    complain(["There are no folders of images in this folder: it needs one for each class."]);
    return;
  }
  removeEmptyClasses();
  for (const name of [...folders.keys()].sort()) {
    const one = classes.find((each) => each.name === name) ?? addClass(name);
    await teach(one, folders.get(name));
  }
}

function saveClasses() {
  const text = classesText(known().map((one) => [one.name, learnt(one)]), metadata);
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  made("a", { href: address, download: "classes.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say("The classes are saved in your downloads as classes.json");
}

async function openClasses(file) {
  try {
    const found = classesFrom(await file.text(), metadata);
    for (const one of classes.splice(0)) one.element.remove();
    for (const [name, before] of found) addClass(name, before);
    say(`${found.length} classes of ${file.name}, in place of those before`);
    refresh();
  } catch (error) {
    complain([`${file.name}: ${error.message}.`]);
  }
}

// Questions.

/** The classes' probabilities for features, likeliest first, and the name that is given. */
function answered(features) {
  const among = known();
  if (among.length < 2) return null;
  const prototypes = among.map((one) => {
    const { sum, count } = learnt(one);
    return sum.map((each) => each / count);
  });
  const shares = probabilities(prototypes, features, metadata);
  const ranked = shares.map((share, n) => ({ name: among[n].name, share }));
  ranked.sort((a, b) => b.share - a.share);
  const sure = ranked[0].share >= $("threshold").value / 100;
  return { name: sure ? ranked[0].name : UNKNOWN, confidence: ranked[0].share, ranked };
}

function bar({ name, share }) {
  const inside = made("i");
  inside.style.width = `${100 * share}%`;
  const around = made("span", { className: "bar" }, inside);
  around.setAttribute("aria-hidden", "true");
  const text = made("span", { title: name }, name);
  return made("li", {}, text, around, made("span", {}, percent(share)));
}

function showAnswer({ features, best, bars }) {
  const answer = answered(features);
  bars.replaceChildren(...(answer ? answer.ranked.slice(0, SHOWN).map(bar) : []));
  best.replaceChildren(...(answer
    ? [made("strong", {}, answer.name), ` ${percent(answer.confidence)}`]
    : ["no answer yet"]));
}

async function ask(files) {
  let last = null;
  const taken = await examine(files, (photo) => {
    last = addQuestion(photo);
  });
  if (!taken) return;
  const answer = answered(last.features);
  if (!answer) say($("hint").textContent);
  else if (taken > 1) say(`${photosOf(taken)} answered`);
  else say(`${last.label}: ${answer.name}, ${percent(answer.confidence)}`);
}

function addQuestion({ label, canvas, features }) {
  const one = { label, features };
  one.best = made("p", { className: "best" });
  one.bars = made("ul", { className: "bars" });
  one.element = made("li", { className: "card answer" }, canvas,
    made("div", {}, one.best, made("p", { className: "file", title: label }, label), one.bars),
    button("×", `Remove ${label}`, () => {
      questions.splice(questions.indexOf(one), 1);
      one.element.remove();
      refresh();
      $("ask").focus();
    }, "small"));
  questions.push(one);
  $("answers").append(one.element);
  showAnswer(one);
  $("clear").hidden = false;
  return one;
}

/** Everything that follows from the classes and the threshold. */
function refresh() {
  questions.forEach(showAnswer);
  const ready = known().length >= 2;
  $("hint").textContent = ready ? "" : "It can answer when it has seen photos of two classes.";
  $("hint").hidden = ready;
  $("clear").hidden = !questions.length;
  $("save-classes").disabled = !known().length;
  const chosen = $("camera-class").value;
  $("camera-class").replaceChildren(...classes.map(({ name }) => made("option", {}, name)));
  if (classes.some(({ name }) => name === chosen)) $("camera-class").value = chosen;
}

// The camera.

function lookAt(label) {
  const video = $("video");
  return examined(video, video.videoWidth, video.videoHeight, label);
}

async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const way = "allow it for this page, or choose photos";
    complain([`The camera cannot be used (${error.message}): ${way}.`]);
    return;
  }
  $("camera").hidden = false;
  $("start-camera").hidden = true;
  $("video").srcObject = stream;
  await $("video").play();
  $("take").focus();
  while (stream) {
    const answer = $("video").videoWidth ? answered(lookAt("").features) : null;
    $("live").replaceChildren(...(answer
      ? [made("strong", {}, answer.name), ` ${percent(answer.confidence)}`]
      : [$("hint").textContent || "…"]));
    await pause(LIVE_EVERY);
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("video").srcObject = null;
  $("camera").hidden = true;
  $("start-camera").hidden = false;
  $("start-camera").focus();
}

function takePicture() {
  const one = classes.find(({ name }) => name === $("camera-class").value);
  if (!one || !$("video").videoWidth) return;
  addPhoto(one, lookAt(`camera picture ${one.photos.length + 1}`));
  say(`${one.name}: 1 photo added, ${learnt(one).count} in all`);
}

// Dropped and pasted files.

function dropping(element, take) {
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    element.classList.remove("over");
    take(event.dataTransfer.files);
  });
}

// What is dropped beside would otherwise be opened in place of this page.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => event.preventDefault());
addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) ask(event.clipboardData.files);
});

/** Let a file input that cannot be seen be opened by a button. */
function opening(id, input, take) {
  $(id).onclick = () => $(input).click();
  $(input).onchange = async () => {
    await take($(input).files);
    $(input).value = "";
  };
}

// About the network.

function tell(rows) {
  for (const [term, text] of rows) $("about").append(made("dt", {}, term), made("dd", {}, text));
}

function describe() {
  const { image_size: side, channels, about } = metadata;
  const colours = channels === 1 ? "grey" : "colour";
  tell([
    ["Sees", `${side} × ${side} pixels, ${colours}`],
    ["Size", `${about.params.toLocaleString("en")} parameters, ` +
      `${about.macs.toLocaleString("en")} multiply-accumulates a photo`],
    ...Object.entries(about.accuracy).map(([key, { accuracy, ci95, episodes, images }]) => [
      `Accuracy on ${key}`,
      `${accuracy.toFixed(2)} ± ${ci95.toFixed(2)} %, ` +
        (images ? `${images} images` : `${episodes} episodes`),
    ]),
    ["Made by", `sseg-nase ${about.version}${about.run ? `, run ${about.run}` : ""}`],
    ["Weights", metadata.weights],
  ]);
}

/** Whether this browser computes what was computed when the file was made; and how fast. */
async function check() {
  const { image_size: side, channels } = metadata;
  const count = side * side * channels;
  const pixels = Uint8Array.from({ length: count }, (_, n) => (n * n + 7 * n) % 251);
  const found = embedded(model, pixels);
  const largest = Math.max(...model.expected.map(Math.abs));
  const worst = Math.max(...model.expected.map((one, n) => Math.abs(one - found[n]))) / largest;
  if (!(worst <= TOLERANCE)) {
    const by = `by ${worst.toExponential(1)} of the largest feature`;
    complain([`In this browser the network computes something else (${by}), and its answers are ` +
      "wrong. Open the file in another browser."]);
  }
  // Three passes at least: in the first one the browser still compiles what it runs.
  const times = [];
  const spent = () => times.reduce((all, one) => all + one, 0);
  while (times.length < 3 || (times.length < 20 && spent() < 500)) {
    const began = performance.now();
    embedded(model, pixels);
    times.push(performance.now() - began);
    await pause(0);
  }
  times.sort((a, b) => a - b);
  const median = times[times.length >> 1];
  tell([["Here", `${median.toPrecision(2)} milliseconds a photo, without reading it`]]);
  return { worst, median };
}

opening("open-folder", "folder-input", openFolder);
opening("open-classes", "classes-input", ([file]) => file && openClasses(file));
opening("ask", "ask-input", ask);
dropping($("asking"), ask);
$("open-folder").hidden = !("webkitdirectory" in $("folder-input"));
$("start-camera").hidden = !navigator.mediaDevices?.getUserMedia;
$("add-class").onclick = () => addClass(freeName()).input.select();
$("save-classes").onclick = saveClasses;
$("start-camera").onclick = startCamera;
$("stop-camera").onclick = stopCamera;
$("take").onclick = takePicture;
$("clear").onclick = () => {
  for (const one of questions.splice(0)) one.element.remove();
  refresh();
  $("ask").focus();
};
$("threshold").oninput = () => {
  $("threshold-shown").textContent = `${$("threshold").value} %`;
  refresh();
};
addClass("class 1");
addClass("class 2");
describe();

// For scripts, and for the tests of this page.
globalThis.fewshot = {
  model,
  operations,
  tensor,
  embedded,
  normalized,
  probabilities,
  pixelsOf: async (file, how = metadata) => {
    const picture = await pictureOf(file);
    return pixelsOf(picture, picture.width, picture.height, how);
  },
  answers: () => questions.map(({ label, features }) => ({ label, ...answered(features) })),
  checked: check(),
};
