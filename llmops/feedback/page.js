// The rating page in the browser: draws what the server sends as plain text, sends what the rater answers. Gradio runs
// this once with `element` (the page's HTML) and `server` (next_item, rate_item, last_item of page.py). An answer names
// the showing that is on the screen, so a late or repeated one never counts for another item.
const NAME_KEY = "llmops.rater";
const SETTLE_MS = 400; // a second click or key press that was meant for the item before is not taken for this one
const SLOW_MS = 4000;
const WORDS = { a: "A better", b: "B better", tie: "Tie", both_bad: "Both bad", skip: "Skip" };
const CHOICE_OF_KEY = {
  1: "a", a: "a", arrowleft: "a", 2: "b", b: "b", arrowright: "b",
  3: "tie", t: "tie", 4: "both_bad", x: "both_bad", 5: "skip", s: "skip",
};
const ROLES = { system: "System prompt", user: "Prompt", assistant: "Answer before", tool: "Tool" };

const part = (name) => element.querySelector(`[data-part="${name}"]`);
const desk = element.querySelector(".desk");
const choices = [...element.querySelectorAll("[data-choice]")];
const now = { rater: "", item: null, view: "", busy: false, settled: false };
let settling = 0;

// ------------------------------------------------------------ drawing

function say(text, more) {
  const strong = document.createElement("b");
  strong.textContent = text;
  part("status").replaceChildren(...(text ? [strong, more ? ` ${more}` : ""] : []));
}

function complain(text) {
  part("error-text").textContent = text || "";
  part("error").hidden = !text;
}

function look(view) {
  now.view = view;
  for (const box of element.querySelectorAll("[data-view]")) box.hidden = box.dataset.view !== view;
  part("choices").hidden = view !== "item";
  part("who").hidden = view === "name" || !now.rater;
  part("progress").hidden = view === "name" || !part("standing").textContent;
}

function lock() {
  const shut = now.busy || !now.settled;
  desk.setAttribute("aria-busy", String(now.busy));
  for (const button of choices) button.setAttribute("aria-disabled", String(shut));
}

function settle() {
  now.settled = false;
  clearTimeout(settling);
  settling = setTimeout(() => { now.settled = true; lock(); }, SETTLE_MS);
}

function drawStanding(standing) {
  const { n_items, n_full, n_mine } = standing;
  part("standing").textContent = `${n_mine} of ${n_items} rated by you, ${n_full} done in all`;
  part("fill").style.width = `${n_items ? (100 * n_mine) / n_items : 0}%`;
}

function drawMessage(message, alone) {
  const title = document.createElement("h2");
  title.textContent = ROLES[message.role] || message.role;
  const text = document.createElement("div");
  text.className = "text";
  text.dir = "auto";
  text.textContent = message.content;
  const box = document.createElement("div");
  box.className = alone ? "message" : `message ${message.role}`;
  box.append(title, text);
  return box;
}

function drawItem(item, given) {
  now.item = { showing: item.showing, given };
  const prompt = part("prompt");
  prompt.replaceChildren(...item.messages.map((m) => drawMessage(m, item.messages.length === 1)));
  prompt.scrollTop = 0;
  part("text-a").textContent = item.texts[0];
  part("text-b").textContent = item.texts[1];
  part("review").hidden = !given;
  if (given) {
    part("review-text").textContent =
      `You answered this one: ${WORDS[given.choice]} (#${given.number}). Another answer replaces it.`;
  }
  for (const button of choices) {
    if (given) button.setAttribute("aria-pressed", String(button.dataset.choice === given.choice));
    else button.removeAttribute("aria-pressed");
  }
  settle();
  look("item");
  window.scrollTo(0, 0);
  part("question").focus({ preventScroll: true });
}

function drawDone({ n_items, n_full, n_mine }) {
  now.item = null;
  const all = n_full >= n_items;
  part("done-head").textContent = all ? "Thank you. Every item is done." : "Thank you. Nothing is left for you now.";
  part("done-text").textContent = all
    ? `${n_items} items are rated; ${n_mine} answers are yours, and all of them are saved.`
    : `All ${n_mine} answers of yours are saved. Of ${n_items} items ${n_full} are done; others are being rated, and ` +
      "come back here when they are left unanswered.";
  look("done");
  part("done-head").focus({ preventScroll: true });
}

