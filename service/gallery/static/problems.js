// Buttons that try again, and the counts of the problems.

const token = document.querySelector('meta[name="csrf-token"]').content;

/** Publish a job for the image of a button. The button stays disabled if that worked. */
async function tryAgain(button) {
  const status = button.parentElement.querySelector(".again-status");
  button.disabled = true;
  status.textContent = "Publishing the job …";
  try {
    const response = await fetch(`/api/again/${encodeURIComponent(button.dataset.id)}`, {
      method: "POST",
      headers: { "X-CSRF-Token": token },
    });
    const { text, error } = await response.json();
    status.textContent = text ?? error;
    button.disabled = response.ok;
  } catch {
    status.textContent = "The gallery did not respond. Try it once more.";
    button.disabled = false;
  }
}

async function showCounts(url) {
  const note = document.getElementById("counts-note");
  note.textContent = "Counting …";
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(String(response.status));
    const { counts, documents } = await response.json();
    for (const node of document.querySelectorAll(".count")) {
      const count = counts[node.dataset.code];
      node.textContent = count.toLocaleString("en");
      node.parentElement.classList.toggle("none", count === 0);
    }
    note.textContent = documents === 0
      ? "The counts are at most a minute old."
      : `Counting cost ${documents} reads of Firestore. The counts are kept for a minute.`;
  } catch {
    note.textContent = "The counts failed to load.";
  }
}

for (const button of document.querySelectorAll("button.again")) {
  button.addEventListener("click", () => tryAgain(button));
}
if (document.getElementById("counts-note")) {
  showCounts(JSON.parse(document.getElementById("data").textContent).counts);
}
