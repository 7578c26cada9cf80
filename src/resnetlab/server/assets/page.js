"use strict";

const TOP = 5;
const place = (id) => document.getElementById(id);
let served = null; // what /model answers
const loaded = fetch("model").then((answer) => answer.json()).then(describe, () => complain("The server does not answer."));

function describe(model) {
  served = model;
  document.title = `Classify images: ${model.folder}`;
  const classes = model.classes.length === 1 ? "1 class" : `${model.classes.length.toLocaleString("en")} classes`;
  place("model").textContent = `${model.model} of ${model.folder}: ${classes}, ${model.image_size}×${model.image_size} pixels, ${model.engine} ${model.precision}`;
  place("limits").textContent = `Up to ${model.max_megabytes} MB and ${model.max_megapixels} megapixels each.`;
  if (!model.overlays) {
    place("overlays").hidden = false;
    place("overlays").textContent = `No class activation maps: ${model.no_overlays}.`;
  }
}

function complain(text) {
  const line = document.createElement("p");
  line.textContent = text;
  place("alert").append(line);
}

// One request for each image, one after the other: answers come in order, and a bad image concerns no other.
let queue = loaded;
function add(files) {
  place("alert").replaceChildren();
  for (const file of files) queue = queue.then(() => classify(file));
}

async function classify(file) {
  const name = file.name || "pasted image";
  place("status").textContent = `Classifying ${name}`;
  if (served && file.size > served.max_megabytes * 1e6) {
    complain(`${name}: more than ${served.max_megabytes} MB.`);
    return;
  }
  const form = new FormData();
  form.append("images", file, name);
  try {
    const answer = await fetch(`predict?top=${TOP}&overlay=${Boolean(served?.overlays)}`, { method: "POST", body: form });
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      const detail = typeof content.detail === "string" ? content.detail : `status ${answer.status}`;
      complain(detail.startsWith(name.slice(0, 80)) ? detail : `${name}: ${detail}`);
      place("status").textContent = "";
      return;
    }
    show(file, name, content.predictions[0]);
  } catch {
    complain(`${name}: the server does not answer.`);
  }
}

function show(file, name, prediction) {
  const card = place("answer").content.cloneNode(true).firstElementChild;
  const [first] = prediction.classes;
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  card.querySelector("h2").textContent = `${name}: ${first.class}, ${percent(first.probability)}`;
  const sent = card.querySelector(".sent");
  sent.alt = name;
  sent.onload = () => URL.revokeObjectURL(sent.src);
  sent.onerror = () => { sent.parentElement.hidden = true; }; // a format that the browser does not show
  sent.src = URL.createObjectURL(file);
  const overlay = card.querySelector(".overlay");
  if (prediction.overlay) {
    overlay.src = prediction.overlay;
    overlay.alt = `where the evidence for ${first.class} is in ${name}`;
  } else {
    overlay.parentElement.remove();
  }
  for (const each of prediction.classes) {
    const row = card.querySelector("tbody").insertRow();
    const heading = document.createElement("th");
    heading.scope = "row";
    heading.textContent = each.class;
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.width = `${100 * each.probability}%`;
    row.append(heading);
    row.insertCell().append(percent(each.probability), bar);
  }
  place("answers").prepend(card);
  place("status").textContent = `${name}: ${prediction.classes.map((each) => `${each.class} ${percent(each.probability)}`).join(", ")}`;
}

for (const id of ["files", "camera"]) {
  place(id).addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
addEventListener("dragover", (event) => { event.preventDefault(); place("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) place("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault(); // otherwise the browser leaves the page for the file
  place("drop").classList.remove("over");
  if (event.dataTransfer.files.length) add([...event.dataTransfer.files]);
  else complain("What was dropped is not a file: save the image first, or copy and paste it.");
});
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) add(files);
});
