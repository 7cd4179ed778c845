// The rating page in the browser, part 3 of 3: mouse, keyboard, the browser's own back button, and time in view.
const CHOICE_OF_KEY = {
  compare: {
    1: "a", a: "a", arrowleft: "a", 2: "b", b: "b", arrowright: "b", 3: "tie", t: "tie", 4: "both_bad", x: "both_bad",
    5: "skip", s: "skip",
  },
  rate: { s: "skip" },
  edit: { s: "skip" },
};
const TYPED = "input:not([type=radio]):not([type=checkbox]), textarea, select, [contenteditable]";

const again = () => (now.about ? next(now.rater || (now.accounts ? "" : remembered())) : enter());

function guide() {
  const shut = !part("guide").hidden;
  part("guide").hidden = shut;
  element.querySelector(".top [data-do=guide]").setAttribute("aria-expanded", String(!shut));
  (shut ? element.querySelector(".top [data-do=guide]") : part("guide").querySelector("button")).focus();
}

function raw() {
  if (element.querySelector("[data-do=raw]").hidden) return;
  now.raw = !now.raw;
  chooseTexts();
}

function reset() {
  part("correction").value = now.item.texts[0];
  nameCorrection();
  keepDraft();
  part("correction").focus();
}

function other() {
  const byKey = part("by-key").hidden;
  part("by-key").hidden = !byKey;
  part("by-name").hidden = part("by-password").hidden = byKey;
  part("other").textContent = byKey ? "Sign in with name and password" : "Sign in with a key";
  part(byKey ? "key" : "name").focus();
}

const DEEDS = { leave, back, undo, again, forward: again, guide, raw, reset, other, numbers };

// ------------------------------------------------------------ tabs, which the browser's back button walks

function openTab(tab, walked) {
  if (tab === now.view || !now.rater) return;
  if (!walked) history.pushState({ tab }, "");
  if (tab === "item") {
    if (now.item) look("item");
    else next(now.accounts ? "" : now.rater);
  } else {
    complain("");
    look(tab);
    if (tab === "admin") numbers();
    (tab === "admin" ? part("admin-head") : part("own")).focus({ preventScroll: true });
  }
}

function onWalk(event) {
  if (!element.isConnected) return window.removeEventListener("popstate", onWalk);
  return openTab((event.state && event.state.tab) || "item", true);
}
window.addEventListener("popstate", onWalk);

// ------------------------------------------------------------ mouse

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !element.contains(button)) return;
  if (button.dataset.choice) { if (event.detail < 2) rate(button.dataset.choice); }
  else if (button.dataset.tab) { if (!now.busy) openTab(button.dataset.tab); }
  else if (button.dataset.do) DEEDS[button.dataset.do]();
});

element.addEventListener("submit", (event) => {
  event.preventDefault();
  if (event.target.dataset.view === "ask") askBoth();
  else signIn();
});

part("correction").addEventListener("input", nameCorrection);
element.addEventListener("input", keepDraft);

// ------------------------------------------------------------ keyboard

const SUBMIT = { rate: "scored", edit: "edited" };

function submitAll() {
  if (now.view === "ask") askBoth();
  else if (now.view === "item" && SUBMIT[now.about.kind]) rate(SUBMIT[now.about.kind]);
}

// A digit answers the question that has the focus, else the first open one, and goes on to the next.
function score(digit) {
  const sets = every("[data-question]");
  const open = (set) => !set.querySelector("[type=radio]:checked");
  const set = sets.find((s) => s.contains(document.activeElement)) || sets.find(open) || sets[sets.length - 1];
  if (!set) return;
  const chosen = set.querySelector(`[type=radio][value="${digit}"]`);
  chosen.checked = true;
  const following = sets[sets.indexOf(set) + 1];
  keepDraft();
  (following ? following.querySelector("[type=radio]:checked, [type=radio]") : chosen).focus();
}

function onLetter(key, event) {
  const kind = now.about ? now.about.kind : "compare";
  const choice = CHOICE_OF_KEY[kind][key];
  if (choice && now.view === "item" && !(key.startsWith("arrow") && event.target.closest("input"))) rate(choice);
  else if (kind === "rate" && now.view === "item" && key >= "1" && key <= "5" && key.length === 1) score(key);
  else if (key === "e" && kind === "edit" && now.view === "item") part("correction").focus();
  else if (key === "z") back();
  else if (key === "u") undo();
  else if (key === "r") raw();
  else if (key === "g" && now.about && now.about.guidelines && now.rater) guide();
  else if (key === "n" && now.item && (now.item.given || now.item.undone)) again();
  else return;
  event.preventDefault();
}

function onKey(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  const key = event.key.toLowerCase(), on = event.target;
  if (event.isComposing) return undefined;
  const send = key === "enter" && (event.ctrlKey || event.metaKey);
  if (event.repeat) { // a key that is held down answers one item, also when it presses a focused button
    const typing = on.closest && on.closest(TYPED);
    if (send || (!typing && (key === "enter" || key === " " || /^([a-z1-5]|arrow(left|right))$/.test(key)))) event.preventDefault();
    return undefined;
  }
  if (send) { event.preventDefault(); return submitAll(); } // from inside a text box too: it types nothing there
  if (on.closest && on.closest(TYPED)) {
    if (key === "escape" && now.view === "item") part("question").focus(); // letters are keys again
    return undefined;
  }
  if (event.ctrlKey || event.altKey || event.metaKey) return undefined;
  return onLetter(key, event);
}
document.addEventListener("keydown", onKey);

// ------------------------------------------------------------ how long an item was in view

const dwell = { ms: 0, since: 0 };

function watchDwell() {
  dwell.ms = 0;
  dwell.since = document.hidden ? 0 : performance.now();
}

function dwelt() {
  const open = dwell.since && now.view === "item" ? performance.now() - dwell.since : 0;
  return Math.round(dwell.ms + open);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && dwell.since) {
    dwell.ms += performance.now() - dwell.since;
    dwell.since = 0;
  } else if (!document.hidden) dwell.since = performance.now();
});

// The bar lies over the page's end: the page keeps as much room below as the bar takes.
new ResizeObserver(() => desk.style.setProperty("--bar", `${part("bar").offsetHeight}px`)).observe(part("bar"));

look("");
enter();
