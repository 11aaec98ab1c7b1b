// Which kinds of marks the transcript shows; the choice holds for this page only.

const hidden = new Set();

/** Put the choice into effect; call it again after the transcript was replaced. */
export function showMarks() {
  const list = document.getElementById("transcript");
  for (const button of document.querySelectorAll("[data-shows]")) {
    const isShown = !hidden.has(button.dataset.shows);
    button.setAttribute("aria-pressed", String(isShown));
    list.classList.toggle(`without-${button.dataset.shows}`, !isShown);
  }
}

document.addEventListener("click", (event) => {
  const kind = event.target.closest("[data-shows]")?.dataset.shows;
  if (!kind) return;
  if (!hidden.delete(kind)) hidden.add(kind);
  showMarks();
});
