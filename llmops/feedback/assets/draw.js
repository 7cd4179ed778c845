// The rating page in the browser, part 1 of 3: what is drawn. Gradio runs the three parts as one script, once, with
// `element` (the page's HTML) and `server` (the functions of page.py). Texts of prompts and answers become text nodes;
// Markdown comes as HTML that the server made harmless, and only the tags and classes known here are kept of it.
const ROLES = { system: "System prompt", user: "Prompt", assistant: "Answer before", tool: "Tool" };
const WORDS = {
  a: "A better", b: "B better", tie: "Tie", both_bad: "Both bad", skip: "Skip", rated: "Scores", edited: "Correction",
  kept: "Kept as it is",
};
const SETTLE_MS = 400; // a second click or key press that was meant for the item before is not taken for this one
const TAGS = new Set(
  "P PRE CODE EM STRONG S UL OL LI BLOCKQUOTE HR BR TABLE THEAD TBODY TR TH TD DIV SPAN".split(" "));
const CLASSES = new Set("link address image heading wide right center".split(" "));

const part = (name) => element.querySelector(`[data-part="${name}"]`);
const every = (selector) => [...element.querySelectorAll(selector)];
const desk = element.querySelector(".desk");
const now = { rater: "", about: null, item: null, view: "", busy: false, settled: false, raw: false, key: null };
let settling = 0;

// ------------------------------------------------------------ texts

function make(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function cleaned(html) {
  const copy = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return document.createTextNode(node.data);
    if (node.nodeType !== Node.ELEMENT_NODE || !TAGS.has(node.tagName)) {
      return document.createTextNode(node.textContent || "");
    }
    const made = make(node.tagName, CLASSES.has(node.className) ? node.className : "", ...[...node.childNodes].map(copy));
    if (made.className === "heading") {
      made.setAttribute("role", "heading");
      made.setAttribute("aria-level", String(parseInt(node.getAttribute("aria-level"), 10) || 6));
    }
    if (node.tagName === "OL" && node.hasAttribute("start")) made.start = parseInt(node.getAttribute("start"), 10) || 1;
    return made;
  };
  return [...new DOMParser().parseFromString(html, "text/html").body.childNodes].map(copy);
}

function markPhrases(box, phrases) {
  for (const phrase of phrases) {
    const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const at = node.data.indexOf(phrase);
      if (at < 0 || node.parentElement.tagName === "MARK") continue;
      const found = node.splitText(at);
      found.splitText(phrase.length);
      found.replaceWith(make("mark", "", phrase));
      break;
    }
  }
}

function drawTwice(plain, rich, { text, html, named = [] }) {
  plain.textContent = text;
  markPhrases(plain, named);
  rich.replaceChildren(...(html === null ? [] : cleaned(html)));
  markPhrases(rich, named);
  rich.dataset.drawn = html === null ? "" : "1";
}

// Every text has its plain box and, where it is Markdown, its rich one: the rater chooses which is seen.
function chooseTexts() {
  for (const rich of every(".rich[data-drawn]")) {
    const shown = rich.dataset.drawn === "1" && !now.raw;
    rich.hidden = !shown;
    rich.previousElementSibling.hidden = shown;
  }
  const button = element.querySelector("[data-do=raw]");
  button.hidden = now.view !== "item" || !every('.rich[data-drawn="1"]').length;
  button.setAttribute("aria-pressed", String(now.raw));
  for (const box of every(".wide, .prompt")) {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0; // for the arrow keys
    else box.removeAttribute("tabindex");
  }
}

