// What several views do with the page's elements.

/** Tell a screen reader. */
export function announce(text) {
  document.getElementById("said").textContent = text;
}

/** Enter sends the form, unless it chooses a word of an input method; Shift+Enter is a new line. */
export function sendsOnEnter(input, form) {
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}

/** Let a text field be as high as its text; returns what to call after changing that. */
export function growing(input) {
  const fit = () => {
    input.style.height = "auto";
    input.style.height = `${input.scrollHeight + input.offsetHeight - input.clientHeight}px`;
  };
  input.addEventListener("input", fit);
  return fit;
}

/** Copy a text, and say so on the button. */
export async function copyText(text, button) {
  const done = await toClipboard(text);
  const before = button.textContent;
  button.textContent = done ? "Copied" : "Not copied";
  announce(done ? "Copied." : "The browser did not let it be copied.");
  setTimeout(() => (button.textContent = before), 1500);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // there is no clipboard where the page is served by plain http from another machine
  }
}

function copyBySelection(text) {
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "unseen";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

/** A probability, as the reader sees it. */
export function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1%" : `${(100 * share).toFixed(share < 0.1 || share > 0.9 ? 1 : 0)}%`;
}