function draw(reply) {
  complain(reply.error);
  if (reply.rater) {
    now.rater = reply.rater;
    part("rater").textContent = reply.rater;
    remember(reply.rater);
  }
  if (reply.question) part("question").textContent = reply.question;
  if (reply.standing) drawStanding(reply.standing);
  if (reply.item) drawItem(reply.item, reply.given);
  else if (reply.standing && !reply.error) drawDone(reply.standing);
  else look(now.rater ? now.view === "name" ? "" : now.view : "name");
}

// ------------------------------------------------------------ asking

async function ask(call, lost) {
  if (now.busy) return null;
  now.busy = true;
  lock();
  const slow = setTimeout(() => say("Waiting for the server", "reload the page if this stays"), SLOW_MS);
  const reply = await call();
  clearTimeout(slow);
  now.busy = false;
  if (reply) return reply;
  say("");
  complain(lost);
  lock();
  return null;
}

async function next(rater) {
  const reply = await ask(
    () => server.next_item({ rater }),
    "The rating server cannot be reached. Nothing that was saved is lost; try again when it is back.",
  );
  if (reply) { say(""); draw(reply); lock(); }
  else look(now.view || (now.rater ? "" : "name"));
}

async function rate(choice) {
  if (now.view !== "item" || now.busy || !now.settled) return;
  const { showing } = now.item;
  complain("");
  say("");
  const reply = await ask(
    () => server.rate_item({ rater: now.rater, showing, choice }),
    "The rating server did not confirm your answer. Give it again when the server is back; it counts once.",
  );
  if (!reply) return;
  if (reply.saved) {
    say(`saved #${reply.saved}`, WORDS[choice]);
    now.item = null; // what is on the screen is answered, whatever comes after it
  }
  draw(reply.saved || !reply.error ? reply : { ...reply, error: `Not saved: ${reply.error}` });
  if (reply.saved && !reply.item && reply.error) look("");
  lock();
}

async function back() {
  if (!now.rater || now.view === "name" || now.busy) return;
  const before = now.item && now.item.given ? now.item.given.number : null;
  const reply = await ask(
    () => server.last_item({ rater: now.rater, before }),
    "The rating server cannot be reached. Try again when it is back.",
  );
  if (!reply) return;
  say("");
  if (reply.item) draw(reply);
  else if (reply.error) complain(reply.error);
  else say("This is your first answer:", "there is none before it.");
  lock();
}

// ------------------------------------------------------------ the name, kept in this browser

function remember(rater) {
  try { localStorage.setItem(NAME_KEY, rater); } catch { /* private mode: asked again after a reload */ }
}

function remembered() {
  try { return localStorage.getItem(NAME_KEY) || ""; } catch { return ""; }
}

function rename() {
  if (now.busy) return;
  part("name").value = now.rater;
  now.rater = "";
  now.item = null;
  say("");
  complain("");
  look("name");
  part("name").select();
}

// ------------------------------------------------------------ mouse and keyboard

const again = () => next(now.rater || remembered());
const DEEDS = { rename, back, again, forward: again };

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !element.contains(button)) return;
  if (button.dataset.choice) { if (event.detail < 2) rate(button.dataset.choice); }
  else if (button.dataset.do) DEEDS[button.dataset.do]();
});

element.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  next(part("name").value);
});

function onKey(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  const on = event.target;
  if (on.closest && on.closest("input, textarea, select, [contenteditable]")) return;
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const key = event.key.toLowerCase();
  if (event.repeat) { // a key that is held down answers one item, also when it presses a focused button
    if (key in CHOICE_OF_KEY || key === "enter" || key === " ") event.preventDefault();
    return;
  }
  if (key in CHOICE_OF_KEY && now.view === "item") { event.preventDefault(); rate(CHOICE_OF_KEY[key]); }
  else if (key === "z") back();
  else if (key === "n" && now.item && now.item.given) again();
}
document.addEventListener("keydown", onKey);

// The bar lies over the page's end: the page keeps as much room below as the bar takes.
new ResizeObserver(() => desk.style.setProperty("--bar", `${part("bar").offsetHeight}px`)).observe(part("bar"));

look("");
if (remembered()) next(remembered());
else { look("name"); part("name").focus(); }
