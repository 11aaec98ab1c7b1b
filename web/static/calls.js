// The list of calls: what is being analysed is kept fresh, recordings can be dropped on it.

import { renewParts } from "./renew.js";
import { reasonOf } from "./post.js";
import "./times.js";

const $ = (id) => document.getElementById(id);
const POLL_MS = 3000;

// ---- what is being analysed

async function look() {
  if (document.querySelector("[data-processing]") && !document.hidden) await renew();
  setTimeout(look, POLL_MS);
}

const renew = () => renewParts().catch(() => {});

setTimeout(look, POLL_MS);

// ---- upload

const form = $("upload");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sendAll([...$("file").files]);
});

for (const type of ["dragenter", "dragover"]) {
  form.addEventListener(type, (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
}
form.addEventListener("dragleave", (event) => {
  if (!form.contains(event.relatedTarget)) form.classList.remove("over");
});
form.addEventListener("drop", (event) => {
  event.preventDefault();
  form.classList.remove("over");
  sendAll([...event.dataTransfer.files]);
});

/** Send files one after the other; a single one leads to its call. */
async function sendAll(files) {
  const button = form.querySelector("button");
  button.disabled = true;
  const answers = [];
  for (const file of files) answers.push(await send(file));
  button.disabled = false;
  form.reset();
  if (files.length === 1 && answers[0]) location.assign(await pageOf(answers[0].audio_id));
  else await renew();
}

/** Send one file; returns the answer, or null where it was refused. */
async function send(file) {
  const item = document.createElement("li");
  const name = document.createElement("bdi");
  const bar = document.createElement("progress");
  const said = document.createElement("span");
  name.textContent = file.name;
  bar.max = 100;
  bar.setAttribute("aria-label", `Upload of ${file.name}`);
  item.append(name, " ", bar, " ", said);
  $("uploads").append(item);
  try {
    const most = Number(form.dataset.maxMb);
    if (file.size > most * 1e6) throw new Error(`It is larger than ${most} MB.`);
    const answer = await post(file, (share) => {
      bar.value = 100 * share;
    });
    said.textContent = "Received.";
    return answer;
  } catch (error) {
    item.classList.add("failed");
    said.textContent = error.message;
    return null;
  } finally {
    bar.remove();
  }
}

/** XMLHttpRequest, because fetch does not tell how much has been sent. */
function post(file, progress) {
  return new Promise((resolve, reject) => {
    const body = new FormData();
    body.append("file", file);
    const request = new XMLHttpRequest();
    request.open("POST", "/api/upload/");
    request.setRequestHeader("Accept", "application/json");
    request.upload.addEventListener("progress", (event) => progress(event.loaded / event.total));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(new Error(reasonOf(request.responseText, request.status)));
    });
    request.addEventListener("error", () => reject(new Error("The connection broke: nothing was stored.")));
    request.send(body);
  });
}

async function pageOf(audioId) {
  const answer = await fetch(`/api/audio/${encodeURIComponent(audioId)}/`);
  return `/calls/${encodeURIComponent((await answer.json()).call_id)}`;
}