// What reads as code keeps its columns; answers that are compared look alike.
const CODE = /^( {2,}|\t)\S|^(def|class|import|from|function|const|let|public|#include|SELECT)\b|[;{]$/m;

function setType(boxes) {
  const code = boxes.some((box) => CODE.test(box.textContent));
  for (const box of boxes) box.classList.toggle("prose", !code);
}

function drawMessage(message, alone) {
  const title = make("h2", "", ROLES[message.role] || message.role);
  const text = make("div", "text"), rich = make("div", "rich");
  text.dir = rich.dir = "auto";
  drawTwice(text, rich, { text: message.content, html: message.html });
  setType([text]);
  return make("div", alone ? "message" : `message ${message.role}`, title, text, rich);
}

function drawAnswer(name, { text, html, named }) {
  drawTwice(part(`text-${name}`), part(`rich-${name}`), { text, html, named });
  part(`named-${name}`).hidden = !named.length;
  const said = named.map((phrase) => `“${phrase}”`).join(", ");
  part(`named-${name}`).textContent = named.length ? `It says who wrote it: ${said}. Judge the rest.` : "";
}

// ------------------------------------------------------------ the parts of the page

function say(text, more) {
  part("status").replaceChildren(...(text ? [make("b", "", text), more ? ` ${more}` : ""] : []));
}

function complain(text) {
  part("error-text").textContent = text || "";
  part("error").hidden = !text;
}

function look(view) {
  now.view = view;
  for (const box of every("[data-view]")) box.hidden = box.dataset.view !== view;
  const signed = Boolean(now.rater) && view !== "name";
  part("top").hidden = !signed;
  part("choices").hidden = view !== "item";
  part("progress").hidden = !part("standing").textContent || view === "admin";
  const about = now.about || {};
  for (const tab of every("[data-tab]")) {
    tab.hidden = (tab.dataset.tab === "ask" && !about.typed) || (tab.dataset.tab === "admin" && !about.admin);
    const here = tab.dataset.tab === view || (tab.dataset.tab === "item" && view === "done");
    if (here) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  part("tabs").hidden = !about.typed && !about.admin;
  element.querySelector(".top [data-do=guide]").hidden = !about.guidelines;
  chooseTexts();
}

function lock() {
  const shut = now.busy || !now.settled || !now.item;
  desk.setAttribute("aria-busy", String(now.busy));
  for (const button of every("[data-choice]")) button.setAttribute("aria-disabled", String(shut));
}

function settle() {
  now.settled = false;
  clearTimeout(settling);
  settling = setTimeout(() => { now.settled = true; lock(); }, SETTLE_MS);
}

function drawStanding({ n_items, n_full, n_mine }) {
  const left = Math.max(0, n_items - n_mine);
  part("standing").textContent = n_items
    ? `${n_mine} of ${n_items} rated by you, ${left} left, ${n_full} done in all` : `${n_mine} rated by you`;
  part("fill").style.width = `${n_items ? Math.min(100, (100 * n_mine) / n_items) : 0}%`;
}

function drawAbout(about) {
  now.about = about;
  desk.dataset.kind = about.kind;
  part("question").textContent = about.question;
  part("guide-text").replaceChildren(...cleaned(about.guidelines));
  part("second").hidden = about.kind !== "compare";
  part("pair").classList.toggle("single", about.kind !== "compare");
  part("letter-a").hidden = about.kind !== "compare";
  part("title-a").textContent = about.kind === "compare" ? "Answer A" : "Answer";
  part("edit").hidden = about.kind !== "edit";
  part("questions").hidden = about.kind !== "rate";
  part("tags").hidden = !about.tags.length;
  part("chips").replaceChildren(...about.tags.map(chip));
  part("questions").replaceChildren(...(about.kind === "rate" ? about.questions.map(drawQuestion) : []));
  for (const button of every("[data-choice]")) {
    button.hidden = Boolean(button.dataset.for) && button.dataset.for !== about.kind;
  }
  part("choices").dataset.kind = about.kind;
}

function chip(tag) {
  const box = make("input");
  box.type = "checkbox";
  box.dataset.tag = tag;
  return make("label", "chip", box, make("span", "", tag));
}

function drawQuestion(question) {
  const steps = question.scale.map((word, i) => {
    const box = make("input");
    box.type = "radio";
    box.name = `llmops-${question.id}`;
    box.value = String(i + 1);
    return make("label", "step", box, make("span", "", make("b", "", String(i + 1)), ` ${word}`));
  });
  const legend = make("legend", "", question.text, ...(question.required ? [] : [make("span", "", " optional")]));
  const set = make("fieldset", "asked", legend, make("div", "scale", ...steps));
  if (question.tags.length) set.append(make("div", "chips", ...question.tags.map(chip)));
  set.dataset.question = question.id;
  return set;
}

// ------------------------------------------------------------ one item

function fill(shown) {
  const given = shown || draftOf(now.item.showing);
  for (const box of every("[data-tag]")) box.checked = Boolean(given) && given.tags.includes(box.dataset.tag);
  for (const box of every("[data-question] [type=radio]")) {
    const { question } = box.closest("[data-question]").dataset;
    box.checked = Boolean(given) && given.scores[question] === Number(box.value);
  }
  part("note").value = (given && given.note) || "";
  part("correction").value = (given && given.edit) || now.item.texts[0];
}

function drawItem(item, given, undone) {
  const typed = item.typed === true;
  now.item = { showing: item.showing, given, undone, typed, texts: item.answers.map((answer) => answer.text) };
  now.key = null;
  part("prompt").replaceChildren(...item.messages.map((m) => drawMessage(m, item.messages.length === 1)));
  part("prompt").scrollTop = 0;
  item.answers.forEach((answer, i) => drawAnswer("ab"[i], answer));
  setType(item.answers.map((_, i) => part(`text-${"ab"[i]}`)));
  fill(given);
  part("review").hidden = !given && !undone;
  if (undone) part("review-text").textContent = `You took back #${undone}. Answer it again, or leave it for later.`;
  if (given) {
    part("review-text").textContent =
      `You answered this one: ${WORDS[given.choice]} (#${given.number}). Another answer replaces it.`;
  }
  for (const button of every("[data-choice]")) {
    const said = given && given.choice === "kept" ? "edited" : given && given.choice;
    if (given) button.setAttribute("aria-pressed", String(button.dataset.choice === said));
    else button.removeAttribute("aria-pressed");
  }
  nameCorrection();
  settle();
  look("item");
  watchDwell();
  window.scrollTo(0, 0);
  part("question").focus({ preventScroll: true });
}

function nameCorrection() {
  if (now.about.kind !== "edit") return;
  const same = now.item && part("correction").value === now.item.texts[0];
  element.querySelector("[data-choice=edited]").firstChild.data = same ? "Keep as it is " : "Save correction ";
  part("edit-hint").textContent = same ? "Change what is wrong, keep what is right." : "Changed; not saved yet.";
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

// ------------------------------------------------------------ what was begun, kept in this tab over a reload

const DRAFT_KEY = "llmops.draft";

function keepDraft() {
  if (!now.item || now.item.given || now.view !== "item") return;
  const { showing } = now.item;
  try { sessionStorage.setItem(DRAFT_KEY, JSON.stringify({ showing, ...filled() })); } catch { /* private mode */ }
}

function draftOf(showing) {
  try {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT_KEY) || "null");
    return draft && draft.showing === showing ? draft : null;
  } catch { return null; }
}

function filled() {
  const tags = every("[data-tag]").filter((box) => box.checked).map((box) => box.dataset.tag);
  const scores = {};
  for (const box of every("[data-question] [type=radio]:checked")) {
    scores[box.closest("[data-question]").dataset.question] = Number(box.value);
  }
  const edit = now.about.kind === "edit" ? part("correction").value : null;
  return { tags, scores, note: part("note").value, edit };
}
