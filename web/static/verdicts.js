// What people say about the categories, and "Run again": small posts, answered in words.

import { post } from "./post.js";

const $ = (id) => document.getElementById(id);
let selected = "";

document.addEventListener("selectionchange", () => {
  const selection = getSelection();
  const isInside = selection.anchorNode && $("transcript")?.contains(selection.anchorNode);
  if (isInside && !selection.isCollapsed) selected = String(selection).trim().slice(0, 500);
});

document.addEventListener("click", async (event) => {
  const verdict = event.target.closest("[data-verdict]");
  const again = event.target.closest("[data-rerun]");
  if (verdict) await judge(verdict);
  else if (again) await rerun(again);
  else if (event.target.closest("#missing-part > summary") && selected) $("missing-words").value ||= selected;
});

document.addEventListener("submit", async (event) => {
  if (event.target.id !== "missing") return;
  event.preventDefault();
  const option = $("missing-category").selectedOptions[0];
  const texts = [$("missing-words").value.trim()].filter(Boolean);
  await correct(event.target, option.dataset.taxonomy, option.value, "missing", texts);
});

async function judge(button) {
  const item = button.closest(".category");
  const texts = [...item.querySelectorAll(".evidence q")].map((each) => each.textContent);
  const { taxonomy, category } = item.dataset;
  if (!(await correct(item, taxonomy, category, button.dataset.verdict, texts))) return;
  for (const each of item.querySelectorAll("[data-verdict]")) {
    each.setAttribute("aria-pressed", String(each === button));
  }
}

async function correct(place, taxonomy, category, verdict, texts) {
  const said = place.querySelector(".said");
  const url = `/api/audio/${encodeURIComponent($("categories").dataset.audio)}/corrections`;
  const error = await post(url, { taxonomy, category, verdict, texts });
  said.textContent = error ?? "Noted: an example for the next analyses.";
  said.classList.toggle("failed", error !== null);
  return error === null;
}

async function rerun(button) {
  const said = button.parentElement.querySelector(".said");
  button.disabled = true;
  const error = await post(`/api/audio/${encodeURIComponent(button.dataset.rerun)}/rerun`, {});
  said.textContent = error ?? "It runs again.";
  button.disabled = error === null;
  if (error === null) document.dispatchEvent(new Event("rerun"));
}
